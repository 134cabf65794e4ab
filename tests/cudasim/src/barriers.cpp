// Where threads of a kernel wait for each other: barriers, warp operations, and loops that wait for a value.
#include <cstring>

#include "run.h"

namespace cusim {

static void wake(Fiber *fiber) {
    fiber->waiting = false;
    run->runnable.push_back(fiber);
}

// All threads that have not ended are here: resume them.
void try_block_barrier() {
    auto &here = run->at_barrier;
    if (here.empty() || here.size() < run->alive) return;
    uint32_t count = 0;
    for (Fiber *fiber : here) {
        count += fiber->value != 0;
        if (fiber->line != here[0]->line) {
            leave(CUDA_ERROR_LAUNCH_FAILED,
                  format("threads of a block met at different barriers, in lines %u and %u of the source",
                         here[0]->line, fiber->line));
        }
    }
    for (Fiber *fiber : here) {
        fiber->result.count = count;
        fiber->result.threads = here.size();
        wake(fiber);
    }
    here.clear();
}

void try_warp_meeting(Warp &warp, uint32_t mask) {
    const uint32_t needed = mask & warp.alive;
    Gathered all = {};
    all.participants = needed;
    memset(all.value, 0xCD, sizeof all.value);  // the value of lanes that do not participate
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(needed >> lane & 1)) continue;
        const Fiber *fiber = warp.waiting[lane];
        if (!fiber) return;
        if (fiber->mask != mask) {
            leave(CUDA_ERROR_LAUNCH_FAILED, format("lanes of a warp met with different masks, 0x%x and 0x%x (line %u)",
                                                   mask, fiber->mask, fiber->line));
        }
        all.value[lane] = fiber->value;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(needed >> lane & 1)) continue;
        warp.waiting[lane]->result = all;
        wake(warp.waiting[lane]);
        warp.waiting[lane] = nullptr;
    }
}

// Resumes when every other thread has ended or waits too.
static void let_others_run() {
    Fiber *self = run->current;
    run->at_volatile.push_back(self);
    if (!_setjmp(self->where)) _longjmp(scheduler, 1);
}

// This lets a thread proceed that waits for a value from another thread; one that waits forever is ended.
void on_spin() {
    if (!run) return;
    if (now_ms() - run->started_ms > settings.timeout * 1e3)
        leave(CUDA_ERROR_LAUNCH_TIMEOUT, format("still running after %g seconds (CUSIM_TIMEOUT)", settings.timeout));
    let_others_run();
}

void on_meet(Meeting kind, uint32_t mask, uint64_t value, unsigned line, Gathered *result) {
    Fiber *self = run->current;
    if (kind == Meeting::kVolatile) {
        if (!on_stack(value)) let_others_run();
        return;
    }
    self->kind = kind;
    self->mask = mask;
    self->value = value;
    self->line = line;
    self->waiting = true;
    if (kind == Meeting::kBlock) {
        run->at_barrier.push_back(self);
        try_block_barrier();
    } else {
        Warp &warp = run->warps[self->thread / 32];
        const unsigned lane = self->thread % 32;
        if (!(mask >> lane & 1)) {
            leave(CUDA_ERROR_LAUNCH_FAILED, format("lane %u called a warp operation with mask 0x%x, which leaves it "
                                                   "out (line %u)",
                                                   lane, mask, line));
        }
        warp.waiting[lane] = self;
        try_warp_meeting(warp, mask);
    }
    if (!_setjmp(self->where)) _longjmp(scheduler, 1);
    *result = self->result;
}

}  // namespace cusim
