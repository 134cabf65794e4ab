// Kernels for the tests of the simulator: what the language has, and faults.
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
