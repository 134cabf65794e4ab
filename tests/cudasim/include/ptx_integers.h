// The integer arithmetic of PTX, one function per instruction. The translator (ptx/) writes calls of these functions.
#pragma once
#include <stdint.h>

#include <type_traits>

namespace ptx {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr unsigned WIDTH = 8 * sizeof(T);

// ---- products -------------------------------------------------------------------------------------------------------
template <class T>
struct Twice;
template <> struct Twice<int16_t> { typedef int32_t type; };
template <> struct Twice<uint16_t> { typedef uint32_t type; };
template <> struct Twice<int32_t> { typedef int64_t type; };
template <> struct Twice<uint32_t> { typedef uint64_t type; };
template <> struct Twice<int64_t> { typedef __int128 type; };
template <> struct Twice<uint64_t> { typedef unsigned __int128 type; };
template <class T>
inline typename Twice<T>::type mul_wide(T a, T b) { return typename Twice<T>::type(a) * b; }
template <class T>
inline T mul_hi(T a, T b) { return T(mul_wide(a, b) >> WIDTH<T>); }
template <class T>
inline T mul_lo(T a, T b) { return T(Unsigned<T>(1) * Unsigned<T>(a) * Unsigned<T>(b)); }
template <class T>
inline T mul24(T a, T b, bool high) {
    const int64_t whole = int64_t(T(a << 8) >> 8) * (T(b << 8) >> 8);
    return T(high ? whole >> 16 : whole);
}

// ---- sums that saturate, or carry -----------------------------------------------------------------------------------
inline int32_t clamped(int64_t x) { return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : int32_t(x); }
inline int32_t add_sat(int32_t a, int32_t b) { return clamped(int64_t(a) + b); }
inline int32_t sub_sat(int32_t a, int32_t b) { return clamped(int64_t(a) - b); }
template <class T>
inline T add_carry(T a, T b, bool in, bool &carry) {
    typedef unsigned __int128 Wide;
    const Wide sum = Wide(Unsigned<T>(a)) + Unsigned<T>(b) + in;
    carry = sum >> WIDTH<T> & 1;
    return T(sum);
}
template <class T>
inline T sub_borrow(T a, T b, bool in, bool &borrow) {
    typedef unsigned __int128 Wide;
    const Wide difference = Wide(Unsigned<T>(a)) - Unsigned<T>(b) - in;
    borrow = difference >> WIDTH<T> & 1;
    return T(difference);
}

// ---- division: by zero, which is undefined in PTX, the quotient is all ones, the remainder is the dividend ----------
template <class T>
inline T quotient(T a, T b) { return b == 0 ? T(-1) : std::is_signed_v<T> && b == T(-1) ? T(-a) : T(a / b); }
template <class T>
inline T remainder(T a, T b) { return b == 0 ? a : std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b); }

// ---- shifts: by the width or more, all bits are shifted out ---------------------------------------------------------
template <class T>
inline T shl(T a, uint32_t by) { return by >= WIDTH<T> ? T(0) : T(Unsigned<T>(a) << by); }
template <class T>
inline T shr(T a, uint32_t by) {
    if (by >= WIDTH<T>) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
    return T(a >> by);
}
template <bool LEFT, bool WRAP>
inline uint32_t shf(uint32_t low, uint32_t high, uint32_t by) {
    by = WRAP ? by & 31 : by > 32 ? 32 : by;
    const uint64_t both = uint64_t(high) << 32 | low;
    return LEFT ? uint32_t(both << by >> 32) : uint32_t(both >> by);
}

// ---- bit fields -----------------------------------------------------------------------------------------------------
template <class T>
inline T bfe(T a, uint32_t from, uint32_t length) {
    from &= 255, length &= 255;
    const unsigned top = from + length - 1 < WIDTH<T> - 1 ? from + length - 1 : WIDTH<T> - 1;
    const bool sign = std::is_signed_v<T> && length && (a >> top & 1);
    Unsigned<T> result = sign ? Unsigned<T>(-1) : 0;
    for (unsigned i = 0; i < WIDTH<T> && i < length; i++) {
        const Unsigned<T> bit = from + i < WIDTH<T> ? Unsigned<T>(a) >> (from + i) & 1 : sign;
        result = (result & ~(Unsigned<T>(1) << i)) | bit << i;
    }
    return T(result);
}
template <class T>
inline T bfi(T a, T into, uint32_t at, uint32_t length) {
    at &= 255, length &= 255;
    for (unsigned i = 0; i < length && at + i < WIDTH<T>; i++)
        into = (into & ~(T(1) << (at + i))) | (i < WIDTH<T> ? a >> i & 1 : T(0)) << (at + i);
    return into;
}
template <class T>
inline T brev(T a) {
    T result = 0;
    for (unsigned i = 0; i < WIDTH<T>; i++) result |= (a >> i & 1) << (WIDTH<T> - 1 - i);
    return result;
}
inline uint32_t clz(uint32_t a) { return a ? __builtin_clz(a) : 32; }
inline uint32_t clz(uint64_t a) { return a ? __builtin_clzll(a) : 64; }
inline uint32_t popc(uint64_t a) { return __builtin_popcountll(a); }
// The position of the highest bit that differs from the sign; all ones if there is none.
template <bool AMOUNT, class T>
inline uint32_t bfind(T a) {
    const Unsigned<T> found = std::is_signed_v<T> && a < 0 ? Unsigned<T>(~a) : Unsigned<T>(a);
    if (found == 0) return ~0u;
    const uint32_t at = 63 - __builtin_clzll(uint64_t(found));
    return AMOUNT ? WIDTH<T> - 1 - at : at;
}
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint8_t table) {
    uint32_t result = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return result;
}

// ---- bytes ----------------------------------------------------------------------------------------------------------
enum Permutation { PICK, F4E, B4E, RC8, ECL, ECR, RC16 };
template <Permutation P>
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    const unsigned by = selector & 3;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned picked = P == PICK ? selector >> 4 * i & 15
                              : P == F4E ? by + i
                              : P == B4E ? (by - i) & 7
                              : P == RC8 ? by
                              : P == ECL ? (i < by ? by : i)
                              : P == ECR ? (i < by ? i : by)
                                         : (by & 1) * 2 + (i & 1);
        uint32_t byte = bytes >> 8 * (picked & 7) & 255;
        if (P == PICK && picked & 8) byte = byte & 128 ? 255 : 0;  // only the sign
        result |= byte << 8 * i;
    }
    return result;
}
// The sum of four products of bytes. Each operand has signed or unsigned bytes.
template <class A, class B>
inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; i++) c += uint32_t(int32_t(A(a >> 8 * i)) * int32_t(B(b >> 8 * i)));
    return c;
}
template <class T>
inline T sad(T a, T b, T c) { return T(c + (a < b ? b - a : a - b)); }

}  // namespace ptx
