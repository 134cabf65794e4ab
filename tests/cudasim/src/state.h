// The state of the simulated machine. One lock guards all of it: calls of the driver run one at a time, and queued
// work runs on the thread that waits for it.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "device_abi.h"

namespace cusim {

struct Context;
struct Stream;
struct Graph;

// ---- settings (environment) -------------------------------------------------------------------------------------
struct Settings {
    uint64_t seed;   // CUSIM_SEED: order of queued work, of blocks and of threads
    bool eager;      // CUSIM_EAGER: run everything at submission
    bool check;      // CUSIM_CHECK: check kernels' memory accesses
    bool leaks;      // CUSIM_LEAKS: report leaks at exit
    int devices;     // CUSIM_DEVICES
    size_t memory;   // CUSIM_MEMORY: bytes per device
    double timeout;  // CUSIM_TIMEOUT: seconds per launch
    bool ptx;        // CUSIM_PTX: execute PTX, instead of refusing it
};
extern Settings settings;
extern std::mt19937_64 random_order;
extern std::recursive_mutex lock;

// ---- memory -----------------------------------------------------------------------------------------------------
enum class Kind { kDevice, kManaged, kPinned, kGlobal };

struct Allocation {
    uintptr_t base;
    size_t size;
    Kind kind;
    Context *context;
    int context_number, device;  // kept for reports: a freed allocation may outlive its context
    unsigned flags;
    uint64_t number;  // counts the allocations of the process
};

// An address range that is never reused while there is room, so that a pointer to freed memory stays recognisable.
class Arena {
  public:
    Arena();
    ~Arena();
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;

    uintptr_t allocate(size_t size, Kind kind, Context *context, unsigned flags);  // 0 when full
    void release(uintptr_t base);
    const Allocation *find(uintptr_t address, size_t size) const;  // the allocation that holds all of it, or null
    std::string describe(uintptr_t address) const;                 // describes an address for a report
    bool holds(uintptr_t address) const { return address - base < capacity; }
    uint8_t *shadow_of(uintptr_t address) const { return shadow + (address - base); }
    bool check(uintptr_t address, size_t size, bool write, const char **why) const;

    uintptr_t base;
    size_t capacity;
    uint8_t *shadow;
    std::map<uintptr_t, Allocation> live;

  private:
    std::deque<Allocation> freed;
    uintptr_t cursor;
};

Arena &shared_arena();  // pinned and managed memory, which every context may use

// The allocation that holds [address, address + size), in any context; registered host memory included.
const Allocation *find_allocation(uintptr_t address, size_t size);
bool is_page_locked(uintptr_t address, size_t size);
extern std::map<uintptr_t, size_t> registered;  // host memory made page-locked by cuMemHostRegister
// Checks copies and memsets: CUDA_SUCCESS, or CUDA_ERROR_INVALID_VALUE with the reason as the last fault.
CUresult usable(Context *context, uintptr_t address, size_t size, const char *call);
void mark_written(uintptr_t address, size_t size);
void copy_bytes(uintptr_t to, uintptr_t from, size_t size);  // also copies which bytes are initialised

// ---- streams ----------------------------------------------------------------------------------------------------
struct Work {
    uint64_t number;  // order of submission
    std::string name;
    std::function<CUresult()> run;
    std::vector<std::shared_ptr<Work>> after;
    Stream *stream;
    bool done = false;
    double finished_ms = 0;
    Graph *graph = nullptr;  // in which it was captured
};
using WorkPtr = std::shared_ptr<Work>;

struct Stream {
    Context *context;
    unsigned flags;
    bool legacy;
    std::deque<WorkPtr> queue;
    WorkPtr last;
    bool destroyed = false;   // by the user, with work still queued
    Graph *graph = nullptr;   // in which it is captured
    WorkPtr captured{};       // the last work queued in it
};

struct Event {
    Context *context;
    unsigned flags;
    WorkPtr recorded;
};

struct Graph {
    Stream *origin;
    CUstreamCaptureMode mode;
    bool invalid;
    std::vector<WorkPtr> nodes;
    std::set<Stream *> streams;  // captured in it
};
WorkPtr capture(Stream *stream, const char *name, std::function<CUresult()> run, const std::vector<WorkPtr> &after);
CUresult unsafe(const char *call);                      // CUDA_SUCCESS, unless a capture forbids the call
CUresult captured_wait(Stream *stream, Event *event);  // how a wait affects captures

WorkPtr submit(Stream *stream, const char *name, std::function<CUresult()> run, std::vector<WorkPtr> after = {});
double now_ms();
void finish(std::vector<WorkPtr> targets);  // runs queued work in a random legal order until these are done
void finish(Stream *stream);
void finish(Context *context);  // all work queued in it
void progress();                // one random piece of work, so that polling ends eventually
void drop(Context *context);    // drops queued work (after a fault, or with the context)

// ---- modules and launches -----------------------------------------------------------------------------------------
struct Function;
struct LoadedModule {
    Context *context;
    void *handle;
    Module module;
    uintptr_t begin, end;  // its code and data in memory
    std::map<std::string, std::unique_ptr<Function>> functions;
    std::map<uintptr_t, Allocation> globals;
};
struct Function {
    LoadedModule *module;
    const Kernel *kernel;
    std::string name;
    int max_dynamic_shared = 48 * 1024;
};

struct Launch {
    Function *function;
    unsigned grid[3], block[3];
    unsigned shared;
    std::vector<char> arguments;
};

CUresult load_module(Context *context, const char *image, LoadedModule **module);
bool is_text(const char *image);
CUresult compile_ptx(const char *text, std::string *image);  // what load_module takes
void unload_module(LoadedModule *module);
Function *find_function(LoadedModule *module, const char *name);
CUresult run_kernel(Context *context, const Launch &launch);

// ---- contexts -----------------------------------------------------------------------------------------------------
struct Context {
    int device;
    int number;
    bool primary;
    int uses = 1;
    unsigned flags = 0;
    CUresult error = CUDA_SUCCESS;  // sticky, as on a device
    Arena arena;
    Stream legacy{this, 0, true, {}, nullptr, false};
    std::set<Stream *> streams;
    std::set<Event *> events;
    std::set<LoadedModule *> modules;
    std::set<Context *> peers;
    size_t used = 0;
};

extern std::set<Context *> contexts;
extern thread_local std::vector<Context *> context_stack;
Context *current_context();
CUresult usable_context(Context **context);  // the current one, unless there is none or a fault broke it
size_t used_memory(int device);
Context *new_context(int device, bool primary, unsigned flags);
void destroy_context(Context *context);
// The stream of a handle in this context, or in any if context is null.
Stream *find_stream(CUstream handle, Context *context);

// ---- read by tests (control.cpp) -------------------------------------------------------------------------------
struct Record {
    std::string name;
    unsigned grid[3], block[3];
    unsigned shared;
};
struct Counters {
    std::deque<Record> launches;
    size_t ptx_modules = 0, launched = 0, memsets = 0, copies = 0, allocations = 0, frees = 0, uninitialised_to_host = 0;
    std::vector<std::string> blocking;
};
extern Counters counters;
extern std::string last_fault;
extern CUresult last_fault_code;
extern size_t faults;

void blocks(const char *call);  // this call waits for the device
CUresult fault(CUresult code, const std::string &text);
std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace cusim
