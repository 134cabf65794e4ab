// A running kernel: its threads on fibers, their block, and what they wait for.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include "state.h"

namespace cusim {

constexpr size_t kStack = 256 << 10;  // bytes per fiber; pages come with use
constexpr unsigned kMaxThreads = 1024;

struct Fiber {
    ucontext_t start;
    jmp_buf where;
    bool started = false;
    unsigned thread = 0;
    // what the thread waits for
    bool waiting = false;
    Meeting kind = Meeting::kBlock;
    uint32_t mask = 0;
    uint64_t value = 0;
    unsigned line = 0;
    Gathered result = {};
};

struct Warp {
    Fiber *waiting[32] = {};
    uint32_t alive = 0;  // lanes whose thread has not ended
};

// The running kernel, if any.
struct Run {
    Context *context;
    const Launch *launch;
    const Kernel *kernel;
    LoadedModule *module;
    unsigned block[3];
    // the running block
    unsigned threads = 0, alive = 0, next = 0, first = 0;
    bool backwards = false;
    std::vector<Warp> warps;
    std::vector<Fiber *> runnable, idle;
    std::vector<Fiber *> at_barrier, at_volatile;
    Fiber *current = nullptr;
    double started_ms = 0;
    std::string problem;
    CUresult code = CUDA_SUCCESS;
};

extern Run *run;
extern jmp_buf scheduler;
extern char *stacks;

void thread_index(unsigned thread, unsigned index[3]);
// Leaves the kernel. Other threads are dropped where they are, which leaks a few bytes of text.
[[noreturn]] void leave(CUresult code, const std::string &what);
inline bool on_stack(uintptr_t address) { return address - reinterpret_cast<uintptr_t>(stacks) < kStack * kMaxThreads; }

// ---- functions that kernels call: checks.cpp -----------------------------------------------------------------------
void on_access(const void *p, size_t size, bool write);
void on_misaligned(const void *p, size_t alignment, const char *file, unsigned line);
void on_outside(const char *space, uint64_t offset, size_t size, size_t end, unsigned line);
void on_fail(const char *what, const char *file, unsigned line);

// ---- barriers.cpp -------------------------------------------------------------------------------------------------
void on_meet(Meeting kind, uint32_t mask, uint64_t value, unsigned line, Gathered *result);
void on_spin();
void try_block_barrier();  // resumes the threads of the block if all are at the barrier
void try_warp_meeting(Warp &warp, uint32_t mask);  // the same for the lanes of a warp

}  // namespace cusim
