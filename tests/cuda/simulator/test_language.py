"""The simulator's own tests: PyCUDA runs on it, and every planted fault is seen.

CUSIM_DIR names the folder that tests/cudasim/build.sh filled.
"""

import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import cudasim
from tests.cudasim import control

OUT = os.environ.get("CUSIM_DIR", "")
if not (OUT and Path(OUT, "libcuda.so.1").is_file() and importlib.util.find_spec("pycuda")):
    pytest.skip("needs PyCUDA, and CUSIM_DIR naming the folder that tests/cudasim/build.sh filled", allow_module_level=True)

cudasim.activate(OUT)

import pycuda.driver as drv  # noqa: E402
from pycuda import compiler, gpuarray  # noqa: E402
from pycuda.compiler import SourceModule  # noqa: E402
from pycuda.elementwise import ElementwiseKernel  # noqa: E402
from pycuda.reduction import ReductionKernel  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
SEEDS = range(12)
NON_BLOCKING = 1
N = 1000

SOURCE = r"""
#include <cassert>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

struct Params { float a; double b; int n; };

template <class T> __device__ __forceinline__ float load(const T *p) { return float(*p); }

// kernels made by a macro, as libraries make one for each type
#define AFFINE(NAME, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(T *__restrict__ p, const Params q, char tail) { \
        size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;                                            \
        if (i < q.n) p[i] = T(load(p + i) * q.a + float(q.b) + tail);                                        \
    }
AFFINE(affine_f32, float)
AFFINE(affine_f16, __half)
AFFINE(affine_bf16, __nv_bfloat16)

__global__ void mangled(int *p) { p[0] = 42; }

extern "C" {
__constant__ float scale[2];
__device__ int calls;

__global__ void total(const float *x, float *out, int n) {
    extern __shared__ float part[];
    int t = threadIdx.x, i = t + blockIdx.x * blockDim.x;
    part[t] = i < n ? x[i] : 0.f;
    __syncthreads();
    for (int k = blockDim.x / 2; k >= 32; k >>= 1) {
        if (t < k) part[t] += part[t + k];
        __syncthreads();
    }
    if (t >= 32) return;  // threads that have ended do not take part in later barriers
    float v = part[t];
    for (int k = 16; k; k >>= 1) v += __shfl_down_sync(0xffffffff, v, k);
    __syncthreads();
    if (t == 0) { atomicAdd(out, v * scale[1]); atomicAdd(&calls, 1); }
}

__global__ void scan(int *x) {  // inclusive, one block
    __shared__ int s[2][256];
    int t = threadIdx.x, from = 0;
    s[0][t] = x[t];
    __syncthreads();
    for (int k = 1; k < blockDim.x; k *= 2) {
        s[1 - from][t] = s[from][t] + (t >= k ? s[from][t - k] : 0);
        from = 1 - from;
        __syncthreads();
    }
    x[t] = s[from][t];
}

__global__ void warp(unsigned *votes, long long *l, double *d) {
    int t = threadIdx.x;
    votes[t] = __ballot_sync(~0u, t % 3 == 0);
    votes[64 + t] = __any_sync(~0u, t == 40) + 2 * __all_sync(~0u, t >= 32);
    l[t] = __shfl_sync(~0u, (long long)t << 33, 3, 8) + __shfl_up_sync(~0u, t, 2);
    d[t] = __shfl_xor_sync(~0u, t + .5, 1) + __shfl_down_sync(~0u, double(t), 4, 16);
    if (t % 32 < 8) { unsigned mine = 0xff; d[t] += __shfl_sync(mine, t, 7); __syncwarp(mine); }
    d[t] += 1000 * __syncthreads_count(t < 5) + 100 * __syncthreads_or(t == 63) + 10 * __syncthreads_and(t < 63);
}

__global__ void leavers(unsigned *votes) {  // lanes that have ended are not waited for
    if (threadIdx.x % 2) return;
    __syncwarp();
    votes[threadIdx.x] = __ballot_sync(~0u, 1);
}

__global__ void atomics(float *f, double *d, int *i, unsigned *u, unsigned long long *l) {
    int t = threadIdx.x;
    atomicAdd(f, 0.5f); atomicAdd(d, 0.25); atomicAdd(l, 1ull); atomicMax(i, t); atomicMin(i + 1, -t); atomicMax(u, t);
    atomicExch(u + 1, 7u); atomicCAS(l + 1, 3ull, 9ull); atomicSub(i + 2, 1); atomicOr(u + 2, 1u << (t % 32));
    __threadfence();
}

__global__ void halves(__half2 *h, __nv_bfloat162 *b, float *f) {
    float2 x = __half22float2(h[0]), y = __bfloat1622float2(b[0]);
    h[0] = __floats2half2_rn(x.x + 1, __half2float(__float2half_rn(x.y)) + 1);
    b[0] = __floats2bfloat162_rn(y.x + 1, __bfloat162float(__float2bfloat16_rn(y.y)) + 1);
    f[0] = __half2float(__hadd(h[0].x, h[0].y));
}

__global__ void vectors(float4 *p, const uint4 *q, double2 *r) {
    float4 v = __ldg(p);
    v.x = __fmaf_rn(v.y, v.z, v.w);
    __stcs(p, v);
    uint4 u = __ldcs(q);
    r[0] = make_double2(__dsqrt_rn(u.x), __ddiv_rn(1., u.y));
    r[1] = make_double2(__umulhi(u.z, 1u << 31), __uint_as_float(__float_as_uint(rsqrtf(4.f))));
    r[2] = make_double2(__fsqrt_rn(2.f) + __fdiv_rn(1.f, 3.f), __fadd_rn(__fmul_rn(.1f, .1f), -.01f));
    r[3] = make_double2(isfinite(v.x) + fmaxf(1.f, 2.f), min(7, 5u) + max(1.5, 2.f));
}

__global__ void add(float *x, float value, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i < n) x[i] += value;
}
__global__ void copy(float *to, const float *from, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i < n) to[i] = from[i];
}
__global__ void copy4(float4 *to, const float4 *from) { to[threadIdx.x] = from[threadIdx.x]; }
__global__ void locals(float *out, int n) {  // stack, constants and shared memory are no device memory
    __shared__ float s[64];
    float a[64];
    static const float table[4] = {1, 2, 3, 4};
    for (int i = 0; i < 64; i++) a[(i * 7) % 64] = i + table[i % 4];
    s[threadIdx.x] = a[(threadIdx.x + n) % 64];
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void handover(int *x) {  // waits for a value that another thread writes
    __shared__ int ready;
    if (threadIdx.x == 0) ready = 0;
    __syncthreads();
    if (threadIdx.x == 5) {
        x[1] = 7;
        __threadfence();
        atomicExch(&ready, 1);
    }
    while (atomicAdd(&ready, 0) == 0) {}
    x[2 + threadIdx.x] = x[1];
}
__global__ void reverse(int *x, int wait) {
    __shared__ int s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (wait) __syncthreads();
    x[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void queue(int *order) {  // after a barrier, the threads come in any order
    __shared__ int next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    order[atomicAdd(&next, 1)] = threadIdx.x;
}

// faults
__global__ void deadlock(float *x) {
    if (threadIdx.x < 16) __syncthreads();
    else __syncwarp();
    x[0] = 1;
}
__global__ void two_barriers(float *x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    x[0] = 1;
}
__global__ void left_out(float *x) { x[threadIdx.x] = __shfl_sync(1u, threadIdx.x, 0); }
__global__ void shared_by_one(float *x) {
    extern __shared__ float s[];
    s[threadIdx.x + 1] = 1;
    x[threadIdx.x] = s[threadIdx.x];
}
__global__ void trap(float *x) { __trap(); }
__global__ void asserts(float *x) { assert(x[0] == 12345); }
}
"""


