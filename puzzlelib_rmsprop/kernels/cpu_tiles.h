// The update of TILE elements on the CPU: conversions, operations on gradients, and the rule.
//
// A tile fits in the first-level cache. It holds gradients that are converted or changed by operations, and parameters that
// are converted. All other arrays are used in place.

#pragma once

#include "int8_state.h"
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
// Zen 5 transfers data from beyond its first-level cache a quarter faster in vectors of 32 bytes than of 64.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define NARROW __attribute__((target("prefer-vector-width=256")))
#else
#define NARROW
#endif

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {
namespace {

constexpr u64 TILE = 1024;
static_assert(CHUNK % TILE == 0 && TILE % LANES == 0, "a tile has the same number of elements in every lane");
static_assert(TILE % BLOCK == 0, "a block must not cross two tiles");

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

// Not inlined: otherwise every kind of segment would get a copy.
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

// The parameters and gradients of a tile in the dtype of the arithmetic. Operations have been applied to the gradients.
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
                            State *RESTRICT delta, unsigned char *, u64 count, const Coefficients<Real> c,
                            const Random random, const Real decay)
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

// ---- 8-bit state ---------------------------------------------------------------------------------------------------

constexpr u32 SPAN = 256;  // number of elements whose new state is computed before it is encoded
static_assert(SPAN % BLOCK == 0 && TILE % SPAN == 0, "a span has whole blocks, and a tile has whole spans");

// Computes the scale of each block. Maxima are taken pairwise, for all blocks together, so that vectors are full.
template <u32 BLOCKS>
INLINE void scales_of(const float *RESTRICT from, u32 *RESTRICT scales)
{
    static_assert(BLOCK == 64, "the steps below are written for blocks of 64");
    alignas(64) u32 of_16[BLOCKS * 16], of_8[BLOCKS * 8], of_4[BLOCKS * 4];
    for (u32 b = 0; b < BLOCKS; ++b)
        for (u32 i = 0; i < 16; ++i)
            of_16[b * 16 + i] = larger(larger(magnitude_of(from[b * 64 + i]), magnitude_of(from[b * 64 + 16 + i])),
                                       larger(magnitude_of(from[b * 64 + 32 + i]), magnitude_of(from[b * 64 + 48 + i])));
    for (u32 b = 0; b < BLOCKS; ++b)
        for (u32 i = 0; i < 8; ++i)
            of_8[b * 8 + i] = larger(of_16[b * 16 + i], of_16[b * 16 + 8 + i]);
    for (u32 b = 0; b < BLOCKS; ++b)
        for (u32 i = 0; i < 4; ++i)
            of_4[b * 4 + i] = larger(of_8[b * 8 + i], of_8[b * 8 + 4 + i]);
    for (u32 b = 0; b < BLOCKS; ++b)
        scales[b] = scale_of(larger(larger(of_4[b * 4], of_4[b * 4 + 1]), larger(of_4[b * 4 + 2], of_4[b * 4 + 3])));
}

// Applies the rule to one block, and writes its new state to m, v and d.
INLINE void graves_block(float *RESTRICT param, const float *RESTRICT grad, const int8 *RESTRICT mg,
                         const int8 *RESTRICT variance, const int8 *RESTRICT delta, const unsigned char *scales,
                         float *RESTRICT m, float *RESTRICT v, float *RESTRICT d, const Coefficients<float> &c,
                         const float decay)
{
    const float m_step = MgCodes::step_of(scales[0]), v_step = VarianceCodes::step_of(scales[1]);
    const float d_step = DeltaCodes::step_of(scales[2]);
    for (u32 i = 0; i < BLOCK; ++i) {
        const float before = param[i];
        float p = before, rm = MgCodes::decoded(mg[i], m_step), rv = VarianceCodes::decoded(variance[i], v_step);
        float rd = DeltaCodes::decoded(delta[i], d_step);
        graves(p, grad[i], rm, rv, rd, c);
        if (decay != 0)
            p = decayed(before, rd, decay);
        param[i] = p;
        m[i] = rm;
        v[i] = rv;
        d[i] = rd;
    }
}

// The number that each element of a block combines with the block's random bits.
struct OwnBits {
    alignas(64) u32 of[BLOCK];
    constexpr OwnBits() : of()
    {
        for (u32 i = 0; i < BLOCK; ++i)
            of[i] = RandomBits::own(i);
    }
};
constexpr OwnBits own_bits;

template <class Coding>
INLINE void encode_block(const float *RESTRICT from, int8 *RESTRICT codes, u32 scale, u32 bits)
{
    const float steps = Coding::steps_of(scale);
    for (u32 i = 0; i < BLOCK; ++i)
        codes[i] = Coding::encoded(from[i], steps, Coding::mixed(bits, own_bits.of[i]));
    if (scale == NAN_SCALE)
        memset(codes, 0, BLOCK);
}

// Updates whole blocks, because loops of constant length are vectorized best. `first` is the index of their first element in
// the tile.
template <u32 BLOCKS>
INLINE void graves_blocks(float *RESTRICT param, const float *RESTRICT grad, int8 *RESTRICT mg, int8 *RESTRICT variance,
                          int8 *RESTRICT delta, unsigned char *RESTRICT scales, const Coefficients<float> &c,
                          const Random &random, u32 first, const float decay)
{
    alignas(64) float m[BLOCKS * BLOCK], v[BLOCKS * BLOCK], d[BLOCKS * BLOCK];
    alignas(64) u32 m_scales[BLOCKS], v_scales[BLOCKS], d_scales[BLOCKS];
    for (u32 b = 0, i = 0; b < BLOCKS; ++b, i += BLOCK)
        graves_block(param + i, grad + i, mg + i, variance + i, delta + i, scales + b * STATES, m + i, v + i, d + i, c, decay);
    scales_of<BLOCKS>(m, m_scales);
    scales_of<BLOCKS>(v, v_scales);
    scales_of<BLOCKS>(d, d_scales);
    for (u32 b = 0, i = 0; b < BLOCKS; ++b, i += BLOCK) {
        const RandomBits bits(random.before(first + i));
        encode_block<MgCodes>(m + i, mg + i, m_scales[b], bits.mg);
        encode_block<VarianceCodes>(v + i, variance + i, v_scales[b], bits.variance);
        encode_block<DeltaCodes>(d + i, delta + i, d_scales[b], bits.delta);
        scales[b * STATES] = static_cast<unsigned char>(m_scales[b]);
        scales[b * STATES + 1] = static_cast<unsigned char>(v_scales[b]);
        scales[b * STATES + 2] = static_cast<unsigned char>(d_scales[b]);
    }
}

INLINE void graves_elements(float *RESTRICT param, const float *RESTRICT grad, int8 *RESTRICT mg, int8 *RESTRICT variance,
                            int8 *RESTRICT delta, unsigned char *RESTRICT scales, u64 count, const Coefficients<float> c,
                            const Random random, const float decay)
{
    const u32 n = u32(count);
    u32 low = 0;
    for (; low + SPAN <= n; low += SPAN, scales += SPAN / BLOCK * STATES)
        graves_blocks<SPAN / BLOCK>(param + low, grad + low, mg + low, variance + low, delta + low, scales, c, random, low, decay);
    for (; low + BLOCK <= n; low += BLOCK, scales += STATES)
        graves_blocks<1>(param + low, grad + low, mg + low, variance + low, delta + low, scales, c, random, low, decay);
    if (low < n) {
        const u32 left = n - low;
        float p[BLOCK] = {}, g[BLOCK] = {};
        int8 m[BLOCK] = {}, v[BLOCK] = {}, d[BLOCK] = {};
        memcpy(p, param + low, left * sizeof(float));
        memcpy(g, grad + low, left * sizeof(float));
        memcpy(m, mg + low, left);
        memcpy(v, variance + low, left);
        memcpy(d, delta + low, left);
        graves_blocks<1>(p, g, m, v, d, scales, c, random, low, decay);
        memcpy(param + low, p, left * sizeof(float));
        memcpy(mg + low, m, left);
        memcpy(variance + low, v, left);
        memcpy(delta + low, d, left);
    }
}

template <class Real, class State>
NOINLINE void graves_tile(Real *param, const Real *grad, State *mg, State *variance, State *delta, unsigned char *scales,
                          u64 count, const Coefficients<Real> c, const Random random)
{
    graves_elements(param, grad, mg, variance, delta, scales, count, c, random, Real(0));
}

template <class Real, class State>
NOINLINE void decaying_tile(Real *param, const Real *grad, State *mg, State *variance, State *delta, unsigned char *scales,
                            u64 count, const Coefficients<Real> c, const Random random, const Real decay)
{
    graves_elements(param, grad, mg, variance, delta, scales, count, c, random, decay);
}

// Nothing is converted, so this loop is limited by memory bandwidth.
template <class Real>
NOINLINE NARROW void graves_tile(Real *param, const Real *grad, Real *mg, Real *variance, Real *delta, unsigned char *scales,
                                 u64 count, const Coefficients<Real> c, const Random random)
{
    graves_elements(param, grad, mg, variance, delta, scales, count, c, random, Real(0));
}

}  // namespace
}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
