// Loops over gradients alone on a GPU: operations, sums of squares, and both together.
#pragma once
#include "elements.cuh"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

// The operations with their numbers for one segment. They are kept in shared memory.
template <class Real>
struct Operating {
    Prepared<Real> by[MAX_OPERATIONS];

    // Called by every thread of the block.
    __device__ __forceinline__ void prepare(const Operations &operations, double wc)
    {
        if (!operations.count)
            return;
        __syncthreads();  // the previous segment's operations may be in use
        if (threadIdx.x < operations.count) {
            const u64 address = operations.operation[threadIdx.x].address;
            by[threadIdx.x] =
                prepared<Real>(operations.operation[threadIdx.x], address ? *global<const double>(address) : 1.0, wc);
        }
        __syncthreads();
    }

    // Returns whether an operation reads the parameter.
    __device__ __forceinline__ bool of_param(u64 count) const
    {
        bool found = false;
#pragma unroll 1
        for (u32 o = 0; o < count; ++o)
            found |= by[o].kind == DECAY || by[o].kind == LASSO;
        return found;
    }

    // Returns a gradient after all operations.
    __device__ __forceinline__ Real operate(u64 count, Real g, Real p) const
    {
#pragma unroll 1
        for (u32 o = 0; o < count; ++o)
            g = operated(by[o].kind, by[o].value, by[o].other, g, p);
        return g;
    }
};

constexpr int FLIGHT = 8;  // number of elements that a thread loads before it uses the first one

// Calls each(i, g) with the gradient after its operations, for i = begin, begin + stride, ... < end.
template <class Stored, class Real, class Each>
__device__ __forceinline__ void each_gradient(const Segment &segment, const Operating<Real> &operating, u64 count, u64 begin,
                                              u64 end, u64 stride, Each each)
{
    const Stored *const grad = global<const Stored>(segment.grad), *const param = global<const Stored>(segment.param);
    const bool of_param = operating.of_param(count);
    for (u64 low = begin; low < end; low += stride * FLIGHT) {
        Real g[FLIGHT], p[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k) {
            const u64 i = low + k * stride;
            g[k] = p[k] = Real(0);
            if (i < end)
                g[k] = widen(grad[i]);
            if (of_param && i < end) {
                p[k] = widen(param[i]);
                if constexpr (sizeof(Stored) == 2)
                    p[k] = segment.master ? current(param[i], global<const float>(segment.master)[i]) : p[k];
            }
        }
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k)
            if (low + k * stride < end)
                each(low + k * stride, operating.operate(count, g[k], p[k]));
    }
}

// Returns the sum over all threads of a block, added pairwise, to the first thread.
template <int COUNT>
__device__ __forceinline__ SquareSum block_sum(const SquareSum &mine)
{
    __shared__ SquareSum all[COUNT];
    __syncthreads();  // the previous sum may be in use
    all[threadIdx.x] = mine;
    for (int half = COUNT / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            add(all[threadIdx.x], all[threadIdx.x + half]);
    }
    return all[0];
}

// Computes the sums of the chunks of segments whose kind is in the bit mask `kinds`. Each thread is a lane, so the order of
// additions is the same as on the CPU.
template <class Stored, class Real>
__device__ __forceinline__ void statistics(const Segment *segments, const Chunk *chunks, u64 count, SquareSum *partials,
                                           u64 kinds, const Operations &operations)
{
    __shared__ Operating<Real> operating;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Segment segment = segments[chunk.segment];
        if (!(kinds >> segment.kind & 1))
            continue;
        const Part part(chunk, segment);
        operating.prepare(operations, segment.wc);
        SquareSum mine{0.0, 0.0, 0};
        each_gradient<Stored>(segment, operating, operations.count, part.begin + threadIdx.x, part.begin + part.size, LANES,
                              [&](u64, Real g) { add(mine, {square(g), large_square(g), is_bad(g)}); });
        const SquareSum sum = block_sum<LANES>(mine);
        if (threadIdx.x == 0)
            partials[c] = sum;
    }
}

template <class Stored, class Real>
__device__ __forceinline__ void operate(const Segment &segment, const Operations &operations)
{
    __shared__ Operating<Real> operating;
    operating.prepare(operations, segment.wc);
    Stored *const grad = global<Stored>(segment.grad);
    each_gradient<Stored>(segment, operating, operations.count, u64(blockIdx.x) * blockDim.x + threadIdx.x, segment.size,
                          u64(gridDim.x) * blockDim.x, [&](u64 i, Real g) { narrow(g, grad[i]); });
}

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
