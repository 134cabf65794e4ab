// The loops over the arrays of a step on the CPU. Compiled once for each instruction set, which KERNEL_NAMESPACE names.
//
// Elements are worked on TILE at a time, which stay in the first-level cache: a gradient that has to be converted or
// operated on, and a parameter that is not of the arithmetic's dtype, lie in a tile; others are used where they are.

#include "cpu_loops.h"
#include "rule.h"

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86)
#include <xmmintrin.h>
#define X86 1
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#pragma fp_contract(off)  // Visual Studio 2019 fuses multiply-adds under /fp:precise too
#define RESTRICT __restrict
#define NOINLINE __declspec(noinline)
#define INLINE __forceinline
#else
#include <cfloat>
static_assert(FLT_EVAL_METHOD == 0, "each operation has to be rounded to its own dtype: on 32-bit x86, compile with -mfpmath=sse -msse2");
#define RESTRICT __restrict__
#define NOINLINE __attribute__((noinline))
#define INLINE inline __attribute__((always_inline))
#endif
// Zen 5 moves memory from beyond its first-level cache by a quarter faster in vectors of 32 bytes than of 64.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define NARROW __attribute__((target("prefer-vector-width=256")))
#else
#define NARROW
#endif

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {
namespace {

constexpr u64 TILE = 1024;
static_assert(CHUNK % TILE == 0 && TILE % LANES == 0, "a tile has every lane as often");

// Takes subnormal numbers for zero in this thread, while it lives.
class Flushing {
#if defined(X86)
    static constexpr unsigned FLUSH = 0x8040;  // FTZ and DAZ
    const unsigned before = _mm_getcsr();

  public:
    Flushing() { _mm_setcsr(before | FLUSH); }
    ~Flushing() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    u64 before;

  public:
    Flushing()
    {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | 1u << 24));
    }
    ~Flushing() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#elif defined(_M_ARM64)
    const __int64 before = _ReadStatusReg(ARM64_FPCR);

  public:
    Flushing() { _WriteStatusReg(ARM64_FPCR, before | 1 << 24); }
    ~Flushing() { _WriteStatusReg(ARM64_FPCR, before); }
#endif
};

template <class T>
T *at(u64 address, u64 index)
{
    return reinterpret_cast<T *>(address) + index;
}

const StepOptions &options_of(const KernelArgs &args, const Segment &segment)
{
    return *at<const StepOptions>(args.options, segment.group);
}

// ---- a tile --------------------------------------------------------------------------------------------------------

template <class Stored, class Real>
Real *widened(Stored *from, Real *tile, u64 count)
{
    for (u64 i = 0; i < count; ++i)
        tile[i] = widen(from[i]);
    return tile;
}
float *widened(float *from, float *, u64) { return from; }
double *widened(double *from, double *, u64) { return from; }

template <class Stored, class Real>
void narrowed(const Real *RESTRICT from, Stored *RESTRICT to, u64 count)
{
    for (u64 i = 0; i < count; ++i)
        narrow(from[i], to[i]);
}

template <class Stored>
void from_master(const Stored *RESTRICT param, const float *RESTRICT master, float *RESTRICT tile, u64 count)
{
    for (u64 i = 0; i < count; ++i)
        tile[i] = current(param[i], master[i]);
}

template <u32 KIND, class Real>
void operate_by(const Prepared<Real> &by, Real *RESTRICT g, const Real *RESTRICT p, u64 count)
{
    const Real value = by.value, other = by.other;
    for (u64 i = 0; i < count; ++i)
        g[i] = operated(KIND, value, other, g[i], p[i]);
}

// Not inlined, as every kind of segment would get a copy.
template <class Real>
NOINLINE void operate_tile(const Prepared<Real> &by, Real *g, const Real *p, u64 count)
{
    switch (by.kind) {
    case SCALE:
        return operate_by<SCALE>(by, g, p, count);
    case CLIP:
        return operate_by<CLIP>(by, g, p, count);
    case DECAY:
        return operate_by<DECAY>(by, g, p, count);
    case LASSO:
        return operate_by<LASSO>(by, g, p, count);
    }
}

// Parameters and gradients of a tile in the dtype of the arithmetic, the gradients after their operations.
template <class Kind>
struct Tile {
    typedef typename Kind::Stored Stored;
    typedef typename Kind::Real Real;
    alignas(64) Real param_room[TILE], grad_room[TILE];
    Real *param, *grad;
    Prepared<Real> operations[MAX_OPERATIONS];
    u32 operation_count = 0;

    void prepare(const Operations &all, const Segment &segment)
    {
        operation_count = u32(all.count);
        for (u32 o = 0; o < operation_count; ++o) {
            const u64 address = all.operation[o].address;
            operations[o] = prepared<Real>(all.operation[o], address ? *at<const double>(address, 0) : 1.0, segment.wc);
        }
    }

