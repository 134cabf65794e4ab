"""Checks of shardState: steps with sharded state."""

import os
import shutil
import tempfile
import tracemalloc

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import GroupError, HyperParameterError, NonFiniteError, SetupError
from puzzlelib_rmsprop.nets import Linear
from tests.distributed.program.group import CUDA, RANK, SIZE, WORLD, check, equal, families, group, leave, same_bits
from tests.distributed.program.nets import SHAPES, content, put, some_net, train
from tests.distributed.program.pairs import OPTIONS, in_step, pair, whole_state
from tests.standins import Net


@check
def state_in_parts_takes_the_same_steps():
    with group() as node:
        for name, options in OPTIONS.items():
            made = pair(node, **options)
            in_step(*made)
            (optimizer, net), (lonely, _) = made
            for key, found in whole_state(optimizer).items():
                expected = whole_state(lonely)[key]
                assert equal(found, expected), (name, key)
            if options.get("fuseZeroGrad"):
                optimizer.zeroGradParams()
                assert not any(content(net.getVar(n).grad).any() for n in SHAPES), name


@check
def gradients_are_zeroed_in_all_parts():
    # one of the library's nets, which notifies the optimizer of changes
    with group() as node:
        net = Linear(40, 30)
        optimizer = RMSPropGraves(nodeinfo=node, shardState=True, fuseZeroGrad=True)
        optimizer.setupOn(net, useGlobalState=True)
        for _ in range(3):
            put(net.getVar("W").grad, np.ones((40, 30), np.float32))
            optimizer.update()
            optimizer.zeroGradParams()
            assert not content(net.getVar("W").grad).any()


@check
def a_part_is_one_nth():
    with group() as node:
        make = next(iter(families().values()))[0]
        size = 64 * SIZE * 50
        net = Net(W=Variable(make(np.ones(size - 7, np.float32))), H=Variable(make(np.ones(3, np.float64))))
        optimizer = RMSPropGraves(nodeinfo=node, shardState=True)
        optimizer.setupOn(net, useGlobalState=True)
        for entity, array in optimizer.states[np.dtype(np.float32)].items():
            assert size * 4 - 28 * (SIZE == 1) <= int(array.nbytes) * SIZE <= size * 4, entity
        # small buffers are padded by a cache line at most
        assert all(int(array.nbytes) == 64 for array in optimizer.states[np.dtype(np.float64)].values()) or SIZE == 1
        optimizer.update()


@check
def hooks_with_state_in_parts():
    with group() as node:
        cases = {
            "decay": lambda: (WeightDecay(0.25),),
            "clipping": lambda: (GradientClipping(0.5),),
            "decay, then clipping": lambda: (WeightDecay(0.25), GradientClipping(0.5)),
            "guarded": lambda: (NonFiniteGuard(), WeightDecay(0.25)),
            "part of the step": lambda: (WeightDecay(2.0, decoupled=True), GradientClipping(0.5)),
        }
        for name, hooks in cases.items():
            for sharded in (False, True):
                if not name.startswith("decay"):
                    in_step(*pair(node, sharded, hooks))
                    continue
                # before the average, gradients are rounded once more than in a single process with decay of the mean
                (optimizer, net), (lonely, other) = pair(node, sharded, hooks)
                for means in train(optimizer, net, RMSPropGraves.update, 3):
                    for n, mean in means.items():
                        put(other.getVar(n).grad, mean)
                    lonely.update()
                    for n in SHAPES:
                        found, expected = content(net.getVar(n).data), content(other.getVar(n).data)
                        assert same_bits(found), (name, n)
                        assert np.abs(found - expected).max() <= (4e-3 if n == "half.W" else 1e-5), (name, n)


