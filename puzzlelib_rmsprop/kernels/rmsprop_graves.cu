// Graves' RMSProp on a GPU: the rule once in each of its two forms, and the kernels that apply it.
//
// Source: A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45; the max is ours, because
// rounding can make ms - mg*mg negative. Compiled without fused multiply-adds (-fmad=false): then every operation is
// rounded once, as on the CPU, and both give the same bits. The update waits for memory, so that costs nothing.
//
// Entry points for each pair of types (parameter and gradient; state):
//   graves_flat_*    one contiguous buffer
//   graves_many_*    any number of variables in one launch: a table of them, and a list of chunks for the blocks to take
//   graves_extras_*  the same with operations on the gradient, its zeroing, skipped steps, bfloat16 state; *_master also
//                    with a float32 copy of the parameters. Apart, so that the two above have registers for nothing else.
// All read the hyper-parameters from the launch, or, where `live` is given, from device memory, so that a launch
// captured in a graph follows them.
//   survey_*, survey_judge  sum of squares and non-finite numbers of many gradients
//   apply_ops_*     operations on one gradient, in place

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// named, because what lies in an unnamed one is called after the compiler's process
namespace puzzlelib_rmsprop {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr int THREADS = 256;  // of a block
constexpr int CHUNK = 8192;   // elements; a multiple of every vector, so that a chunk is aligned as its row is
constexpr int MAX_OPS = 8;

struct Hyper {
    double learnRate, alpha, momRate, epsilon;
};

// One variable, or one stretch of a flat buffer. Its rates are factors on those of Hyper.
struct Row {
    u64 param, grad, mg, ms, delta;  // addresses; every dtype shares the layout
    u64 size;                        // elements
    double learnRate, momRate;
    // for what comes besides the rule
    double wc;
    u64 master;  // address of float32 parameters, or 0
    u64 first;   // index of the first element within its variable, which `key` names
    u64 key;
};

// Elements [index * CHUNK, (index + 1) * CHUNK) of a row.
struct Chunk {
    u32 row, index;
};

// An operation on a gradient; kernels/__init__.py says what each does.
struct Op {
    u64 kind;
    double value, other;
    u64 address;
};
constexpr u32 SCALE = 0, CLIP = 1, DECAY = 2, LASSO = 3, NOTHING = 4;

struct Ops {
    u64 count;
    Op op[MAX_OPS];
};

struct Extras {
    u64 skip;  // address of a u32, or 0
    u32 seed[2];
    u64 zeroGrad;
    Ops ops;
};

// An address out of a table. It is of global memory, which the compiler cannot know: it would take slower loads.
template <class T>
__device__ __forceinline__ T *global(u64 address)
{
    return static_cast<T *>(__cvta_global_to_generic(address));
}

// ---- the rule ------------------------------------------------------------------------------------------------------

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

// The rule where the state keeps the variance itself: a difference of two numbers of eight bits would be noise.
template <class Real>
__device__ __forceinline__ void graves_of_variance(Real &param, const Real g, Real &mg, Real &v, Real &delta,
                                                   const Rates<Real> &r)
{
    const Real beta = Real(1) - r.alpha;
    const Real ab = r.alpha * beta;
    const Real diff = g - mg;
    mg = r.alpha * mg + beta * g;
    v = r.alpha * v + ab * diff * diff;
    delta = r.momRate * delta + r.learnRate * g / sqrt(v + r.epsilon);
    param = param + delta;
}

template <class State>
struct Form {
    static constexpr bool OF_VARIANCE = false;
};
template <>
struct Form<__nv_bfloat16> {
    static constexpr bool OF_VARIANCE = true;
};

// ---- numbers in memory ---------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float &to) { to = x; }
__device__ __forceinline__ void narrow(double x, double &to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half &to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16 &to) { to = __float2bfloat16_rn(x); }

// A number of the state: bfloat16 is rounded up or down at random, by 16 random bits, because to nearest a small change
// would be lost step after step.
template <class Real, class T>
__device__ __forceinline__ void keep(Real x, u32, T &to)
{
    narrow(x, to);
}
__device__ __forceinline__ void keep(float x, u32 random, __nv_bfloat16 &to)
{
    const u32 bits = __float_as_uint(x);
    const u32 rounded = (bits + random) >> 16;  // an infinity stays one
    to = __ushort_as_bfloat16(static_cast<unsigned short>(x == x ? rounded : (bits >> 16 & 0x8000u) | 0x7FC0u));
}

__device__ __forceinline__ u32 mix(u32 x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// Random numbers of a chunk's elements: of the step, the variable, and the index in it.
struct Random {
    u32 low, seed, key, key_after;  // the latter: where the index's low half has begun again within the chunk

    __device__ __forceinline__ Random(const u32 (&seeds)[2], u64 variable, u64 first) : low(u32(first)), seed(seeds[1])
    {
        const u32 named = mix(seeds[0] ^ u32(variable)), high = u32(first >> 32);
        key = mix(named + high);
        key_after = mix(named + high + 1u);
    }
    __device__ __forceinline__ u32 of(u32 i) const
    {
        const u32 element = low + i;
        u32 x = element ^ (element < low ? key_after : key);
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = ((x ^ x >> 15) + seed) * 0x846CA68Bu;
        return x ^ x >> 16;
    }
};

// N elements of T, at most 16 bytes, as one word in registers.
template <class T, int N>
struct Pack {
    struct alignas(N * sizeof(T)) Word {
        T item[N];
    };
    Word word;

    __device__ __forceinline__ void load(const T *from) { word = *reinterpret_cast<const Word *>(from); }
    __device__ __forceinline__ void store(T *to) const { *reinterpret_cast<Word *>(to) = word; }
    __device__ __forceinline__ T &operator[](int i) { return word.item[i]; }
};

// How many elements a thread takes at a time: as many as 16 bytes have of the wider type.
template <class A, class B>
constexpr int VECTOR = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));

