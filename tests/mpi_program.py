"""What test_mpi.py runs under mpirun: ``python -m tests.mpi_program PRELUDE NAME...``; functions are checks or disasters.

Every check runs on all processes and may not rely on the library to collect the results.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import tracemalloc

import h5py
import numpy as np
import pytest
from mpi4py import MPI

# CUDA's simulator has to be there before anything imports PyCUDA
exec(sys.argv[1])

from puzzlelib_rmsprop import (  # noqa: E402
    GradientClipping,
    MPINodeInfo,
    NCCLNodeInfo,
    NonFiniteGuard,
    RMSPropGraves,
    Variable,
    WeightDecay,
    convert,
    gpuarray,
)
from puzzlelib_rmsprop.checkpoint.mean_square import MeanSquare  # noqa: E402
from puzzlelib_rmsprop.distributed import mpi  # noqa: E402
from puzzlelib_rmsprop.errors import (  # noqa: E402
    ArrayError,
    CheckpointError,
    GroupError,
    HyperParameterError,
    NonFiniteError,
    SetupError,
    VariableError,
)
from puzzlelib_rmsprop.nets import MSE, Activation, Linear, Sequential, relu  # noqa: E402
from tests import fake_nccl, standins  # noqa: E402
from tests.reference import Reference  # noqa: E402
from tests.standins import Net  # noqa: E402

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
CUDA = "pycuda" in sys.modules
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def group(**kwargs):
    return MPINodeInfo(**{"timeout": 20.0, **kwargs})


@contextlib.contextmanager
def staging(nbytes, small=0):
    """Pieces small enough for several."""
    before = mpi.STAGING, mpi.SMALL
    mpi.STAGING, mpi.SMALL = nbytes, small
    yield
    mpi.STAGING, mpi.SMALL = before


def leave(node):
    """Goes on with the next check after a group has failed on purpose."""
    node._closed = True
    WORLD.Barrier()


def families():
    """name -> (make, get, dtypes) of the arrays to check with."""
    host = ["float16", "float32", "float64"]
    found = {
        "numpy": (np.array, np.asarray, host),
        "puzzlelib": (standins.CPUArray.toDevice, lambda array: array.data, host),
    }
    if CUDA:
        import ml_dtypes  # noqa: F401
        import pycuda.gpuarray

        found = {
            "pycuda": (pycuda.gpuarray.to_gpu, lambda array: array.get(), [*host, "bfloat16"]),
            "puzzlelib-cuda": (standins.GPUArray.toGpu, lambda array: array.get(), host),
        }
    return found


def contents(seed, size, dtype):
    """What each process has, in order; the same on every process."""
    return [np.random.default_rng([seed, rank]).standard_normal(size).astype(dtype) for rank in range(SIZE)]


def in_order(parts):
    """Their mean, added in the order of the processes in the dtype of the arithmetic and rounded once."""
    wide = np.float64 if parts[0].dtype == np.float64 else np.float32
    total = parts[0].astype(wide)
    for part in parts[1:]:
        total = total + part.astype(wide)
    return (total / wide(SIZE)).astype(parts[0].dtype)


def same_bits(array):
    """Whether every process has this array."""
    return len(set(WORLD.allgather(np.ascontiguousarray(array).tobytes()))) == 1


def equal(one, other):
    return np.array_equal(np.ascontiguousarray(one).view(np.uint8), np.ascontiguousarray(other).view(np.uint8))


# ---------------------------------------------------------------------------------------- collectives


@check
def place_in_the_group():
    with group() as node:
        assert (node.index, node.gridsize, node.device) == (RANK, SIZE, RANK)
        assert node.meanValue(RANK) == (SIZE - 1) / 2
        assert node.allgatherObject({"rank": RANK, "text": "x" * RANK}) == [
            {"rank": r, "text": "x" * r} for r in range(SIZE)
        ]
        node.barrier()
    with MPINodeInfo(WORLD.Split(RANK % 2), device=7, timeout=20) as node:
        assert (node.index, node.device) == (RANK // 2, 7)
    with pytest.raises(GroupError, match="is closed"):
        node.barrier()


@check
def averages():
    with group() as node, staging(64, small=16):
        for make, get, dtypes in families().values():
            for dtype in dtypes:
                for size in (0, 1, 5, 64, 1003):
                    parts = contents(size, size, dtype)
                    array = make(parts[RANK])
                    assert node.sumTensor("grad", array) is None
                    whole = np.stack([part.astype(np.float64) for part in parts])
                    # SIZE - 1 additions and a division, each rounded once, and the rounding to 16 bits
                    unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}[dtype]
                    steps = SIZE if unit < 2**-12 else 1.01
                    found = get(array).astype(np.float64)
                    bound = steps * unit * np.maximum(np.abs(whole).mean(0), 2**-14)
                    assert (np.abs(found - whole.mean(0)) <= bound).all(), (dtype, size)
                    assert same_bits(get(array)), (dtype, size)
                    if size == 1003:  # all but the rest goes through the scatter
                        body = len(parts[0]) // SIZE * SIZE
                        assert equal(get(array)[:body], in_order(parts)[:body]), dtype


@check
def averages_of_exact_numbers_are_exact():
    # sums of small whole numbers are exact in any order
    with group() as node:
        for make, get, dtypes in families().values():
            for dtype in dtypes:
                for size in (7, 100_003):
                    parts = [np.round(part * 8).astype(dtype) * 12 for part in contents(1, size, "float32")]
                    array = make(parts[RANK].astype(dtype))
                    node.sumTensor("grad", array)
                    assert equal(get(array), in_order([part.astype(dtype) for part in parts])), (dtype, size)


@check
def arrays_stay_where_they_are():
    with group() as node:
        for size in (100, 100_001):
            array = np.ones(size, np.float32)
            address = array.ctypes.data
            node.sumTensor("grad", array)
            assert array.ctypes.data == address
            assert (array == 1).all()
        if not CUDA:
            # nothing is kept for what passes through, where nothing passes through
            assert not [kept for on_gpu, kept in node._staging.items() if on_gpu or kept[0].size]


@check
def nan_and_infinity_reach_everyone():
    with group() as node, staging(1 << 10):
        for make, get, dtypes in families().values():
            for dtype in dtypes:
                content = np.ones(1000, dtype)
                if RANK == SIZE - 1:
                    content[[3, 997]], content[500] = np.nan, np.inf
                array = make(content)
                node.sumTensor("grad", array)
                found = get(array).astype(np.float32)
                assert np.isnan(found[[3, 997]]).all(), dtype
                assert np.isposinf(found[500]), dtype
                assert np.isfinite(np.delete(found, [3, 500, 997])).all(), dtype


@check
def broadcasts():
    with group() as node, staging(100):
        for name, (make, get, dtypes) in families().items():
            for dtype in dtypes:
                parts = contents(2, 333, dtype)
                array = make(parts[RANK])
                node.broadcastBuffer("data", array.gpudata if name == "puzzlelib-cuda" else array)
                assert equal(get(array), parts[0]), (name, dtype)


@check
def scatters_and_gathers():
    with group() as node, staging(100):
        for make, get, dtypes in families().values():
            for dtype in dtypes:
                for part in (0, 1, 65):
                    parts = contents(3, part * SIZE, dtype)
                    array = make(parts[RANK])
                    node.reduceScatter("grad", array)
                    own = slice(RANK * part, (RANK + 1) * part)
                    expected = in_order(parts)
                    assert equal(get(array)[own], expected[own]), (dtype, part)
                    other = parts[RANK].copy()
                    other[own] = expected[own]
                    array = make(other)
                    node.allGather("data", array)
                    assert equal(get(array), expected), (dtype, part)
        if SIZE > 1:
            with pytest.raises(ArrayError, match=f"size {SIZE + 1}"):
                node.reduceScatter("grad", np.ones(SIZE + 1, np.float32))


@check
def on_a_stream():
    """What a stream has queued before is averaged, and what it queues after sees it; CUDA-aware or not."""
    if not CUDA:
        return
    import pycuda.gpuarray
    from pycuda import driver

    for aware in (False, True):
        with group(cudaAware=aware) as node, staging(256):
            for dtype in ("float16", "bfloat16", "float32", "float64"):
                stream = driver.Stream()
                parts = [np.round(part * 8).astype(dtype) for part in contents(4, 40 * SIZE, "float32")]
                array, target = (pycuda.gpuarray.to_gpu(np.zeros(40 * SIZE, dtype)) for _ in range(2))
                source = pycuda.gpuarray.to_gpu(parts[RANK])
                driver.Context.synchronize()
                for method in (node.sumTensor, node.reduceScatter, node.allGather):
                    if method != node.allGather:
                        driver.memcpy_dtod_async(array.ptr, source.ptr, array.nbytes, stream)
                    method("grad", array, stream=stream)
                    driver.memcpy_dtod_async(target.ptr, array.ptr, array.nbytes, stream)
                    stream.synchronize()
                    own = slice(40 * RANK, 40 * RANK + 40) if method == node.reduceScatter else slice(None)
                    # on the GPU each is multiplied by 1/SIZE, itself rounded, before they are added
                    expected = in_order(parts).astype(np.float64)
                    scale = np.mean([np.abs(part.astype(np.float64)) for part in parts], 0)
                    near = (np.abs(target.get().astype(np.float64) - expected) <= (SIZE + 2) * 2**-24 * scale)[own]
                    assert near.all(), (dtype, aware, method.__name__)
                    if not aware or dtype in ("float16", "bfloat16"):
                        assert equal(target.get()[own], in_order(parts)[own]), (dtype, aware, method.__name__)
                node.broadcastBuffer("data", array)


@check
def only_floats_are_averaged():
    if CUDA:
        return
    with group() as node:
        for dtype in ("int16", "int32", "int64", "bool", "complex64"):
            array = np.arange(2 * SIZE).astype(dtype)
            for method in (node.sumTensor, node.reduceScatter):
                with pytest.raises(ArrayError, match=f"averaged must be float16.*; got {dtype}"):
                    method("grad", array)
            assert equal(array, np.arange(2 * SIZE).astype(dtype))
            node.broadcastBuffer("data", array)
        with pytest.raises(TypeError):
            node.meanValue(None)


@check
def processes_out_of_step_get_a_group_error():
    if SIZE == 1:
        return
    node = group(timeout=2)

    def out_of_step():
        for _ in range(3):
            node.sumTensor("grad", np.ones(3 if RANK == 1 else 5, np.float32))
        node.barrier()

    for _ in range(2):  # MPI's error on some, the others' word or a wait in vain on the rest
        with pytest.raises(GroupError):
            out_of_step()
    leave(node)


# ------------------------------------------------------------------------------------------- training


SHAPES = {"fc0.W": (5, 7), "fc0.b": (7,), "fc1.W": (7, 3), "fc1.b": (3,), "half.W": (9,), "double.W": (4, 2)}
DTYPES = {"half.W": np.float16, "double.W": np.float64}


def some_net(rank=0, name=None):
    make = families()[name or next(iter(families()))][0]
    wrap = standins.PuzzleVariable if (name or "").startswith("puzzlelib") else Variable
    rng = np.random.default_rng([10, rank])
    return Net({n: wrap(make(rng.standard_normal(shape).astype(DTYPES.get(n, np.float32)))) for n, shape in SHAPES.items()})


def content(array):
    return array.get() if hasattr(array, "get") else np.array(array)


def put(array, values):
    if hasattr(array, "set"):
        array.set(np.ascontiguousarray(values.astype(array.dtype)))
    else:
        array[...] = values


def train(optimizer, net, step, steps=5, exact=True):
    """Sets gradients that differ from process to process and updates; yields after every step with the mean gradients."""
    for number in range(steps):
        means = {}
        for name, shape in SHAPES.items():
            parts = [np.random.default_rng([11, number, rank, len(name)]).standard_normal(shape) for rank in range(SIZE)]
            dtype = DTYPES.get(name, np.float32)
            parts = [(np.round(part * 64) / 64 if exact else part).astype(dtype) for part in parts]
            put(net.getVar(name).grad, parts[RANK])
            means[name] = in_order(parts)
        step(optimizer)
        yield means


@check
def training_is_that_of_the_mean_gradient():
    """Bit for bit where the sums are exact: parameters and state, on every process, after every step."""
    for name in families():
        with group() as node:
            net = some_net(RANK, name)  # each process starts with parameters of its own: process 0's count
            optimizer = RMSPropGraves(learnRate=0.01, nodeinfo=node)
            optimizer.setupOn(net, useGlobalState=True)
            net.getVar("fc1.b").learnRate, net.getVar("fc0.b").momRate = 0.0, 0.5
            alone, lonely = some_net(0, name), RMSPropGraves(learnRate=0.01)
            lonely.setupOn(alone, useGlobalState=True)
            alone.getVar("fc1.b").learnRate, alone.getVar("fc0.b").momRate = 0.0, 0.5
            expected = {n: Reference(content(some_net().getVar(n).data)) for n in SHAPES}
            for means in train(optimizer, net, RMSPropGraves.update):
                for n, mean in means.items():
                    put(alone.getVar(n).grad, mean)
                    if n != "fc1.b":
                        expected[n].step(mean, learnRate=0.01, momRate=0.45 if n == "fc0.b" else 0.9)
                lonely.update()
                for n in SHAPES:
                    found = content(net.getVar(n).data)
                    assert same_bits(found), n
                    assert equal(found, content(alone.getVar(n).data)), n
                    tolerance = 1e-2 if n == "half.W" else 2e-6
                    assert np.abs(found - expected[n].param).max() <= tolerance * np.abs(expected[n].param).max(), n
            for dtype, state in optimizer.states.items():
                for entity, array in state.items():
                    assert equal(content(array), content(lonely.states[dtype][entity])), (dtype, entity)


@check
def batches_of_all_processes_are_one_large_batch():
    """A net's gradients over N batches of B, averaged, are those over the one batch of N*B, but for the order of sums."""
    batch, features = 6, 5
    rng = np.random.default_rng(12)
    data = rng.standard_normal((3, SIZE * batch, features)).astype(np.float32)
    target = rng.standard_normal((3, SIZE * batch, 2)).astype(np.float32)

    def build():
        np.random.seed(3)
        return Sequential().append(Linear(features, 4)).append(Activation(relu)).append(Linear(4, 2))

    def step(net, optimizer, x, y):
        _, grad = MSE()(net(gpuarray.to_gpu(x)), gpuarray.to_gpu(y))
        optimizer.zeroGradParams()
        net.backward(grad)
        grads = {name: content(net.getVar(name).grad) for names in net.getVarTable().values() for name in names}
        optimizer.update()
        return grads

    with group() as node:
        net, alone = build(), build()
        optimizer, lonely = RMSPropGraves(learnRate=0.01, nodeinfo=node), RMSPropGraves(learnRate=0.01)
        optimizer.setupOn(net, useGlobalState=True)
        lonely.setupOn(alone, useGlobalState=True)
        own = slice(RANK * batch, (RANK + 1) * batch)
        for x, y in zip(data, target, strict=True):
            # as if nothing had been rounded before: each step's own error is what is bounded
            for name in (name for names in net.getVarTable().values() for name in names):
                put(alone.getVar(name).data, content(net.getVar(name).data))
            grads, whole = step(net, optimizer, x[own], y[own]), step(alone, lonely, x, y)
            for name, expected in whole.items():
                every = WORLD.allgather(grads[name])
                found = content(net.getVar(name).grad)
                assert same_bits(content(net.getVar(name).data)), name
                # a gradient is a sum over the batch, of products over the layers: errors are relative to the sum of the
                # magnitudes, which the largest gradient of a process times SIZE stands for here
                scale = SIZE * max(np.abs(grad).max() for grad in [*every, expected])
                assert np.abs(found - expected).max() <= (SIZE * batch + 16) * 2**-24 * scale, name


