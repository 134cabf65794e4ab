// Shared by all entry points: how they are declared, and what each does first.
#pragma once
#include "state.h"

namespace cusim {

extern bool initialised;  // cuInit has been called

inline CUcontext handle_of(Context *context) { return reinterpret_cast<CUcontext>(context); }
inline Context *context_of(CUcontext handle) {
    auto context = reinterpret_cast<Context *>(handle);
    return contexts.count(context) ? context : nullptr;
}

}  // namespace cusim

using namespace cusim;
#define API extern "C" __attribute__((visibility("default"))) CUresult
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)
#define CONTEXT       \
    LOCKED;           \
    Context *context; \
    if (CUresult bad = usable_context(&context)) return bad
#define REQUIRE(condition) \
    if (!(condition)) return CUDA_ERROR_INVALID_VALUE