// Elements from an address to the first one that is aligned for a vector.
template <int N, class T>
__device__ __forceinline__ u32 ahead(const T *address)
{
    return (N - u32(u64(address)) / sizeof(T) % N) % N;
}
constexpr u32 NEVER = ~u32(0);

// Elements [0, n) shared among `threads` threads, of which this is number `thread`: work.at<N>(i) does N of them from
// the i-th on. From element `aligned` on they are aligned for vectors; NEVER: nowhere.
template <int N, class Index, class Work>
__device__ __forceinline__ void share(Work &work, u32 aligned, Index n, Index thread, Index threads)
{
    const Index first = aligned != NEVER && aligned < n ? aligned : n;
    const Index last = n - (n - first) % N;
    for (Index i = first + thread * N; i < last; i += threads * N)
        work.template at<N>(i);
    // what is left in front of the vectors and behind them
    const Index between = last - first;
    for (Index i = thread; i < n - between; i += threads)
        work.template at<1>(i < first ? i : i + between);
}

// ---- updates -------------------------------------------------------------------------------------------------------

// The five buffers of a variable, and the update of N elements.
template <class Stored, class State, class Real>
struct Buffers {
    static constexpr int N = VECTOR<Stored, State>;

    Stored *__restrict__ param;
    const Stored *__restrict__ grad;
    State *__restrict__ mg;
    State *__restrict__ ms;
    State *__restrict__ delta;
    Rates<Real> rates;

