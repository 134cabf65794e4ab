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
        Elements<Stored> p, g;
        Elements<int8> m, v, d;
        Elements<float> f;
        p.load(param + i, count, vectors);
        g.load(grad + i, count, vectors);
        m.load(mg + i, count, vectors);
        v.load(variance + i, count, vectors);
        d.load(delta + i, count, vectors);
        if constexpr (Kind::MASTER)
            f.load(master + i, count, vectors);
        unsigned char *const scale = scales + i / BLOCK * STATES;
        const float m_step = MgCodes::step_of(scale[0]), v_step = VarianceCodes::step_of(scale[1]);
        const float d_step = DeltaCodes::step_of(scale[2]);
        float rm[EACH], rv[EACH], rd[EACH];
        u32 m_largest = 0, v_largest = 0, d_largest = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            float rp;
            rm[k] = MgCodes::decoded(m[k], m_step);
            rv[k] = VarianceCodes::decoded(v[k], v_step);
            rd[k] = DeltaCodes::decoded(d[k], d_step);
            if constexpr (Kind::MASTER)
                rp = current(p[k], f[k]);
            else
                rp = widen(p[k]);
            const float before = rp;
            graves(rp, more.operate(widen(g[k]), rp), rm[k], rv[k], rd[k], c);
            more.decay(rp, before, rd[k]);
            narrow(rp, p[k]);
            f[k] = rp;
            g[k] = Stored{};
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
        const RandomBits bits(more.random(i / BLOCK * BLOCK));
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            const u32 own = RandomBits::own(i % BLOCK + k);
            m[k] = m_scale == NAN_SCALE ? int8{} : MgCodes::encoded(rm[k], m_steps, MgCodes::mixed(bits.mg, own));
            v[k] = v_scale == NAN_SCALE ? int8{} : VarianceCodes::encoded(rv[k], v_steps, VarianceCodes::mixed(bits.variance, own));
            d[k] = d_scale == NAN_SCALE ? int8{} : DeltaCodes::encoded(rd[k], d_steps, DeltaCodes::mixed(bits.delta, own));
        }
        m.store(mg + i, count, vectors);
        v.store(variance + i, count, vectors);
        d.store(delta + i, count, vectors);
        p.store(param + i, count, vectors);
        if constexpr (Kind::MASTER)
            f.store(master + i, count, vectors);
        if (more.zeroGrad())
            g.store(grad + i, count, vectors);
        if (i % BLOCK == 0) {
            scale[0] = static_cast<unsigned char>(m_scale);
            scale[1] = static_cast<unsigned char>(v_scale);
            scale[2] = static_cast<unsigned char>(d_scale);
        }
    }

  private:
    // Elements of one thread.
    template <class T>
    struct Elements {
        Pack<T, EACH> all;

        __device__ __forceinline__ void load(const T *from, u32 count, bool vector)
        {
            if (vector) {
                all.load(from);
                return;
            }
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                all[k] = k < count ? from[k] : T{};
        }
        __device__ __forceinline__ void store(T *to, u32 count, bool vector)
        {
            if (vector) {
                all.store(to);
                return;
            }
#pragma unroll
            for (u32 k = 0; k < EACH; ++k)
                if (k < count)
                    to[k] = all[k];
        }
        __device__ __forceinline__ T &operator[](u32 k) { return all[int(k)]; }
    };
};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
