"""Checks of shardState with 8-bit state: parts begin with a block, and all bits are those of a single process."""

import os
import shutil
import tempfile

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable
from tests.distributed.program.group import RANK, SIZE, WORLD, check, families, group
from tests.distributed.program.nets import content, put
from tests.standins import Net

SHAPES = {"a": (37, 29), "b": (5,), "c": (64,), "d": (3, 500), "e": ()}
STATE = ("mg", "variance", "delta")


def net_of(dtype=np.float32):
    make = next(iter(families().values()))[0]
    rng = np.random.default_rng(3)
    return Net({name: Variable(make(np.asarray(rng.standard_normal(shape), dtype))) for name, shape in SHAPES.items()})


def made(node=None, globalState=False, net=None):
    optimizer = RMSPropGraves(0.01, nodeinfo=node, stateDtype="int8", seed=5, shardState=node is not None)
    net = net_of() if net is None else net
    net.getVar("d").learnRate = 0.5
    optimizer.setupOn(net, globalState or node is not None)
    return optimizer


def steps(optimizer, first, last):
    for t in range(first, last):
        for name, shape in SHAPES.items():  # equal on every process
            put(
                optimizer.module.getVar(name).grad,
                np.float32(np.round(16 * np.random.default_rng([t, *shape]).normal(size=shape))),
            )
        optimizer.update()


def everything(optimizer):
    """Returns the bytes of the parameters and of the decoded state, by name."""
    found = {name: content(optimizer.module.getVar(name).data).tobytes() for name in SHAPES}
    flat = {}
    for entity in STATE if optimizer.shardState else ():
        parts = WORLD.allgather(content(optimizer.states[np.dtype(np.float32)][entity]))
        flat[entity] = np.concatenate(parts)
    for slot in optimizer._variables:
        for entity in STATE:
            whole = flat[entity][slot.offset : slot.offset + slot.size] if flat else content(slot.state[entity])
            found[slot.name, entity] = whole.tobytes()
    return found


def the_same(optimizer, alone):
    found, expected = everything(optimizer), everything(alone)
    assert found.keys() == expected.keys()
    different = [key for key in found if found[key] != expected[key]]
    assert not different, different


@check
def state_in_8_bits_in_parts_has_the_bits_of_one_process():
    with group() as node:
        sharded, local, whole = made(node), made(), made(globalState=True)
        for first in (1, 3):
            for optimizer in (sharded, local, whole):
                steps(optimizer, first, first + 2)
            the_same(local, whole)
            the_same(sharded, local)
        for state in sharded.states.values():
            size = sum(int(np.prod(shape)) for shape in SHAPES.values())
            own = sum(content(state[entity].codes).nbytes for entity in STATE) + content(state["mg"].scales).nbytes
            # variables are padded to whole blocks, and the buffer to the same number of blocks per process
            assert own <= 3.05 * (size + 64 * len(SHAPES) + 64 * SIZE) / SIZE


@check
def state_in_8_bits_is_saved_and_loaded_anywhere():
    # one process, local; the group, sharded; one process, global; the group; one process, local
    folder = WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    lasting = made()
    with group() as node:
        optimizer, first = made(), 1
        for number, (parts, globalState) in enumerate([(True, True), (False, True), (True, True), (False, False)]):
            for each in (optimizer, lasting):
                steps(each, first, first + 2)
            first += 2
            path = os.path.join(folder, f"{number}.hdf")
            if optimizer.shardState or RANK == 0:
                optimizer.save(path)
            WORLD.Barrier()
            parameters = {name: content(optimizer.module.getVar(name).data) for name in SHAPES}
            optimizer = made(node if parts else None, globalState)
            for name, values in parameters.items():
                put(optimizer.module.getVar(name).data, values)
            optimizer.load(path)
            assert optimizer.t == lasting.t
            the_same(optimizer, lasting)
        for each in (optimizer, lasting):
            steps(each, first, first + 2)
        the_same(optimizer, lasting)
    WORLD.Barrier()
    if RANK == 0:
        shutil.rmtree(folder)