    template <int N, class Index>
    __device__ __forceinline__ void at(Index i) const
    {
        Pack<Stored, N> p, g;
        Pack<State, N> m, s, d;
        // all loads before the first use, so that they are under way together
        p.load(param + i);
        g.load(grad + i);
        m.load(mg + i);
        s.load(ms + i);
        d.load(delta + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            Real rp = widen(p[k]), rm = widen(m[k]), rs = widen(s[k]), rd = widen(d[k]);
            graves(rp, Real(widen(g[k])), rm, rs, rd, rates);
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

    __device__ __forceinline__ u32 aligned() const
    {
        const u32 skip = ahead<N>(param);
        return skip == ahead<N>(grad) && skip == ahead<N>(mg) && skip == ahead<N>(ms) && skip == ahead<N>(delta) ? skip
                                                                                                                 : NEVER;
    }
};

template <class Stored, class State, class Real>
__device__ __forceinline__ void flat(Stored *param, const Stored *grad, State *mg, State *ms, State *delta, u64 n,
                                     const Hyper &given, const Hyper *live)
{
    const Hyper hyper = live ? *live : given;  // a copy: a reference to one of the two would put `given` in local memory
    const Buffers<Stored, State, Real> buffers{param, grad, mg, ms, delta, Rates<Real>(hyper, 1.0, 1.0)};
    share<buffers.N, u64>(buffers, buffers.aligned(), n, u64(blockIdx.x) * blockDim.x + threadIdx.x,
                          u64(gridDim.x) * blockDim.x);
}

// Where a chunk begins in its row, and how many elements it has.
struct Part {
    u64 start;
    u32 n;

    __device__ __forceinline__ Part(const Chunk &chunk, const Row &row) : start(u64(chunk.index) * CHUNK)
    {
        const u64 left = row.size - start;
        n = left < CHUNK ? u32(left) : CHUNK;
    }
};

template <class Stored, class State, class Real>
__device__ __forceinline__ void many(const Row *rows, const Chunk *chunks, u64 count, const Hyper &given, const Hyper *live)
{
    const Hyper hyper = live ? *live : given;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Row row = rows[chunk.row];
        const Part part(chunk, row);
        const Buffers<Stored, State, Real> buffers{global<Stored>(row.param) + part.start,
                                                   global<const Stored>(row.grad) + part.start,
                                                   global<State>(row.mg) + part.start,
                                                   global<State>(row.ms) + part.start,
                                                   global<State>(row.delta) + part.start,
                                                   Rates<Real>(hyper, row.learnRate, row.momRate)};
        share<buffers.N, u32>(buffers, buffers.aligned(), part.n, threadIdx.x, blockDim.x);
    }
}

// ---- operations on gradients ---------------------------------------------------------------------------------------

// Operations with the numbers that they have for one row; in shared memory.
template <class Real>
struct Steps {
    struct {
        u32 kind;
        Real value, other;
    } step[MAX_OPS];

    // Called by every thread of the block.
    __device__ __forceinline__ void prepare(const Ops &ops, double wc)
    {
        if (!ops.count)
            return;
        __syncthreads();  // until the last row's are done with
        const u32 o = threadIdx.x;
        if (o < ops.count) {
            const u64 kind = ops.op[o].kind, address = ops.op[o].address;
            const double factor = kind >= DECAY ? wc : kind == SCALE && address ? *global<const double>(address) : 1.0;
            step[o].kind = kind >= DECAY && !(wc > 0.0) ? NOTHING : u32(kind);
            step[o].value = Real(ops.op[o].value * factor);
            step[o].other = Real(ops.op[o].other);
        }
        __syncthreads();
    }

    template <int N>
    __device__ __forceinline__ void apply(const Ops &ops, Real (&g)[N], const Real (&p)[N]) const
    {
#pragma unroll 1
        for (u32 o = 0; o < ops.count; ++o) {
            const u32 kind = step[o].kind;
            const Real value = step[o].value, other = step[o].other;
            if (kind == SCALE) {
#pragma unroll
                for (int k = 0; k < N; ++k)
                    g[k] = g[k] * value;
            } else if (kind == CLIP) {
#pragma unroll
                for (int k = 0; k < N; ++k) {
                    g[k] = g[k] < value ? value : g[k];
                    g[k] = g[k] > other ? other : g[k];
                }
            } else if (kind == DECAY) {
#pragma unroll
                for (int k = 0; k < N; ++k)
                    g[k] = g[k] + value * p[k];
            } else if (kind == LASSO) {
#pragma unroll
                for (int k = 0; k < N; ++k)
                    g[k] = g[k] + value * (p[k] > Real(0) ? Real(1) : p[k] < Real(0) ? Real(-1) : p[k]);
            }
        }
    }
};

// The parameter that counts: the master copy, unless somebody has written the parameter since.
template <class Stored, class Real>
__device__ __forceinline__ Real current(Stored param, Real master)
{
    Stored rounded;
    narrow(master, rounded);
    return widen(rounded) == widen(param) ? master : Real(widen(param));
}

// As Buffers, with everything that may come besides the rule.
template <class Stored, class State, class Real, bool MASTER>
struct Extended {
    static constexpr int N = MASTER ? VECTOR<Real, State> : VECTOR<Stored, State>;

