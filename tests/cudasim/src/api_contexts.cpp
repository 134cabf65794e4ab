// Entry points: creating and destroying contexts, and the current context.
#include "api.h"

namespace cusim {

thread_local std::vector<Context *> context_stack;

Context *current_context() { return context_stack.empty() ? nullptr : context_stack.back(); }

CUresult usable_context(Context **context) {
    *context = current_context();
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (!*context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!contexts.count(*context)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return (*context)->error;
}

size_t used_memory(int device) {
    size_t used = 0;
    for (const Context *context : contexts)
        if (context->device == device) used += context->used;
    return used;
}

Context *new_context(int device, bool primary, unsigned flags) {
    static int number = 0;
    auto context = new Context;
    context->device = device;
    context->number = ++number;
    context->primary = primary;
    context->flags = flags;
    contexts.insert(context);
    return context;
}

void destroy_context(Context *context) {
    finish(context);
    drop(context);
    for (LoadedModule *module : std::vector<LoadedModule *>(context->modules.begin(), context->modules.end()))
        unload_module(module);
    for (Stream *stream : context->streams) delete stream;
    for (Event *event : context->events) delete event;
    std::vector<uintptr_t> shared;
    for (const auto &[base, allocation] : shared_arena().live)
        if (allocation.context == context) shared.push_back(base);
    for (uintptr_t base : shared) shared_arena().release(base);
    contexts.erase(context);
    for (Context *other : contexts) other->peers.erase(context);
    // The shell is never freed: a handle kept by mistake must not name a later context.
    context->~Context();
}

}  // namespace cusim

namespace {
struct Primary {
    Context *context = nullptr;
    int users = 0;
};
std::map<int, Primary> primaries;
}  // namespace

static CUresult create(CUcontext *handle, unsigned flags, CUdevice device) {
    LOCKED;
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    Context *context = new_context(device, false, flags);
    context_stack.push_back(context);
    *handle = handle_of(context);
    return CUDA_SUCCESS;
}
API cuCtxCreate_v4(CUcontext *handle, CUctxCreateParams *, unsigned flags, CUdevice device) {
    return create(handle, flags, device);
}
API cuCtxCreate_v2(CUcontext *handle, unsigned flags, CUdevice device) { return create(handle, flags, device); }
API cuCtxDestroy_v2(CUcontext handle) {
    LOCKED;
    Context *context = context_of(handle);
    if (!context || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (current_context() == context) context_stack.pop_back();
    destroy_context(context);
    return CUDA_SUCCESS;
}
API cuCtxAttach(CUcontext *handle, unsigned) {
    LOCKED;
    Context *context = current_context();
    if (!context || !contexts.count(context)) return CUDA_ERROR_INVALID_CONTEXT;
    context->uses++;
    *handle = handle_of(context);
    return CUDA_SUCCESS;
}
API cuCtxDetach(CUcontext handle) {
    LOCKED;
    Context *context = context_of(handle);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (--context->uses > 0) return CUDA_SUCCESS;
    if (current_context() == context) context_stack.pop_back();
    if (!context->primary) destroy_context(context);
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice device) {
    LOCKED;
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    Primary &primary = primaries[device];
    if (!primary.context) primary.context = new_context(device, true, 0);
    primary.users++;
    *handle = handle_of(primary.context);
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    LOCKED;
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    Primary &primary = primaries[device];
    if (!primary.context) return CUDA_ERROR_INVALID_CONTEXT;
    if (--primary.users == 0) {
        destroy_context(primary.context);
        primary.context = nullptr;
    }
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    LOCKED;
    const Primary &primary = primaries[device];
    if (flags) *flags = 0;
    if (active) *active = primary.context != nullptr;
    return CUDA_SUCCESS;
}
API cuCtxPushCurrent_v2(CUcontext handle) {
    LOCKED;
    Context *context = context_of(handle);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    context_stack.push_back(context);
    return CUDA_SUCCESS;
}
API cuCtxPopCurrent_v2(CUcontext *handle) {
    LOCKED;
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (handle) *handle = handle_of(context_stack.back());
    context_stack.pop_back();
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext handle) {
    LOCKED;
    if (handle && !context_of(handle)) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context_stack.empty()) context_stack.pop_back();
    if (handle) context_stack.push_back(context_of(handle));
    return CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext *handle) {
    LOCKED;
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *handle = handle_of(current_context());
    return CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice *device) {
    LOCKED;
    Context *context = current_context();
    if (!context || !contexts.count(context)) return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
}
API cuCtxGetFlags(unsigned *flags) {
    CONTEXT;
    *flags = context->flags;
    return CUDA_SUCCESS;
}
API cuCtxGetApiVersion(CUcontext, unsigned *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
API cuCtxSynchronize() {
    CONTEXT;
    if (CUresult bad = unsafe("cuCtxSynchronize")) return bad;
    blocks("cuCtxSynchronize");
    finish(context);
    return context->error;
}
API cuCtxEnablePeerAccess(CUcontext handle, unsigned) {
    CONTEXT;
    Context *peer = context_of(handle);
    if (!peer || peer == context) return CUDA_ERROR_INVALID_CONTEXT;
    return context->peers.insert(peer).second ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}
API cuCtxDisablePeerAccess(CUcontext handle) {
    CONTEXT;
    return context->peers.erase(context_of(handle)) ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}
API cuCtxGetLimit(size_t *value, CUlimit) {
    CONTEXT;
    *value = 1024;
    return CUDA_SUCCESS;
}
API cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API cuCtxGetCacheConfig(CUfunc_cache *config) {
    *config = CU_FUNC_CACHE_PREFER_NONE;
    return CUDA_SUCCESS;
}
API cuCtxSetCacheConfig(CUfunc_cache) { return CUDA_SUCCESS; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}
