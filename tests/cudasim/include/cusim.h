// Definitions to compile CUDA C++ for the host. bin/nvcc includes this file before every kernel source.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <type_traits>
#include <utility>

#include "device_abi.h"

// ---- keywords of the language -----------------------------------------------------------------------------------
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __noinline__
#undef __forceinline__
#undef __launch_bounds__
// cuModuleGetGlobal finds visible names. All others are hidden, so that modules do not share them.
#define __device__ __attribute__((visibility("default")))
#define __constant__ __attribute__((visibility("default")))
#define __managed__
#define __host__
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#ifdef CUSIM_SCAN  // bin/nvcc looks for the kernels' names in the preprocessed text
#define __global__ __cusim_kernel__
#else
#define __global__ __attribute__((visibility("default")))
#endif
// One block runs at a time, so a static variable belongs to it. The section lets the driver poison it for each block.
#define __shared__ static __attribute__((section("cusim_shared")))

// const: a thread never sees them change, and the compiler then leaves them uninstrumented.
namespace cusim {
struct Index {
    unsigned x, y, z;
    operator dim3() const { return dim3(x, y, z); }
    operator uint3() const { return {x, y, z}; }
};
}  // namespace cusim
extern "C" {
extern const cusim::Index threadIdx, blockIdx, blockDim, gridDim;
extern unsigned char cusim_dynamic_shared[];
extern cusim::Kernel *cusim_kernels;
// the driver's services, through functions that are not instrumented
void cusim_meet(cusim::Meeting kind, uint32_t mask, uint64_t value, unsigned line, cusim::Gathered *result);
int cusim_lane();
void cusim_trap(const char *file, unsigned line);
}
static const int warpSize = 32;

// ---- launching: each kernel is registered with the layout of its parameters ---------------------------------------
namespace cusim {

#define CUSIM_UNCHECKED __attribute__((no_sanitize("thread", "alignment")))

template <class... A>
struct Layout {
    size_t sizes[sizeof...(A) + 1] = {}, offsets[sizeof...(A) + 1] = {}, total = 0;
    constexpr Layout() {
        size_t i = 0;
        ((total = (total + alignof(A) - 1) / alignof(A) * alignof(A), sizes[i] = sizeof(A), offsets[i++] = total,
          total += sizeof(A)),
         ...);
    }
};

template <class T>
CUSIM_UNCHECKED inline T parameter(const char *from) {
    alignas(T) char bytes[sizeof(T)];
    __builtin_memcpy(bytes, from, sizeof(T));
    return *reinterpret_cast<T *>(bytes);
}

template <class... A>
struct Signature {
    static constexpr Layout<A...> layout{};

