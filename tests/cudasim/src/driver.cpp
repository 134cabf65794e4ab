// Devices, contexts, memory, copies, streams and events: the entry points that PyCUDA calls.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace cusim {

thread_local std::vector<Context *> context_stack;

namespace {
bool initialised = false;
struct Primary {
    Context *context = nullptr;
    int users = 0;
};
std::map<int, Primary> primaries;
}  // namespace

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

Stream *find_stream(CUstream handle, Context *context) {
    if (context && (handle == nullptr || handle == CU_STREAM_LEGACY)) return &context->legacy;
    auto stream = reinterpret_cast<Stream *>(handle);
    for (Context *c : contexts)
        if ((!context || c == context) && c->streams.count(stream)) return stream->destroyed ? nullptr : stream;
    return nullptr;
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

namespace {

CUcontext handle_of(Context *context) { return reinterpret_cast<CUcontext>(context); }
Context *context_of(CUcontext handle) {
    auto context = reinterpret_cast<Context *>(handle);
    return contexts.count(context) ? context : nullptr;
}

}  // namespace

// ---- devices ------------------------------------------------------------------------------------------------------
API cuInit(unsigned flags) {
    LOCKED;
    REQUIRE(flags == 0);
    initialised = true;
    return settings.devices > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
API cuDeviceGetCount(int *count) {
    *count = settings.devices;
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}
API cuDeviceGet(CUdevice *device, int ordinal) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
API cuDeviceGetName(char *name, int size, CUdevice device) {
    snprintf(name, size, "cudasim device %d (CPU)", device);
    return CUDA_SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
    *bytes = settings.memory;
    return CUDA_SUCCESS;
}
API cuDeviceComputeCapability(int *major, int *minor, CUdevice) {
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}
API cuDeviceGetPCIBusId(char *id, int size, CUdevice device) {
    snprintf(id, size, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}
API cuDeviceGetByPCIBusId(CUdevice *device, const char *id) {
    unsigned bus;
    if (sscanf(id, "%*x:%x", &bus) != 1 || bus < 1 || bus > unsigned(settings.devices))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = int(bus) - 1;
    return CUDA_SUCCESS;
}
API cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b) {
    *can = a != b;
    return CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
            *value = 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
            *value = 64;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
            *value = 0x7fffffff;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
            *value = 65535;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
            *value = 48 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
            *value = 227 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            *value = 228 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
            *value = 65536;
            break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
            *value = 32;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
            *value = 0x7fffffff;
            break;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
            *value = 1000000;
            break;
        case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
            *value = 512;
            break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
            *value = 4;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
            *value = 32;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
            *value = 2048;
            break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
            *value = 9;
            break;
        case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
            *value = device + 1;
            break;
        case CU_DEVICE_ATTRIBUTE_INTEGRATED:
        case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
        case CU_DEVICE_ATTRIBUTE_TCC_DRIVER:
        case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
        case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
        case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
            *value = 0;
            break;
        default:
            *value = 1;  // most others are abilities
    }
    return CUDA_SUCCESS;
}

// ---- contexts -----------------------------------------------------------------------------------------------------
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

// ---- memory -------------------------------------------------------------------------------------------------------
static CUresult allocate(CUdeviceptr *address, size_t size, Kind kind, unsigned flags) {
    CONTEXT;
    REQUIRE(address && size);
    const bool on_device = kind == Kind::kDevice;
    if (on_device && size > settings.memory - std::min(settings.memory, used_memory(context->device)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    *address = (on_device ? context->arena : shared_arena()).allocate(size, kind, context, flags);
    if (!*address) return CUDA_ERROR_OUT_OF_MEMORY;
    if (on_device) context->used += size;
    counters.allocations++;
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *address, size_t size) { return allocate(address, size, Kind::kDevice, 0); }
API cuMemAllocManaged(CUdeviceptr *address, size_t size, unsigned flags) {
    return allocate(address, size, Kind::kManaged, flags);
}
API cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    return allocate(reinterpret_cast<CUdeviceptr *>(address), size, Kind::kPinned, flags);
}
API cuMemAllocHost_v2(void **address, size_t size) { return cuMemHostAlloc(address, size, 0); }
API cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height, unsigned) {
    *pitch = (width + 511) / 512 * 512;
    return allocate(address, *pitch * height, Kind::kDevice, 0);
}

static CUresult free_memory(uintptr_t address, const char *call, bool host) {
    CONTEXT;
    if (!address && !host) return CUDA_SUCCESS;
    const Allocation *a = find_allocation(address, 0);
    const bool known = a && a->base == address && a->kind != Kind::kGlobal && host == (a->kind == Kind::kPinned);
    if (!known)
        return fault(CUDA_ERROR_INVALID_VALUE, format("%s: 0x%zx is not the start of an allocation", call, address));
    Context *owner = a->context;
    blocks(call);  // freeing waits for the work that may use the memory
    finish(owner);
    counters.frees++;
    if (a->kind == Kind::kDevice) {
        owner->used -= a->size;
        owner->arena.release(address);
    } else {
        shared_arena().release(address);
    }
    return context->error;
}
API cuMemFree_v2(CUdeviceptr address) { return free_memory(address, "cuMemFree", false); }
API cuMemFreeHost(void *address) { return free_memory(reinterpret_cast<uintptr_t>(address), "cuMemFreeHost", true); }

API cuMemHostRegister_v2(void *address, size_t size, unsigned) {
    CONTEXT;
    REQUIRE(address && size);
    const bool fresh = registered.emplace(reinterpret_cast<uintptr_t>(address), size).second;
    return fresh ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}
API cuMemHostUnregister(void *address) {
    CONTEXT;
    blocks("cuMemHostUnregister");
    finish(context);
    return registered.erase(reinterpret_cast<uintptr_t>(address)) ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned) {
    CONTEXT;
    REQUIRE(is_page_locked(reinterpret_cast<uintptr_t>(host), 0));
    *device = reinterpret_cast<CUdeviceptr>(host);  // one address space for host and devices
    return CUDA_SUCCESS;
}
API cuMemHostGetFlags(unsigned *flags, void *host) {
    CONTEXT;
    const Allocation *a = find_allocation(reinterpret_cast<uintptr_t>(host), 0);
    REQUIRE(a && a->kind == Kind::kPinned);
    *flags = a->flags | CU_MEMHOSTALLOC_DEVICEMAP;
    return CUDA_SUCCESS;
}
API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CONTEXT;
    *total = settings.memory;
    *free_bytes = settings.memory - used_memory(context->device);
    return CUDA_SUCCESS;
}
API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address) {
    CONTEXT;
    const Allocation *a = find_allocation(address, 0);
    if (!a || a->context != context) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = a->base;
    if (size) *size = a->size;
    return CUDA_SUCCESS;
}

