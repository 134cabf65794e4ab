// The loops over the arrays of a step on a GPU, and all kernels. rule.h has the arithmetic for one element, which the CPU
// library shares; elements.cuh divides elements among threads; gradients.cuh has the loops over gradients alone.
//
// Compiled without fused multiply-adds (-fmad=false), and subnormal floats are flushed to zero (-ftz=true), so that results
// are bit-identical to the CPU's. -ftz has no effect on double: the rule flushes the numbers that it stores (flushed() in
// numbers.h), but intermediate doubles may be subnormal here and zero on the CPU. The update is limited by memory
// bandwidth, so this costs no time.
//
// Kernels, named by the dtype of parameter and gradient, and by the dtype of the state:
//   graves_many_*      updates any number of segments in one launch: a table of segments, and a list of chunks
//   graves_extended_*  the same with step options, 16-bit or 8-bit state, and (*_master) float32 master weights. Whether one
//                      kernel for both would be slower has not been measured. Register counts are similar (extended/many,
//                      float32, nvcc 13.0: sm_75 54/59, sm_80 48/51, sm_90 48/54, sm_100 60/58, sm_120 48/44).
//   statistics_*       sums of squares of gradients, one for each chunk; statistics_conclude adds them
//   operate_*          operations on one gradient, in place
// Hyper-parameters are arguments of the launch. If `live` is not null, they are read from device memory instead, so that a
// launch captured in a CUDA graph uses the current values.

#define ON_CUDA
#include "gradients.cuh"
#include "int8_update.cuh"

// not an unnamed namespace: names in one depend on the compiler's process, so the PTX would not be reproducible
namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

// The number of elements that a thread processes at a time: 16 bytes of the widest dtype of a segment.
template <class Kind>
constexpr int PARAM_SIZE = Kind::MASTER ? sizeof(float) : sizeof(typename Kind::Stored);
template <class Kind>
constexpr int VECTOR = 16 / (PARAM_SIZE<Kind> > int(sizeof(typename Kind::State)) ? PARAM_SIZE<Kind>
                                                                                   : int(sizeof(typename Kind::State)));

// A step without options.
template <class Real>
struct Plain {
    __device__ __forceinline__ Real operate(Real g, Real) const { return g; }
    __device__ __forceinline__ void decay(Real &, Real, Real) const {}
    __device__ __forceinline__ u32 random(u32) const { return 0; }
    __device__ __forceinline__ bool zeroGrad() const { return false; }
};

// A step with options.
template <class Real>
struct Extended {
    const StepOptions &options;
    const Operating<Real> &operating;
    Random numbers;
    const Real &lost;  // the factor of weight decay, in shared memory to save a register

    __device__ __forceinline__ Real operate(Real g, Real p) const { return operating.operate(options.operations.count, g, p); }
    __device__ __forceinline__ void decay(Real &p, Real before, Real delta) const
    {
        if (options.decay != 0.0 && lost != Real(0))
            p = decayed(before, delta, lost);
    }
    __device__ __forceinline__ u32 random(u32 i) const { return numbers.of(i); }
    __device__ __forceinline__ bool zeroGrad() const { return options.zeroGrad; }
};

// The update of a segment from element `begin` on.
template <class Kind, class More>
struct Update {
    typedef typename Kind::Stored Stored;
    typedef typename Kind::State State;
    typedef typename Kind::Real Real;

    Stored *__restrict__ param;
    Stored *__restrict__ grad;
    State *__restrict__ mg;
    State *__restrict__ variance;
    State *__restrict__ delta;
    float *__restrict__ master;
    Coefficients<Real> c;
    More more;

    __device__ __forceinline__ Update(const Segment &segment, u64 begin, const Hyper &hyper, const More &what)
        : param(global<Stored>(segment.param) + begin), grad(global<Stored>(segment.grad) + begin),
          mg(global<State>(segment.mg) + begin), variance(global<State>(segment.variance) + begin),
          delta(global<State>(segment.delta) + begin), master(global<float>(segment.master) + begin), c(hyper, segment),
          more(what)
    {
    }

