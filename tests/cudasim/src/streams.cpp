// Queued work. Nothing runs at submission: calls that wait run the queued work, in a random order that CUDA
// allows, so that a missing synchronisation shows as wrong data under some seed.
#include <time.h>

#include <algorithm>
#include <unordered_set>

#include "state.h"

namespace cusim {
namespace {

constexpr size_t kQueueLimit = 1024;  // a device's queue is bounded too; beyond it, work runs at submission
size_t queued = 0;

void settle(const WorkPtr &work) {
    work->done = true;
    work->finished_ms = now_ms();
    work->run = nullptr;
    work->after.clear();
    queued--;
}

void perform(Stream *stream) {
    WorkPtr work = stream->queue.front();
    stream->queue.pop_front();
    Context *context = stream->context;
    CUresult result = work->run ? work->run() : CUDA_SUCCESS;
    settle(work);
    if (result != CUDA_SUCCESS && context->error == CUDA_SUCCESS) {
        context->error = result;
        drop(context);
    }
    if (stream->destroyed && stream->queue.empty()) {
        context->streams.erase(stream);
        delete stream;
    }
}

bool ready(const Stream *stream) {
    if (stream->queue.empty()) return false;
    const auto &after = stream->queue.front()->after;
    return std::all_of(after.begin(), after.end(), [](const WorkPtr &w) { return w->done; });
}

std::vector<Stream *> ready_streams() {
    std::vector<Stream *> found;
    for (Context *context : contexts) {
        if (ready(&context->legacy)) found.push_back(&context->legacy);
        for (Stream *stream : context->streams)
            if (ready(stream)) found.push_back(stream);
    }
    // a set of pointers has the allocator's order: sort, so that a seed means the same in every run
    std::sort(found.begin(), found.end(),
              [](Stream *a, Stream *b) { return a->queue.front()->number < b->queue.front()->number; });
    return found;
}

// The work that must run for the targets to be done, including them.
std::unordered_set<const Work *> needed_for(const std::vector<WorkPtr> &targets) {
    std::unordered_set<const Work *> needed;
    std::vector<const Work *> todo;
    for (const WorkPtr &target : targets) todo.push_back(target.get());
    while (!todo.empty()) {
        const Work *work = todo.back();
        todo.pop_back();
        if (work->done || !needed.insert(work).second) continue;
        for (const WorkPtr &earlier : work->after) todo.push_back(earlier.get());
    }
    return needed;
}

}  // namespace

double now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

WorkPtr submit(Stream *stream, const char *name, std::function<CUresult()> run, std::vector<WorkPtr> after) {
    if (stream->graph) return capture(stream, name, std::move(run), after);
    static uint64_t number = 0;
    auto work = std::make_shared<Work>();
    work->name = name;
    work->number = ++number;
    work->run = std::move(run);
    work->after = std::move(after);
    work->stream = stream;
    work->after.push_back(stream->last);
    // The legacy default stream and blocking streams wait for each other; non-blocking streams for neither.
    if (stream->legacy) {
        for (Stream *other : stream->context->streams)
            if (!(other->flags & CU_STREAM_NON_BLOCKING) && other->last) work->after.push_back(other->last);
    } else if (!(stream->flags & CU_STREAM_NON_BLOCKING) && stream->context->legacy.last) {
        work->after.push_back(stream->context->legacy.last);
    }
    auto done = [](const WorkPtr &w) { return !w || w->done; };
    work->after.erase(std::remove_if(work->after.begin(), work->after.end(), done), work->after.end());
    stream->queue.push_back(work);
    stream->last = work;
    queued++;
    if (settings.eager) finish({work});
    while (queued > kQueueLimit) progress();
    return work;
}

void finish(std::vector<WorkPtr> targets) {
    auto done = [](const WorkPtr &w) { return !w || w->done; };
    targets.erase(std::remove_if(targets.begin(), targets.end(), done), targets.end());
    if (targets.empty()) return;
    // Meanwhile, the rest of the device is idle, or faster than the targets, or anything in between.
    enum { kIdle, kFast, kAny } others = static_cast<decltype(others)>(random_order() % 3);
    if (settings.eager) others = kIdle;
    const auto needed = needed_for(targets);
    auto is_needed = [&](const Stream *s) { return needed.count(s->queue.front().get()) != 0; };
    while (!std::all_of(targets.begin(), targets.end(), done)) {
        std::vector<Stream *> candidates = ready_streams();
        if (others != kAny) {
            auto middle = std::stable_partition(candidates.begin(), candidates.end(), is_needed);
            if (others == kIdle || middle == candidates.end()) candidates.erase(middle, candidates.end());
            else candidates.erase(candidates.begin(), middle);
        }
        if (candidates.empty()) break;  // impossible: the targets were submitted earlier
        perform(candidates[random_order() % candidates.size()]);
    }
}

void finish(Stream *stream) { finish({stream->last}); }

void finish(Context *context) {
    std::vector<WorkPtr> targets{context->legacy.last};
    for (const Stream *stream : context->streams) targets.push_back(stream->last);
    finish(targets);
}

void progress() {
    auto candidates = ready_streams();
    if (!candidates.empty()) perform(candidates[random_order() % candidates.size()]);
}

void drop(Context *context) {
    auto forget = [](Stream *stream) {
        for (const WorkPtr &work : stream->queue) settle(work);
        stream->queue.clear();
    };
    forget(&context->legacy);
    for (Stream *stream : context->streams) forget(stream);
}

}  // namespace cusim
