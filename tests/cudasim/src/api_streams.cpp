// Entry points: streams, events, and host functions in stream order.
#include "api.h"

namespace cusim {

Stream *find_stream(CUstream handle, Context *context) {
    if (context && (handle == nullptr || handle == CU_STREAM_LEGACY)) return &context->legacy;
    auto stream = reinterpret_cast<Stream *>(handle);
    for (Context *c : contexts)
        if ((!context || c == context) && c->streams.count(stream)) return stream->destroyed ? nullptr : stream;
    return nullptr;
}

}  // namespace cusim

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
API cuStreamQuery(CUstream handle) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    const bool pending = !stream->queue.empty();
    if (pending) progress();  // after the answer is known, so that polling ends eventually
    return context->error ? context->error : pending ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
API cuStreamSynchronize(CUstream handle) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->graph) {
        stream->graph->invalid = true;
        return fault(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize on a stream that is captured");
    }
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
    if (CUresult bad = captured_wait(stream, event)) return bad;
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
