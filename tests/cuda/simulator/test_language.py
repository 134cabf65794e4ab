"""The language of kernels: shared memory, barriers, warps, atomics, types, and the order of threads."""

import subprocess

import numpy as np
import pytest

from tests.cuda.simulator.machine import SEEDS, N, control, drv, gpuarray, random


def bfloat16(x):
    """float32 rounded to bfloat16 as its 16 bits (finite values)."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_memory_shuffles_and_atomics(module, seed):
    control.seed(seed)
    x = random(N)
    out = gpuarray.zeros(1, np.float32)
    scale, size = module.get_global("scale")
    assert size == 8
    drv.memcpy_htod(scale, np.array([1, 2], np.float32))
    calls, size = module.get_global("calls")
    assert size == 4
    drv.memcpy_htod(calls, np.zeros(1, np.int32))
    module.get_function("total")(gpuarray.to_gpu(x), out, np.int32(N), grid=(8, 1), block=(128, 1, 1), shared=512)
    np.testing.assert_allclose(out.get()[0], 2 * x.sum(dtype=np.float64), rtol=1e-5)
    count = np.empty(1, np.int32)
    drv.memcpy_dtoh(count, calls)
    assert count[0] == 8


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers(module, seed):
    control.seed(seed)
    x = gpuarray.to_gpu(np.arange(256, dtype=np.int32))
    module.get_function("scan")(x, block=(256, 1, 1))
    np.testing.assert_array_equal(x.get(), np.cumsum(np.arange(256)))


def test_warp_operations(module):
    votes, ll, d = gpuarray.zeros(128, np.uint32), gpuarray.zeros(64, np.int64), gpuarray.zeros(64, np.float64)
    module.get_function("warp")(votes, ll, d, block=(64, 1, 1))
    t = np.arange(64)
    lane = t % 32
    ballot = [sum(1 << i for i in range(32) if (i + 32 * w) % 3 == 0) for w in range(2)]
    np.testing.assert_array_equal(votes.get(), [*np.repeat(ballot, 32), *np.repeat([0, 3], 32)])
    np.testing.assert_array_equal(ll.get(), ((t // 8 * 8 + 3) << 33) + np.where(lane < 2, t, t - 2))
    expected = (t ^ 1) + 0.5 + np.where(lane % 16 + 4 > 15, t, t + 4) + np.where(lane < 8, t // 32 * 32 + 7, 0)
    np.testing.assert_array_equal(d.get(), expected + 5100)


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_lanes_that_have_ended(module, seed):
    control.seed(seed)
    votes = gpuarray.zeros(48, np.uint32)
    module.get_function("leavers")(votes, block=(48, 1, 1))
    assert votes.get()[::2].tolist() == [0x55555555] * 16 + [0x5555] * 8


def test_atomics(module):
    f, d = gpuarray.zeros(1, np.float32), gpuarray.zeros(1, np.float64)
    i, u, ll = gpuarray.zeros(3, np.int32), gpuarray.zeros(3, np.uint32), gpuarray.to_gpu(np.array([0, 3], np.uint64))
    module.get_function("atomics")(f, d, i, u, ll, block=(100, 1, 1))
    assert f.get() == 50
    assert d.get() == 25
    assert i.get().tolist() == [99, -99, -100]
    assert u.get().tolist() == [99, 7, 0xFFFFFFFF]
    assert ll.get().tolist() == [100, 9]


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_types_and_structures(module, name):
    x = random(300)
    params = np.zeros((), np.dtype([("a", "f4"), ("b", "f8"), ("n", "i4")], align=True))
    params["a"], params["b"], params["n"] = 2, 3, 290
    held = {"f32": x, "f16": x.astype(np.float16), "bf16": bfloat16(x)}[name]
    exact = {"f32": held, "f16": held.astype(np.float32), "bf16": from_bfloat16(held)}[name]
    d = gpuarray.to_gpu(held)
    module.get_function(f"affine_{name}")(d, params, np.int8(1), grid=(2, 1), block=(256, 1, 1))
    rounded = {"f32": np.float32, "f16": np.float16, "bf16": bfloat16}[name](exact[:290] * 2 + np.float32(4))
    if name == "f32":
        np.testing.assert_allclose(d.get()[:290], rounded, rtol=1e-6)  # 2 * x + 3 may be one fused operation
    else:
        np.testing.assert_array_equal(d.get()[:290], rounded)
    np.testing.assert_array_equal(d.get()[290:], held[290:])


def test_half_and_bfloat_pairs(module):
    h = gpuarray.to_gpu(np.array([1.5, 2.25], np.float16))
    b = gpuarray.to_gpu(bfloat16([1.5, 2.25]))
    f = gpuarray.empty(1, np.float32)
    module.get_function("halves")(h, b, f, block=(1, 1, 1))
    assert h.get().tolist() == [2.5, 3.25]
    assert from_bfloat16(b.get()).tolist() == [2.5, 3.25]
    assert f.get() == 5.75


def test_vector_types_and_intrinsics(module):
    p = gpuarray.to_gpu(np.array([1, 2, 3, 4], np.float32))
    q = gpuarray.to_gpu(np.array([16, 8, 6, 0], np.uint32))
    r = gpuarray.empty(8, np.float64)
    module.get_function("vectors")(p, q, r, block=(1, 1, 1))
    assert p.get().tolist() == [10, 2, 3, 4]
    tenth = np.float32(0.1)
    sums = [float(np.sqrt(np.float32(2)) + np.float32(1) / np.float32(3)), float(tenth * tenth - np.float32(0.01))]
    assert r.get().tolist() == [4, 0.125, 3, 0.5, *sums, 3, 7]


def test_locals_are_no_device_memory(module):
    out = gpuarray.empty(64, np.float32)
    module.get_function("locals")(out, np.int32(5), block=(64, 1, 1))
    a = np.zeros(64)
    a[np.arange(64) * 7 % 64] = np.arange(64) + np.arange(64) % 4 + 1
    np.testing.assert_array_equal(out.get(), a[(np.arange(64)[::-1] + 5) % 64])


def test_names(module):
    out = gpuarray.empty(1, np.int32)
    module.get_function("_Z7mangledPi")(out, block=(1, 1, 1))
    assert out.get() == 42
    with pytest.raises(drv.LogicError, match="named symbol not found"):
        module.get_function("load")


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_threads_that_wait_for_a_value(module, seed):
    control.seed(seed)
    x = gpuarray.zeros(34, np.int32)
    module.get_function("handover")(x, block=(32, 1, 1))
    assert x.get().tolist() == [0] + [7] * 33


def test_order_of_threads_after_a_barrier(module):
    orders = set()
    for seed in SEEDS:
        control.seed(seed)
        order = gpuarray.zeros(64, np.int32)
        module.get_function("queue")(order, block=(64, 1, 1))
        assert sorted(order.get()) == list(range(64))
        orders.add(tuple(order.get()))
    rotations = {tuple((first + step * i) % 64 for i in range(64)) for first in range(64) for step in (1, -1)}
    assert len(orders) == len(SEEDS)
    assert not orders & rotations


def test_missing_barrier_shows(module):
    start = np.arange(64, dtype=np.int32)
    results = {True: set(), False: set()}
    for seed in SEEDS:
        control.seed(seed)
        for wait in results:
            x = gpuarray.to_gpu(start)
            module.get_function("reverse")(x, np.int32(wait), block=(64, 1, 1))
            results[wait].add(tuple(x.get()))
    assert results[True] == {tuple(start[::-1])}
    assert len(results[False]) > 1
    assert tuple(start[::-1]) not in results[False]


SUBNORMAL = r"""
#include "twice.h"
extern "C" {
__global__ void of_float(float *x) { for (int i = threadIdx.x; i < 4; i += 2) { __syncthreads(); x[i] = twice(x[i]); } }
__global__ void of_double(double *x) { if (threadIdx.x < 4) { double y = x[threadIdx.x]; x[threadIdx.x] = twice(y); } }
}
"""


@pytest.mark.parametrize(("options", "flushed"), [([], False), (["-ftz=false"], False), (["-ftz=true"], True)])
def test_subnormal_floats_are_flushed_where_asked_and_doubles_never(context, tmp_path, options, flushed):
    (tmp_path / "kernels.cu").write_text(SUBNORMAL)
    (tmp_path / "twice.h").write_text("template <class T> __device__ T twice(T x) { return x + x; }\n")
    command = ["nvcc", "-cubin", *options, "-o", "kernels.cubin", "kernels.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # the header is in the folder of the source
    loaded = drv.module_from_file(str(tmp_path / "kernels.cubin"))
    for name, dtype, kept in (("of_float", np.float32, not flushed), ("of_double", np.float64, True)):
        tiny = np.finfo(dtype).tiny
        content = np.array([tiny, tiny * 0.75, -tiny * 0.25, 1.0], dtype)
        x = gpuarray.to_gpu(content)
        for seed in range(3):  # fibers of another kernel have another mode
            control.seed(seed)
            x.set(content)
            loaded.get_function(name)(x, block=(2 if name == "of_float" else 4, 1, 1))
            expected = content * 2 if kept else np.array([2 * tiny, 0, 0, 2], dtype)
            assert np.array_equal(x.get(), expected)
    # the mode belongs to the kernel, not to the process
    tiny = np.full(3, np.finfo(np.float32).tiny, np.float32)
    assert (tiny * np.float32(0.5) != 0).all()