@check
def a_nan_is_seen_by_all():
    with group() as node:
        net = some_net()
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(net, useGlobalState=True)
        if RANK == SIZE - 1:
            grad = content(net.getVar("fc0.W").grad)
            grad[1, 2] = np.nan
            put(net.getVar("fc0.W").grad, grad)
        optimizer.update()
        found = content(net.getVar("fc0.W").data)
        assert np.isnan(found[1, 2])
        assert np.isnan(found).sum() == 1


@check
def hooks_come_before_the_average():
    with group() as node:
        net = some_net()
        for n in SHAPES:
            net.getVar(n).wc = 1.0
        before = {n: content(net.getVar(n).data) for n in SHAPES}
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(net, useGlobalState=True)
        optimizer.addHook(WeightDecay(0.5))
        seen = []
        optimizer.addHook(lambda var, state, stream: seen.append((var.grad.shape, state["mg"].shape)))
        optimizer.update()
        assert seen == [(SHAPES[n], SHAPES[n]) for n in sorted(SHAPES)]
        for n in SHAPES:
            expected = Reference(before[n], stored=DTYPES.get(n, np.float32))
            expected.step(-0.5 * before[n].astype(np.float64))
            found = content(net.getVar(n).data)
            assert np.abs(found - expected.param).max() <= 2e-3 * np.abs(expected.param).max(), n
            assert same_bits(found), n


