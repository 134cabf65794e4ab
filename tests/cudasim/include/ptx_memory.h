// Memory as PTX sees it: state spaces, checked accesses, atomics. The translator (ptx/) writes calls of these.
#pragma once
#include "device_abi.h"
#include "ptx_numbers.h"

#ifndef CUSIM_CHECK
#define CUSIM_CHECK 1
#endif

extern "C" {  // device_runtime.cpp
extern const cusim::Host *cusim_host;
extern cusim::Window cusim_window;
extern unsigned cusim_patience;
extern unsigned char cusim_dynamic_shared[];
}

namespace ptx {

// The memory of a kernel. Addresses of shared memory are offsets, as on a device: first the kernel's own
// variables, then dynamic shared memory. The simulator has one address space for the other state spaces.
struct Memory {
    const char *kernel;
    const char *arguments;
    uint64_t arguments_size;
    unsigned char *shared;
    uint64_t shared_size, dynamic_at;  // bytes of variables; offset of dynamic shared memory
};

constexpr uint64_t kMostShared = 227 * 1024;  // the size of the buffer in device_runtime.cpp

inline char *within_shared(const Memory &memory, uint64_t offset) {
    return offset < memory.dynamic_at ? reinterpret_cast<char *>(memory.shared + offset)
                                      : reinterpret_cast<char *>(cusim_dynamic_shared + (offset - memory.dynamic_at));
}
inline uint64_t generic_of_shared(const Memory &memory, uint64_t offset) {
    return reinterpret_cast<uint64_t>(within_shared(memory, offset));
}
inline uint64_t shared_of_generic(const Memory &memory, uint64_t address) {
    const uint64_t own = address - reinterpret_cast<uint64_t>(memory.shared);
    if (own < memory.shared_size) return own;
    return address - reinterpret_cast<uint64_t>(cusim_dynamic_shared) + memory.dynamic_at;
}

template <class Word>
inline Word repeated(uint8_t byte) { return static_cast<Word>(~static_cast<Word>(0)) / 0xFF * byte; }
template <int SIZE> struct WordOf;
template <> struct WordOf<1> { typedef uint8_t type; };
template <> struct WordOf<2> { typedef uint16_t type; };
template <> struct WordOf<4> { typedef uint32_t type; };
template <> struct WordOf<8> { typedef uint64_t type; };
template <> struct WordOf<16> { typedef unsigned __int128 type; };

// Checks global and generic addresses: alignment to the whole access, valid memory, and no reads of unwritten memory.
template <int SIZE, bool WRITE>
inline void check(const Memory &memory, uint64_t address, unsigned line) {
#if CUSIM_CHECK
    if (__builtin_expect(address % SIZE != 0, 0))
        cusim_host->misaligned(reinterpret_cast<const void *>(address), SIZE, memory.kernel, line);
    typedef typename WordOf<SIZE>::type Word;
    const uintptr_t offset = address - cusim_window.base;
    if (__builtin_expect(offset < cusim_window.size, 1)) {
        Word state;
        __builtin_memcpy(&state, cusim_window.shadow + offset, sizeof state);
        const Word needed = repeated<Word>(WRITE ? cusim::kAddressable : cusim::kWritten);
        if (__builtin_expect((state & needed) == needed, 1)) {
            if (WRITE) {
                const Word written = repeated<Word>(cusim::kWritten);
                __builtin_memcpy(cusim_window.shadow + offset, &written, sizeof written);
            }
            return;
        }
    }
    cusim_host->access(reinterpret_cast<const void *>(address), SIZE, WRITE);
#endif
}

enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONSTANT };

// Returns the host address of an access of SIZE bytes.
template <Space S, int SIZE, bool WRITE>
inline char *place(const Memory &memory, uint64_t address, unsigned line) {
    if constexpr (S == SHARED) {
#if CUSIM_CHECK
        if (__builtin_expect(address % SIZE != 0, 0))
            cusim_host->misaligned(reinterpret_cast<const void *>(address), SIZE, memory.kernel, line);
        if (__builtin_expect(address + SIZE > memory.shared_size, 0)) {
            // dynamic shared memory is checked separately
            if (address < memory.dynamic_at || address >= memory.dynamic_at + kMostShared)
                cusim_host->outside("shared memory", address, SIZE, memory.shared_size, line);
            cusim_host->access(within_shared(memory, address), SIZE, WRITE);
        }
#endif
        return within_shared(memory, address);
    } else if constexpr (S == PARAM) {
#if CUSIM_CHECK
        const uint64_t offset = address - reinterpret_cast<uint64_t>(memory.arguments);
        if (offset > memory.arguments_size || offset + SIZE > memory.arguments_size)
            cusim_host->outside("the parameters", offset, SIZE, memory.arguments_size, line);
#endif
    } else {
        check<SIZE, WRITE>(memory, address, line);
    }
    return reinterpret_cast<char *>(address);
}

template <class T>
struct Pair { T at[2]; };
template <class T>
struct Four { T at[4]; };
template <class T>
struct Eight { T at[8]; };

template <Space S, class T>
inline T load(const Memory &memory, uint64_t address, unsigned line) {
    T value;
    __builtin_memcpy(&value, place<S, sizeof(T), false>(memory, address, line), sizeof value);
    return value;
}
template <Space S, class T>
inline void store(const Memory &memory, uint64_t address, T value, unsigned line) {
    __builtin_memcpy(place<S, sizeof(T), true>(memory, address, line), &value, sizeof value);
}
// For threads that wait for a value from another thread: all threads run until they stop.
inline void others_run(uint64_t address) { cusim_host->meet(cusim::Meeting::kVolatile, 0, address, 0, nullptr); }
// Called at every backward jump, so that no loop runs forever.
inline void backwards() {
    if (__builtin_expect(--cusim_patience == 0, 0)) {
        cusim_patience = 1u << 20;
        cusim_host->spin();
    }
}
inline void fence() { asm volatile("" ::: "memory"); }

// ---- atomics: threads only switch at barriers and backward jumps, so a read and write is atomic ---------------------
#define PTX_ATOMIC(NAME, NEXT)                                        \
    struct NAME {                                                     \
        template <class T>                                            \
        static T next(T old, T value) { return NEXT; }                \
    };
PTX_ATOMIC(Exch, value)
PTX_ATOMIC(And, T(old & value))
PTX_ATOMIC(Or, T(old | value))
PTX_ATOMIC(Xor, T(old ^ value))
PTX_ATOMIC(Min, value < old ? value : old)
PTX_ATOMIC(Max, old < value ? value : old)
PTX_ATOMIC(Inc, old >= value ? T(0) : T(old + 1))
PTX_ATOMIC(Dec, old == 0 || old > value ? value : T(old - 1))
PTX_ATOMIC(Add, T(old + value))
// additions of float32 flush subnormal numbers in global memory, but not in shared memory
struct AddFloat { static float next(float old, float value) { return add<RN, false>(old, value); } };
struct AddFlushed { static float next(float old, float value) { return add<RN, true>(old, value); } };

template <class Operation, Space S, class T>
inline T atomic(const Memory &memory, uint64_t address, T value, unsigned line) {
    fence();
    const T old = load<S, T>(memory, address, line);
    store<S, T>(memory, address, Operation::next(old, value), line);
    fence();
    return old;
}
template <Space S, class T>
inline T compare_and_swap(const Memory &memory, uint64_t address, T expected, T value, unsigned line) {
    fence();
    const T old = load<S, T>(memory, address, line);
    if (old == expected) store<S, T>(memory, address, value, line);
    fence();
    return old;
}

}  // namespace ptx