static CUresult pointer_attribute(void *data, CUpointer_attribute attribute, const Allocation *a, uintptr_t address) {
    const bool host = a && a->kind == Kind::kPinned;
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_CONTEXT:
            *static_cast<CUcontext *>(data) = a ? handle_of(a->context) : nullptr;
            break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            *static_cast<unsigned *>(data) = !a ? 0 : host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
            break;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            *static_cast<uintptr_t *>(data) = a ? address : 0;
            break;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            *static_cast<uintptr_t *>(data) = a && a->kind != Kind::kDevice ? address : 0;
            break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
            *static_cast<unsigned *>(data) = a && a->kind == Kind::kManaged;
            break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
            *static_cast<int *>(data) = a ? a->device : -2;
            break;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
            *static_cast<uintptr_t *>(data) = a ? a->base : 0;
            break;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
            *static_cast<size_t *>(data) = a ? a->size : 0;
            break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID:
            *static_cast<uint64_t *>(data) = a ? a->number : 0;
            break;
        case CU_POINTER_ATTRIBUTE_MAPPED:
            *static_cast<bool *>(data) = a != nullptr;
            break;
        default:
            return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}
API cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr address) {
    CONTEXT;
    const Allocation *a = find_allocation(address, 0);
    REQUIRE(a && data);
    return pointer_attribute(data, attribute, a, address);
}
API cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data, CUdeviceptr address) {
    CONTEXT;
    const Allocation *a = find_allocation(address, 0);
    for (unsigned i = 0; i < count; i++)
        if (CUresult bad = pointer_attribute(data[i], attributes[i], a, address)) return bad;
    return CUDA_SUCCESS;
}

