// Graves' RMSProp on a GPU: the rule once, and the kernels that apply it.
// Source: A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45; the max is ours, because
// rounding can make ms - mg*mg negative.

#include <cuda_fp16.h>

// The rule for one element; Real is float for 16- and 32-bit parameters and double for 64-bit ones.
template <class Real>
__device__ __forceinline__ void graves(Real &param, const Real g, Real &mg, Real &ms, Real &delta,
                                       const Real learnRate, const Real alpha, const Real momRate, const Real epsilon)
{
    const Real beta = Real(1) - alpha;
    mg = alpha * mg + beta * g;
    ms = alpha * ms + beta * g * g;
    Real variance = ms - mg * mg;
    variance = variance < Real(0) ? Real(0) : variance;  // not max(): a NaN has to stay one
    delta = momRate * delta + learnRate * g / sqrt(variance + epsilon);
    param = param + delta;
}

// One contiguous buffer of n elements; Stored is the type of param and grad. Any grid of 1-d blocks will do.
template <class Stored, class Real>
__device__ __forceinline__ void graves_flat(Stored *__restrict__ param, const Stored *__restrict__ grad,
                                            Real *__restrict__ mg, Real *__restrict__ ms, Real *__restrict__ delta,
                                            const size_t n, const Real learnRate, const Real alpha, const Real momRate,
                                            const Real epsilon)
{
    const size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        Real p = Real(param[i]), m = mg[i], s = ms[i], d = delta[i];
        graves(p, Real(grad[i]), m, s, d, learnRate, alpha, momRate, epsilon);
        mg[i] = m;
        ms[i] = s;
        delta[i] = d;
        param[i] = Stored(p);
    }
}

#define GRAVES_FLAT(NAME, STORED, REAL)                                                                               \
    extern "C" __global__ void NAME(STORED *param, const STORED *grad, REAL *mg, REAL *ms, REAL *delta, size_t n,      \
                                    REAL learnRate, REAL alpha, REAL momRate, REAL epsilon)                            \
    {                                                                                                                  \
        graves_flat<STORED, REAL>(param, grad, mg, ms, delta, n, learnRate, alpha, momRate, epsilon);                  \
    }

GRAVES_FLAT(graves_flat_float16, __half, float)
GRAVES_FLAT(graves_flat_float32, float, float)
GRAVES_FLAT(graves_flat_float64, double, double)
