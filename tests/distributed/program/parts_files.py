"""Checks of shardState: checkpoints of sharded state, and states of other libraries."""

import itertools
import os
import shutil
import tempfile

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, convert
from puzzlelib_rmsprop.checkpoint.mean_square import MeanSquare
from puzzlelib_rmsprop.errors import CheckpointError, GroupError, SetupError, VariableError
from tests.distributed.program.group import RANK, SIZE, WORLD, check, equal, group, leave
from tests.distributed.program.nets import SHAPES, content, put, some_net
from tests.distributed.program.pairs import OPTIONS, in_step, pair, whole_state


@check
def checkpoints_of_parts_load_anywhere():
    """Saved by a group, loaded by one process in either mode and by other groups, and back; bit for bit."""
    folder = WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    for name, options in OPTIONS.items():
        path, again = os.path.join(folder, f"{name}.hdf"), os.path.join(folder, f"{name} again.hdf")
        with group() as node:
            made = pair(node, **options)
            in_step(*made)
            (optimizer, net), alone = made
            optimizer.save(path if RANK == 0 else None)
            expected = whole_state(optimizer)
            parameters = {n: content(net.getVar(n).data) for n in SHAPES}
            with h5py.File(path) as file:  # the same file as from a single process
                alone[0].save(again + str(RANK))
                with h5py.File(again + str(RANK)) as other:
                    assert sorted(file[".states"]) == sorted(other[".states"])
                    for key in other[".states"]:
                        assert file[".states"][key].shape == other[".states"][key].shape, key
                        assert np.array_equal(file[".states"][key][()], other[".states"][key][()]), key
            WORLD.Barrier()
            for mode in (False, True):  # a single process without a group
                ((single, there), _) = pair(None, False, **options) if mode else (local(**options), None)
                for n in SHAPES:
                    put(there.getVar(n).data, parameters[n])
                single.load(path)
                for slot in single._variables:
                    for entity, array in slot.state.items():
                        key = slot.dtype.name, entity
                        whole = expected[key][offsets(alone[0], slot)]
                        assert equal(content(array).reshape(-1), whole), (name, mode, slot.names, entity)
                assert single.t == 3
        # groups of another size, each on its own
        for sizes in ([0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 2, 3]):
            with group(comm=WORLD.Split(sizes[RANK])) as node:
                sharded = pair(node, **options)[0][0]
                sharded.load(path)
                assert (sharded.t, sharded.learnRate) == (3, 0.01)
                target = f"{again}.{sizes[RANK]}.{node.gridsize}"
                sharded.save(target)
                node.barrier()
                with h5py.File(path) as file, h5py.File(target) as other:
                    for key in file[".states"]:
                        assert np.array_equal(file[".states"][key][()], other[".states"][key][()]), (name, key)
        # a group that loads its own file continues as if it had not stopped
        with group() as node:
            ((fresh, there), _) = pair(node, **options)
            for n in SHAPES:
                put(there.getVar(n).data, parameters[n])
            fresh.load(path)
            in_step((fresh, there), alone)
    WORLD.Barrier()
    if RANK == 0:
        shutil.rmtree(folder)


def local(**options):
    net = some_net()
    optimizer = RMSPropGraves(learnRate=0.01, **options)
    optimizer.setupOn(net)
    return optimizer, net


def offsets(optimizer, slot):
    """Returns where a variable is in the flat state of ``optimizer``."""
    offset = next(other.offset for other in optimizer._variables if other.names == slot.names)
    return slice(offset, offset + slot.size)


@check
def a_failed_save_or_load_fails_everywhere():
    folder = WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    for sharded in (False, True):
        _a_failed_save_or_load(folder, sharded)
    if RANK == 0:
        shutil.rmtree(folder)


