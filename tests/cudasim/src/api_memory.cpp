// Entry points: allocating, freeing and querying memory.
#include <algorithm>

#include "api.h"

static CUresult allocate(CUdeviceptr *address, size_t size, Kind kind, unsigned flags) {
    CONTEXT;
    REQUIRE(address && size);
    if (CUresult bad = unsafe("an allocation")) return bad;
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
    if (CUresult bad = unsafe(call)) return bad;
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
