// Runs kernels: one block at a time, its threads one after the other on fibers. A fiber runs thread after thread until
// one of them waits at a barrier; only then is another fiber started. A kernel without barriers is a plain loop.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>

#if !defined(__aarch64__)
#include <xmmintrin.h>
#endif

#include "run.h"

namespace cusim {

Run *run = nullptr;
jmp_buf scheduler;
char *stacks = nullptr;

void thread_index(unsigned thread, unsigned index[3]) {
    const unsigned *size = run->launch->block;
    index[0] = thread % size[0];
    index[1] = thread / size[0] % size[1];
    index[2] = thread / size[0] / size[1];
}

[[noreturn]] void leave(CUresult code, const std::string &what) {
    unsigned thread[3] = {};
    if (run->current) thread_index(run->current->thread, thread);
    const unsigned *block = run->block;
    run->code = code;
    run->problem = format("kernel %s: %s; block (%u, %u, %u), thread (%u, %u, %u)", run->kernel->name, what.c_str(),
                          block[0], block[1], block[2], thread[0], thread[1], thread[2]);
    longjmp(scheduler, 2);
}

namespace {

std::vector<std::unique_ptr<Fiber>> fibers;

unsigned current_lane() { return run && run->current ? run->current->thread % 32 : 0; }

const Host services = {on_access, on_misaligned, on_meet, on_fail, on_spin, on_outside, current_lane};

// Whether the processor flushes subnormal numbers: reads its mode, and sets it to flush or to keep them.
#if defined(__aarch64__)
uint64_t float_mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
constexpr uint64_t kFlush = 1u << 24;
#else
uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(uint64_t mode) { _mm_setcsr(unsigned(mode)); }
constexpr uint64_t kFlush = 0x8040;  // FTZ and DAZ
#endif

void run_thread(Fiber *fiber, unsigned thread) {
    // here, because a new fiber starts in the mode in which it was made
    set_float_mode((float_mode() & ~kFlush) | (run->kernel->flush ? kFlush : 0));
    const Module &module = run->module->module;
    fiber->thread = thread;
    thread_index(thread, module.threadIdx);
    run->kernel->call(run->kernel->function, run->launch->arguments.data());
    Warp &warp = run->warps[thread / 32];
    warp.alive &= ~(1u << thread % 32);
    run->alive--;
    // waiting threads no longer wait for this one
    for (unsigned lane = 0; lane < 32; lane++)
        if (warp.waiting[lane]) try_warp_meeting(warp, warp.waiting[lane]->mask);
    try_block_barrier();
}

void fiber_main() {
    for (;;) {
        Fiber *self = run->current;
        while (run->next < run->threads) {
            const unsigned step = run->next++;
            const unsigned offset = run->backwards ? run->threads - 1 - step : step;
            run_thread(self, (run->first + offset) % run->threads);
        }
        run->idle.push_back(self);
        if (!_setjmp(self->where)) _longjmp(scheduler, 1);
    }
}

// Switches to a fiber. Returns when it waits or has no more threads to run.
int resume(Fiber *fiber) {
    const int back = _setjmp(scheduler);
    if (back) return back;
    run->current = fiber;
    if (fiber->started) {
        thread_index(fiber->thread, run->module->module.threadIdx);
        _longjmp(fiber->where, 1);
    }
    fiber->started = true;
    setcontext(&fiber->start);
    abort();
}

void prepare_fibers() {
    if (!stacks) {
        stacks = static_cast<char *>(mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (unsigned i = 0; i < kMaxThreads; i++) {
            auto fiber = std::make_unique<Fiber>();
            getcontext(&fiber->start);
            fiber->start.uc_stack.ss_sp = stacks + i * kStack;
            fiber->start.uc_stack.ss_size = kStack;
            fiber->start.uc_link = nullptr;
            makecontext(&fiber->start, fiber_main, 0);
            fibers.push_back(std::move(fiber));
        }
        // a thread that overflows its stack must not write into another's
        for (unsigned i = 0; i < kMaxThreads; i++) mprotect(stacks + i * kStack, 4096, PROT_NONE);
    }
}

std::string threads_text(const std::vector<unsigned> &threads) {
    std::string text = format("%zu thread%s (", threads.size(), threads.size() == 1 ? "" : "s");
    for (size_t i = 0; i < threads.size() && i < 8; i++) text += format(i ? ", %u" : "%u", threads[i]);
    return text + (threads.size() > 8 ? ", ...)" : ")");
}

void report_deadlock() {
    std::map<std::string, std::vector<unsigned>> groups;
    for (const auto &fiber : fibers) {
        if (!fiber->waiting) continue;
        std::string where = fiber->kind == Meeting::kBlock
                                ? format("__syncthreads in line %u", fiber->line)
                                : format("a warp operation with mask 0x%x in line %u", fiber->mask, fiber->line);
        groups[where].push_back(fiber->thread);
    }
    std::string text = "deadlock:";
    for (auto &[where, threads] : groups) {
        std::sort(threads.begin(), threads.end());
        text += " " + threads_text(threads) + " wait at " + where + ",";
    }
    text.pop_back();
    run->code = CUDA_ERROR_LAUNCH_TIMEOUT;
    const unsigned *block = run->block;
    run->problem =
        format("kernel %s: %s; block (%u, %u, %u)", run->kernel->name, text.c_str(), block[0], block[1], block[2]);
}

void run_block() {
    const Module &module = run->module->module;
    run->alive = run->threads;
    run->next = 0;
    run->first = random_order() % run->threads;
    run->backwards = random_order() & 1;
    for (unsigned i = 0; i < run->warps.size(); i++) {
        const unsigned lanes = std::min(32u, run->threads - 32 * i);
        run->warps[i] = Warp{};
        run->warps[i].alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    }
    memcpy(module.blockIdx, run->block, sizeof run->block);
    if (run->launch->shared) memset(module.dynamic_shared, 0xCD, run->launch->shared);
    if (module.static_shared_begin)
        memset(module.static_shared_begin, 0xCD, module.static_shared_end - module.static_shared_begin);

    while (run->alive && run->code == CUDA_SUCCESS) {
        Fiber *next = nullptr;
        if (!run->runnable.empty()) {
            // resume a random one of the threads that are ready
            const size_t pick = random_order() % run->runnable.size();
            std::swap(run->runnable[pick], run->runnable.back());
            next = run->runnable.back();
            run->runnable.pop_back();
        } else if (run->next < run->threads) {
            next = run->idle.back();
            run->idle.pop_back();
        } else if (!run->at_volatile.empty()) {
            run->runnable.swap(run->at_volatile);
            continue;
        } else {
            report_deadlock();
            return;
        }
        resume(next);
    }
}

// After a fault, fibers are left in the middle of a kernel: restart them.
void reset_fibers() {
    run->idle.clear();
    for (auto it = fibers.rbegin(); it != fibers.rend(); ++it) {
        Fiber *fiber = it->get();
        if (fiber->started) {
            fiber->started = fiber->waiting = false;
            makecontext(&fiber->start, fiber_main, 0);
        }
        run->idle.push_back(fiber);
    }
}

}  // namespace

CUresult run_kernel(Context *context, const Launch &launch) {
    prepare_fibers();
    const uint64_t mode = float_mode();
    Run state{};
    state.context = context;
    state.launch = &launch;
    state.kernel = launch.function->kernel;
    state.module = launch.function->module;
    state.threads = launch.block[0] * launch.block[1] * launch.block[2];
    state.warps.resize((state.threads + 31) / 32);
    state.started_ms = now_ms();
    run = &state;
    reset_fibers();

    const Module &module = state.module->module;
    *module.host = &services;
    *module.window = settings.check ? Window{context->arena.base, context->arena.capacity - 16, context->arena.shadow}
                                    : Window{0, 0, nullptr};
    memcpy(module.gridDim, launch.grid, sizeof launch.grid);
    memcpy(module.blockDim, launch.block, sizeof launch.block);

    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    const uint64_t first = random_order() % blocks;
    const bool backwards = random_order() & 1;
    for (uint64_t i = 0; i < blocks && state.code == CUDA_SUCCESS; i++) {
        const uint64_t block = (first + (backwards ? blocks - 1 - i : i)) % blocks;
        state.block[0] = block % launch.grid[0];
        state.block[1] = block / launch.grid[0] % launch.grid[1];
        state.block[2] = block / launch.grid[0] / launch.grid[1];
        run_block();
    }
    run = nullptr;
    set_float_mode(mode);
    return state.code == CUDA_SUCCESS ? CUDA_SUCCESS : fault(state.code, state.problem);
}

}  // namespace cusim
