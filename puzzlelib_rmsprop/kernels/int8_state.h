// 8-bit state: numbers are quantized to codes, and the numbers of a block share a scale.
//
// The scale is the exponent of the block's largest magnitude: a power of two in one byte (E8M0 in the OCP microscaling
// formats). The code is a piecewise linear mu-law, as in G.711 for audio: steps are uniform near 0, and then double whenever
// the number doubles. Decoded numbers are encoded as the same scale and codes, because the largest magnitude of a block
// stays between 1 and 2 times its scale. docs/int8-state.md describes how the formats were chosen.

#pragma once

#include "numbers.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

struct int8 {
    unsigned char code;
};

// Magnitudes are compared by their bits: NaN compares larger than infinity.
KERNEL u32 magnitude_of(float x) { return bits_of(x) & 0x7FFFFFFFu; }
KERNEL u32 larger(u32 a, u32 b) { return a > b ? a : b; }

constexpr u32 NAN_SCALE = 255;  // scale of a block with a NaN: its codes are 0, and all its elements are NaN
KERNEL u32 scale_of(u32 largest)
{
    // the limits keep steps and their reciprocals from being subnormal; infinity becomes the largest number
    const u32 exponent = largest >> 23, held = exponent < 20 ? 20 : exponent > 253 ? 253 : exponent;
    return largest > 0x7F800000u ? NAN_SCALE : held;
}

// A magnitude (less than twice the scale) is divided by the scale and multiplied by RANGE, and 2 is added. The code consists
// of the last EXPONENT bits of this float's exponent and the first MANTISSA bits of its mantissa. LAST is the largest code.
template <int EXPONENT, int MANTISSA, u32 LAST>
struct Codes {
    static constexpr int CUT = 23 - MANTISSA;  // number of mantissa bits that are rounded off
    static constexpr float RANGE = 2.0f * float((1u << ((1 << EXPONENT) - 1)) - 1);
    static constexpr u32 TWO = 0x40000000u;  // the bits of 2.0f

    // The factors that decode and encode.
    KERNEL static float step_of(u32 scale) { return float_of(scale << 23) * (1.0f / RANGE); }
    KERNEL static float steps_of(u32 scale) { return float_of((254u - scale) << 23) * RANGE; }

    // Random bits for one element: those of its block, xor the first CUT bits of its own number.
    KERNEL static u32 mixed(u32 random, u32 own) { return random ^ own >> (32 - CUT); }

    KERNEL static float widened(u32 code, float step) { return (float_of(code << CUT | TWO) - 2.0f) * step; }
    // Stochastic rounding with CUT random bits: with rounding to nearest, small changes would be lost at every step.
    KERNEL static u32 rounded(float magnitude, float steps, u32 random)
    {
        const u32 bits = bits_of(magnitude * steps + 2.0f) + random;
        return (bits < TWO + (LAST << CUT) ? bits : TWO + (LAST << CUT)) >> CUT;
    }
};

// The first bit is the sign.
template <int EXPONENT, int MANTISSA, u32 LAST>
struct SignedCodes : Codes<EXPONENT, MANTISSA, LAST> {
    typedef Codes<EXPONENT, MANTISSA, LAST> Magnitude;

    KERNEL static float decoded(int8 x, float step)
    {
        const u32 code = x.code;
        return float_of(bits_of(Magnitude::widened(code & 0x7Fu, step)) | (code & 0x80u) << 24);
    }
    KERNEL static int8 encoded(float x, float steps, u32 random)
    {
        const u32 code = (Magnitude::rounded(float_of(magnitude_of(x)), steps, random) & 0x7Fu) | (bits_of(x) >> 24 & 0x80u);
        return {static_cast<unsigned char>(code)};
    }
};

// For non-negative numbers. A positive number never becomes 0, because the step is divided by the root of the variance.
template <int EXPONENT, int MANTISSA, u32 LAST>
struct PositiveCodes : Codes<EXPONENT, MANTISSA, LAST> {
    typedef Codes<EXPONENT, MANTISSA, LAST> Magnitude;

    KERNEL static float decoded(int8 x, float step) { return Magnitude::widened(x.code, step); }
    KERNEL static int8 encoded(float x, float steps, u32 random)
    {
        const u32 code = Magnitude::rounded(x, steps, random) & 0xFFu;
        return {static_cast<unsigned char>(larger(code, x > 0.0f))};
    }
};

// mg and variance need range, for gradients that differ in size within a block; delta needs precision.
typedef SignedCodes<3, 4, 127> MgCodes;
typedef PositiveCodes<4, 4, 255> VarianceCodes;
typedef SignedCodes<2, 5, 123> DeltaCodes;

// A block has one random number, of which each state array uses another range of bits. Each element combines these with a
// number of its own (xor), so that all values are equally likely for each element, and evenly distributed over the block.
struct RandomBits {
    u32 mg, variance, delta;

    KERNEL RandomBits(u32 random)
        : mg(random & ((1u << MgCodes::CUT) - 1)), variance(random >> (32 - VarianceCodes::CUT)),
          delta(random >> 7 & ((1u << DeltaCodes::CUT) - 1))
    {
    }
    KERNEL static constexpr u32 own(u32 i) { return i * 0x9E3779B9u; }
};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