// ---- copies -------------------------------------------------------------------------------------------------------
namespace {

// One side of a copy: rows of a box.
struct Side {
    uintptr_t start;
    bool device;  // must be memory of the context
    size_t pitch = 0, height = 0;
    Context *context = nullptr;  // where it is not the current one (peer copies)

    uintptr_t row(size_t y, size_t z) const { return start + (z * height + y) * pitch; }
};

struct Box {
    size_t width, height = 1, depth = 1;
};

template <class Each>
void each_row(const Box &box, Each each) {
    for (size_t z = 0; z < box.depth; z++)
        for (size_t y = 0; y < box.height; y++) each(y, z);
}

CUresult copy(const char *call, Side to, Side from, Box box, CUstream stream_handle, bool wait) {
    CONTEXT;
    Stream *stream = find_stream(stream_handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!box.width || !box.height || !box.depth) return CUDA_SUCCESS;
    for (const Side *side : {&to, &from}) {
        const uintptr_t end = side->row(box.height - 1, box.depth - 1) + box.width;
        if (!side->device) continue;
        if (CUresult bad = usable(side->context ? side->context : context, side->start, end - side->start, call))
            return bad;
    }
    counters.copies++;

    // A copy from pageable host memory has read it when the call returns; one from pinned memory reads when it runs.
    // The call that waits, waits for what came before and for that reading: what it read may still be on its way to the
    // device then, which only a stream that is not ordered with the default one can see.
    auto staged = std::make_shared<std::vector<char>>();
    if (!from.device && !is_page_locked(from.start, box.width)) {
        if (wait) {
            blocks(call);
            finish({submit(stream, call, nullptr)});
            wait = false;
        }
        each_row(box, [&](size_t y, size_t z) {
            auto row = reinterpret_cast<const char *>(from.row(y, z));
            staged->insert(staged->end(), row, row + box.width);
        });
        from = {reinterpret_cast<uintptr_t>(staged->data()), false, box.width, box.height};
    }
    auto work = submit(stream, call, [to, from, box, staged] {
        each_row(box, [&](size_t y, size_t z) { copy_bytes(to.row(y, z), from.row(y, z), box.width); });
        return CUDA_SUCCESS;
    });
    if (wait) {
        blocks(call);
        finish({work});
    }
    return context->error;
}

Side device(CUdeviceptr p) { return {p, true}; }
Side host(const void *p) { return {reinterpret_cast<uintptr_t>(p), false}; }

}  // namespace

API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
    return copy("cuMemcpyHtoD", device(to), host(from), {n}, nullptr, true);
}
API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
    return copy("cuMemcpyDtoH", host(to), device(from), {n}, nullptr, true);
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {  // does not wait, on a device either
    return copy("cuMemcpyDtoD", device(to), device(from), {n}, nullptr, false);
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream stream) {
    return copy("cuMemcpyHtoDAsync", device(to), host(from), {n}, stream, false);
}
API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream stream) {
    return copy("cuMemcpyDtoHAsync", host(to), device(from), {n}, stream, false);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    return copy("cuMemcpyDtoDAsync", device(to), device(from), {n}, stream, false);
}

