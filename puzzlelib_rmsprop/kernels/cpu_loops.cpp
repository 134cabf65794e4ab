// The loops over the arrays of a step on the CPU. This file is compiled once for each instruction set, with its name as
// KERNEL_NAMESPACE.

#include "cpu_loops.h"
#include "cpu_tiles.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {
namespace {

// Makes this thread flush subnormal numbers to zero during its lifetime.
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
        // a tile ends where the low 32 bits of the index wrap around, see Random::before
        const u64 left = (u64(1) << 32) - ((segment.first + low) & 0xFFFFFFFFu);
        count = count < left ? count : left;
        if (!skip) {
            tile.load(segment, low, count);
            State *const mg = at<State>(segment.mg, low), *const variance = at<State>(segment.variance, low);
            State *const delta = at<State>(segment.delta, low);
            unsigned char *const scales = at<unsigned char>(segment.scales, low / BLOCK * STATES);
            const Random random(options.seed, segment.key, segment.first + low);
            if (decay != 0)
                decaying_tile(tile.param, tile.grad, mg, variance, delta, scales, count, c, random, decay);
            else
                graves_tile(tile.param, tile.grad, mg, variance, delta, scales, count, c, random);
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

// Adds lanes 0 to count - 1 of MOST pairwise. Unused lanes are 0, so skipping them does not change the result.
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

// Writes the sum of one chunk to partials[number].
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

// One function for each kind, in the order of KINDS in layout.py.
#define EVERY_KIND(FUNCTION)                                                                                        \
    {                                                                                                               \
        FUNCTION<Kind<float, float, float, false>>, FUNCTION<Kind<double, double, double, false>>,                  \
            FUNCTION<Kind<float16, float, float, false>>, FUNCTION<Kind<bfloat16, float, float, false>>,            \
            FUNCTION<Kind<float, bfloat16, float, false>>, FUNCTION<Kind<float16, bfloat16, float, false>>,         \
            FUNCTION<Kind<bfloat16, bfloat16, float, false>>, FUNCTION<Kind<float16, float, float, true>>,          \
            FUNCTION<Kind<bfloat16, float, float, true>>, FUNCTION<Kind<float16, bfloat16, float, true>>,           \
            FUNCTION<Kind<bfloat16, bfloat16, float, true>>, FUNCTION<Kind<float, int8, float, false>>,             \
            FUNCTION<Kind<float16, int8, float, false>>, FUNCTION<Kind<bfloat16, int8, float, false>>,              \
            FUNCTION<Kind<float16, int8, float, true>>, FUNCTION<Kind<bfloat16, int8, float, true>>                 \
    }
Work *const update_kinds[] = EVERY_KIND(update_segment);
Work *const operate_kinds[] = EVERY_KIND(operate_segment);
Work *const sum_kinds[] = EVERY_KIND(sum_chunk);

u64 from_next_block(u64 element) { return (element + BLOCK - 1) / BLOCK * BLOCK; }

void update(const KernelArgs &args, u64 begin, u64 end)
{
    const Flushing flushing;
    const Segment *const segments = at<const Segment>(args.segments, 0);
    // find the segment with element `begin`: the last one that begins at it or before
    u64 number = 0, after = args.count;
    while (after - number > 1) {
        const u64 middle = number + (after - number) / 2;
        (segments[middle].begin <= begin ? number : after) = middle;
    }
    for (; number < args.count && segments[number].begin < end; ++number) {
        const Segment &segment = segments[number];
        // blocks of 8-bit state are not split: both ends are rounded up to the next block
        const u64 low = begin > segment.begin ? from_next_block(begin - segment.begin) : 0;
        const u64 end_here = from_next_block(end - segment.begin);
        const u64 high = end_here < segment.size ? end_here : segment.size;
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
