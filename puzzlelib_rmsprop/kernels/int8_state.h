// State in 8 bits: blocks of numbers that share a scale, and a code for each number.
//
// The scale is the exponent of the block's largest number: a power of two in one byte (E8M0 in OCP's microscaling formats).
// The code is mu-law in linear pieces, as G.711 has it for sound: even steps near 0, and from there on steps that double with
// the number. Encoding what was decoded gives the same scale and codes: the largest number of a block never leaves the part
// from 1 to 2 of its scale. docs/int8-state.md says how the formats were chosen.

#pragma once

#include "numbers.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

struct int8 {
    unsigned char code;
};

// A block's largest magnitude is found by the bits: those of a NaN are larger than those of infinity.
KERNEL u32 magnitude_of(float x) { return bits_of(x) & 0x7FFFFFFFu; }
KERNEL u32 larger(u32 a, u32 b) { return a > b ? a : b; }

constexpr u32 NAN_SCALE = 255;  // of a block with a NaN: its codes are 0, and all of it is NaN
KERNEL u32 scale_of(u32 largest)
{
    // none whose steps would be subnormal, or their reciprocal; infinity is taken for the largest number
    const u32 exponent = largest >> 23, held = exponent < 20 ? 20 : exponent > 253 ? 253 : exponent;
    return largest > 0x7F800000u ? NAN_SCALE : held;
}

// A magnitude, below twice the scale, is taken times RANGE, and 2 added: the last EXPONENT bits of that float's exponent and
// the first MANTISSA bits of its mantissa are the code. LAST is the last code below twice the scale.
template <int EXPONENT, int MANTISSA, u32 LAST>
struct Codes {
    static constexpr int CUT = 23 - MANTISSA;  // bits that are rounded off
    static constexpr float RANGE = 2.0f * float((1u << ((1 << EXPONENT) - 1)) - 1);
    static constexpr u32 TWO = 0x40000000u;  // the bits of 2.0f

    // What a decoded number, and one to be encoded, is multiplied by.
    KERNEL static float step_of(u32 scale) { return float_of(scale << 23) * (1.0f / RANGE); }
    KERNEL static float steps_of(u32 scale) { return float_of((254u - scale) << 23) * RANGE; }

    // The bits that round an element: those of its block with the first CUT bits of its own number.
    KERNEL static u32 mixed(u32 random, u32 own) { return random ^ own >> (32 - CUT); }

    KERNEL static float widened(u32 code, float step) { return (float_of(code << CUT | TWO) - 2.0f) * step; }
    // Rounded up or down by CUT random bits: rounded to nearest, a small change would be lost step after step.
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

// Of numbers that are not negative. What is above 0 stays above 0: the step is divided by the variance's root.
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

// mg and variance need the range where gradients of one block differ in size, delta the precision.
typedef SignedCodes<3, 4, 127> MgCodes;
typedef PositiveCodes<4, 4, 255> VarianceCodes;
typedef SignedCodes<2, 5, 123> DeltaCodes;

// A block has one random number, and each of the three states takes other bits of it. An element mixes a number of its own
// into them (xor): so all values are equally likely for each element, and spread evenly over the block.
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