static Side either(CUdeviceptr p) { return {p, find_allocation(p, 0) != nullptr}; }
API cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) {
    LOCKED;
    return copy("cuMemcpy", either(to), either(from), {n}, nullptr, !either(to).device || !either(from).device);
}
API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    LOCKED;
    return copy("cuMemcpyAsync", either(to), either(from), {n}, stream, false);
}

static CUresult peer_copy(const char *call, CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                          CUcontext from_context, size_t n, CUstream stream) {
    LOCKED;
    Side target = device(to), source = device(from);
    target.context = context_of(to_context);
    source.context = context_of(from_context);
    if (!target.context || !source.context) return CUDA_ERROR_INVALID_CONTEXT;
    // a copy between contexts comes after the work of both that may write to what it reads
    for (Context *side : {target.context, source.context})
        if (side != current_context()) finish(side);
    return copy(call, target, source, {n}, stream, false);
}
API cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t n) {
    return peer_copy("cuMemcpyPeer", to, to_context, from, from_context, n, nullptr);
}
API cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t n,
                      CUstream stream) {
    return peer_copy("cuMemcpyPeerAsync", to, to_context, from, from_context, n, stream);
}

// The descriptors of 2D and 3D copies name their fields alike.
template <class Descriptor>
static bool sides_of(const Descriptor &d, Side *to, Side *from) {
    auto side = [](CUmemorytype type, const void *host_start, CUdeviceptr device_start, size_t pitch, size_t height,
                   size_t offset, Side *out) {
        if (type == CU_MEMORYTYPE_HOST) *out = host(host_start);
        else if (type == CU_MEMORYTYPE_DEVICE) *out = device(device_start);
        else if (type == CU_MEMORYTYPE_UNIFIED) *out = either(device_start);
        else return false;  // arrays
        out->start += offset;
        out->pitch = pitch;
        out->height = height;
        return true;
    };
    size_t to_height = 0, from_height = 0, to_offset = d.dstY * d.dstPitch, from_offset = d.srcY * d.srcPitch;
    if constexpr (std::is_same_v<Descriptor, CUDA_MEMCPY3D>) {
        to_height = d.dstHeight;
        from_height = d.srcHeight;
        to_offset += d.dstZ * to_height * d.dstPitch;
        from_offset += d.srcZ * from_height * d.srcPitch;
    }
    return side(d.dstMemoryType, d.dstHost, d.dstDevice, d.dstPitch, to_height, to_offset + d.dstXInBytes, to) &&
           side(d.srcMemoryType, d.srcHost, d.srcDevice, d.srcPitch, from_height, from_offset + d.srcXInBytes, from);
}
template <class Descriptor>
static CUresult copy_box(const char *call, const Descriptor *d, CUstream stream, bool wait) {
    LOCKED;
    Side to{}, from{};
    if (!sides_of(*d, &to, &from)) return CUDA_ERROR_NOT_SUPPORTED;
    Box box{d->WidthInBytes, d->Height};
    if constexpr (std::is_same_v<Descriptor, CUDA_MEMCPY3D>) box.depth = d->Depth;
    REQUIRE(box.height < 2 || (to.pitch >= box.width && from.pitch >= box.width));
    return copy(call, to, from, box, stream, wait && !(to.device && from.device));
}
API cuMemcpy2D_v2(const CUDA_MEMCPY2D *d) { return copy_box("cuMemcpy2D", d, nullptr, true); }
API cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *d) { return copy_box("cuMemcpy2DUnaligned", d, nullptr, true); }
API cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *d, CUstream s) { return copy_box("cuMemcpy2DAsync", d, s, false); }
API cuMemcpy3D_v2(const CUDA_MEMCPY3D *d) { return copy_box("cuMemcpy3D", d, nullptr, true); }
API cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *d, CUstream s) { return copy_box("cuMemcpy3DAsync", d, s, false); }