    template <int N>
    __device__ __forceinline__ void at(u32 i) const
    {
        Pack<Stored, N> p, g;
        Pack<State, N> m, v, d;
        Pack<float, N> f;
        // all loads before the first use, so that they overlap
        p.load(param + i);
        g.load(grad + i);
        m.load(mg + i);
        v.load(variance + i);
        d.load(delta + i);
        if constexpr (Kind::MASTER)
            f.load(master + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            Real rp, rm = widen(m[k]), rv = widen(v[k]), rd = widen(d[k]);
            if constexpr (Kind::MASTER)
                rp = current(p[k], f[k]);
            else
                rp = widen(p[k]);
            const Real before = rp;
            graves(rp, more.operate(widen(g[k]), rp), rm, rv, rd, c);
            more.decay(rp, before, rd);
            const u32 x = more.random(i + k);
            store_state(rm, x, m[k]);
            store_state(rv, x >> 16, v[k]);
            store_state(rd, x >> 8, d[k]);
            narrow(rp, p[k]);
            f[k] = float(rp);
            g[k] = Stored{};
        }
        m.store(mg + i);
        v.store(variance + i);
        d.store(delta + i);
        p.store(param + i);
        if constexpr (Kind::MASTER)
            f.store(master + i);
        if (more.zeroGrad())
            g.store(grad + i);
    }

    __device__ __forceinline__ u32 aligned() const
    {
        constexpr int N = VECTOR<Kind>;
        const u32 skip = ahead<N>(param);
        return skip == ahead<N>(grad) && skip == ahead<N>(mg) && skip == ahead<N>(variance) && skip == ahead<N>(delta) &&
                       (!Kind::MASTER || skip == ahead<N>(master))
                   ? skip
                   : NEVER;
    }
};

template <class Kind>
__device__ __forceinline__ void many(const Hyper &given, const Hyper *live, const Segment *segments, const Chunk *chunks,
                                     u64 count)
{
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Segment segment = segments[chunk.segment];
        const Part part(chunk, segment);
        const Hyper hyper = live ? *live : given;  // read here rather than before the loop, to save registers
        const Update<Kind, Plain<typename Kind::Real>> update(segment, part.begin, hyper, {});
        share<VECTOR<Kind>>(update, update.aligned(), part.size, threadIdx.x, blockDim.x);
    }
}

template <class Kind>
__device__ __forceinline__ void extended(const Hyper &given, const Hyper *live, const Segment *segments, const Chunk *chunks,
                                       u64 count, const StepOptions &options)
{
    typedef typename Kind::Real Real;
    typedef typename Kind::Stored Stored;
    __shared__ Operating<Real> operating;
    __shared__ Real lost;
    const bool skip = options.skip && *global<const u32>(options.skip);
    if (skip && !options.zeroGrad)
        return;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Segment segment = segments[chunk.segment];
        const Part part(chunk, segment);
        if (skip) {
            for (u32 i = threadIdx.x; i < part.size; i += blockDim.x)
                global<Stored>(segment.grad)[part.begin + i] = Stored{};
            continue;
        }
        operating.prepare(options.operations, segment.wc);
        const Hyper hyper = live ? *live : given;
        if (options.decay != 0.0) {
            __syncthreads();  // the previous segment's factor may be in use
            if (threadIdx.x == 0)
                lost = decay_of<Real>(options.decay, hyper, segment);
            __syncthreads();
        }
        const Extended<Real> more{options, operating, Random(options.seed, segment.key, segment.first + part.begin), lost};
        if constexpr (sizeof(typename Kind::State) == 1) {
            Int8Update<Kind, Extended<Real>>(segment, part.begin, hyper, more).all(part.size);
        } else {
            const Update<Kind, Extended<Real>> update(segment, part.begin, hyper, more);
            share<VECTOR<Kind>>(update, update.aligned(), part.size, threadIdx.x, blockDim.x);
        }
    }
}

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop

