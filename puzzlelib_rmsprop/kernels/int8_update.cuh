// The update of a segment with state in 8 bits: a block of elements is worked on by some threads of one warp.
#pragma once
#include "elements.cuh"
#include "int8_state.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

constexpr u32 EACH = 4;               // elements of a thread
constexpr u32 TEAM = BLOCK / EACH;    // threads that share a block
static_assert(32 % TEAM == 0 && CHUNK % BLOCK == 0, "blocks lie in one warp and one chunk");

// The largest of a team's; every thread of it gets it.
__device__ __forceinline__ u32 largest_of_team(u32 own)
{
    const u32 lane = threadIdx.x % 32, mask = ((1u << TEAM) - 1) << (lane & ~(TEAM - 1));
#pragma unroll
    for (u32 other = TEAM / 2; other; other /= 2)
        own = larger(own, __shfl_xor_sync(mask, own, int(other)));
    return own;
}

// From element `begin` of the segment on, the first of a block.
template <class Kind, class More>
struct Int8Update {
    typedef typename Kind::Stored Stored;

    Stored *__restrict__ param;
    Stored *__restrict__ grad;
    int8 *__restrict__ mg;
    int8 *__restrict__ variance;
    int8 *__restrict__ delta;
    unsigned char *__restrict__ scales;
    float *__restrict__ master;
    Coefficients<float> c;
    More more;

    __device__ __forceinline__ Int8Update(const Segment &segment, u64 begin, const Hyper &hyper, const More &what)
        : param(global<Stored>(segment.param) + begin), grad(global<Stored>(segment.grad) + begin),
          mg(global<int8>(segment.mg) + begin), variance(global<int8>(segment.variance) + begin),
          delta(global<int8>(segment.delta) + begin),
          scales(global<unsigned char>(segment.scales) + begin / BLOCK * STATES),
          master(global<float>(segment.master) + begin), c(hyper, segment), more(what)
    {
    }

    // Elements [0, size) by all threads of the block. Those of a team come and go together.
    __device__ __forceinline__ void all(u32 size) const
    {
        const bool vectors = !ahead<EACH>(param) && !ahead<EACH>(grad) && !ahead<EACH>(mg) && !ahead<EACH>(variance) &&
                             !ahead<EACH>(delta) && (!Kind::MASTER || !ahead<EACH>(master));
        for (u32 i = threadIdx.x * EACH; i / BLOCK * BLOCK < size; i += blockDim.x * EACH) {
            const u32 count = i + EACH <= size ? EACH : i < size ? size - i : 0;
            at(i, count, vectors && count == EACH);
        }
    }

