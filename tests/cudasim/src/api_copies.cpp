// Entry points: copies and memsets.
#include <algorithm>

#include "api.h"

namespace {

// One side of a copy: rows of a box.
struct Side {
    uintptr_t start;
    bool device;  // must be memory of the context
    size_t pitch = 0, height = 0;
    Context *context = nullptr;  // if it is not the current one (peer copies)

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
    if (wait || (stream->legacy && !from.device))
        if (CUresult bad = unsafe(call)) return bad;
    counters.copies++;

    // A copy from pageable host memory has read it when the call returns; one from pinned memory reads when it runs.
    // A call that waits, waits for earlier work and for this read. The data may not have arrived on the
    // device yet, which only a stream that is not ordered with the default stream can see.
    auto staged = std::make_shared<std::vector<char>>();
    // A captured copy reads at each replay.
    if (!from.device && !stream->graph && !is_page_locked(from.start, box.width)) {
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
    // a copy between contexts runs after all work of both that may write to its source
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

// The descriptors of 2D and 3D copies have the same field names.
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