def _a_failed_save_or_load(folder, sharded):
    with group() as node:
        ((optimizer, _), _) = pair(node, sharded)
        path = os.path.join(folder, "run.hdf")
        if sharded or RANK == 0:
            optimizer.save(path)
        node.barrier()
        for attempt, wrong in (
            (optimizer.save if sharded else optimizer.load, os.path.join(folder, "missing", "run.hdf")),
            (optimizer.load, os.path.join(folder, "missing.hdf") if RANK == SIZE - 1 else path),
        ):
            with pytest.raises(CheckpointError, match="missing"):
                attempt(wrong)
        optimizer.update()
        WORLD.Barrier()
        # one process has another file
        own = f"{path}.{RANK}"
        with h5py.File(path) as source, h5py.File(own, "w") as target:
            for key in source:
                source.copy(key, target)
        for learnRate in (0.02, 0.01):
            other, there = local()
            other.learnRate = learnRate
            if learnRate == 0.01:  # from another run with the same attributes
                put(there.getVar("fc0.W").grad, np.ones(SHAPES["fc0.W"]))
                other.update()
                other.t = 0
            if RANK == SIZE - 1:
                other.save(own)
            if SIZE > 1:
                with pytest.raises(CheckpointError, match=f"process {SIZE - 1} has found another file"):
                    optimizer.load(own)
        WORLD.Barrier()
        optimizer.update()


@check
def a_save_that_fails_on_one_process_leaves_none_waiting():
    folder = WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    path = os.path.join(folder, "run.hdf")
    with group() as node:
        (optimizer, net), _ = pair(node)
        # no memory to gather a part
        room, calls = optimizer._shards.room, itertools.count()

        def full(*part):
            if RANK == 0 and next(calls) == 1:
                raise MemoryError("no room")
            return room(*part)

        optimizer._shards.room = full
        with pytest.raises(MemoryError if RANK == 0 else CheckpointError, match="no room"):
            optimizer.save(path)
        assert not os.path.exists(path)
        # an array that no longer fits
        grad = net.getVar("fc0.b").grad
        if RANK == SIZE - 1:
            net.getVar("fc0.b").grad = grad.copy()
        with pytest.raises(
            VariableError if RANK == SIZE - 1 else CheckpointError, match="'fc0.b': its gradient was replaced"
        ):
            optimizer.save(path)
        net.getVar("fc0.b").grad = grad
        optimizer.save(path)
        optimizer.update()
    # Ctrl-C
    node = group(timeout=60)
    (optimizer, _), _ = pair(node)
    if RANK == 0:
        optimizer._saved_options = interrupted
    with pytest.raises(KeyboardInterrupt if RANK == 0 else GroupError, match="KeyboardInterrupt" if RANK else None):
        optimizer.save(path)
    leave(node)
    # no memory to compute a part of the mean square in
    node = group(timeout=60)
    (optimizer, _), _ = pair(node)
    if RANK == SIZE - 1:
        optimizer._forms = (Full(),)
    with pytest.raises(MemoryError if RANK == SIZE - 1 else GroupError):
        optimizer.save(path + ".new")
    leave(node)
    WORLD.Barrier()
    if RANK == 0:
        assert not os.path.exists(path + ".new")
        shutil.rmtree(folder)


class Full(MeanSquare):
    """Raises MemoryError."""

    def of(self, state):
        raise MemoryError("no room")


@check
def other_libraries_state_is_taken_in_parts_and_not_given():
    with group() as node:
        (optimizer, _), (alone, other) = pair(node)
        for n in SHAPES:
            put(other.getVar(n).grad, np.random.default_rng(13).standard_normal(SHAPES[n]))
        alone.update()
        given, before = convert.toChainer(alone), whole_state(alone)
        for each in (alone, optimizer):
            convert.fromChainer(each, given)
        found, expected = whole_state(optimizer), whole_state(alone)
        assert all(equal(found[key], expected[key]) for key in expected)
        for key, array in before.items():  # the round trip rounds the variance three times, relative to the mean square
            assert np.all(np.abs(expected[key] - array) <= (2.0**-22 * np.abs(array) if "variance" in key else 0)), key
        with pytest.raises(SetupError, match="the state is sharded"):
            convert.toChainer(optimizer)
        # PyTorch has no state for a parameter that was never updated
        group_of_torch = {"lr": 0.1, "alpha": 0.9, "momentum": 0.5, "eps": 1e-4, "centered": True}
        fresh = {"state": {}, "param_groups": [group_of_torch | {"params": list(range(len(SHAPES)))}]}
        convert.fromTorch(optimizer, fresh)
        assert all(not np.any(each) for each in whole_state(optimizer).values())


def interrupted():
    raise KeyboardInterrupt
