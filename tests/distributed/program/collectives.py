"""Checks of MPINodeInfo alone: averages, broadcasts, scattering and gathering."""

import numpy as np
import pytest

from puzzlelib_rmsprop import MPINodeInfo
from puzzlelib_rmsprop.errors import ArrayError, GroupError, SetupError
from tests.distributed.program.group import (
    CUDA,
    RANK,
    SIZE,
    WORLD,
    check,
    contents,
    equal,
    families,
    group,
    in_order,
    leave,
    same_bits,
    staging,
)


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
def an_intercommunicator_is_no_group():
    if SIZE == 1:
        return
    between = WORLD.Split(RANK % 2, RANK).Create_intercomm(0, WORLD, 1 - RANK % 2)
    with pytest.raises(SetupError, match=r"comm is an intercommunicator.*: pass comm.Merge\(\), which"):
        MPINodeInfo(between)
    with group(comm=between.Merge()) as node:
        assert node.gridsize == SIZE


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
                    # SIZE - 1 additions and a division, each rounded once, and rounding to 16 bits
                    unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}[dtype]
                    steps = SIZE if unit < 2**-12 else 1.01
                    found = get(array).astype(np.float64)
                    bound = steps * unit * np.maximum(np.abs(whole).mean(0), 2**-14)
                    assert (np.abs(found - whole.mean(0)) <= bound).all(), (dtype, size)
                    assert same_bits(get(array)), (dtype, size)
                    if size == 1003:  # all but the remainder is scattered
                        body = len(parts[0]) // SIZE * SIZE
                        assert equal(get(array)[:body], in_order(parts)[:body]), dtype


@check
def averages_of_exact_numbers_are_exact():
    # sums of small integers are exact in any order
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
            # no staging buffers if nothing is staged
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
            with pytest.raises(ArrayError, match=f"a multiple of {SIZE}, the number of processes; got {SIZE + 1}"):
                node.reduceScatter("grad", np.ones(SIZE + 1, np.float32))


@check
def on_a_stream():
    """Averages after earlier work of a stream, and before its later work, CUDA-aware or not."""
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
                    # on the GPU each is multiplied by 1/SIZE, which is rounded, before the sum
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
                with pytest.raises(ArrayError, match=f"an array to average must be of dtype float16.*; got {dtype}"):
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

    for _ in range(2):  # some get MPI's error, the others a report or a timeout
        with pytest.raises(GroupError):
            out_of_step()
    leave(node)