# ---------------------------------------------------------------------------------------- state in parts


OPTIONS = {
    "plain": {},
    "bfloat16 state": {"stateDtype": "bfloat16", "seed": 7},
    "master weights": {"masterWeights": True},
    "all at once": {"stateDtype": "bfloat16", "masterWeights": True, "fuseZeroGrad": True},
    "gradients of the loss": {"gradOfLoss": True, "fuseZeroGrad": True},
}


def pair(node, sharded=True, hooks=lambda: (), **options):
    """A group's optimizer and net, and those of one process alone that is given the mean gradients."""
    made = []
    for nodeinfo in (node, None):
        net = some_net()
        for name in SHAPES:
            net.getVar(name).wc = 0.5
        # borders of parts lie anywhere in these
        net.getVar("fc1.b").learnRate, net.getVar("fc0.b").momRate, net.getVar("fc1.W").learnRate = 0.0, 0.5, 2.0
        more = {"shardState": sharded} if nodeinfo is not None else {}
        optimizer = RMSPropGraves(learnRate=0.01, nodeinfo=nodeinfo, **options, **more)
        for hook in hooks():
            optimizer.addHook(hook)
        optimizer.setupOn(net, useGlobalState=True)
        made.append((optimizer, net))
    return made


def in_step(group_of, alone, steps=3, exact=True):
    """Both take the same steps; their parameters are equal after each."""
    (optimizer, net), (lonely, other) = group_of, alone

    def both(_):
        optimizer.update()

    for means in train(optimizer, net, both, steps):
        for n, mean in means.items():
            put(other.getVar(n).grad, mean)
        lonely.update()
        for n in SHAPES:
            found = content(net.getVar(n).data)
            assert same_bits(found), n
            assert equal(found, content(other.getVar(n).data)), (n, found, content(other.getVar(n).data))