    void load(const Segment &segment, u64 begin, u64 count)
    {
        Stored *const stored = at<Stored>(segment.param, begin);
        if constexpr (Kind::MASTER) {
            from_master(stored, at<float>(segment.master, begin), param_room, count);
            param = param_room;
        } else {
            param = widened(stored, param_room, count);
        }
        grad = widened(at<Stored>(segment.grad, begin), grad_room, count);
        if (operation_count && grad != grad_room) {
            memcpy(grad_room, grad, count * sizeof(Real));
            grad = grad_room;
        }
        for (u32 o = 0; o < operation_count; ++o)
            operate_tile(operations[o], grad, param, count);
    }

    void store_param(const Segment &segment, u64 begin, u64 count)
    {
        if (param != param_room)
            return;
        narrowed(param, at<Stored>(segment.param, begin), count);
        if constexpr (Kind::MASTER)
            memcpy(at<float>(segment.master, begin), param, count * sizeof(float));
    }
};

template <class Real, class State>
INLINE void graves_elements(Real *RESTRICT param, const Real *RESTRICT grad, State *RESTRICT mg, State *RESTRICT variance,
                            State *RESTRICT delta, u64 count, const Coefficients<Real> c, const Random random,
                            const Real decay)
{
    for (u32 i = 0; i < u32(count); ++i) {
        const Real before = param[i];
        Real p = before, m = widen(mg[i]), v = widen(variance[i]), d = widen(delta[i]);
        graves(p, grad[i], m, v, d, c);
        if (decay != 0)
            p = decayed(before, d, decay);
        const u32 x = random.before(i);
        store_state(m, x, mg[i]);
        store_state(v, x >> 16, variance[i]);
        store_state(d, x >> 8, delta[i]);
        param[i] = p;
    }
}

template <class Real, class State>
NOINLINE void graves_tile(Real *param, const Real *grad, State *mg, State *variance, State *delta, u64 count,
                          const Coefficients<Real> c, const Random random)
{
    graves_elements(param, grad, mg, variance, delta, count, c, random, Real(0));
}

template <class Real, class State>
NOINLINE void decaying_tile(Real *param, const Real *grad, State *mg, State *variance, State *delta, u64 count,
                            const Coefficients<Real> c, const Random random, const Real decay)
{
    graves_elements(param, grad, mg, variance, delta, count, c, random, decay);
}

// Nothing to convert: memory is what it waits for.
template <class Real>
NOINLINE NARROW void graves_tile(Real *param, const Real *grad, Real *mg, Real *variance, Real *delta, u64 count,
                                 const Coefficients<Real> c, const Random random)
{
    graves_elements(param, grad, mg, variance, delta, count, c, random, Real(0));
}

// ---- segments ------------------------------------------------------------------------------------------------------

template <class Kind>
void update_segment(const KernelArgs &args, const Segment &segment, u64 begin, u64 end)
{
    typedef typename Kind::State State;
    typedef typename Kind::Stored Stored;
    typedef typename Kind::Real Real;
    const StepOptions &options = options_of(args, segment);
    const bool skip = options.skip && *at<const u32>(options.skip, 0);
    const Hyper &hyper = *at<const Hyper>(args.hypers, 2 * segment.group + (sizeof(Real) == sizeof(double)));
    const Coefficients<Real> c(hyper, segment);
    const auto decay = decay_of<Real>(options.decay, hyper, segment);
    Tile<Kind> tile;
    tile.prepare(options.operations, segment);
    for (u64 low = begin, count; low < end; low += count) {
        count = end - low < TILE ? end - low : TILE;
        // random numbers take 32 bits of the index at a time
        const u64 left = (u64(1) << 32) - ((segment.first + low) & 0xFFFFFFFFu);
        count = count < left ? count : left;
        if (!skip) {
            tile.load(segment, low, count);
            State *const mg = at<State>(segment.mg, low), *const variance = at<State>(segment.variance, low);
            State *const delta = at<State>(segment.delta, low);
            const Random random(options.seed, segment.key, segment.first + low);
            if (decay != 0)
                decaying_tile(tile.param, tile.grad, mg, variance, delta, count, c, random, decay);
            else
                graves_tile(tile.param, tile.grad, mg, variance, delta, count, c, random);
            tile.store_param(segment, low, count);
        }
        if (options.zeroGrad)
            memset(at<Stored>(segment.grad, low), 0, count * sizeof(Stored));
    }
}

template <class Kind>
void operate_segment(const KernelArgs &args, const Segment &segment, u64, u64)
{
    typedef typename Kind::Stored Stored;
    Tile<Kind> tile;
    tile.prepare(options_of(args, segment).operations, segment);
    for (u64 low = 0; low < segment.size; low += TILE) {
        const u64 count = segment.size - low < TILE ? segment.size - low : TILE;
        tile.load(segment, low, count);
        narrowed(tile.grad, at<Stored>(segment.grad, low), count);
    }
}

// Adds up lanes 0 to count - 1 of at most MOST, by halves. Lanes that were not used are 0, so leaving them out changes nothing.
template <int MOST>
SquareSum by_halves(SquareSum (&lanes)[MOST], u64 count)
{
    u64 half = MOST / 2;
    while (half && half >= count)
        half /= 2;
    for (; half; half /= 2)
        for (u64 lane = 0; lane < half; ++lane)
            add(lanes[lane], lanes[lane + half]);
    return lanes[0];
}

