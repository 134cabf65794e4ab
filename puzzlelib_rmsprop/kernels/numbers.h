// Numbers in memory: 16-bit floats, stochastic rounding, and subnormal numbers, which are flushed to zero.
//
// The host's compiler and nvcc compile the same code, in integer arithmetic, so that both give the same bits.

#pragma once

#include <cmath>
#include <cstring>

#include "layout.h"

// rmsprop_graves.cu defines ON_CUDA
#ifdef ON_CUDA
#define KERNEL __host__ __device__ __forceinline__
#else
#define KERNEL inline
#endif

// These functions are compiled once for each CPU instruction set. Without namespaces the linker would keep only one copy.
#ifndef KERNEL_NAMESPACE
#define KERNEL_NAMESPACE kernels
#endif

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

KERNEL u32 bits_of(float x)
{
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
KERNEL float float_of(u32 bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// ---- 16 bits -------------------------------------------------------------------------------------------------------

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

// The dtypes of a segment: of parameters and gradients, of the state, of the arithmetic.
template <class Stored_, class State_, class Real_, bool MASTER_>
struct Kind {
    typedef Stored_ Stored;
    typedef State_ State;
    typedef Real_ Real;
    static constexpr bool MASTER = MASTER_;
};

KERNEL float widen(float x) { return x; }
KERNEL double widen(double x) { return x; }
KERNEL float widen(bfloat16 x) { return float_of(u32(x.bits) << 16); }
KERNEL float widen(float16 x)
{
    const u32 shifted = (x.bits & 0x7FFFu) << 13;
    const u32 rebased = shifted + (112u << 23);  // the bias of float32 less that of float16
    // a subnormal number has no implicit leading bit: add one, then subtract its value
    const u32 subnormal = bits_of(float_of(rebased + (1u << 23)) - float_of(113u << 23));
    const u32 special = rebased + (112u << 23);  // infinity or NaN
    const u32 magnitude = shifted < 0x00800000u ? subnormal : shifted < 0x0F800000u ? rebased : special;
    return float_of(magnitude | (x.bits & 0x8000u) << 16);
}

// Comparing bits takes fewer registers on GPUs, comparing numbers takes fewer instructions on CPUs.
KERNEL bool is_nan(float x)
{
#if defined(__CUDA_ARCH__)
    return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u;
#else
    return x != x;
#endif
}

// Rounds to nearest, ties to even. All NaNs become the same one: which NaN the arithmetic gives depends on the processor.
KERNEL void narrow(float x, float &to) { to = x; }
KERNEL void narrow(double x, double &to) { to = x; }
KERNEL void narrow(float x, bfloat16 &to)
{
    const u32 bits = bits_of(x);
    const u32 rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    to.bits = static_cast<unsigned short>(is_nan(x) ? 0x7FC0u : rounded);
}
KERNEL void narrow(float x, float16 &to)
{
    const u32 bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
    // below 2^-14 the result is subnormal: adding 0.5 rounds it, and leaves its ten bits at the end of the float
    const u32 subnormal = bits_of(float_of(magnitude) + 0.5f) - (126u << 23);
    const u32 normal = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    u32 half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude < (143u << 23) ? half : 0x7C00u;  // 65536 and above
    to.bits = static_cast<unsigned short>(magnitude > 0x7F800000u ? 0x7E00u : half | sign);
}

// ---- stochastic rounding -------------------------------------------------------------------------------------------

// A 32-bit hash: each bit depends on all bits of x and y. After Chris Wellons' hash function prospector (public domain).
KERNEL u32 mixed(u32 x, u32 y = 0)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = ((x ^ x >> 15) + y) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// The random numbers of a step for a variable's elements. They depend only on the seed, the variable's key and the index.
struct Random {
    u32 low, seed, key, key_after;  // key_after: after the low half of the index has wrapped around

    KERNEL Random(const u32 (&seeds)[2], u32 variable, u64 first) : low(u32(first)), seed(seeds[1])
    {
        const u32 named = mixed(seeds[0] ^ variable), high = u32(first >> 32);
        key = mixed(named + high);
        key_after = mixed(named + high + 1u);
    }
    // For elements before the low half of the index wraps around.
    KERNEL u32 before(u32 i) const { return mixed((low + i) ^ key, seed); }
    KERNEL u32 of(u32 i) const
    {
        const u32 element = low + i;
        return mixed(element ^ (element < low ? key_after : key), seed);
    }
};

// Stores a number of the state. bfloat16 uses stochastic rounding: with rounding to nearest, small changes would be lost at
// every step.
KERNEL void store_state(float x, u32, float &to) { to = x; }
KERNEL void store_state(double x, u32, double &to) { to = x; }
KERNEL void store_state(float x, u32 random, bfloat16 &to)
{
    const u32 bits = bits_of(x);
    const u32 rounded = (bits + (random & 0xFFFFu)) >> 16;  // infinity is kept
    to.bits = static_cast<unsigned short>(is_nan(x) ? 0x7FC0u : rounded);
}

// ---- subnormal numbers ---------------------------------------------------------------------------------------------

// They are flushed to zero, because they are slow, and because a decaying average would stop at one and never reach zero.
// The hardware does this (-ftz=true on CUDA, cpu_loops.cpp on CPUs), except for double on CUDA.
#if defined(ON_CUDA) || \
    !(defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86) || defined(__aarch64__) || defined(_M_ARM64))
#define FLUSH_DOUBLE 1
#endif

KERNEL float flushed(float x) { return x; }
KERNEL double flushed(double x)
{
#ifdef FLUSH_DOUBLE
    return x < 2.2250738585072014e-308 && x > -2.2250738585072014e-308 ? x * 0.0 : x;
#else
    return x;
#endif
}

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
