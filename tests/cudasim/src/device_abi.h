// The interface between a compiled kernel module and the simulated driver. Both include only this file.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cusim {

// Shadow memory holds one byte per byte of device memory, so that one load checks a whole access.
enum Shadow : uint8_t { kAddressable = 1, kInitialised = 2, kWritten = kAddressable | kInitialised };

// The launching context's device memory: accesses inside it are checked in the module, without a call to the driver.
struct Window {
    uintptr_t base;
    size_t size;
    uint8_t *shadow;
};

// kVolatile is not a barrier: before each access to a volatile variable, all threads run until they stop anyway. Code
// that relies on warps running in lockstep declares its variables volatile (PyCUDA's reductions do).
enum class Meeting : int { kBlock, kWarp, kVolatile };

// What each thread at a barrier or warp operation sees of the others.
struct Gathered {
    uint64_t value[32];     // by lane (warp meetings)
    uint32_t participants;  // lanes that took part
    uint32_t count;         // block meetings: threads with a non-zero value
    uint32_t threads;       // block meetings: threads that took part
};

// Services of the driver. If they find a fault, they do not return but leave the kernel.
struct Host {
    void (*access)(const void *address, size_t size, bool write);
    void (*misaligned)(const void *address, size_t alignment, const char *file, unsigned line);
    void (*meet)(Meeting kind, uint32_t mask, uint64_t value, unsigned line, Gathered *result);
    void (*fail)(const char *what, const char *file, unsigned line);  // assert() and __trap()
    void (*spin)();  // a thread has read memory very often without a barrier
    // an access in PTX past the end of its state space: shared memory or parameters
    void (*outside)(const char *space, uint64_t offset, size_t size, size_t end, unsigned line);
    unsigned (*lane)();
};

struct Kernel {
    const char *name;
    void *function;
    void (*call)(void *function, const char *arguments);  // runs one thread
    unsigned parameters;
    const size_t *sizes;
    const size_t *offsets;
    size_t total;  // bytes of all packed parameters
    bool flush;    // flush subnormal numbers to zero
    unsigned most_threads;  // per block, if the kernel declares it; or 0
    bool exactly;           // exactly this number
    Kernel *next;
};

// What the module exports. The driver writes the built-in variables through it.
struct Module {
    Kernel *kernels;
    Window *window;
    const Host **host;
    unsigned *threadIdx, *blockIdx, *blockDim, *gridDim;
    unsigned char *dynamic_shared;
    size_t dynamic_shared_size;
    unsigned char *static_shared_begin, *static_shared_end;
};

}  // namespace cusim
