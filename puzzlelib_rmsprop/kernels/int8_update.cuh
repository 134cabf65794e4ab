// The update of a segment with 8-bit state. A team of threads within one warp processes a block of elements.
#pragma once
#include "elements.cuh"
#include "int8_state.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

constexpr u32 EACH = 4;             // elements per thread
constexpr u32 TEAM = BLOCK / EACH;  // threads per block of elements
static_assert(32 % TEAM == 0 && CHUNK % BLOCK == 0, "blocks lie in one warp and one chunk");

// Returns the largest number in a team to all of its threads.
__device__ __forceinline__ u32 largest_of_team(u32 own)
{
    const u32 lane = threadIdx.x % 32, mask = ((1u << TEAM) - 1) << (lane & ~(TEAM - 1));
#pragma unroll
    for (u32 other = TEAM / 2; other; other /= 2)
        own = larger(own, __shfl_xor_sync(mask, own, int(other)));
    return own;
}

// The update of a segment from element `begin` on, which must be the first of a block.
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

    // Updates elements [0, size) with all threads of the CUDA block. The threads of a team exchange numbers, so all of them
    // run the same iterations.
    __device__ __forceinline__ void all(u32 size) const
    {
        const bool vectors = !ahead<EACH>(param) && !ahead<EACH>(grad) && !ahead<EACH>(mg) && !ahead<EACH>(variance) &&
                             !ahead<EACH>(delta) && (!Kind::MASTER || !ahead<EACH>(master));
        for (u32 i = threadIdx.x * EACH; i / BLOCK * BLOCK < size; i += blockDim.x * EACH) {
            if (vectors && i / BLOCK * BLOCK + BLOCK <= size)  // the same choice for all threads of a team
                at<true>(i, EACH);
            else
                at<false>(i, i + EACH <= size ? EACH : i < size ? size - i : 0);
        }
    }

    // Updates `count` elements from i on, with vector loads or one by one. Missing elements are treated as 0.
    template <bool VECTORS>
    __device__ __forceinline__ void at(u32 i, u32 count) const
    {
        float p[EACH], g[EACH], f[EACH] = {};
        load<VECTORS>(param + i, p, count);
        load<VECTORS>(grad + i, g, count);
        const u32 m = codes<VECTORS>(mg + i, count), v = codes<VECTORS>(variance + i, count);
        const u32 d = codes<VECTORS>(delta + i, count);
        if constexpr (Kind::MASTER)
            load<VECTORS>(master + i, f, count);
        unsigned char *const scale = scales + i / BLOCK * STATES;
        const float m_step = MgCodes::step_of(scale[0]), v_step = VarianceCodes::step_of(scale[1]);
        const float d_step = DeltaCodes::step_of(scale[2]);
        float rm[EACH], rv[EACH], rd[EACH];
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
        }
        store<VECTORS>(p, param + i, count);
        if constexpr (Kind::MASTER)
            store<VECTORS>(p, master + i, count);
        if (more.zeroGrad())
            store<VECTORS>(g, grad + i, count);
        // encoding one array after the other takes fewer registers
        const RandomBits bits(more.random(i / BLOCK * BLOCK));
        encode<MgCodes, VECTORS>(rm, bits.mg, mg, scale, i, count);
        encode<VarianceCodes, VECTORS>(rv, bits.variance, variance, scale + 1, i, count);
        encode<DeltaCodes, VECTORS>(rd, bits.delta, delta, scale + 2, i, count);
    }

  private:
    // A thread keeps its elements as floats and its codes in one word: with a struct of four bytes, nvcc 13.0 hangs.
    template <bool VECTORS, class T>
    __device__ __forceinline__ static void load(const T *from, float (&to)[EACH], u32 count)
    {
        if constexpr (VECTORS) {
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

    template <bool VECTORS, class T>
    __device__ __forceinline__ static void store(const float (&from)[EACH], T *to, u32 count)
    {
        if constexpr (VECTORS) {
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

    template <bool VECTORS>
    __device__ __forceinline__ static u32 codes(const int8 *from, u32 count)
    {
        if constexpr (VECTORS) {
            return *reinterpret_cast<const u32 *>(from);
        } else {
            u32 word = 0;
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                word |= k < count ? u32(from[k].code) << 8 * k : 0;
            return word;
        }
    }

    template <class Coding, bool VECTORS>
    __device__ __forceinline__ static void encode(const float (&from)[EACH], u32 bits, int8 *to, unsigned char *scale, u32 i,
                                                  u32 count)
    {
        u32 largest = 0, word = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k)
            largest = k < count ? larger(largest, magnitude_of(from[k])) : largest;
        const u32 found = scale_of(largest_of_team(largest));
        const float steps = Coding::steps_of(found);
#pragma unroll
        for (u32 k = 0; k < EACH; ++k)
            word |= Coding::encoded(from[k], steps, Coding::mixed(bits, RandomBits::own(i % BLOCK + k))).code << 8 * k;
        store_codes<VECTORS>(found == NAN_SCALE ? 0 : word, to + i, count);
        if (i % BLOCK == 0)
            *scale = static_cast<unsigned char>(found);
    }

    template <bool VECTORS>
    __device__ __forceinline__ static void store_codes(u32 word, int8 *to, u32 count)
    {
        if constexpr (VECTORS) {
            *reinterpret_cast<u32 *>(to) = word;
        } else {
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                if (k < count)
                    to[k] = code(word, k);
        }
    }
};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
