// Graves' RMSProp on a GPU: the rule once, and the kernels that apply it.
//
// Source: A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45; the max is ours, because
// rounding can make ms - mg*mg negative. Compiled without fused multiply-adds (-fmad=false): then every operation is
// rounded once, as on the CPU, and both give the same bits. The update waits for memory, so that costs nothing.
//
// Two entry points for each pair of types (parameter and gradient; state):
//   graves_flat_*  one contiguous buffer
//   graves_many_*  any number of variables in one launch: a table of them, and a list of chunks for the blocks to take
// Both read the hyper-parameters from the launch, or, where `live` is given, from device memory, so that a launch
// captured in a graph follows them.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

typedef unsigned long long u64;
typedef unsigned int u32;

struct Hyper {
    double learnRate, alpha, momRate, epsilon;
};

// One variable, or one stretch of a flat buffer. Its rates are factors on those of Hyper.
struct Row {
    u64 param, grad, mg, ms, delta;  // addresses; every dtype shares the layout
    u64 size;                        // elements
    double learnRate, momRate;
};

// Elements [index * CHUNK, (index + 1) * CHUNK) of a row.
struct Chunk {
    u32 row, index;
};

constexpr int THREADS = 256;  // of a block
constexpr int CHUNK = 8192;   // elements; a multiple of every vector, so that a chunk is aligned as its row is

// Hyper-parameters in the precision of the arithmetic. Rates are multiplied in double and rounded once, as on the CPU.
template <class Real>
struct Rates {
    Real learnRate, alpha, momRate, epsilon;

    __device__ __forceinline__ Rates(const Hyper &h, double learnRateFactor, double momRateFactor)
        : learnRate(Real(h.learnRate * learnRateFactor)), alpha(Real(h.alpha)), momRate(Real(h.momRate * momRateFactor)),
          epsilon(Real(h.epsilon))
    {
    }
};

// The rule for one element.
template <class Real>
__device__ __forceinline__ void graves(Real &param, const Real g, Real &mg, Real &ms, Real &delta, const Rates<Real> &r)
{
    const Real beta = Real(1) - r.alpha;
    mg = r.alpha * mg + beta * g;
    ms = r.alpha * ms + beta * g * g;
    Real variance = ms - mg * mg;
    variance = variance < Real(0) ? Real(0) : variance;  // not max(): a NaN has to stay one
    delta = r.momRate * delta + r.learnRate * g / sqrt(variance + r.epsilon);
    param = param + delta;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float &to) { to = x; }
__device__ __forceinline__ void narrow(double x, double &to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half &to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16 &to) { to = __float2bfloat16_rn(x); }

// N elements of T as one or several 16-byte (or, for a 16-bit T beside 32-bit states, 8-byte) words in registers.
template <class T, int N>
struct Pack {
    static constexpr int BYTES = N * sizeof(T) >= 16 ? 16 : N * sizeof(T);
    static constexpr int WORDS = N * sizeof(T) / BYTES;
    static constexpr int EACH = N / WORDS;
    struct alignas(BYTES) Word {
        T item[EACH];
    };
    Word word[WORDS];

    __device__ __forceinline__ void load(const T *from)
    {
#pragma unroll
        for (int w = 0; w < WORDS; ++w)
            word[w] = reinterpret_cast<const Word *>(from)[w];
    }
    __device__ __forceinline__ void store(T *to) const
    {
#pragma unroll
        for (int w = 0; w < WORDS; ++w)
            reinterpret_cast<Word *>(to)[w] = word[w];
    }
    __device__ __forceinline__ T &operator[](int i) { return word[i / EACH].item[i % EACH]; }
};

// The five buffers of a variable, and the update of one element or of a vector of them.
template <class Stored, class State, class Real>
struct Buffers {
    static constexpr int VECTOR = 16 / sizeof(Stored) < 16 / sizeof(State) ? 16 / sizeof(Stored) : 16 / sizeof(State);

    Stored *__restrict__ param;
    const Stored *__restrict__ grad;
    State *__restrict__ mg;
    State *__restrict__ ms;
    State *__restrict__ delta;

    __device__ __forceinline__ void one(u64 i, const Rates<Real> &r) const
    {
        Real p = widen(param[i]), m = widen(mg[i]), s = widen(ms[i]), d = widen(delta[i]);
        graves(p, Real(widen(grad[i])), m, s, d, r);
        narrow(m, mg[i]);
        narrow(s, ms[i]);
        narrow(d, delta[i]);
        narrow(p, param[i]);
    }