template <class T>
static CUresult fill(const char *call, CUdeviceptr start, size_t pitch, T value, size_t width, size_t height,
                     CUstream stream_handle) {
    CONTEXT;
    Stream *stream = find_stream(stream_handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    REQUIRE(start % sizeof(T) == 0);
    if (!width || !height) return CUDA_SUCCESS;
    if (CUresult bad = usable(context, start, (height - 1) * pitch + width * sizeof(T), call)) return bad;
    counters.memsets++;
    submit(stream, call, [=] {
        for (size_t y = 0; y < height; y++) {
            std::fill_n(reinterpret_cast<T *>(start + y * pitch), width, value);
            mark_written(start + y * pitch, width * sizeof(T));
        }
        return CUDA_SUCCESS;
    });
    return context->error;
}
#define CUSIM_MEMSET(bits, T)                                                                                     \
    API cuMemsetD##bits##_v2(CUdeviceptr p, T value, size_t n) {                                                  \
        return fill("cuMemsetD" #bits, p, 0, value, n, 1, nullptr);                                               \
    }                                                                                                             \
    API cuMemsetD##bits##Async(CUdeviceptr p, T value, size_t n, CUstream stream) {                               \
        return fill("cuMemsetD" #bits "Async", p, 0, value, n, 1, stream);                                        \
    }                                                                                                             \
    API cuMemsetD2D##bits##_v2(CUdeviceptr p, size_t pitch, T value, size_t width, size_t height) {               \
        return fill("cuMemsetD2D" #bits, p, pitch, value, width, height, nullptr);                                \
    }                                                                                                             \
    API cuMemsetD2D##bits##Async(CUdeviceptr p, size_t pitch, T value, size_t width, size_t height, CUstream s) { \
        return fill("cuMemsetD2D" #bits "Async", p, pitch, value, width, height, s);                              \
    }
CUSIM_MEMSET(8, unsigned char)
CUSIM_MEMSET(16, unsigned short)
CUSIM_MEMSET(32, unsigned int)

// ---- streams and events -------------------------------------------------------------------------------------------
API cuStreamCreate(CUstream *handle, unsigned flags) {
    CONTEXT;
    REQUIRE(handle && (flags & ~unsigned(CU_STREAM_NON_BLOCKING)) == 0);
    auto stream = new Stream{context, flags, false, {}, nullptr, false};
    context->streams.insert(stream);
    *handle = reinterpret_cast<CUstream>(stream);
    return CUDA_SUCCESS;
}
API cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
API cuStreamDestroy_v2(CUstream handle) {
    CONTEXT;
    Stream *stream = find_stream(handle, nullptr);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->queue.empty()) {
        stream->destroyed = true;  // its work still runs, later
        return CUDA_SUCCESS;
    }
    stream->context->streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
}
API cuStreamGetCtx(CUstream handle, CUcontext *owner) {
    CONTEXT;
    Stream *stream = find_stream(handle, handle ? nullptr : context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *owner = handle_of(stream->context);
    return CUDA_SUCCESS;
}
API cuStreamGetFlags(CUstream handle, unsigned *flags) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}
API cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
API cuStreamQuery(CUstream handle) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    const bool pending = !stream->queue.empty();
    if (pending) progress();  // after the answer is known: who polls gets through in the end
    return context->error ? context->error : pending ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
API cuStreamSynchronize(CUstream handle) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    blocks("cuStreamSynchronize");
    finish(stream);
    return context->error;
}
API cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream || !function) return CUDA_ERROR_INVALID_HANDLE;
    submit(stream, "cuLaunchHostFunc", [=] {
        function(data);
        return CUDA_SUCCESS;
    });
    return context->error;
}
API cuStreamAddCallback(CUstream handle, CUstreamCallback function, void *data, unsigned) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream || !function) return CUDA_ERROR_INVALID_HANDLE;
    submit(stream, "cuStreamAddCallback", [=] {
        function(handle, CUDA_SUCCESS, data);
        return CUDA_SUCCESS;
    });
    return context->error;
}