    Stored *__restrict__ param;
    Stored *__restrict__ grad;
    State *__restrict__ mg;
    State *__restrict__ ms;
    State *__restrict__ delta;
    Real *__restrict__ master;
    Rates<Real> rates;
    Random random;
    const Steps<Real> &steps;
    const Extras &extras;

    template <int N, class Index>
    __device__ __forceinline__ void at(Index i) const
    {
        Pack<Stored, N> p, g;
        Pack<State, N> m, s, d;
        Pack<Real, N> f;
        p.load(param + i);
        g.load(grad + i);
        m.load(mg + i);
        s.load(ms + i);
        d.load(delta + i);
        if (MASTER)
            f.load(master + i);
        Real rp[N], rg[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            rp[k] = MASTER ? current(p[k], f[k]) : Real(widen(p[k]));
            rg[k] = widen(g[k]);
        }
        steps.apply(extras.ops, rg, rp);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            Real rm = widen(m[k]), rs = widen(s[k]), rd = widen(d[k]);
            if (Form<State>::OF_VARIANCE)
                graves_of_variance(rp[k], rg[k], rm, rs, rd, rates);
            else
                graves(rp[k], rg[k], rm, rs, rd, rates);
            const u32 x = random.of(i + k);
            keep(rm, x & 0xFFFFu, m[k]);
            keep(rs, x >> 16, s[k]);
            keep(rd, x >> 8 & 0xFFFFu, d[k]);
            narrow(rp[k], p[k]);
            f[k] = rp[k];
            narrow(Real(0), g[k]);
        }
        m.store(mg + i);
        s.store(ms + i);
        d.store(delta + i);
        p.store(param + i);
        if (MASTER)
            f.store(master + i);
        if (extras.zeroGrad)
            g.store(grad + i);
    }

    __device__ __forceinline__ u32 aligned() const
    {
        const u32 skip = ahead<N>(param);
        return skip == ahead<N>(grad) && skip == ahead<N>(mg) && skip == ahead<N>(ms) && skip == ahead<N>(delta) &&
                       (!MASTER || skip == ahead<N>(master))
                   ? skip
                   : NEVER;
    }
};

template <class Stored>
struct Zeros {
    Stored *to;

    template <int N, class Index>
    __device__ __forceinline__ void at(Index i) const
    {
        Pack<Stored, N> zeros;
#pragma unroll
        for (int k = 0; k < N; ++k)
            narrow(0, zeros[k]);
        zeros.store(to + i);
    }
};

template <class Stored, class State, class Real, bool MASTER>
__device__ __forceinline__ void extended(const Row *rows, const Chunk *chunks, u64 count, const Hyper *live,
                                         const Hyper &given, const Extras &extras)
{
    __shared__ Steps<Real> steps;
    const bool skip = extras.skip && *global<const u32>(extras.skip);
    if (skip && !extras.zeroGrad)
        return;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Row row = rows[chunk.row];
        const Part part(chunk, row);
        Stored *const grad = global<Stored>(row.grad) + part.start;
        if (skip) {
            const Zeros<Stored> zeros{grad};
            share<16 / sizeof(Stored), u32>(zeros, ahead<16 / sizeof(Stored)>(grad), part.n, threadIdx.x, blockDim.x);
            continue;
        }
        steps.prepare(extras.ops, row.wc);
        const Hyper hyper = live ? *live : given;  // here, and not before: it would take registers all the while
        const Extended<Stored, State, Real, MASTER> buffers{global<Stored>(row.param) + part.start,
                                                            grad,
                                                            global<State>(row.mg) + part.start,
                                                            global<State>(row.ms) + part.start,
                                                            global<State>(row.delta) + part.start,
                                                            global<Real>(row.master) + part.start,
                                                            Rates<Real>(hyper, row.learnRate, row.momRate),
                                                            Random(extras.seed, row.key, row.first + part.start),
                                                            steps,
                                                            extras};
        share<buffers.N, u32>(buffers, buffers.aligned(), part.n, threadIdx.x, blockDim.x);
    }
}

// ---- the survey ----------------------------------------------------------------------------------------------------

