// Settings from the environment, counters, faults, leaks: what tests read through tests/cudasim/control.py.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api.h"
#include "submit.h"

namespace cusim {
namespace {

uint64_t number_from(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 0) : otherwise;
}

Settings from_environment() {
    Settings s;
    s.seed = number_from("CUSIM_SEED", 0);
    s.eager = number_from("CUSIM_EAGER", 0) != 0;
    s.check = number_from("CUSIM_CHECK", 1) != 0;
    s.leaks = number_from("CUSIM_LEAKS", 0) != 0;
    s.devices = int(number_from("CUSIM_DEVICES", 2));
    s.memory = number_from("CUSIM_MEMORY", uint64_t(8) << 30);
    s.timeout = double(number_from("CUSIM_TIMEOUT", 300));
    s.ptx = number_from("CUSIM_PTX", 1) != 0;
    return s;
}

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (c == '\n') out += "\\n";
        else out += c;
    }
    return out + "\"";
}

// ctypes copies the text before the next call
const char *keep(std::string text) {
    static std::string kept;
    kept = std::move(text);
    return kept.c_str();
}

std::string leaks_json() {
    size_t allocations = shared_arena().live.size(), streams = 0, events = 0, modules = 0;
    for (const Context *context : contexts) {
        allocations += context->arena.live.size();
        for (const Stream *stream : context->streams) streams += !stream->destroyed;
        events += context->events.size();
        modules += context->modules.size();
    }
    return format("{\"allocations\": %zu, \"streams\": %zu, \"events\": %zu, \"modules\": %zu, \"contexts\": %zu}",
                  allocations, streams, events, modules, contexts.size());
}

Context *operand_context = nullptr;  // of the running library call

struct AtExit {
    ~AtExit() {
        if (settings.leaks) fprintf(stderr, "cusim: alive at exit: %s\n", leaks_json().c_str());
    }
};

}  // namespace

Settings settings = from_environment();
std::mt19937_64 random_order(settings.seed);
std::recursive_mutex lock;
std::set<Context *> contexts;
Counters counters;
std::string last_fault;
CUresult last_fault_code = CUDA_SUCCESS;
size_t faults = 0;
static AtExit at_exit;  // defined after the variables that it reads, so that it is destroyed first

std::string format(const char *pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

void blocks(const char *call) { counters.blocking.push_back(call); }

CUresult fault(CUresult code, const std::string &text) {
    faults++;
    last_fault = text;
    last_fault_code = code;
    fprintf(stderr, "cusim: %s\n", text.c_str());
    return code;
}

}  // namespace cusim

#define CONTROL(type) extern "C" __attribute__((visibility("default"))) type

CONTROL(void) cusim_seed(unsigned long long seed) {
    LOCKED;
    settings.seed = seed;
    random_order.seed(seed);
}
CONTROL(void) cusim_eager(int on) {
    LOCKED;
    if (on)
        for (Context *context : contexts) finish(context);
    settings.eager = on != 0;
}
CONTROL(int) cusim_ptx(int on) {
    LOCKED;
    const int before = settings.ptx;
    settings.ptx = on != 0;
    return before;
}
CONTROL(void) cusim_reset() {
    LOCKED;
    counters = Counters{};
    last_fault.clear();
    faults = 0;
}
CONTROL(const char *) cusim_counters() {
    LOCKED;
    size_t pending = 0;
    for (const Context *context : contexts) {
        pending += context->legacy.queue.size();
        for (const Stream *stream : context->streams) pending += stream->queue.size();
    }
    return keep(
        format("{\"launches\": %zu, \"memsets\": %zu, \"copies\": %zu, \"allocations\": %zu, \"frees\": %zu, "
               "\"blocking\": %zu, \"pending\": %zu, \"faults\": %zu, \"uninitialised_to_host\": %zu, "
               "\"ptx_modules\": %zu}",
               counters.launched, counters.memsets, counters.copies, counters.allocations, counters.frees,
               counters.blocking.size(), pending, faults, counters.uninitialised_to_host, counters.ptx_modules));
}
CONTROL(const char *) cusim_launches() {
    LOCKED;
    std::string text = "[";
    for (const Record &r : counters.launches) {
        text += text.size() > 1 ? ", " : "";
        text += format("{\"name\": %s, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u}",
                       quoted(r.name).c_str(), r.grid[0], r.grid[1], r.grid[2], r.block[0], r.block[1], r.block[2],
                       r.shared);
    }
    return keep(text + "]");
}
CONTROL(const char *) cusim_blocking() {
    LOCKED;
    std::string text = "[";
    for (const std::string &call : counters.blocking) text += (text.size() > 1 ? ", " : "") + quoted(call);
    return keep(text + "]");
}
CONTROL(const char *) cusim_fault() {
    LOCKED;
    return keep(last_fault);
}
CONTROL(void) cusim_clear_fault() {
    LOCKED;
    last_fault.clear();
    for (Context *context : contexts) context->error = CUDA_SUCCESS;
}
CONTROL(const char *) cusim_leaks() {
    LOCKED;
    return keep(leaks_json());
}

// ---- for other libraries (submit.h) ---------------------------------------------------------------
CONTROL(CUresult)
cusim_submit(CUstream handle, const char *name, CUresult (*run)(void *), void *data, void (*drop)(void *)) {
    LOCKED;
    std::shared_ptr<void> owner(data, drop);
    Context *context;
    if (CUresult bad = usable_context(&context)) return bad;
    Stream *stream = find_stream(handle, context);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    submit(stream, name, [context, run, owner] {
        operand_context = context;
        CUresult result = run(owner.get());
        operand_context = nullptr;
        return result;
    });
    return context->error;
}
CONTROL(CUresult)
cusim_operand(const char *name, const void *start, size_t width, size_t columns, size_t pitch, int write) {
    LOCKED;
    const auto address = reinterpret_cast<uintptr_t>(start);
    Context *context = operand_context ? operand_context : current_context();
    if (!width || !columns) return CUDA_SUCCESS;
    if (CUresult bad = usable(context, address, (columns - 1) * pitch + width, name)) return bad;
    const Arena *arena = shared_arena().holds(address) ? &shared_arena() : nullptr;
    for (Context *c : contexts)
        if (c->arena.holds(address)) arena = &c->arena;
    const char *why = nullptr;
    for (size_t i = 0; settings.check && arena && i < columns; i++) {
        if (arena->check(address + i * pitch, width, write, &why)) continue;
        return fault(CUDA_ERROR_ILLEGAL_ADDRESS,
                     format("%s: %s of %zu bytes at 0x%zx: %s (%s)", name, write ? "write" : "read", width,
                            address + i * pitch, why, arena->describe(address + i * pitch).c_str()));
    }
    return CUDA_SUCCESS;
}