    // `count` elements from the i-th on, in vectors or one by one; what there is not counts as 0.
    __device__ __forceinline__ void at(u32 i, u32 count, bool vectors) const
    {
        float p[EACH], g[EACH], f[EACH] = {};
        load(param + i, p, count, vectors);
        load(grad + i, g, count, vectors);
        const u32 m = codes(mg + i, count, vectors), v = codes(variance + i, count, vectors);
        const u32 d = codes(delta + i, count, vectors);
        if constexpr (Kind::MASTER)
            load(master + i, f, count, vectors);
        unsigned char *const scale = scales + i / BLOCK * STATES;
        const float m_step = MgCodes::step_of(scale[0]), v_step = VarianceCodes::step_of(scale[1]);
        const float d_step = DeltaCodes::step_of(scale[2]);
        float rm[EACH], rv[EACH], rd[EACH];
        u32 m_largest = 0, v_largest = 0, d_largest = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            rm[k] = MgCodes::decoded(code(m, k), m_step);
            rv[k] = VarianceCodes::decoded(code(v, k), v_step);
            rd[k] = DeltaCodes::decoded(code(d, k), d_step);
            if constexpr (Kind::MASTER) {
                Stored stored;
                narrow(p[k], stored);
                p[k] = current(stored, f[k]);
            }
            const float before = p[k];
            graves(p[k], more.operate(g[k], p[k]), rm[k], rv[k], rd[k], c);
            more.decay(p[k], before, rd[k]);
            g[k] = 0.0f;
            if (k < count) {
                m_largest = larger(m_largest, magnitude_of(rm[k]));
                v_largest = larger(v_largest, magnitude_of(rv[k]));
                d_largest = larger(d_largest, magnitude_of(rd[k]));
            }
        }
        const u32 m_scale = scale_of(largest_of_team(m_largest)), v_scale = scale_of(largest_of_team(v_largest));
        const u32 d_scale = scale_of(largest_of_team(d_largest));
        const float m_steps = MgCodes::steps_of(m_scale), v_steps = VarianceCodes::steps_of(v_scale);
        const float d_steps = DeltaCodes::steps_of(d_scale);
        u32 new_m = 0, new_v = 0, new_d = 0;
        const RandomBits bits(more.random(i / BLOCK * BLOCK));
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            const u32 own = RandomBits::own(i % BLOCK + k);
            new_m |= MgCodes::encoded(rm[k], m_steps, MgCodes::mixed(bits.mg, own)).code << 8 * k;
            new_v |= VarianceCodes::encoded(rv[k], v_steps, VarianceCodes::mixed(bits.variance, own)).code << 8 * k;
            new_d |= DeltaCodes::encoded(rd[k], d_steps, DeltaCodes::mixed(bits.delta, own)).code << 8 * k;
        }
        store_codes(m_scale == NAN_SCALE ? 0 : new_m, mg + i, count, vectors);
        store_codes(v_scale == NAN_SCALE ? 0 : new_v, variance + i, count, vectors);
        store_codes(d_scale == NAN_SCALE ? 0 : new_d, delta + i, count, vectors);
        store(p, param + i, count, vectors);
        if constexpr (Kind::MASTER)
            store(p, master + i, count, vectors);
        if (more.zeroGrad())
            store(g, grad + i, count, vectors);
        if (i % BLOCK == 0) {
            scale[0] = static_cast<unsigned char>(m_scale);
            scale[1] = static_cast<unsigned char>(v_scale);
            scale[2] = static_cast<unsigned char>(d_scale);
        }
    }

  private:
    // Elements of one thread go as floats, and codes in one word: structs of less than 32 bits that are loaded in two ways keep
    // nvcc 13.0 busy without end.
    template <class T>
    __device__ __forceinline__ static void load(const T *from, float (&to)[EACH], u32 count, bool vector)
    {
        if (vector) {
            Pack<T, EACH> all;
            all.load(from);
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                to[k] = widen(all[int(k)]);
        } else {
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                to[k] = k < count ? widen(from[k]) : 0.0f;
        }
    }

    template <class T>
    __device__ __forceinline__ static void store(const float (&from)[EACH], T *to, u32 count, bool vector)
    {
        if (vector) {
            Pack<T, EACH> all;
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                narrow(from[k], all[int(k)]);
            all.store(to);
        } else {
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                if (k < count)
                    narrow(from[k], to[k]);
        }
    }

    __device__ __forceinline__ static int8 code(u32 word, u32 k) { return {static_cast<unsigned char>(word >> 8 * k)}; }

    __device__ __forceinline__ static u32 codes(const int8 *from, u32 count, bool vector)
    {
        if (vector)
            return *reinterpret_cast<const u32 *>(from);
        u32 word = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k)
            word |= k < count ? u32(from[k].code) << 8 * k : 0;
        return word;
    }

    __device__ __forceinline__ static void store_codes(u32 word, int8 *to, u32 count, bool vector)
    {
        if (vector) {
            *reinterpret_cast<u32 *>(to) = word;
            return;
        }
#pragma unroll
        for (u32 k = 0; k < EACH; ++k)
            if (k < count)
                to[k] = code(word, k);
    }
};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
