// Entry points: capturing and replaying graphs.
#include <algorithm>

#include "api.h"

namespace cusim {

std::set<Graph *> capturing;
thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

WorkPtr capture(Stream *stream, const char *name, std::function<CUresult()> run, const std::vector<WorkPtr> &after) {
    Graph *graph = stream->graph;
    auto work = std::make_shared<Work>();
    work->name = name;
    work->number = graph->nodes.size();
    work->run = std::move(run);
    work->stream = stream;
    work->done = true;  // nothing will run it
    work->graph = graph;
    work->after = after;
    if (stream->captured) work->after.push_back(stream->captured);
    graph->nodes.push_back(work);
    return stream->captured = work;
}

CUresult unsafe(const char *call) {
    if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    for (Graph *graph : capturing) {
        if (graph->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        graph->invalid = true;
        return fault(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, format("%s while a stream is captured", call));
    }
    return CUDA_SUCCESS;
}

CUresult captured_wait(Stream *stream, Event *event) {
    Graph *graph = event->recorded ? event->recorded->graph : nullptr;
    if (graph && !capturing.count(graph)) graph = nullptr;
    if (stream->graph && stream->graph != graph) {
        stream->graph->invalid = true;
        return fault(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "cuStreamWaitEvent: a captured stream waits for an event "
                                                          "that was recorded outside of the capture");
    }
    if (graph && !stream->graph) {
        stream->graph = graph;
        stream->captured = nullptr;
        graph->streams.insert(stream);
    }
    return CUDA_SUCCESS;
}

}  // namespace cusim

static std::set<Graph *> graphs, executables;

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    LOCKED;
    std::swap(*mode, capture_mode);
    return CUDA_SUCCESS;
}
API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->graph) return CUDA_ERROR_ILLEGAL_STATE;
    stream->graph = new Graph{stream, mode, false, {}, {stream}};
    stream->captured = nullptr;
    capturing.insert(stream->graph);
    return CUDA_SUCCESS;
}
API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    CONTEXT;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *status = !stream->graph           ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->graph->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}
API cuStreamEndCapture(CUstream handle, CUgraph *found) {
    CONTEXT;
    Stream *origin = find_stream(handle, context);
    if (!origin) return CUDA_ERROR_INVALID_HANDLE;
    Graph *graph = origin->graph;
    if (!graph || graph->origin != origin) return CUDA_ERROR_ILLEGAL_STATE;
    // all work of other streams must precede the last work of the first one
    std::set<const Work *> joined;
    std::vector<WorkPtr> todo{origin->captured};
    while (!todo.empty()) {
        WorkPtr work = todo.back();
        todo.pop_back();
        if (work && joined.insert(work.get()).second) todo.insert(todo.end(), work->after.begin(), work->after.end());
    }
    bool unjoined = false;
    for (Stream *stream : graph->streams) {
        unjoined |= stream->captured && !joined.count(stream->captured.get());
        stream->graph = nullptr;
        stream->captured = nullptr;
    }
    capturing.erase(graph);
    *found = nullptr;
    if (graph->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (unjoined) return fault(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "cuStreamEndCapture: a stream was not joined again");
    graphs.insert(graph);
    *found = reinterpret_cast<CUgraph>(graph);
    return CUDA_SUCCESS;
}
API cuGraphInstantiateWithFlags(CUgraphExec *found, CUgraph handle, unsigned long long) {
    CONTEXT;
    auto graph = reinterpret_cast<Graph *>(handle);
    if (!graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    auto executable = new Graph(*graph);
    executables.insert(executable);
    *found = reinterpret_cast<CUgraphExec>(executable);
    return CUDA_SUCCESS;
}
API cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    CONTEXT;
    auto graph = reinterpret_cast<Graph *>(handle);
    Stream *stream = find_stream(stream_handle, context);
    if (!stream || !executables.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    // in any order that the captured dependencies allow
    std::vector<WorkPtr> rest = graph->nodes;
    std::set<const Work *> queued;
    while (!rest.empty()) {
        auto is_ready = [&](const WorkPtr &node) {
            return std::all_of(node->after.begin(), node->after.end(),
                               [&](const WorkPtr &earlier) { return queued.count(earlier.get()) != 0; });
        };
        auto ready = std::stable_partition(rest.begin(), rest.end(), is_ready);
        auto chosen = rest.begin() + random_order() % (ready - rest.begin());
        queued.insert(chosen->get());
        submit(stream, (*chosen)->name.c_str(), (*chosen)->run);
        rest.erase(chosen);
    }
    return context->error;
}
API cuGraphDestroy(CUgraph handle) {
    LOCKED;
    auto graph = reinterpret_cast<Graph *>(handle);
    if (!graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}
API cuGraphExecDestroy(CUgraphExec handle) {
    LOCKED;
    auto graph = reinterpret_cast<Graph *>(handle);
    if (!executables.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}
