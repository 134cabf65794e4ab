// The arithmetic of PTX, one function per instruction. The translator (ptx/) writes calls of these functions.
//
// Compiled without contraction and with wrapping integers (-ffp-contract=off -fwrapv): each function rounds once.
#pragma once
#include <fenv.h>
#include <math.h>
#include <stdint.h>

#include <type_traits>

namespace ptx {

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// ---- rounding, subnormal numbers, NaN -----------------------------------------------------------------------------
enum Round { RN, RZ, RM, RP };

// The compiler must not move arithmetic across a change of the processor's rounding mode.
#if defined(__aarch64__)
template <class T>
inline void pinned(T &x) { asm volatile("" : "+w"(x) : : "memory"); }
#else
template <class T>
inline void pinned(T &x) { asm volatile("" : "+x"(x) : : "memory"); }
#endif

template <Round R, class Operation, class... A>
__attribute__((always_inline)) inline auto rounded(Operation operation, A... a) {
    if constexpr (R == RN) {
        return operation(a...);
    } else {
        constexpr int MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
        fesetround(MODES[R]);
        (pinned(a), ...);
        auto result = operation(a...);
        pinned(result);
        fesetround(FE_TONEAREST);
        return result;
    }
}

// A subnormal float becomes zero with its sign. A double is never flushed.
inline float flush(float x) {
    const uint32_t b = bits<uint32_t>(x);
    return b & 0x7f800000u ? x : bits<float>(b & 0x80000000u);
}
template <bool FTZ>
inline float taken(float x) { return FTZ ? flush(x) : x; }
template <bool FTZ>
inline double taken(double x) { return x; }

// The result of an instruction: float32 has a single NaN; .sat is applied last and turns NaN into 0.
template <bool SAT, class T>
inline T saturated(T x) { return !SAT ? x : !(x > T(0)) ? T(0) : x > T(1) ? T(1) : x; }
template <bool FTZ, bool SAT = false>
inline float given(float x) { return saturated<SAT>(x == x ? taken<FTZ>(x) : bits<float>(0x7fffffffu)); }
template <bool FTZ, bool SAT = false>
inline double given(double x) { return saturated<SAT>(x); }

#define PTX_ROUNDED(NAME, PARAMETERS, TAKEN, EXPRESSION)                                      \
    template <Round R = RN, bool FTZ = false, bool SAT = false, class T>                      \
    inline T NAME PARAMETERS {                                                                \
        return given<FTZ, SAT>(rounded<R>([] PARAMETERS -> T { return EXPRESSION; }, TAKEN)); \
    }
#define PTX_ONE taken<FTZ>(a)
#define PTX_TWO taken<FTZ>(a), taken<FTZ>(b)
#define PTX_THREE taken<FTZ>(a), taken<FTZ>(b), taken<FTZ>(c)
inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
PTX_ROUNDED(add, (T a, T b), PTX_TWO, a + b)
PTX_ROUNDED(sub, (T a, T b), PTX_TWO, a - b)
PTX_ROUNDED(mul, (T a, T b), PTX_TWO, a * b)
PTX_ROUNDED(div, (T a, T b), PTX_TWO, a / b)
PTX_ROUNDED(rcp, (T a), PTX_ONE, T(1) / a)
PTX_ROUNDED(sqrt, (T a), PTX_ONE, root(a))
PTX_ROUNDED(fma, (T a, T b, T c), PTX_THREE, fused(a, b, c))

// ---- approximations: computed by functions of the host in double, rounded once -------------------------------------
#define PTX_APPROXIMATE(NAME, FUNCTION)                                        \
    template <bool FTZ = false>                                                \
    inline float NAME(float a) { return given<FTZ>(float(FUNCTION(double(taken<FTZ>(a))))); }
PTX_APPROXIMATE(ex2, ::exp2)
PTX_APPROXIMATE(lg2, ::log2)
PTX_APPROXIMATE(sin, ::sin)
PTX_APPROXIMATE(cos, ::cos)
PTX_APPROXIMATE(tanh, ::tanh)
template <bool FTZ = false, class T>
inline T rsqrt(T a) { return given<FTZ>(T(1.0 / ::sqrt(double(taken<FTZ>(a))))); }
// Only the upper halves of doubles are used; subnormal ones are flushed to zero.
inline double coarse(double x) { return bits<double>(bits<uint64_t>(x) & 0xffffffff00000000ull); }
inline double flushed(double x) { return __builtin_fabs(x) < 2.2250738585072014e-308 ? __builtin_copysign(0.0, x) : x; }
inline double rcp_approximate(double x) { return flushed(coarse(1.0 / flushed(coarse(x)))); }
inline double rsqrt_approximate(double x) { return flushed(coarse(1.0 / root(flushed(coarse(x))))); }

// ---- signs, minimum and maximum ------------------------------------------------------------------------------
template <bool FTZ = false>
inline float neg(float a) { return bits<float>(bits<uint32_t>(taken<FTZ>(a)) ^ 0x80000000u); }
template <bool FTZ = false>
inline float abs(float a) { return bits<float>(bits<uint32_t>(taken<FTZ>(a)) & 0x7fffffffu); }
template <bool FTZ = false>
inline double neg(double a) { return bits<double>(bits<uint64_t>(a) ^ 1ull << 63); }
template <bool FTZ = false>
inline double abs(double a) { return bits<double>(bits<uint64_t>(a) & ~(1ull << 63)); }
inline float copysign(float sign, float of) { return __builtin_copysignf(of, sign); }
inline double copysign(double sign, double of) { return __builtin_copysign(of, sign); }

// If one operand is NaN, the result is the other (NAN_WINS: NaN); -0 is below +0.
template <bool LESS, bool FTZ, bool NAN_WINS, class T>
inline T extreme(T a, T b) {
    a = taken<FTZ>(a), b = taken<FTZ>(b);
    if (a != a || b != b) return given<false>(a != a && b != b ? a : (a != a) == NAN_WINS ? a : b);
    if (a == b) return bool(__builtin_signbit(a)) == LESS ? a : b;
    return (a < b) == LESS ? a : b;
}
template <bool FTZ = false, bool NAN_WINS = false, class T>
inline T min(T a, T b) {
    if constexpr (std::is_integral_v<T>) return a < b ? a : b;
    else return extreme<true, FTZ, NAN_WINS>(a, b);
}
template <bool FTZ = false, bool NAN_WINS = false, class T>
inline T max(T a, T b) {
    if constexpr (std::is_integral_v<T>) return a > b ? a : b;
    else return extreme<false, FTZ, NAN_WINS>(a, b);
}

// ---- comparisons ------------------------------------------------------------------------------------------------------
enum Compare { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
template <Compare C, bool FTZ = false, class T>
inline bool compare(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
        a = taken<FTZ>(a), b = taken<FTZ>(b);
        const bool unordered = a != a || b != b;
        if constexpr (C == NUM) return !unordered;
        if constexpr (C == NAN_) return unordered;
        if constexpr (C >= EQU && C <= GEU) {
            if (unordered) return true;
        } else {
            if (unordered) return false;
        }
    }
    switch (C) {
        case EQ: case EQU: return a == b;
        case NE: case NEU: return a != b;
        case LT: case LTU: return a < b;
        case LE: case LEU: return a <= b;
        case GT: case GTU: return a > b;
        default: return a >= b;
    }
}

// ---- conversions --------------------------------------------------------------------------------------------------------
template <Round R>
inline double integral(double x) {
    return R == RN ? __builtin_rint(x) : R == RZ ? __builtin_trunc(x) : R == RM ? __builtin_floor(x) : __builtin_ceil(x);
}
template <Round R, bool FTZ, bool SAT>
inline float integral_float(float x) { return given<FTZ, SAT>(float(integral<R>(double(taken<FTZ>(x))))); }
template <Round R, bool SAT>
inline double integral_double(double x) { return given<false, SAT>(integral<R>(x)); }

// Out-of-range numbers are clamped. NaN becomes 0; for doubles or 64 bits, only the highest bit is set.
template <class To, Round R, bool FTZ, class From>
inline To to_integer(From from) {
    const double x = integral<R>(double(taken<FTZ>(from)));
    constexpr bool SIGNED = std::is_signed_v<To>;
    constexpr int WIDTH = 8 * sizeof(To);
    const double above = __builtin_ldexp(1.0, WIDTH - SIGNED), least = SIGNED ? -above : 0.0;
    constexpr To LOWEST = SIGNED ? To(uint64_t(1) << (WIDTH - 1)) : To(0);
    if (x != x) return sizeof(From) == 8 || WIDTH == 64 ? To(uint64_t(1) << (WIDTH - 1)) : To(0);
    return x >= above ? To(~LOWEST) : x < least ? LOWEST : To(x);
}

template <class To, Round R, class From>
inline To from_integer(From from) {
    if constexpr (R == RN) return To(from);
    constexpr int MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    fesetround(MODES[R]);
    asm volatile("" : "+r"(from) : : "memory");
    To result = To(from);
    pinned(result);
    fesetround(FE_TONEAREST);
    return result;
}

template <Round R, bool FTZ, bool SAT>
inline float narrowed(double x) {
    return given<FTZ, SAT>(rounded<R>([](double a) -> float { return float(a); }, x));
}
template <bool FTZ, bool SAT>
inline double widened(float x) { return given<false, SAT>(double(taken<FTZ>(x))); }

// Converts a double to a 16-bit float with DIGITS mantissa bits.
template <int DIGITS, Round R>
inline uint16_t to_16(double x) {
    constexpr int EXPONENT_BITS = 15 - DIGITS, BIAS = (1 << (EXPONENT_BITS - 1)) - 1;
    constexpr uint16_t INFINITE = uint16_t(((1 << EXPONENT_BITS) - 1) << DIGITS);
    if (x != x) return 0x7fff;
    const bool negative = __builtin_signbit(x);
    const uint16_t sign = negative ? 0x8000 : 0;
    double magnitude = __builtin_fabs(x);
    if (magnitude == __builtin_inf()) return sign | INFINITE;
    if (magnitude == 0) return sign;
    int exponent;
    __builtin_frexp(magnitude, &exponent);
    int unit = exponent - 1 - DIGITS;  // of the last place
    if (unit < 1 - BIAS - DIGITS) unit = 1 - BIAS - DIGITS;
    const double scaled = __builtin_ldexp(magnitude, -unit);  // exact
    double whole = R == RN ? __builtin_rint(scaled)
                           : (R == RM && negative) || (R == RP && !negative) ? __builtin_ceil(scaled) : __builtin_floor(scaled);
    // a mantissa that overflows carries into the exponent
    const int64_t code = int64_t(whole) + (int64_t(unit + BIAS + DIGITS - 1) << DIGITS);
    if (code < INFINITE) return sign | uint16_t(code);
    const bool up = R == RN || (R == RM && negative) || (R == RP && !negative);
    return sign | uint16_t(up ? INFINITE : INFINITE - 1);
}
template <int DIGITS>
inline double from_16(uint16_t x) {
    constexpr int EXPONENT_BITS = 15 - DIGITS, BIAS = (1 << (EXPONENT_BITS - 1)) - 1;
    const int exponent = (x & 0x7fff) >> DIGITS, mantissa = x & ((1 << DIGITS) - 1);
    const double sign = x & 0x8000 ? -1.0 : 1.0;
    if (exponent == (1 << EXPONENT_BITS) - 1) return mantissa ? __builtin_nan("") : sign * __builtin_inf();
    if (exponent == 0) return sign * __builtin_ldexp(double(mantissa), 1 - BIAS - DIGITS);
    return sign * __builtin_ldexp(double(mantissa + (1 << DIGITS)), exponent - BIAS - DIGITS);
}

}  // namespace ptx