struct Partial {
    double sum;
    u64 bad;
};

// The sum over a block's threads, in the first of them, in an order that does not vary.
template <int COUNT>
__device__ __forceinline__ Partial block_sum(Partial mine)
{
    __shared__ Partial all[COUNT];
    __syncthreads();  // until the last sum is done with
    all[threadIdx.x] = mine;
    for (int half = COUNT / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            all[threadIdx.x].sum += all[threadIdx.x + half].sum;
            all[threadIdx.x].bad |= all[threadIdx.x + half].bad;
        }
    }
    return all[0];
}

// Squares of gradients, summed in double.
template <class Stored, class Real>
struct Squares {
    static constexpr int N = VECTOR<Stored, Stored>;

    const Stored *__restrict__ grad;
    const Stored *__restrict__ param;
    const Real *__restrict__ master;
    const Steps<Real> &steps;
    const Ops &ops;
    bool with_param, with_master;
    double sum;
    bool bad;

    template <int N, class Index>
    __device__ __forceinline__ void at(Index i)
    {
        Pack<Stored, N> g, p;
        g.load(grad + i);
        if (with_param)
            p.load(param + i);
        Real rg[N], rp[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            rg[k] = widen(g[k]);
            rp[k] = !with_param ? Real(0) : with_master ? current(p[k], master[i + k]) : Real(widen(p[k]));
        }
        steps.apply(ops, rg, rp);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            sum = fma(double(rg[k]), double(rg[k]), sum);  // rounded once: doubles are slow on many devices
            bad |= !(rg[k] - rg[k] == Real(0));
        }
    }
};

template <class Stored, class Real>
__device__ __forceinline__ void survey(const Row *rows, const Chunk *chunks, u64 count, Partial *partials, const Ops &ops)
{
    __shared__ Steps<Real> steps;
    for (u64 c = blockIdx.x; c < count; c += gridDim.x) {
        const Chunk chunk = chunks[c];
        const Row row = rows[chunk.row];
        const Part part(chunk, row);
        steps.prepare(ops, row.wc);
        bool with_param = false;
#pragma unroll 1
        for (u32 o = 0; o < ops.count; ++o)
            with_param |= steps.step[o].kind == DECAY || steps.step[o].kind == LASSO;
        const Stored *const grad = global<const Stored>(row.grad) + part.start;
        const Stored *const param = global<const Stored>(row.param) + part.start;
        Squares<Stored, Real> squares{grad, param, global<const Real>(row.master) + part.start,
                                      steps, ops, with_param, row.master != 0, 0.0, false};
        const u32 skip = ahead<squares.N>(grad);
        share<squares.N, u32>(squares, !with_param || skip == ahead<squares.N>(param) ? skip : NEVER, part.n, threadIdx.x,
                              blockDim.x);
        const Partial sum = block_sum<THREADS>({squares.sum, squares.bad});
        if (threadIdx.x == 0)
            partials[c] = sum;
    }
}

struct Record {
    double sumsq, norm, factor, scale, unscale;
    u32 bad, good;
    u64 skipped;
};

struct Judge {
    double limit, growth, backoff, least, most;
    u64 interval;
};

constexpr int JUDGES = 512;  // threads of the one block that adds the chunks' sums

__device__ __forceinline__ void judge(const Partial *partials, u64 count, Record *record, const Judge &j)
{
    Partial mine{0.0, 0};
    for (u64 i = threadIdx.x; i < count; i += JUDGES) {
        mine.sum += partials[i].sum;
        mine.bad |= partials[i].bad;
    }
    const Partial all = block_sum<JUDGES>(mine);
    if (threadIdx.x != 0)
        return;
    Record r = *record;
    r.sumsq = all.sum;
    r.norm = sqrt(r.sumsq);
    r.factor = r.norm > j.limit ? j.limit / r.norm : r.norm == r.norm ? 1.0 : r.norm;
    r.unscale = 1.0 / r.scale;
    r.bad = u32(all.bad);
    r.skipped += r.bad;
    if (j.interval) {
        r.good = r.bad ? 0 : r.good + 1;
        if (r.bad) {
            r.scale = r.scale * j.backoff < j.least ? j.least : r.scale * j.backoff;
        } else if (r.good >= j.interval) {
            r.scale = r.scale * j.growth > j.most ? j.most : r.scale * j.growth;
            r.good = 0;
        }
    }
    *record = r;
}