template <class Real>
void square_tile(const Real *RESTRICT grad, u64 count, double *RESTRICT sum, double *RESTRICT large, u32 *RESTRICT bad)
{
    for (u64 low = 0; low < count; low += LANES) {
        const u64 lanes = count - low < LANES ? count - low : LANES;
        for (u64 lane = 0; lane < lanes; ++lane) {
            const Real g = grad[low + lane];
            sum[lane] += square(g);
            if (sizeof(Real) == sizeof(double))
                large[lane] += large_square(g);
            bad[lane] |= is_bad(g);
        }
    }
}

// The sum of one chunk, in partials[number].
template <class Kind>
void sum_chunk(const KernelArgs &args, const Segment &segment, u64 index, u64 number)
{
    const u64 begin = index * CHUNK, end = segment.size - begin < u64(CHUNK) ? segment.size : begin + CHUNK;
    Tile<Kind> tile;
    tile.prepare(options_of(args, segment).operations, segment);
    alignas(64) double sum[LANES] = {}, large[LANES] = {};
    alignas(64) u32 bad[LANES] = {};
    for (u64 low = begin; low < end; low += TILE) {
        const u64 count = end - low < TILE ? end - low : TILE;
        tile.load(segment, low, count);
        square_tile(tile.grad, count, sum, large, bad);
    }
    SquareSum lanes[LANES];
    for (int lane = 0; lane < LANES; ++lane)
        lanes[lane] = {sum[lane], large[lane], bad[lane]};
    *at<SquareSum>(args.partials, number) = by_halves(lanes, end - begin);
}

// ---- kinds ---------------------------------------------------------------------------------------------------------

typedef void Work(const KernelArgs &, const Segment &, u64, u64);

// The functions of every kind, in the order of KINDS in layout.py.
#define EVERY_KIND(FUNCTION)                                                                                        \
    {                                                                                                               \
        FUNCTION<Kind<float, float, float, false>>, FUNCTION<Kind<double, double, double, false>>,                  \
            FUNCTION<Kind<float16, float, float, false>>, FUNCTION<Kind<bfloat16, float, float, false>>,            \
            FUNCTION<Kind<float, bfloat16, float, false>>, FUNCTION<Kind<float16, bfloat16, float, false>>,         \
            FUNCTION<Kind<bfloat16, bfloat16, float, false>>, FUNCTION<Kind<float16, float, float, true>>,          \
            FUNCTION<Kind<bfloat16, float, float, true>>, FUNCTION<Kind<float16, bfloat16, float, true>>,           \
            FUNCTION<Kind<bfloat16, bfloat16, float, true>>                                                         \
    }
Work *const update_kinds[] = EVERY_KIND(update_segment);
Work *const operate_kinds[] = EVERY_KIND(operate_segment);
Work *const sum_kinds[] = EVERY_KIND(sum_chunk);

void update(const KernelArgs &args, u64 begin, u64 end)
{
    const Flushing flushing;
    const Segment *const segments = at<const Segment>(args.segments, 0);
    // the segment that has element `begin`: the last one that starts there or before
    u64 number = 0, after = args.count;
    while (after - number > 1) {
        const u64 middle = number + (after - number) / 2;
        (segments[middle].begin <= begin ? number : after) = middle;
    }
    for (; number < args.count && segments[number].begin < end; ++number) {
        const Segment &segment = segments[number];
        const u64 low = begin > segment.begin ? begin - segment.begin : 0;
        const u64 high = end - segment.begin < segment.size ? end - segment.begin : segment.size;
        if (low < high)
            update_kinds[segment.kind](args, segment, low, high);
    }
}

void sum(const KernelArgs &args, u64 begin, u64 end)
{
    const Flushing flushing;
    for (u64 number = begin; number < end; ++number) {
        const Chunk &chunk = *at<const Chunk>(args.chunks, number);
        const Segment &segment = *at<const Segment>(args.segments, chunk.segment);
        sum_kinds[segment.kind](args, segment, chunk.index, number);
    }
}

void conclude_all(const KernelArgs &args)
{
    const Flushing flushing;
    SquareSum lanes[CHUNK_LANES] = {};
    for (u64 i = 0; i < args.chunkCount; ++i)
        add(lanes[i % CHUNK_LANES], *at<const SquareSum>(args.partials, i));
    conclude(*at<Statistics>(args.statistics, 0), by_halves(lanes, args.chunkCount), args.policy);
}

void operate(const KernelArgs &args)
{
    const Flushing flushing;
    for (u64 number = 0; number < args.count; ++number) {
        const Segment &segment = *at<const Segment>(args.segments, number);
        operate_kinds[segment.kind](args, segment, 0, segment.size);
    }
}

}  // namespace

extern const Loops loops = {update, sum, conclude_all, operate};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