    template <size_t... I>
    CUSIM_UNCHECKED static void unpack(void *function, const char *arguments, std::index_sequence<I...>) {
        reinterpret_cast<void (*)(A...)>(function)(parameter<A>(arguments + layout.offsets[I])...);
    }
    CUSIM_UNCHECKED static void call(void *function, const char *arguments) {
        unpack(function, arguments, std::index_sequence_for<A...>{});
    }
};

struct Register {
    Kernel kernel;
    template <class... A>
    CUSIM_UNCHECKED Register(const char *name, void (*function)(A...), bool flush) {
        using S = Signature<std::remove_cv_t<A>...>;
        kernel = {name,
                  reinterpret_cast<void *>(function),
                  &S::call,
                  sizeof...(A),
                  S::layout.sizes,
                  S::layout.offsets,
                  S::layout.total,
                  flush,
                  0,
                  false,
                  cusim_kernels};
        cusim_kernels = &kernel;
    }
};

template <class To, class From>
__forceinline__ To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Keeps a product from being contracted into a fused multiply-add, as the _rn intrinsics promise.
template <class T>
__forceinline__ T rounded(T x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

}  // namespace cusim

// ---- threads of a block that wait for each other -----------------------------------------------------------------
namespace cusim {

__forceinline__ Gathered meet(Meeting kind, uint32_t mask, uint64_t value, unsigned line) {
    Gathered all;
    asm volatile("" ::: "memory");
    cusim_meet(kind, mask, value, line, &all);
    asm volatile("" ::: "memory");
    return all;
}

template <class T>
__forceinline__ T exchange(uint32_t mask, T value, int source, unsigned line) {
    static_assert(sizeof(T) <= 8, "shuffles take up to 64 bits");
    uint64_t word = 0;
    __builtin_memcpy(&word, &value, sizeof value);
    Gathered all = meet(Meeting::kWarp, mask, word, line);
    T result;
    __builtin_memcpy(&result, &all.value[source], sizeof result);
    return result;
}

}  // namespace cusim

// The line is the caller's: a barrier that threads of a block reach from different lines is reported.
inline void __syncthreads(unsigned line = __builtin_LINE()) { cusim::meet(cusim::Meeting::kBlock, 0, 0, line); }
inline int __syncthreads_count(int p, unsigned line = __builtin_LINE()) {
    return cusim::meet(cusim::Meeting::kBlock, 0, p != 0, line).count;
}
inline int __syncthreads_or(int p, unsigned line = __builtin_LINE()) { return __syncthreads_count(p, line) != 0; }
inline int __syncthreads_and(int p, unsigned line = __builtin_LINE()) {
    auto all = cusim::meet(cusim::Meeting::kBlock, 0, p != 0, line);
    return all.count == all.threads;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, unsigned line = __builtin_LINE()) {
    cusim::meet(cusim::Meeting::kWarp, mask, 0, line);
}
// Any set of lanes with the caller is a legal answer; the smallest one exposes wrong assumptions.
inline unsigned __activemask() { return 1u << cusim_lane(); }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, unsigned line = __builtin_LINE()) {
    int lane = cusim_lane();
    return cusim::exchange(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, unsigned line = __builtin_LINE()) {
    int lane = cusim_lane(), source = lane - int(delta);
    return cusim::exchange(mask, value, source < (lane & ~(width - 1)) ? lane : source, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, unsigned line = __builtin_LINE()) {
    int lane = cusim_lane(), source = lane + int(delta);
    return cusim::exchange(mask, value, source > (lane | (width - 1)) ? lane : source, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32, unsigned line = __builtin_LINE()) {
    int lane = cusim_lane(), source = lane ^ other;
    return cusim::exchange(mask, value, source > (lane | (width - 1)) ? lane : source, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, unsigned line = __builtin_LINE()) {
    auto all = cusim::meet(cusim::Meeting::kWarp, mask, p != 0, line);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++) votes |= unsigned((all.participants >> i & 1) && all.value[i]) << i;
    return votes;
}
inline int __any_sync(unsigned mask, int p, unsigned line = __builtin_LINE()) {
    return __ballot_sync(mask, p, line) != 0;
}
inline int __all_sync(unsigned mask, int p, unsigned line = __builtin_LINE()) {
    return __ballot_sync(mask, !p, line) == 0;
}
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_block() { asm volatile("" ::: "memory"); }
inline void __threadfence_system() { asm volatile("" ::: "memory"); }
// One address space here.
inline void *__cvta_global_to_generic(size_t address) { return reinterpret_cast<void *>(address); }
inline void __trap(const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()) { cusim_trap(file, line); }
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }
#define __builtin_assume(condition) ((void)0)

// ---- atomics: threads only switch at barriers, so a plain read and write is atomic ------------------------------
#define CUSIM_ATOMIC(name, next)                                     \
    template <class T>                                               \
    inline T name(T *address, std::common_type_t<T> value) {         \
        asm volatile("" ::: "memory"); /* makes writes of other threads visible */ \
        T old = *address;                                            \
        *address = next;                                             \
        asm volatile("" ::: "memory");                               \
        return old;                                                  \
    }                                                                \
    template <class T>                                               \
    inline T name##_block(T *a, std::common_type_t<T> v) {           \
        return name(a, v);                                           \
    }                                                                \
    template <class T>                                               \
    inline T name##_system(T *a, std::common_type_t<T> v) {          \
        return name(a, v);                                           \
    }