def whole_state(optimizer):
    """dtype, entity -> the flat state of all processes, without what only fills the last part."""
    found = {}
    for dtype, state in optimizer.states.items():
        used = max(slot.offset + slot.size for slot in optimizer._slots if slot.dtype == dtype)
        for entity, array in state.items():
            parts = WORLD.allgather(content(array))
            found[dtype.name, entity] = (np.concatenate(parts) if optimizer.shardState else parts[0])[:used]
    return found


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
    # a net of the library's own, that tells the optimizer when it changes
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
        # and no more than a line of a cache is added to small ones
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
        }
        for name, hooks in cases.items():
            for sharded in (False, True):
                if not name.startswith("decay"):
                    in_step(*pair(node, sharded, hooks))
                    continue
                # before the average, on gradients rounded once more: within that of one process with the decay on the mean
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
    """Wherever it comes from: a process that swallows it would be a step behind."""
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
def checkpoints_of_parts_load_anywhere():
    """Saved by all, loaded by one process in either mode, by other numbers of processes, and back; bit for bit."""
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
            with h5py.File(path) as file:  # the same file as one process writes
                alone[0].save(again + str(RANK))
                with h5py.File(again + str(RANK)) as other:
                    assert sorted(file[".states"]) == sorted(other[".states"])
                    for key in other[".states"]:
                        assert file[".states"][key].shape == other[".states"][key].shape, key
                        assert np.array_equal(file[".states"][key][()], other[".states"][key][()]), key
            WORLD.Barrier()
            for mode in (False, True):  # one process without a group
                ((single, there), _) = pair(None, False, **options) if mode else (local(**options), None)
                for n in SHAPES:
                    put(there.getVar(n).data, parameters[n])
                single.load(path)
                for slot in single._slots:
                    for entity, array in slot.state.items():
                        key = slot.dtype.name, entity
                        whole = expected[key][offsets(alone[0], slot)]
                        assert equal(content(array).reshape(-1), whole), (name, mode, slot.names, entity)
                assert single.t == 3
        # groups of another size, each for itself
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
        # and on: the group that loads its own file goes on as if it had never stopped
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
    """Where a variable lies in the flat state of ``optimizer``."""
    offset = next(other.offset for other in optimizer._slots if other.names == slot.names)
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
        # another file on one process
        own = f"{path}.{RANK}"
        with h5py.File(path) as source, h5py.File(own, "w") as target:
            for key in source:
                source.copy(key, target)
        for learnRate in (0.02, 0.01):
            other, there = local()
            other.learnRate = learnRate
            if learnRate == 0.01:  # of another run, with the same attributes
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
        # no memory to put a part together in
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
        optimizer._extra = interrupted
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
    """No memory is left."""

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
        for key, array in before.items():  # there and back the variance is rounded three times, near the mean square's size
            assert np.all(np.abs(expected[key] - array) <= (2.0**-22 * np.abs(array) if "variance" in key else 0)), key
        with pytest.raises(SetupError, match="the state is in parts"):
            convert.toChainer(optimizer)
        # PyTorch keeps nothing of a parameter that has not been updated yet
        group_of_torch = {"lr": 0.1, "alpha": 0.9, "momentum": 0.5, "eps": 1e-4, "centered": True}
        fresh = {"state": {}, "param_groups": [group_of_torch | {"params": list(range(len(SHAPES)))}]}
        convert.fromTorch(optimizer, fresh)
        assert all(not np.any(each) for each in whole_state(optimizer).values())