// ---- one gradient --------------------------------------------------------------------------------------------------

// Operations on a gradient, in place.
template <class Stored, class Real>
struct Applied {
    static constexpr int N = VECTOR<Stored, Stored>;

    Stored *__restrict__ y;
    const Stored *__restrict__ x;
    const Steps<Real> &steps;
    const Ops &ops;

    template <int N, class Index>
    __device__ __forceinline__ void at(Index i) const
    {
        Pack<Stored, N> g, p;
        g.load(y + i);
        p.load(x + i);
        Real rg[N], rp[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            rg[k] = widen(g[k]);
            rp[k] = widen(p[k]);
        }
        steps.apply(ops, rg, rp);
#pragma unroll
        for (int k = 0; k < N; ++k)
            narrow(rg[k], g[k]);
        g.store(y + i);
    }
};

template <class Stored, class Real>
__device__ __forceinline__ void apply_ops(Stored *y, const Stored *x, u64 n, double wc, const Ops &ops)
{
    __shared__ Steps<Real> steps;
    steps.prepare(ops, wc);
    const Applied<Stored, Real> applied{y, x, steps, ops};
    const u32 skip = ahead<applied.N>(y);
    share<applied.N, u64>(applied, skip == ahead<applied.N>(x) ? skip : NEVER, n,
                          u64(blockIdx.x) * blockDim.x + threadIdx.x, u64(gridDim.x) * blockDim.x);
}

}  // namespace puzzlelib_rmsprop

using namespace puzzlelib_rmsprop;

// ---- entry points --------------------------------------------------------------------------------------------------

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

#define EXTRAS(NAME, STORED, STATE, REAL, MASTER)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        graves_extras_##NAME(const Row *rows, const Chunk *chunks, u64 count, const Hyper *live, Hyper hyper,         \
                             Extras extras)                                                                           \
    {                                                                                                                 \
        extended<STORED, STATE, REAL, MASTER>(rows, chunks, count, live, hyper, extras);                              \
    }

EXTRAS(float32_float32, float, float, float, false)
EXTRAS(float64_float64, double, double, double, false)
EXTRAS(float16_float32, __half, float, float, false)
EXTRAS(float16_float16, __half, __half, float, false)
EXTRAS(bfloat16_float32, __nv_bfloat16, float, float, false)
EXTRAS(float32_bfloat16, float, __nv_bfloat16, float, false)
EXTRAS(float16_bfloat16, __half, __nv_bfloat16, float, false)
EXTRAS(bfloat16_bfloat16, __nv_bfloat16, __nv_bfloat16, float, false)
EXTRAS(float16_float32_master, __half, float, float, true)
EXTRAS(float16_float16_master, __half, __half, float, true)
EXTRAS(bfloat16_float32_master, __nv_bfloat16, float, float, true)
EXTRAS(float16_bfloat16_master, __half, __nv_bfloat16, float, true)
EXTRAS(bfloat16_bfloat16_master, __nv_bfloat16, __nv_bfloat16, float, true)

extern "C" __global__ void __launch_bounds__(JUDGES)
    survey_judge(const Partial *partials, u64 count, Record *record, Judge how)
{
    judge(partials, count, record, how);
}

#define FOR_A_GRADIENT(NAME, STORED, REAL)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        survey_##NAME(const Row *rows, const Chunk *chunks, u64 count, Partial *partials, Ops ops)                    \
    {                                                                                                                 \
        survey<STORED, REAL>(rows, chunks, count, partials, ops);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        apply_ops_##NAME(STORED *y, const STORED *x, u64 n, double wc, Ops ops)                                       \
    {                                                                                                                 \
        apply_ops<STORED, REAL>(y, x, n, wc, ops);                                                                    \
    }

FOR_A_GRADIENT(float32, float, float)
FOR_A_GRADIENT(float64, double, double)
FOR_A_GRADIENT(float16, __half, float)
FOR_A_GRADIENT(bfloat16, __nv_bfloat16, float)
