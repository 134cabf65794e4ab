// Numbers in memory: 16-bit floats, random rounding, and subnormal numbers, which are taken for zero.
//
// One text for the host's compiler and nvcc, in integer arithmetic, so that both give the same bits.

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

// Each instruction set of the CPU has a copy of these functions; under one name the linker would keep one for all.
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
    // a subnormal has no hidden one: give it one, and take its value off again
    const u32 subnormal = bits_of(float_of(rebased + (1u << 23)) - float_of(113u << 23));
    const u32 special = rebased + (112u << 23);  // infinity or NaN
    const u32 magnitude = shifted < 0x00800000u ? subnormal : shifted < 0x0F800000u ? rebased : special;
    return float_of(magnitude | (x.bits & 0x8000u) << 16);
}

// Compilers for GPUs need fewer registers to compare the bits, those for CPUs fewer instructions to compare the number.
KERNEL bool is_nan(float x)
{
#if defined(__CUDA_ARCH__)
    return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u;
#else
    return x != x;
#endif
}

// Rounded to nearest, ties to even. A NaN becomes the one NaN: which one the arithmetic gives depends on the processor.
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
    // below 2^-14 the result is subnormal: adding 0.5 leaves its ten bits, rounded by the adder, at the float's end
    const u32 subnormal = bits_of(float_of(magnitude) + 0.5f) - (126u << 23);
    const u32 normal = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    u32 half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude < (143u << 23) ? half : 0x7C00u;  // 65536 and above
    to.bits = static_cast<unsigned short>(magnitude > 0x7F800000u ? 0x7E00u : half | sign);
}

// ---- random rounding -----------------------------------------------------------------------------------------------

// 32 bits, each of which depends on all 32 of x and of y; after Chris Wellons' hash function prospector (public domain).
KERNEL u32 mixed(u32 x, u32 y = 0)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = ((x ^ x >> 15) + y) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// Random numbers of one step for the elements of a variable: of the seed, the variable's key and the index, nothing else.
struct Random {
    u32 low, seed, key, key_after;  // the latter: where the index's low half has begun again

    KERNEL Random(const u32 (&seeds)[2], u32 variable, u64 first) : low(u32(first)), seed(seeds[1])
    {
        const u32 named = mixed(seeds[0] ^ variable), high = u32(first >> 32);
        key = mixed(named + high);
        key_after = mixed(named + high + 1u);
    }
    // Of an element before the index's low half begins again.
    KERNEL u32 before(u32 i) const { return mixed((low + i) ^ key, seed); }
    KERNEL u32 of(u32 i) const
    {
        const u32 element = low + i;
        return mixed(element ^ (element < low ? key_after : key), seed);
    }
};

// Stores a number of the state. bfloat16 is rounded up or down by 16 random bits: rounded to nearest, a small change would
// be lost step after step.
KERNEL void store_state(float x, u32, float &to) { to = x; }
KERNEL void store_state(double x, u32, double &to) { to = x; }
KERNEL void store_state(float x, u32 random, bfloat16 &to)
{
    const u32 bits = bits_of(x);
    const u32 rounded = (bits + (random & 0xFFFFu)) >> 16;  // an infinity stays one
    to.bits = static_cast<unsigned short>(is_nan(x) ? 0x7FC0u : rounded);
}

// ---- subnormal numbers ---------------------------------------------------------------------------------------------

// They are taken for zero, because they are slow, and because an average would stay at one for ever. Processors do it by
// themselves (-ftz=true on CUDA, see cpu_loops.cpp for the others), but CUDA does not for double.
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