@check
def a_guard_skips_on_all_processes():
    for sharded in (False, True):
        with group() as node:
            guard = NonFiniteGuard()
            ((optimizer, net), _) = pair(node, sharded)
            optimizer.addHook(guard)
            before = {n: content(net.getVar(n).data) for n in SHAPES}
            if RANK == SIZE - 1:
                grad = content(net.getVar("fc1.W").grad)
                grad[0, 0] = np.inf
                put(net.getVar("fc1.W").grad, grad)
            optimizer.update()
            assert guard.skipped == 1
            assert all(equal(content(net.getVar(n).data), before[n]) for n in SHAPES)


@check
def a_guard_that_raises_does_so_everywhere_and_the_group_goes_on():
    for sharded in (False, True):
        with group() as node:
            (optimizer, net), _ = pair(node, sharded, lambda: (NonFiniteGuard("raise"),))
            before = {n: content(net.getVar(n).data) for n in SHAPES}
            if RANK == SIZE - 1:
                put(net.getVar("half.W").grad, np.full(9, np.nan, np.float16))
            with pytest.raises(NonFiniteError, match="the gradient of 'half.W'"):
                optimizer.update()
            assert all(equal(content(net.getVar(n).data), before[n]) for n in SHAPES)
            for n in SHAPES:
                put(net.getVar(n).grad, np.ones(SHAPES[n]))
            optimizer.update()
            assert optimizer.t == 1


@check
def an_error_of_one_in_an_update_is_told_to_all():
    """An error anywhere in the step: a process that ignores it would be a step behind."""
    if SIZE == 1:
        return
    node = group(timeout=60)
    (optimizer, net), _ = pair(node, False)
    if RANK == 1:
        net.getVar("fc0.b").learnRate = np.nan
    told = rf"process 1 of {SIZE} has failed: HyperParameterError"
    with pytest.raises(HyperParameterError if RANK == 1 else GroupError, match="learnRate must be" if RANK == 1 else told):
        optimizer.update()
    assert optimizer.t == 0
    if RANK == 1:
        net.getVar("fc0.b").learnRate = 1.0
    with pytest.raises(GroupError, match=told):
        optimizer.update()
    leave(node)


@check
def no_process_holds_the_whole_state():
    """Peak memory: the array that is gathered or read, the parts, and staging buffers, but no second array."""
    path = os.path.join(WORLD.bcast(tempfile.mkdtemp() if RANK == 0 else None), "run.hdf")
    if CUDA:
        return
    with group() as node:
        size = 1_000_000
        net = Net(**{name: Variable(np.ones(size // 2, np.float32)) for name in "VW"})
        optimizer = RMSPropGraves(nodeinfo=node, shardState=True)
        optimizer.setupOn(net, useGlobalState=True)
        optimizer.update()
        for work, arrays in ((optimizer.save, 3), (optimizer.load, 1 + 3 / SIZE)):
            tracemalloc.start()
            work(path)
            node.barrier()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak <= 4 * size * arrays + 1e6, (work.__name__, peak)
    if RANK == 0:
        shutil.rmtree(os.path.dirname(path))


@check
def parts_need_a_group_that_can():
    class PuzzleLibs:
        index, gridsize, device = 0, 1, 0

        def broadcastBuffer(self, name, buffer):
            pass

        sumTensor = broadcastBuffer

    for nodeinfo, said in ((None, "needs a nodeinfo"), (PuzzleLibs(), r"method reduceScatter\(\)")):
        with pytest.raises(SetupError, match=said):
            RMSPropGraves(nodeinfo=nodeinfo, shardState=True).setupOn(some_net(), useGlobalState=True)


@check
def state_of_the_whole_is_refused_in_parts():
    # its checkpoint could not be loaded
    class Counting(RMSPropGraves):
        def setupState(self, var):
            return super().setupState(var) | {"count": np.zeros(1, np.float32)}

    node = group()
    with pytest.raises(SetupError, match=r"'count' has shape \(1,\)"):
        Counting(nodeinfo=node, shardState=True).setupOn(some_net(), useGlobalState=True)
    leave(node)
