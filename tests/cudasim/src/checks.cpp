// Checks while a kernel runs: memory accesses, their alignment, and assertions.
#include "run.h"

namespace cusim {

void on_access(const void *p, size_t size, bool write) {
    if (!run || !settings.check) return;
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (on_stack(address)) return;
    const Module &module = run->module->module;
    const size_t shared_offset = address - reinterpret_cast<uintptr_t>(module.dynamic_shared);
    const char *kind = write ? "write" : "read";
    if (shared_offset < module.dynamic_shared_size) {
        if (shared_offset + size <= run->launch->shared) return;
        leave(CUDA_ERROR_ILLEGAL_ADDRESS, format("%s of %zu bytes at offset %zu of %u bytes of dynamic shared memory",
                                                 kind, size, shared_offset, run->launch->shared));
    }
    if (address - run->module->begin < run->module->end - run->module->begin) return;

    const Arena *arena = nullptr;
    Context *owner = run->context;
    const char *why = nullptr;
    if (owner->arena.holds(address)) arena = &owner->arena;
    else if (shared_arena().holds(address)) arena = &shared_arena();
    for (Context *context : contexts) {
        if (arena || !context->arena.holds(address)) continue;
        arena = &context->arena;
        if (!owner->peers.count(context)) why = "memory of another context, peer access is not enabled";
    }
    if (arena) {
        if (!why && arena->check(address, size, write, &why)) return;
        leave(CUDA_ERROR_ILLEGAL_ADDRESS,
              format("%s of %zu bytes at 0x%zx: %s (%s)", kind, size, address, why, arena->describe(address).c_str()));
    }
    if (is_page_locked(address, size)) return;
    leave(CUDA_ERROR_ILLEGAL_ADDRESS, format("%s of %zu bytes at 0x%zx: %s", kind, size, address,
                                             address < 4096 ? "a null pointer" : "pageable host memory"));
}

void on_misaligned(const void *p, size_t alignment, const char *file, unsigned line) {
    if (!run || !settings.check) return;
    const auto address = reinterpret_cast<uintptr_t>(p);
    leave(CUDA_ERROR_MISALIGNED_ADDRESS,
          format("access at 0x%zx, which is not a multiple of %zu, %s:%u", address, alignment, file, line));
}

void on_outside(const char *space, uint64_t offset, size_t size, size_t end, unsigned line) {
    if (!run || !settings.check) return;
    leave(CUDA_ERROR_ILLEGAL_ADDRESS, format("access of %zu bytes at offset %lld of %zu bytes of %s, line %u of the PTX",
                                             size, static_cast<long long>(offset), end, space, line));
}

void on_fail(const char *what, const char *file, unsigned line) {
    leave(CUDA_ERROR_ASSERT, format("%s failed, %s:%u", what, file, line));
}

}  // namespace cusim