using namespace puzzlelib_rmsprop;
using namespace puzzlelib_rmsprop::KERNEL_NAMESPACE;

// ---- entry points --------------------------------------------------------------------------------------------------

extern "C" {

#define WITHIN(BOUNDS, NAME, ...)                                                                                        \
    __global__ void __launch_bounds__ BOUNDS graves_extended_##NAME(                                                    \
        Hyper hyper, const Hyper *live, const Segment *segments, const Chunk *chunks, u64 count, StepOptions options) \
    {                                                                                                                 \
        extended<Kind<__VA_ARGS__>>(hyper, live, segments, chunks, count, options);                                     \
    }
#define EXTENDED(NAME, ...) WITHIN((THREADS), NAME, __VA_ARGS__)
#define INT8(NAME, ...) WITHIN((THREADS, 2), NAME, __VA_ARGS__)  // at least two blocks resident: otherwise ptxas spills
#define EVERY(NAME, ...)                                                                                              \
    __global__ void __launch_bounds__(THREADS) graves_many_##NAME(                                                    \
        Hyper hyper, const Hyper *live, const Segment *segments, const Chunk *chunks, u64 count)                      \
    {                                                                                                                 \
        many<Kind<__VA_ARGS__>>(hyper, live, segments, chunks, count);                                                \
    }                                                                                                                 \
    EXTENDED(NAME, __VA_ARGS__)

EVERY(float32_float32, float, float, float, false)
EVERY(float64_float64, double, double, double, false)
EVERY(float16_float32, float16, float, float, false)
EVERY(bfloat16_float32, bfloat16, float, float, false)
EXTENDED(float32_bfloat16, float, bfloat16, float, false)
EXTENDED(float16_bfloat16, float16, bfloat16, float, false)
EXTENDED(bfloat16_bfloat16, bfloat16, bfloat16, float, false)
EXTENDED(float16_float32_master, float16, float, float, true)
EXTENDED(bfloat16_float32_master, bfloat16, float, float, true)
EXTENDED(float16_bfloat16_master, float16, bfloat16, float, true)
EXTENDED(bfloat16_bfloat16_master, bfloat16, bfloat16, float, true)
INT8(float32_int8, float, int8, float, false)
INT8(float16_int8, float16, int8, float, false)
INT8(bfloat16_int8, bfloat16, int8, float, false)
INT8(float16_int8_master, float16, int8, float, true)
INT8(bfloat16_int8_master, bfloat16, int8, float, true)

#define FOR_GRADIENTS(NAME, STORED, REAL)                                                                             \
    __global__ void __launch_bounds__(THREADS) statistics_##NAME(                                                     \
        const Segment *segments, const Chunk *chunks, u64 count, SquareSum *partials, u64 kinds, Operations operations) \
    {                                                                                                                 \
        statistics<STORED, REAL>(segments, chunks, count, partials, kinds, operations);                               \
    }                                                                                                                 \
    __global__ void __launch_bounds__(THREADS) operate_##NAME(Segment segment, Operations operations)                 \
    {                                                                                                                 \
        operate<STORED, REAL>(segment, operations);                                                                   \
    }

FOR_GRADIENTS(float32, float, float)
FOR_GRADIENTS(float64, double, double)
FOR_GRADIENTS(float16, float16, float)
FOR_GRADIENTS(bfloat16, bfloat16, float)

// Launched with one block of CHUNK_LANES threads.
__global__ void __launch_bounds__(CHUNK_LANES)
    statistics_conclude(const SquareSum *partials, u64 count, Statistics *result, ScalingPolicy policy)
{
    SquareSum mine{0.0, 0.0, 0};
    for (u64 i = threadIdx.x; i < count; i += CHUNK_LANES)
        add(mine, partials[i]);
    const SquareSum all = block_sum<CHUNK_LANES>(mine);
    if (threadIdx.x == 0)
        conclude(*result, all, policy);
}

}  // extern "C"