static Event *find_event(CUevent handle) {
    auto event = reinterpret_cast<Event *>(handle);
    for (Context *context : contexts)
        if (context->events.count(event)) return event;
    return nullptr;
}
#define EVENT                          \
    CONTEXT;                           \
    Event *event = find_event(handle); \
    if (!event) return CUDA_ERROR_INVALID_HANDLE

API cuEventCreate(CUevent *handle, unsigned flags) {
    CONTEXT;
    auto event = new Event{context, flags, nullptr};
    context->events.insert(event);
    *handle = reinterpret_cast<CUevent>(event);
    return CUDA_SUCCESS;
}
API cuEventDestroy_v2(CUevent handle) {
    EVENT;
    event->context->events.erase(event);
    delete event;
    return CUDA_SUCCESS;
}
API cuEventRecord(CUevent handle, CUstream stream_handle) {
    EVENT;
    Stream *stream = find_stream(stream_handle, context);
    if (!stream || event->context != context) return CUDA_ERROR_INVALID_HANDLE;
    event->recorded = submit(stream, "cuEventRecord", nullptr);
    return context->error;
}
API cuEventQuery(CUevent handle) {
    EVENT;
    const bool pending = event->recorded && !event->recorded->done;
    if (pending) progress();
    return context->error ? context->error : pending ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
API cuEventSynchronize(CUevent handle) {
    EVENT;
    blocks("cuEventSynchronize");
    finish({event->recorded});
    return context->error;
}
API cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
    EVENT;
    Stream *stream = find_stream(stream_handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (event->recorded) submit(stream, "cuStreamWaitEvent", nullptr, {event->recorded});
    return context->error;
}
API cuEventElapsedTime_v2(float *ms, CUevent handle, CUevent end_handle) {
    EVENT;
    Event *end = find_event(end_handle);
    if (!end || !event->recorded || !end->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if ((event->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (!event->recorded->done || !end->recorded->done) return CUDA_ERROR_NOT_READY;
    *ms = float(end->recorded->finished_ms - event->recorded->finished_ms);
    return CUDA_SUCCESS;
}

API cuProfilerStart() { return CUDA_SUCCESS; }
API cuProfilerStop() { return CUDA_SUCCESS; }

// ---- errors -------------------------------------------------------------------------------------------------------
API cuGetErrorString(CUresult code, const char **text) {
    LOCKED;
    static const std::map<int, const char *> texts = {
        {CUDA_SUCCESS, "no error"},
        {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
        {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
        {CUDA_ERROR_NOT_INITIALIZED, "initialization error"},
        {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
        {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
        {CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
        {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
        {CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
        {CUDA_ERROR_FILE_NOT_FOUND, "file not found"},
        {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
        {CUDA_ERROR_NOT_FOUND, "named symbol not found"},
        {CUDA_ERROR_NOT_READY, "device not ready"},
        {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {CUDA_ERROR_ASSERT, "device-side assert triggered"},
        {CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"},
        {CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"},
        {CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"},
        {CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"},
        {CUDA_ERROR_NOT_SUPPORTED, "operation not supported"},
    };
    static std::string kept;
    auto known = texts.find(code);
    kept = known == texts.end() ? format("error %d", int(code)) : known->second;
    // so that the exception a test sees says what was wrong, not only that something was
    if (code == last_fault_code && !last_fault.empty()) kept += " (cusim: " + last_fault + ")";
    *text = kept.c_str();
    return CUDA_SUCCESS;
}
API cuGetErrorName(CUresult code, const char **text) {
    LOCKED;
    static std::string kept;
    kept = format("CUDA_ERROR_%d", int(code));
    *text = kept.c_str();
    return CUDA_SUCCESS;
}