@pytest.fixture(scope="module")
def context():
    drv.init()
    context = drv.Device(0).retain_primary_context()
    context.push()
    yield context
    context.pop()


@pytest.fixture(scope="module")
def module(context):
    return SourceModule(SOURCE, no_extern_c=True)


@pytest.fixture(autouse=True)
def clean(context):
    """Every test starts with the same seed and counters, and leaves no fault behind that it has not looked at."""
    drv.Context.synchronize()
    control.seed(0)
    control.reset()
    yield
    left = control.clear_fault()
    assert not left


def random(*shape, dtype=np.float32, seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def zeros(n=N):
    """Zeros that are there: gpuarray fills them on the default stream, which non-blocking streams do not wait for."""
    x = gpuarray.zeros(n, np.float32)
    drv.Context.synchronize()
    return x


def context_of(address):
    handle = ctypes.c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuPointerGetAttribute(ctypes.byref(handle), 1, ctypes.c_uint64(address)) == 0
    return handle


def bfloat16(x):
    """float32 rounded to bfloat16 as its 16 bits (finite values)."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


# ---- PyCUDA runs ----------------------------------------------------------------------------------------------------
def test_devices(context):
    assert drv.Device.count() == 2
    assert [drv.Device(i).name() for i in range(2)] == ["cudasim device 0 (CPU)", "cudasim device 1 (CPU)"]
    assert drv.Device(0).compute_capability() == (9, 0)
    assert drv.Device(drv.Device(1).pci_bus_id()).name() == drv.Device(1).name()
    assert drv.Context.get_device() == drv.Device(0)
    assert drv.Device(0).get_attributes()[drv.device_attribute.WARP_SIZE] == 32


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_gpuarray_arithmetic(dtype):
    a, b = (random(N, seed=s) * 100 + 500 for s in (1, 2))
    a, b = a.astype(dtype), b.astype(dtype)
    x, y = gpuarray.to_gpu(a), gpuarray.to_gpu(b)
    np.testing.assert_allclose((x * 2 + y - x * y).get(), a * 2 + b - a * b, rtol=1e-5)
    np.testing.assert_array_equal(x[3:17].get(), a[3:17])
    np.testing.assert_array_equal(gpuarray.zeros_like(x).get(), np.zeros_like(a))
    np.testing.assert_allclose(float(gpuarray.sum(x, dtype=np.float64).get()), a.sum(dtype=np.float64), rtol=1e-12)
    assert gpuarray.max(x).get() == a.max()
    x.fill(3)
    assert (x.get() == 3).all()


def test_complex_arrays():
    a = random(2, 50).view(np.complex64)
    x = gpuarray.to_gpu(a)
    np.testing.assert_allclose((x * x).get(), a * a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 31, 257, 100_003])
def test_elementwise_kernel(n):
    kernel = ElementwiseKernel("float a, const float *x, float *y", "y[i] = a * x[i] + y[i]", "axpy")
    x, y = random(n, seed=1), random(n, seed=2)
    d, e = gpuarray.to_gpu(x), gpuarray.to_gpu(y)
    kernel(np.float32(3), d, e)
    np.testing.assert_allclose(e.get(), 3 * x + y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_reduction_kernel(seed):
    control.seed(seed)
    norm = ReductionKernel(np.float64, neutral="0", reduce_expr="a+b", map_expr="x[i]*x[i]", arguments="const double *x")
    x = random(12345, dtype=np.float64)
    np.testing.assert_allclose(norm(gpuarray.to_gpu(x)).get(), x @ x, rtol=1e-12)


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


def test_prepared_calls_and_launch_records(module):
    x, stream = gpuarray.zeros(N, np.float32), drv.Stream()
    drv.Context.synchronize()
    control.reset()
    add = module.get_function("add").prepare("Pfi")
    add.prepared_async_call((4, 1), (256, 1, 1), stream, x.gpudata, 1.5, N)
    add.prepared_call((5, 1), (200, 1, 1), x.gpudata, 1.5, N)
    assert control.blocking() == []
    assert control.counters()["pending"] == 2
    assert control.launches() == [
        {"name": "add", "grid": [4, 1, 1], "block": [256, 1, 1], "shared": 0},
        {"name": "add", "grid": [5, 1, 1], "block": [200, 1, 1], "shared": 0},
    ]
    assert (x.get() == 3).all()
    assert control.blocking() == ["cuMemcpyDtoH"]
    counts = control.counters()
    assert (counts["launches"], counts["copies"], counts["memsets"], counts["pending"]) == (2, 1, 0, 0)


def test_kernel_parameters_as_pointers(module):
    """The other launch form of cuLaunchKernel, which PyCUDA does not use."""
    driver = ctypes.CDLL("libcuda.so.1")
    image = Path(OUT, "cache").glob("*.cubin")
    path = next(p for p in image if b"affine_bf16" in p.read_bytes())
    handle, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoad(ctypes.byref(handle), str(path).encode()) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), handle, b"add") == 0
    x = gpuarray.zeros(N, np.float32)
    values = [ctypes.c_uint64(int(x.gpudata)), ctypes.c_float(2.5), ctypes.c_int(N)]
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(v) for v in values))
    assert driver.cuLaunchKernel(function, 4, 1, 1, 256, 1, 1, 0, None, pointers, None) == 0
    assert (x.get() == 2.5).all()
    assert driver.cuModuleUnload(handle) == 0


@pytest.mark.parametrize("target", ["cubin", "ptx", "fatbin"])
def test_targets_of_the_compiler(context, target, tmp_path):
    image = compiler.compile("__global__ void one(int *x) { *x = 1; }", target=target)
    (tmp_path / "image").write_bytes(image)
    for loaded in (drv.module_from_buffer(image), drv.module_from_file(str(tmp_path / "image"))):
        x = gpuarray.zeros(1, np.int32)
        loaded.get_function("one")(x, block=(1, 1, 1))
        assert x.get() == 1


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
    assert done.returncode == 0, done.stderr  # the header lies beside the source
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
    # the mode is the kernel's, not the process's
    tiny = np.full(3, np.finfo(np.float32).tiny, np.float32)
    assert (tiny * np.float32(0.5) != 0).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\x50\xed\x55\xba" + bytes(100), "no kernel image is available"),  # a fatbin for real devices
        (b".version 8.0" + bytes(100), "device kernel image is invalid"),
    ],
)
def test_images_that_are_not_for_this_device(context, image, message):
    with pytest.raises(drv.Error, match=message):
        drv.module_from_buffer(image)


def test_many_launches_without_waiting(module):
    x = zeros()
    stream = drv.Stream(NON_BLOCKING)
    for _ in range(3000):  # more than a queue holds
        module.get_function("add")(x, np.float32(1), np.int32(1), block=(1, 1, 1), stream=stream)
    stream.synchronize()
    assert x.get()[0] == 3000


def test_limits_of_a_launch(module):
    add = module.get_function("add")
    x = gpuarray.zeros(N, np.float32)
    for how in (
        {"block": (1025, 1, 1)},
        {"block": (1, 1, 65)},
        {"block": (1, 1, 1), "grid": (1, 65536)},
        {"block": (1, 1, 1), "shared": 48 * 1024 + 1},
    ):
        with pytest.raises(drv.LogicError, match="invalid argument"):
            add(x, np.float32(1), np.int32(N), **how)


def test_copies_and_memsets(module):
    x = gpuarray.empty((6, 8), np.float32)
    drv.memset_d32(x.gpudata, 0x3F800000, 48)
    assert (x.get() == 1).all()
    drv.memset_d8(int(x.gpudata) + 4, 0, 8)
    assert x.get()[0].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    part = np.zeros((3, 4), np.float32)
    copy = drv.Memcpy2D()
    copy.set_src_device(x.gpudata)
    copy.set_dst_host(part)
    copy.src_pitch, copy.dst_pitch, copy.width_in_bytes, copy.height = 32, 16, 16, 3
    copy(aligned=True)
    np.testing.assert_array_equal(part, x.get()[:3, :4])
    y = gpuarray.empty_like(x)
    drv.memcpy_dtod(y.gpudata, x.gpudata, x.nbytes)
    np.testing.assert_array_equal(x.get(), y.get())
    matrix = gpuarray.to_gpu(random(7, 5))
    np.testing.assert_array_equal(matrix[2:5, 1:4].get(), matrix.get()[2:5, 1:4])
    pitched, pitch = drv.mem_alloc_pitch(100, 10, 4)
    assert pitch == 512
    pitched.free()


def test_pinned_managed_and_registered_memory(module):
    copy = module.get_function("copy")
    pinned = drv.pagelocked_empty(N, np.float32)
    managed = drv.managed_zeros(N, np.float32, mem_flags=drv.mem_attach_flags.GLOBAL)
    registered = np.ones(N, np.float32)
    address = ctypes.c_void_p(registered.ctypes.data)
    driver = ctypes.CDLL("libcuda.so.1")  # PyCUDA 2026.1's own register_host_memory crashes in Python's memory management
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    assert driver.cuMemHostRegister_v2(address, ctypes.c_size_t(registered.nbytes), 0) == 0
    copy(np.intp(pinned.base.get_device_pointer()), np.intp(address.value), np.int32(N), **config)
    drv.Context.synchronize()
    assert driver.cuMemHostUnregister(address) == 0
    assert (pinned == 1).all()
    pinned[:] = random(N)
    copy(managed, np.intp(pinned.base.get_device_pointer()), np.int32(N), **config)
    drv.Context.synchronize()
    np.testing.assert_array_equal(managed, pinned)


# ---- streams run late -------------------------------------------------------------------------------------------------
def test_not_ready_until_somebody_waits(module):
    x = zeros()
    stream, event = drv.Stream(), drv.Event()
    control.reset()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    event.record(stream)
    assert not stream.is_done()  # which runs the kernel
    assert not event.query()
    assert control.blocking() == []
    event.synchronize()
    assert event.query()
    assert stream.is_done()
    assert control.blocking() == ["cuEventSynchronize"]
    assert (x.get() == 1).all()


def test_polling_ends(module):
    x = zeros()
    stream = drv.Stream(NON_BLOCKING)
    for _ in range(20):
        module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    polls = 0
    while not stream.is_done():
        polls += 1
    assert polls == 20


def chain(module, synchronise):
    """Results, over the seeds, of a copy on one stream and an addition on another that should come before it."""
    results = []
    for seed in SEEDS:
        x, y = zeros(), zeros()
        first, second, event = drv.Stream(NON_BLOCKING), drv.Stream(NON_BLOCKING), drv.Event()
        control.seed(seed)
        config = {"grid": (4, 1), "block": (256, 1, 1)}
        module.get_function("add")(x, np.float32(1), np.int32(N), stream=first, **config)
        event.record(first)
        if synchronise == "event":
            second.wait_for_event(event)
        module.get_function("copy")(y, x, np.int32(N), stream=second, **config)
        if synchronise != "nothing":
            second.synchronize()
        results.append(float(y.get()[0]))
        drv.Context.synchronize()
    return results


def test_events_order_streams(module):
    assert chain(module, "event") == [1.0] * len(SEEDS)


@pytest.mark.parametrize("synchronise", ["second only", "nothing"])
def test_missing_synchronisation_shows(module, synchronise):
    results = chain(module, synchronise)
    assert set(results) == {0.0, 1.0}
    assert chain(module, synchronise) == results  # a seed means the same every time


def test_default_stream_orders_blocking_streams(module):
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    for seed in SEEDS:
        x, y = zeros(), zeros()
        control.seed(seed)
        first, second = drv.Stream(), drv.Stream()
        module.get_function("add")(x, np.float32(1), np.int32(N), stream=first, **config)
        module.get_function("add")(x, np.float32(2), np.int32(N), **config)
        module.get_function("copy")(y, x, np.int32(N), stream=second, **config)
        assert (y.get() == 3).all()


def test_when_async_copies_read_and_write():
    stream = drv.Stream(NON_BLOCKING)
    x = zeros()
    pageable, pinned = np.ones(N, np.float32), drv.pagelocked_empty(N, np.float32)
    drv.memcpy_htod_async(x.gpudata, pageable, stream)
    pageable[:] = 5  # the call has taken its copy
    stream.synchronize()
    assert (x.get() == 1).all()
    pinned[:] = 1
    drv.memcpy_htod_async(x.gpudata, pinned, stream)
    pinned[:] = 5  # a mistake: the copy has not been made yet
    stream.synchronize()
    assert (x.get() == 5).all()
    for host in (np.zeros(N, np.float32), drv.pagelocked_zeros(N, np.float32)):
        drv.memcpy_dtoh_async(host, x.gpudata, stream)
        assert (host == 0).all()
        stream.synchronize()
        assert (host == 5).all()


def test_freeing_waits(module):
    stream = drv.Stream(NON_BLOCKING)
    x, y = zeros(), zeros()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    module.get_function("copy")(y, x, np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    control.reset()
    del x
    assert control.blocking() == ["cuMemFree"]
    assert (y.get() == 1).all()


def test_work_outlives_its_stream(module):
    gc.collect()  # what other tests left in cycles: a caught exception and its frames
    x, stream, event = zeros(), drv.Stream(NON_BLOCKING), drv.Event()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    event.record(stream)
    del stream, event
    assert control.leaks()["streams"] == 0
    assert control.counters()["pending"] == 2
    drv.Context.synchronize()
    assert (x.get() == 1).all()


def test_event_times(module):
    x = zeros()
    start, end = drv.Event(), drv.Event()
    start.record()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1))
    end.record()
    with pytest.raises(drv.Error, match="not ready"):
        end.time_since(start)
    end.synchronize()
    assert 0 < end.time_since(start) < 1000


def test_eager(module):
    x = zeros()
    stream = drv.Stream()
    with control.eager():
        module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
        assert stream.is_done()


# ---- devices, contexts, leaks -------------------------------------------------------------------------------------------
class Other:
    """A context of its own on a device, current inside `with`."""

    def __init__(self, device):
        self.context = drv.Device(device).make_context()
        self.context.pop()

    def __enter__(self):
        self.context.push()
        return self

    def __exit__(self, *_):
        drv.Context.pop()


@pytest.mark.parametrize("device", [0, 1])
def test_contexts(module, device):
    driver = ctypes.CDLL("libcuda.so.1")
    before = control.leaks()
    other = Other(device)
    x = gpuarray.to_gpu(random(N))
    with other:
        assert drv.Context.get_device() == drv.Device(device)
        free, total = drv.mem_get_info()
        y = gpuarray.to_gpu(random(N, seed=3))
        assert drv.mem_get_info() == (free - y.nbytes, total)
        np.testing.assert_array_equal((y + y).get(), 2 * random(N, seed=3))
        owner, ordinal, kind = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint()
        for attribute, value in ((1, owner), (2, kind), (9, ordinal)):
            assert driver.cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(int(y.gpudata) + 8)) == 0
        current = ctypes.c_void_p()
        assert driver.cuCtxGetCurrent(ctypes.byref(current)) == 0
        assert (owner.value, ordinal.value, kind.value) == (current.value, device, 2)
        assert drv.mem_get_address_range(int(y.gpudata) + 8) == (int(y.gpudata), y.nbytes)
    assert drv.Context.get_device() == drv.Device(0)
    np.testing.assert_array_equal((x + x).get(), 2 * random(N))
    after = control.leaks()
    assert after["contexts"] == before["contexts"] + 1
    y.gpudata.free()
    other.context.detach()
    assert control.leaks()["contexts"] == before["contexts"]


def test_peer_copy():
    x = gpuarray.to_gpu(random(N))
    other = Other(1)
    with other:
        y = gpuarray.empty(N, np.float32)
        addresses = [int(y.gpudata), int(x.gpudata)]
        sides = [v for a in addresses for v in (ctypes.c_uint64(a), context_of(a))]
        assert ctypes.CDLL("libcuda.so.1").cuMemcpyPeer(*sides, ctypes.c_size_t(x.nbytes)) == 0
        np.testing.assert_array_equal(y.get(), random(N))
        y.gpudata.free()
    other.context.detach()


def test_peer_access(module, context):
    other = Other(1)
    with other:
        y = gpuarray.to_gpu(random(N))
        drv.Context.synchronize()
    x = zeros()
    context.enable_peer_access(other.context)
    module.get_function("copy")(x, y, np.int32(N), grid=(4, 1), block=(256, 1, 1))
    np.testing.assert_array_equal(x.get(), random(N))
    context.disable_peer_access(other.context)
    with other:
        y.gpudata.free()
    other.context.detach()


def test_host_functions_run_in_order(module):
    x, stream, seen = zeros(), drv.Stream(NON_BLOCKING), drv.pagelocked_zeros(N, np.float32)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: order.append(float(seen[0])))
    order = []
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    drv.memcpy_dtoh_async(seen, x.gpudata, stream)
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc
    assert launch(ctypes.c_void_p(stream.handle), callback, None) == 0
    assert order == []
    stream.synchronize()
    assert order == [1.0]


def test_calls_from_several_threads(module, context):
    failures = []

    def work(seed):
        context.push()
        try:
            for _ in range(20):
                x = gpuarray.to_gpu(random(N, seed=seed))
                module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1))
                if not (x.get() == random(N, seed=seed) + np.float32(1)).all():
                    failures.append(seed)
            del x
        finally:
            context.pop()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_leaks_are_counted(module):
    before = control.leaks()
    x, stream, event = gpuarray.empty(N, np.float32), drv.Stream(), drv.Event()
    after = control.leaks()
    assert {k: after[k] - before[k] for k in after} == {
        "allocations": 1,
        "streams": 1,
        "events": 1,
        "modules": 0,
        "contexts": 0,
    }
    del x, stream, event
    assert control.leaks() == before


def python(code, **environment):
    """Runs Python in a process of its own, with the simulator and a context."""
    start = f"""
        from tests import cudasim
        cudasim.activate({OUT!r})
        import numpy as np
        import pycuda.driver as drv
        import pycuda.autoprimaryctx
        from pycuda import gpuarray
        from pycuda.compiler import SourceModule, compile
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        cwd=ROOT,
        text=True,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_child_processes_need_no_activation():
    """activate() leaves what they need in the environment: examples run as they are."""
    code = "import pycuda.autoprimaryctx; from pycuda import gpuarray; print(gpuarray.zeros(3, 'f').get())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert child.stdout == "[0. 0. 0.]\n", child.stderr


BY_ONE = """
    f = SourceModule("__global__ void one(float *x, int n) { x[n] = 1; }").get_function("one")
    x = gpuarray.zeros(100, np.float32)
    f(x, np.int32(100), block=(1, 1, 1))
    print("launched")
    drv.Context.synchronize()
    print("finished")
"""


def test_environment():
    report = "kernel one: write of 4 bytes"
    late = python(BY_ONE)
    assert late.returncode == 1
    assert late.stdout == "launched\n"
    assert report in late.stderr
    eager = python(BY_ONE, CUSIM_EAGER="1")
    assert (eager.returncode, eager.stdout) == (1, "")
    assert report in eager.stderr
    summed = python("print(gpuarray.sum(gpuarray.arange(1000, dtype=np.int32)).get())", CUSIM_CHECK="0")
    assert summed.stdout.splitlines()[-1] == "499500"
    unchecked = python(BY_ONE, CUSIM_CHECK="0", CUSIM_LEAKS="1", CUSIM_DEVICES="1")
    assert (unchecked.returncode, unchecked.stdout) == (0, "launched\nfinished\n")
    assert report not in unchecked.stderr
    small = python(
        """
        free, total = drv.mem_get_info()
        half = drv.mem_alloc(free // 2)
        try:
            drv.mem_alloc(free // 2 + 1024)
        except drv.MemoryError as error:
            print(free, total, error)
    """,
        CUSIM_MEMORY="100000",
    )
    assert small.stdout == "100000 100000 cuMemAlloc failed: out of memory\n"
    endless = python(
        """
        f = SourceModule("__global__ void endless(int *x) { while (atomicAdd(x, 0) == 0) {} }").get_function("endless")
        f(gpuarray.zeros(1, np.int32), block=(2, 1, 1))
        drv.Context.synchronize()
    """,
        CUSIM_TIMEOUT="1",
    )
    assert "kernel endless: still running after 1 seconds" in endless.stderr
    leaky = python(
        "driver = __import__('ctypes').CDLL('libcuda.so.1'); p = __import__('ctypes').c_uint64();"
        "driver.cuMemAlloc_v2(__import__('ctypes').byref(p), 8); print(drv.Device.count())",
        CUSIM_LEAKS="1",
        CUSIM_DEVICES="3",
    )
    assert leaky.stdout == "3\n"
    assert '"allocations": 1, "streams": 0, "events": 0, "modules": 0, "contexts": 1' in leaky.stderr


# ---- planted faults -----------------------------------------------------------------------------------------------------
def copy_args(to, from_, n=1):
    return np.uintp(to), np.uintp(from_), np.int32(n)


FAULTS = {
    # name: (kernel and arguments, given the address of N floats; the report's pattern)
    "read by one": (
        lambda x: ("copy", copy_args(x, x + 4 * N)),
        r"kernel copy: read of 4 bytes at 0x\w+: outside every "
        r"allocation \(0 bytes past the end of device allocation #\d+ of context \d+ on device 0 "
        r"\(4000 bytes at 0x\w+\)\); block \(0, 0, 0\), thread \(0, 0, 0\)",
    ),
    "write by one": (lambda x: ("copy", copy_args(x + 4 * N, x)), "kernel copy: write of 4 bytes .*0 bytes past the end"),
    "vector past the end": (lambda x: ("copy4", copy_args(x, x + 4 * N)[:2]), "kernel copy4: read of .*past the end"),
    "before the start": (lambda x: ("copy", copy_args(x, x - 4)), "read of 4 bytes .*(4 bytes before|past the end of)"),
    "misaligned vector": (lambda x: ("copy4", copy_args(x, x + 4)[:2]), "kernel copy4: access at .* not a multiple of 16"),
    "misaligned scalar": (lambda x: ("copy", copy_args(x, x + 2)), "kernel copy: access at .* not a multiple of 4"),
    "null": (lambda x: ("copy", copy_args(x, 0)), "read of 4 bytes at 0x0: a null pointer"),
    "deadlock": (
        lambda x: ("deadlock", (np.uintp(x),)),
        r"kernel deadlock: deadlock: 16 threads \(0, 1.* wait at "
        r"__syncthreads in line \d+, 16 threads \(16.* wait at a warp operation",
    ),
    "divergent barriers": (lambda x: ("two_barriers", (np.uintp(x),)), "met at different barriers, in lines"),
    "mask without the caller": (lambda x: ("left_out", (np.uintp(x),)), "mask 0x1, which leaves it out"),
    "shared memory by one": (lambda x: ("shared_by_one", (np.uintp(x),)), "at offset 128 of 128 bytes of dynamic shared"),
    "trap": (lambda x: ("trap", (np.uintp(x),)), r"kernel trap: __trap\(\) failed, kernel.cu:\d+; block"),
    "assert": (lambda x: ("asserts", (np.uintp(x),)), r"kernel asserts: x\[0\] == 12345 failed, kernel.cu:\d+; block"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_planted_fault(module, fault, seed):
    call, message = FAULTS[fault]
    x = gpuarray.to_gpu(random(N))
    name, args = call(int(x.gpudata))
    control.seed(seed)
    threads = 64 if name == "two_barriers" else 32 if name in ("deadlock", "left_out", "shared_by_one") else 1
    module.get_function(name)(*args, block=(threads, 1, 1), shared=128)
    with pytest.raises(drv.Error, match=message) as caught:
        drv.Context.synchronize()
    with pytest.raises(drv.Error):  # the context is broken from now on
        x.get()
    assert control.clear_fault() in str(caught.value)
    np.testing.assert_array_equal(x.get()[32:], random(N)[32:])


@pytest.mark.parametrize("checked", ["read", "atomic"])
def test_uninitialised_read(module, checked):
    x, y = gpuarray.empty(N, np.float32), gpuarray.zeros(N, np.float32)
    drv.memset_d8(x.gpudata, 0, 4 * 700)
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    arguments = {"read": ("copy", (y, x)), "atomic": ("add", (x, np.float32(1)))}[checked]
    module.get_function(arguments[0])(*arguments[1], np.int32(700), **config)
    drv.Context.synchronize()
    module.get_function(arguments[0])(*arguments[1], np.int32(701), **config)
    with pytest.raises(drv.LogicError, match=r"read of 4 bytes .*never written before \(2800 bytes into device"):
        drv.Context.synchronize()
    assert r"block (2, 0, 0), thread (188, 0, 0)" in control.clear_fault()


def test_what_is_known_of_initialisation_goes_with_copies(module):
    x, y, z = (gpuarray.empty(N, np.float32) for _ in range(3))
    drv.memset_d8(x.gpudata, 0, 400)
    drv.memcpy_dtod(y.gpudata, x.gpudata, x.nbytes)
    module.get_function("copy")(z, y, np.int32(100), block=(100, 1, 1))
    y.get()
    assert control.counters()["uninitialised_to_host"] == 3600
    module.get_function("copy")(z, y, np.int32(101), block=(101, 1, 1))
    with pytest.raises(drv.LogicError, match=r"never written before \(400 bytes into"):
        drv.Context.synchronize()
    control.clear_fault()


def test_use_after_free(module):
    x, y = gpuarray.zeros(N, np.float32), gpuarray.zeros(N, np.float32)
    address = int(x.gpudata)
    del x
    again = [gpuarray.zeros(N, np.float32) for _ in range(3)]  # the address is not given out again
    module.get_function("copy")(y, np.uintp(address + 8), np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match="8 bytes into the freed device allocation"):
        drv.Context.synchronize()
    control.clear_fault()
    with pytest.raises(drv.LogicError, match=r"cuMemcpyDtoH: 4 bytes .* into the freed"):
        drv.memcpy_dtoh(np.zeros(1, np.float32), address)
    control.clear_fault()
    assert len(again) == 3


def test_host_pointer_in_a_kernel(module):
    x, host = gpuarray.zeros(N, np.float32), np.zeros(N, np.float32)
    module.get_function("copy")(x, np.uintp(host.ctypes.data), np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match=r"read of 4 bytes at .*: pageable host memory"):
        drv.Context.synchronize()
    control.clear_fault()


@pytest.mark.parametrize("device", [0, 1])
def test_pointer_of_another_context(module, device):
    x = gpuarray.zeros(N, np.float32)
    other = Other(device)
    with other:
        y = gpuarray.zeros(N, np.float32)
    module.get_function("copy")(x, y, np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match=rf"another context, peer access is not enabled .* on device {device}"):
        drv.Context.synchronize()
    control.clear_fault()
    with pytest.raises(drv.LogicError, match="belongs to another context: peer access is not enabled"):
        drv.memcpy_dtoh(np.zeros(1, np.float32), y.gpudata)
    control.clear_fault()
    with other:
        y.gpudata.free()
    other.context.detach()


def test_stream_and_function_of_another_context(module):
    x = gpuarray.zeros(N, np.float32)
    other = Other(1)
    with other:
        stream = drv.Stream()
        with pytest.raises(drv.LogicError, match="invalid resource handle"):
            module.get_function("add")(np.uintp(0), np.float32(1), np.int32(0), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match="invalid resource handle"):
        module.get_function("add")(x, np.float32(1), np.int32(N), block=(1, 1, 1), stream=stream)
    with other:
        del stream
    other.context.detach()


def test_wrong_argument_size(module):
    x = gpuarray.zeros(N, np.float32)
    with pytest.raises(drv.LogicError, match="kernel add: 12 bytes of arguments given, its parameters take 16"):
        module.get_function("add")(x, np.float32(1), block=(1, 1, 1))
    control.clear_fault()


def test_copies_out_of_bounds():
    x = gpuarray.zeros(N, np.float32)
    for call in (
        lambda: drv.memcpy_dtoh(np.zeros(N + 1, np.float32), x.gpudata),
        lambda: drv.memcpy_htod(x.gpudata, np.zeros(N + 1, np.float32)),
        lambda: drv.memset_d8(x.gpudata, 0, 4 * N + 1),
        lambda: drv.memcpy_dtod(x.gpudata, int(x.gpudata) + 4, 4 * N),
    ):
        with pytest.raises(drv.LogicError, match=r"400[14] bytes|4000 bytes at"):
            call()
        control.clear_fault()


def test_compile_error_names_the_line():
    with pytest.raises(drv.CompileError, match=r"kernel.cu:2:.*undeclared_thing"):
        SourceModule("__global__ void broken(int *p) { p[0] = undeclared_thing; }")


# ---- cuBLAS -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def cublas():
    if not importlib.util.find_spec("skcuda"):
        pytest.skip("needs scikit-cuda")
    from skcuda import cublas

    return cublas


@pytest.mark.filterwarnings("ignore")  # scikit-cuda's import warns of its own age
class TestCublas:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_products(self, cublas, dtype):
        letter = "S" if dtype == np.float32 else "D"
        a, b, c = random(5, 7, dtype=dtype), random(7, 4, dtype=dtype), random(5, 4, dtype=dtype)
        dev = [gpuarray.to_gpu(m) for m in (a, b, c, a.T.copy(), b.T.copy(), random(20, dtype=dtype))]
        handle, stream = cublas.cublasCreate(), drv.Stream(NON_BLOCKING)
        cublas.cublasSetStream(handle, stream.handle)
        assert cublas.cublasGetStream(handle) == stream.handle
        drv.Context.synchronize()  # what was copied there has arrived
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        call = {name: getattr(cublas, f"cublas{letter}{name}") for name in ("gemm", "gemv", "dot", "axpy", "scal", "nrm2")}
        control.reset()
        # row-major arrays are the transposed column-major ones: C^T = B^T A^T
        call["gemm"](handle, "n", "n", 4, 5, 7, 2.0, dev[1].gpudata, 4, dev[0].gpudata, 7, 0.5, dev[2].gpudata, 4)
        assert control.counters()["pending"] == 1
        assert control.blocking() == []
        stream.synchronize()
        np.testing.assert_allclose(dev[2].get(), 2 * a @ b + c / 2, **tolerance)
        call["gemm"](handle, "t", "t", 4, 5, 7, 1.0, dev[4].gpudata, 7, dev[3].gpudata, 5, 0.0, dev[2].gpudata, 4)
        call["gemv"](handle, "t", 7, 5, 1.0, dev[0].gpudata, 7, dev[1].gpudata, 4, 0.0, dev[5].gpudata, 2)
        call["axpy"](handle, 20, 3.0, dev[2].gpudata, 1, dev[2].gpudata, 1)
        call["scal"](handle, 20, 0.25, dev[2].gpudata, 1)
        stream.synchronize()
        np.testing.assert_allclose(dev[2].get(), a @ b, **tolerance)
        np.testing.assert_allclose(dev[5].get()[:10:2], a @ b[:, 0], **tolerance)
        np.testing.assert_array_equal(dev[5].get()[1:10:2], random(20, dtype=dtype)[1:10:2])
        dot = call["dot"](handle, 20, dev[0].gpudata, 1, dev[1].gpudata, 1)
        np.testing.assert_allclose(dot, a.ravel()[:20] @ b.ravel()[:20], **tolerance)
        np.testing.assert_allclose(call["nrm2"](handle, 35, dev[0].gpudata, 1), np.linalg.norm(a), **tolerance)
        cublas.cublasDestroy(handle)

    def test_faults(self, cublas):
        handle = cublas.cublasCreate()
        x, y = gpuarray.zeros(10, np.float32), gpuarray.empty(10, np.float32)
        cublas.cublasSaxpy(handle, 11, 1.0, x.gpudata, 1, x.gpudata, 1)
        with pytest.raises(drv.LogicError, match="cublasSaxpy: 44 bytes"):
            drv.Context.synchronize()
        control.clear_fault()
        cublas.cublasSaxpy(handle, 10, 1.0, y.gpudata, 1, x.gpudata, 1)
        with pytest.raises(drv.LogicError, match=r"cublasSaxpy: read of 40 bytes .* never written before"):
            drv.Context.synchronize()
        control.clear_fault()
        with pytest.raises(cublas.cublasNotSupported):
            cublas.cublasCcopy(handle, 5, x.gpudata, 1, y.gpudata, 1)
        cublas.cublasDestroy(handle)