CUSIM_ATOMIC(atomicAdd, old + value)
CUSIM_ATOMIC(atomicSub, old - value)
CUSIM_ATOMIC(atomicExch, value)
CUSIM_ATOMIC(atomicMax, old < value ? value : old)
CUSIM_ATOMIC(atomicMin, value < old ? value : old)
CUSIM_ATOMIC(atomicAnd, (old & value))
CUSIM_ATOMIC(atomicOr, old | value)
CUSIM_ATOMIC(atomicXor, old ^ value)
CUSIM_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
CUSIM_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
template <class T>
inline T atomicCAS(T *address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    asm volatile("" ::: "memory");
    T old = *address;
    if (old == expected) *address = value;
    asm volatile("" ::: "memory");
    return old;
}

// ---- loads and stores with cache hints ---------------------------------------------------------------------------
#define CUSIM_LOAD(name)                 \
    template <class T>                   \
    __forceinline__ T name(const T *p) { \
        return *p;                       \
    }
#define CUSIM_STORE(name)                                          \
    template <class T>                                             \
    __forceinline__ void name(T *p, std::common_type_t<T> value) { \
        *p = value;                                                \
    }
CUSIM_LOAD(__ldg)
CUSIM_LOAD(__ldcg)
CUSIM_LOAD(__ldca)
CUSIM_LOAD(__ldcs)
CUSIM_LOAD(__ldlu)
CUSIM_LOAD(__ldcv)
CUSIM_STORE(__stwb)
CUSIM_STORE(__stcg)
CUSIM_STORE(__stcs)
CUSIM_STORE(__stwt)

// ---- arithmetic --------------------------------------------------------------------------------------------------
// nvcc offers min and max for every mix of arithmetic types
template <class A, class B>
__forceinline__ std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
    else return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B>
__forceinline__ std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
    else return T(a) < T(b) ? T(b) : T(a);
}

inline float __fadd_rn(float a, float b) { return cusim::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return cusim::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return cusim::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return cusim::rounded(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __frcp_rn(float a) { return cusim::rounded(1.0f / a); }
inline float __frsqrt_rn(float a) { return float(1.0 / __builtin_sqrt(double(a))); }
inline double __dadd_rn(double a, double b) { return cusim::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return cusim::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return cusim::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return cusim::rounded(a / b); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline double __drcp_rn(double a) { return cusim::rounded(1.0 / a); }

// Approximate functions of the device give exact results.
inline float rsqrtf(float a) { return __frsqrt_rn(a); }
inline double rsqrt(double a) { return 1.0 / __builtin_sqrt(a); }
inline float rsqrt(float a) { return rsqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __saturatef(float a) { return !(a > 0.0f) ? 0.0f : a > 1.0f ? 1.0f : a; }

inline void sincos(float a, float *s, float *c) { sincosf(a, s, c); }

inline unsigned __float_as_uint(float a) { return cusim::bits<unsigned>(a); }
inline int __float_as_int(float a) { return cusim::bits<int>(a); }
inline float __uint_as_float(unsigned a) { return cusim::bits<float>(a); }
inline float __int_as_float(int a) { return cusim::bits<float>(a); }
inline long long __double_as_longlong(double a) { return cusim::bits<long long>(a); }
inline double __longlong_as_double(long long a) { return cusim::bits<double>(a); }
inline int __float2int_rn(float a) { return int(rintf(a)); }
inline int __float2int_rz(float a) { return int(a); }
inline int __float2int_rd(float a) { return int(floorf(a)); }
inline int __float2int_ru(float a) { return int(ceilf(a)); }
inline unsigned __float2uint_rn(float a) { return unsigned(rintf(a)); }
inline unsigned __float2uint_rz(float a) { return unsigned(a); }
inline float __int2float_rn(int a) { return float(a); }
inline float __uint2float_rn(unsigned a) { return float(a); }
inline float __ll2float_rn(long long a) { return float(a); }
inline float __ull2float_rn(unsigned long long a) { return float(a); }
inline float __double2float_rn(double a) { return float(a); }
inline int __double2int_rn(double a) { return int(rint(a)); }

inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a ? __builtin_clz(a) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll(a) : 64; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
