// What a compiled kernel module and the driver stand-in know of each other. Both sides include only this.
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

// kVolatile: not a barrier. Before each access to a volatile variable, all threads come to where they stop anyway; code
// that counts on warps running in lockstep declares its variables volatile (PyCUDA's reductions do).
enum class Meeting : int { kBlock, kWarp, kVolatile };

// What every thread that met at a barrier or warp operation gets to see of the others.
struct Gathered {
    uint64_t value[32];     // by lane (warp meetings)
    uint32_t participants;  // lanes that took part
    uint32_t count;         // block meetings: threads with a non-zero value
    uint32_t threads;       // block meetings: threads that took part
};

// Services of the driver. Those that find a fault do not return: they leave the kernel.
struct Host {
    void (*access)(const void *address, size_t size, bool write);
    void (*misaligned)(const void *address, size_t alignment, const char *file, unsigned line);
    void (*meet)(Meeting kind, uint32_t mask, uint64_t value, unsigned line, Gathered *result);
    void (*fail)(const char *what, const char *file, unsigned line);  // assert() and __trap()
    void (*spin)();  // a thread has read memory very often without a barrier
    // an access of PTX beyond a space of its own: shared memory, the parameters
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
    bool flush;    // takes subnormal numbers for zero
    unsigned most_threads;  // of a block, where the kernel says so; or 0
    bool exactly;           // that many, no fewer
    Kernel *next;
};

// What the module offers; the driver writes the built-in variables through it.
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