@check
def no_process_holds_the_whole_state():
    """Nor a second array beside the one that is put together or read: that, the parts, and what passes through."""
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


def interrupted():
    raise KeyboardInterrupt


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
    # a checkpoint of it could not be loaded
    class Counting(RMSPropGraves):
        def setupState(self, var):
            return super().setupState(var) | {"count": np.zeros(1, np.float32)}

    node = group()
    with pytest.raises(SetupError, match=r"'count' is of shape \(1,\)"):
        Counting(nodeinfo=node, shardState=True).setupOn(some_net(), useGlobalState=True)
    leave(node)


# ------------------------------------------------------------------------------------------------ NCCL


def nccl_groups():
    """A group that meets over MPI, and one that meets at an address; NCCL is a stand-in."""
    fake_nccl.install()
    yield NCCLNodeInfo(device=0, timeout=20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = WORLD.bcast(server.getsockname()[1])
    yield NCCLNodeInfo(address=f"127.0.0.1:{port}", index=RANK, gridsize=SIZE, timeout=20)


@check
def nccl_does_the_same():
    if not CUDA:
        return
    from pycuda import driver

    for node in nccl_groups():
        with node:
            assert (node.index, node.gridsize, node.device) == (RANK, SIZE, 0)
            assert node.meanValue(RANK) == (SIZE - 1) / 2
            assert node.allgatherObject([RANK, "x"]) == [[rank, "x"] for rank in range(SIZE)]
            for name, (make, get, dtypes) in families().items():
                for dtype in dtypes:
                    parts = contents(5, 16 * SIZE, dtype)
                    own = slice(16 * RANK, 16 * (RANK + 1))
                    for stream in (None, driver.Stream()):
                        array = make(parts[RANK])
                        node.sumTensor("grad", array, stream)
                        assert equal(get(array), in_order(parts)), (name, dtype)
                        array = make(parts[RANK])
                        node.reduceScatter("grad", array, stream)
                        assert equal(get(array)[own], in_order(parts)[own]), (name, dtype)
                        assert equal(np.delete(get(array), own), np.delete(parts[RANK], own)), (name, dtype)
                        node.allGather("data", array, stream)
                        assert equal(get(array), in_order(parts)), (name, dtype)
                    array = make(parts[RANK])
                    node.broadcastBuffer("data", array.gpudata if name == "puzzlelib-cuda" else array)
                    assert equal(get(array), parts[0]), (name, dtype)
            for options in OPTIONS.values():
                in_step(*pair(node, **options))
            in_step(*pair(node, sharded=False))
            with pytest.raises(ArrayError, match="arrays of a GPU"):
                node.sumTensor("grad", np.ones(3, np.float32))
        with pytest.raises(GroupError, match="closed"):
            node.sumTensor("grad", array)
        assert node._comm.destroyed
        assert not node._watcher.is_alive()


@check
def nccl_errors_and_late_processes_are_noticed():
    if not CUDA:
        return
    from pycuda import gpuarray as pycuda_arrays

    fake_nccl.install()
    for cause in ("an error", "a late process"):
        if cause == "a late process" and SIZE == 1:
            continue
        node = NCCLNodeInfo(device=0, timeout=3)
        tensor = pycuda_arrays.to_gpu(np.ones(3, np.float32))
        node.sumTensor("grad", tensor)
        if cause == "an error":
            node._comm.state = fake_nccl.Result.RemoteError
            deadline = time.monotonic() + 20
            while not node._comm.aborted and time.monotonic() < deadline:
                time.sleep(0.05)
            assert node._comm.aborted, "the watcher has seen nothing"
            said = "NCCL reports to process"
        else:
            said = "has waited 3 s in averaging 'grad' for the others"
        if cause == "an error" or RANK != SIZE - 1:  # the last one comes too late
            with pytest.raises(GroupError, match=said):
                node.sumTensor("grad", tensor)
            with pytest.raises(GroupError, match=said):
                node.meanValue(1.0)
        WORLD.Barrier()
        node._ended.set()
        node._meeting.close()


# -------------------------------------------------------------------------------------------- agreement


def refused(node, net, options):
    """The message that every process gets when process 1 has other options (None: a hook); all have to get the same."""
    optimizer = RMSPropGraves(nodeinfo=node, **(options or {} if RANK == 1 else {}))
    if options is None and RANK == 1:
        optimizer.addHook(WeightDecay(1))
    data = {n: net.getVar(n).data for n in net.vars}
    with pytest.raises((SetupError, VariableError)) as caught:
        optimizer.setupOn(net, useGlobalState=True)
    assert all(net.getVar(n).data is data[n] for n in data), "something was changed"
    return str(caught.value)


def without(name):
    net = some_net()
    return Net({n: var for n, var in net.vars.items() if n != name})


def rated(name, learnRate):
    net = some_net()
    net.getVar(name).learnRate = learnRate
    return net


def another(name, shape=None, dtype=np.float32, called=None):
    net = some_net()
    make = next(iter(families().values()))[0]
    var = Variable(make(np.zeros(shape or SHAPES[name], dtype)))
    return Net({(called if n == name and called else n): var if n == name else v for n, v in net.vars.items()})


@check
def nets_that_differ_are_refused_everywhere():
    if SIZE == 1:
        return
    cases = [
        (another("fc0.W", (5, 8)), {}, "'fc0.W': its shape is (5, 7) on process 0, and (5, 8)"),
        (another("fc0.b", dtype=np.float64), {}, "'fc0.b': its dtype is float32 on process 0"),
        (
            another("fc0.b", called="fc0.c"),
            {},
            "variable in its place is variable 'fc0.b' on process 0, and variable 'fc0.c' on process 1",
        ),
        (rated("fc1.W", 2.0), {}, "'fc1.W': its learnRate is 1.0 on process 0, and 2.0"),
        (without("fc1.b"), {}, "the number of variables is 6 on process 0, and 5 on process 1"),
        (some_net(), {"alpha": 0.5}, "its alpha is 0.95 on process 0, and 0.5 on process 1"),
        (some_net(), {"gradOfLoss": True}, "its gradOfLoss is False on process 0, and True on process 1"),
        (some_net(), {"seed": 3}, "its seed is 0 on process 0, and 3 on process 1"),
        (some_net(), None, "its hooks is [] on process 0, and ['WeightDecay'] on process 1"),
    ]
    with group() as node:
        for net, options, expected in cases:
            message = refused(node, net if RANK == 1 else some_net(), options)
            assert same_bits(np.frombuffer(message.encode(), np.uint8)), message
            assert expected in message, message
        # and the group is of use still
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(some_net(), useGlobalState=True)
        optimizer.update()


@check
def an_error_of_one_is_told_to_all():
    if SIZE == 1:
        return
    with group() as node:
        net = some_net()
        if RANK == 1:
            net.getVar("fc0.b").grad = None
        told = rf"process 1 of {SIZE} cannot be set up: VariableError: variable 'fc0.b' has no gradient"
        kind, said = (VariableError, "'fc0.b' has no gradient") if RANK == 1 else (SetupError, told)
        with pytest.raises(kind, match=said):
            RMSPropGraves(nodeinfo=node).setupOn(net, useGlobalState=True)


@check
def hooks_with_other_arguments_are_refused():
    if SIZE == 1:
        return
    hooks = [
        (GradientClipping, 0.5, "{'threshold': 0.5}"),
        (WeightDecay, 0.25, "{'rate': 0.25, 'gradOfLoss': False}"),
        (NonFiniteGuard, "warn", "{'policy': 'warn'}"),
    ]
    with group() as node:
        for kind, argument, said in hooks:
            optimizer = RMSPropGraves(nodeinfo=node)
            optimizer.addHook(kind(argument if RANK == 1 else "skip" if kind is NonFiniteGuard else 1.0))
            with pytest.raises(SetupError, match=rf"its hooks' arguments is .* on process 0, and \[{said}\] on process 1"):
                optimizer.setupOn(some_net(), useGlobalState=True)


@check
def an_error_of_one_after_the_comparison_is_told_to_all():
    if SIZE == 1:
        return
    node = group(timeout=60)
    net, optimizer = some_net(), RMSPropGraves(nodeinfo=node)
    if RANK == 1:
        net.setVar = None  # found to be there, and then not
        optimizer._inspect = lambda *args: RMSPropGraves._inspect(optimizer, some_net(), True)

    def begin():
        optimizer.setupOn(net, useGlobalState=True)
        optimizer.update()

    with pytest.raises(
        TypeError if RANK == 1 else GroupError, match=f"1 of {SIZE} has failed: TypeError" if RANK != 1 else None
    ):
        begin()
    leave(node)


# ------------------------------------------------------------------------------------------ what is sent


def steps_of(mode):
    make = next(iter(families().values()))[0]
    # of more than a hundred thousand bytes each, in as many equal parts as there may be processes
    net = Net(W=Variable(make(np.ones(60_000, np.float32))), H=Variable(make(np.ones(60_000, np.float16))))
    with group() as node:
        optimizer = RMSPropGraves(nodeinfo=node, shardState=mode != "plain")
        if mode == "surveyed":
            optimizer.addHook(GradientClipping(1.0))
        optimizer.setupOn(net, useGlobalState=True)
        for _ in range(int(os.environ["STEPS"])):
            optimizer.update()


def what_is_sent():
    """Run by itself, STEPS steps in each way."""
    for mode in ("plain", "sharded", "surveyed"):
        steps_of(mode)


what_is_sent.disaster = True  # no result to be told
CHECKS["what_is_sent"] = what_is_sent


# -------------------------------------------------------------------------------------------- disasters
# Each ends the whole job; test_mpi.py looks at what was printed, and when.


def disaster(function):
    function.disaster = True
    CHECKS[function.__name__] = function
    return function


def training(timeout, closing=True):
    node = group(timeout=timeout)
    optimizer = RMSPropGraves(nodeinfo=node)
    optimizer.setupOn(some_net(), useGlobalState=True)
    optimizer.update()
    return node, optimizer


@disaster
def one_raises():
    _, optimizer = training(60.0)
    if RANK == 1:
        raise ValueError("no more digits")
    while True:
        optimizer.update()


@disaster
def one_raises_in_a_hook():
    _, optimizer = training(60.0)
    if RANK == 1:
        optimizer.addHook(lambda var, state, stream: 1 / 0)
    while True:
        optimizer.update()


@disaster
def one_raises_and_goes_on():
    """A process that swallows its error does not get away with being a step behind."""
    _, optimizer = training(60.0)
    if RANK == 1:
        optimizer.addHook(lambda var, state, stream: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            optimizer.update()
        optimizer.hooks.clear()
    while True:
        optimizer.update()


@disaster
def one_raises_within_the_block():
    with group(timeout=60.0) as node:
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(some_net(), useGlobalState=True)
        while True:
            if RANK == 1:
                raise ValueError("no more digits")
            optimizer.update()


@disaster
def one_hangs():
    _, optimizer = training(2.0)
    if RANK == 1:
        time.sleep(600)
    optimizer.update()


@disaster
def one_is_killed():
    print(f"process {os.getpid()}", flush=True)
    _, optimizer = training(2.0)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        optimizer.update()


@disaster
def one_is_killed_in_the_middle_of_a_step():
    node, optimizer = training(2.0)
    if RANK == 1:
        # within the reduction: the others have this process's share of some pieces, and wait for the next
        real, calls = node._call, itertools.count()

        def dying(*arguments):
            real(*arguments)
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        node._call = dying
    with staging(64):
        while True:
            optimizer.update()


@disaster
def one_leaves():
    _, optimizer = training(60.0)
    if RANK == 1:
        sys.exit(0)
    while True:
        optimizer.update()


@disaster
def one_is_not_there():
    if RANK == 1:
        time.sleep(600)
    group(timeout=2.0)


@disaster
def all_end_without_closing():
    training(20.0)
    print("ended", flush=True)


@disaster
def one_has_work_left():
    """Nobody closes, and nobody waits for this process's part in an update."""
    mpi.GRACE = 1.0
    training(20.0)
    if RANK == 0:
        time.sleep(3)
    print("ended", flush=True)


def run(names):
    for name in names:
        if getattr(CHECKS[name], "disaster", False):
            CHECKS[name]()
            return
        fault = None
        try:
            CHECKS[name]()
        except BaseException:
            fault = traceback.format_exc()
        faults = WORLD.gather(fault)
        if RANK == 0:
            told = {f"process {rank}": text for rank, text in enumerate(faults) if text}
            print("RESULT " + json.dumps({"name": name, "faults": told}), flush=True)


if __name__ == "__main__":
    run(sys.argv[2:])