    __device__ __forceinline__ void vector(u64 i, const Rates<Real> &r) const
    {
        Pack<Stored, VECTOR> p, g;
        Pack<State, VECTOR> m, s, d;
        // all loads before the first use, so that they are under way together
        p.load(param + i);
        g.load(grad + i);
        m.load(mg + i);
        s.load(ms + i);
        d.load(delta + i);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            Real rp = widen(p[k]), rm = widen(m[k]), rs = widen(s[k]), rd = widen(d[k]);
            graves(rp, Real(widen(g[k])), rm, rs, rd, r);
            narrow(rm, m[k]);
            narrow(rs, s[k]);
            narrow(rd, d[k]);
            narrow(rp, p[k]);
        }
        m.store(mg + i);
        s.store(ms + i);
        d.store(delta + i);
        p.store(param + i);
    }

    // Elements to the first one at which all five buffers are aligned for vectors; n where there is none.
    __device__ __forceinline__ u64 head(u64 n) const
    {
        constexpr u64 stored = Pack<Stored, VECTOR>::BYTES, state = Pack<State, VECTOR>::BYTES;
        const u64 skip = (stored - u64(param) % stored) % stored / sizeof(Stored);
        const bool aligned = (u64(param) + skip * sizeof(Stored)) % stored == 0 &&
                             (u64(grad) + skip * sizeof(Stored)) % stored == 0 &&
                             (u64(mg) + skip * sizeof(State)) % state == 0 &&
                             (u64(ms) + skip * sizeof(State)) % state == 0 &&
                             (u64(delta) + skip * sizeof(State)) % state == 0;
        return aligned && skip < n ? skip : n;
    }

    // Elements [0, n) shared among `threads` threads, of which this is number `thread`.
    __device__ __forceinline__ void update(u64 n, u64 thread, u64 threads, const Rates<Real> &r) const
    {
        const u64 first = head(n);
        const u64 last = first + (n - first) / VECTOR * VECTOR;
        for (u64 i = first + thread * VECTOR; i < last; i += threads * VECTOR)
            vector(i, r);
        // what is left in front of the vectors and behind them
        for (u64 i = thread; i < first; i += threads)
            one(i, r);
        for (u64 i = last + thread; i < n; i += threads)
            one(i, r);
    }
};

template <class Stored, class State, class Real>
__device__ __forceinline__ void flat(Stored *param, const Stored *grad, State *mg, State *ms, State *delta, u64 n,
                                     const Hyper &given, const Hyper *live)
{
    const Hyper hyper = live ? *live : given;  // a copy: a reference to one of the two would put `given` in local memory
    const Rates<Real> rates(hyper, 1.0, 1.0);
    const Buffers<Stored, State, Real> buffers{param, grad, mg, ms, delta};
    buffers.update(n, u64(blockIdx.x) * blockDim.x + threadIdx.x, u64(gridDim.x) * blockDim.x, rates);
}

template <class Stored, class State, class Real>
__device__ __forceinline__ void many(const Row *rows, const Chunk *chunks, u64 count, const Hyper &given, const Hyper *live)
{
    const Hyper hyper = live ? *live : given;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Row row = rows[chunk.row];
        const u64 start = u64(chunk.index) * CHUNK;
        const u64 left = row.size - start;
        const Buffers<Stored, State, Real> buffers{
            reinterpret_cast<Stored *>(row.param) + start, reinterpret_cast<const Stored *>(row.grad) + start,
            reinterpret_cast<State *>(row.mg) + start, reinterpret_cast<State *>(row.ms) + start,
            reinterpret_cast<State *>(row.delta) + start};
        buffers.update(left < CHUNK ? left : u64(CHUNK), threadIdx.x, blockDim.x,
                       Rates<Real>(hyper, row.learnRate, row.momRate));
    }
}

}  // namespace

#define GRAVES(NAME, STORED, STATE, REAL)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        graves_flat_##NAME(STORED *param, const STORED *grad, STATE *mg, STATE *ms, STATE *delta, u64 n, Hyper hyper, \
                           const Hyper *live)                                                                         \
    {                                                                                                                 \
        flat<STORED, STATE, REAL>(param, grad, mg, ms, delta, n, hyper, live);                                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        graves_many_##NAME(const Row *rows, const Chunk *chunks, u64 count, Hyper hyper, const Hyper *live)           \
    {                                                                                                                 \
        many<STORED, STATE, REAL>(rows, chunks, count, hyper, live);                                                  \
    }

GRAVES(float32_float32, float, float, float)
GRAVES(float64_float64, double, double, double)
GRAVES(float16_float32, __half, float, float)
GRAVES(float16_float16, __half, __half, float)
GRAVES(bfloat16_float32, __nv_bfloat16, float, float)

// y += factor * x, for weight decay.
template <class Stored, class Real>
__device__ __forceinline__ void add_scaled(Stored *__restrict__ y, const Stored *__restrict__ x, u64 n, Real factor)
{
    const u64 step = u64(gridDim.x) * blockDim.x;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
        narrow(Real(widen(y[i])) + factor * Real(widen(x[i])), y[i]);
}

#define ADD_SCALED(NAME, STORED, REAL)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        add_scaled_##NAME(STORED *y, const STORED *x, u64 n, double factor)                                           \
    {                                                                                                                 \
        add_scaled<STORED, REAL>(y, x, n, REAL(factor));                                                              \
    }

ADD_SCALED(float32, float, float)
ADD_SCALED(float64, double, double)
ADD_SCALED(float16, __half, float)
ADD_SCALED(bfloat16, __nv_bfloat16, float)
