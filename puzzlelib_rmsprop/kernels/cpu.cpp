// The CPU's library, a Python module: the instruction set, the threads, and the calls from cpu.py.
//
// Every call takes the address of a KernelArgs. Whoever fills it vouches for the arrays: alive, in place, contiguous, of the
// stated sizes, not overlapping.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "cpu_loops.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace puzzlelib_rmsprop {

PyObject *same_arrays(PyObject *, PyObject *);  // look.cpp

namespace {

// ---- instruction sets ----------------------------------------------------------------------------------------------

#if defined(HAS_AVX) && defined(_MSC_VER)
bool has(int leaf_register, int bit)  // of leaf 7: 0 is ebx
{
    int found[4];
    __cpuid(found, 1);
    const bool saved = (found[2] & 1 << 27) && (_xgetbv(0) & 0x6) == 0x6;
    __cpuidex(found, 7, 0);
    return saved && (found[1 + leaf_register] & 1 << bit);
}
bool has_avx2() { return has(0, 5); }
bool has_avx512() { return has(0, 16) && has(0, 17) && has(0, 30) && has(0, 31) && (_xgetbv(0) & 0xE6) == 0xE6; }
#elif defined(HAS_AVX)
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512()
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq");
}
#endif

struct InstructionSet {
    const char *name;
    const Loops *loops;
};

// Those that this machine has, the best last; ends with a null.
const InstructionSet *instruction_sets()
{
    static InstructionSet found[4] = {{"baseline", &baseline::loops}};
#if defined(HAS_AVX)
    if (!found[1].name) {
        int count = 1;
        if (has_avx2())
            found[count++] = {"avx2", &avx2::loops};
        if (has_avx512())
            found[count++] = {"avx512", &avx512::loops};
    }
#endif
    return found;
}

const Loops *loops;  // those in use

// ---- threads -------------------------------------------------------------------------------------------------------

// A thread takes blocks of elements, so that all end together, also where something else uses a core.
constexpr u64 LEAST_BLOCK = 4096, MOST_BLOCK = 131072;
constexpr int MOST_HELPERS = 255;
// A helper looks for work for so long before it sleeps: longer than a call's way through Python, and not so long that the
// rest of a training loses a core.
constexpr std::chrono::microseconds SPIN{50};

void pause()
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(_M_X64) || defined(_M_IX86)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for a condition: at first without giving the core away.
template <class Condition>
bool spin(Condition condition, std::chrono::microseconds most)
{
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            if (condition())
                return true;
            pause();
        }
        if (std::chrono::steady_clock::now() - begin > most)
            return false;
    }
}

// One job at a time, in blocks that the caller and the helpers take. A helper that comes too late does no harm: the caller
// waits only for those that have begun.
class Helpers {
    typedef void Part(const KernelArgs &, u64, u64);

  public:
    // Does part(args, begin, end) on blocks that make up `size`, in at most `threads` threads.
    void run(Part *part, const KernelArgs &args, u64 size, u64 block, u64 threads)
    {
        start(threads - 1);
        part_ = part;
        args_ = &args;
        size_ = size;
        block_ = block;
        most_ = threads - 1;
        next_ = 0;
        job_ = job_ + 1;  // odd: open
        if (asleep_ != 0) {
            { const std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        work();
        job_ = job_ + 1;
        while (!spin([&] { return working_ == 0; }, SPIN))
            std::this_thread::yield();
    }

    std::atomic_flag in_use = ATOMIC_FLAG_INIT;

  private:
    void start(u64 wanted)
    {
        while (started_ < wanted && started_ < MOST_HELPERS) {
#if !defined(_WIN32)
            // signals are for the threads of the program, but those of a thread's own faults
            sigset_t all, before;
            sigfillset(&all);
            for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL})
                sigdelset(&all, fault);
            pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
            bool good = true;
            try {
                std::thread([this] { help(); }).detach();
            } catch (...) {  // no more threads are to be had: then fewer do the work
                good = false;
            }
#if !defined(_WIN32)
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
            if (!good)
                return;
            ++started_;
        }
    }

    void work()
    {
        for (u64 begin; (begin = next_.fetch_add(block_)) < size_;)
            part_(*args_, begin, size_ - begin < block_ ? size_ : begin + block_);
    }

    [[noreturn]] void help()
    {
        for (u64 seen = 0;;) {
            const auto changed = [&] { return job_ != seen; };
            if (!spin(changed, SPIN)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++asleep_;
                wake_.wait(lock, changed);
                --asleep_;
            }
            const u64 job = job_;
            // announced first and looked at again, so that the caller, who closes first and looks then, misses nobody
            if (working_.fetch_add(1) < most_ && job % 2 && job_ == job)
                work();
            --working_;
            seen = job;
        }
    }

    Part *part_ = nullptr;
    const KernelArgs *args_ = nullptr;
    u64 size_ = 0, block_ = 0;
    std::atomic<u64> most_{0}, next_{0}, job_{0}, working_{0}, asleep_{0};
    u64 started_ = 0;
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Never freed: helpers may outlive everything else. After a fork there are none in the child, which makes its own.
std::atomic<Helpers *> helpers{nullptr};

#if !defined(_WIN32)
void forget_helpers() { helpers = nullptr; }
#endif

u64 block_of(u64 size, u64 threads)
{
    const u64 block = size / (threads * 8) / 64 * 64;
    return block < LEAST_BLOCK ? LEAST_BLOCK : block > MOST_BLOCK ? MOST_BLOCK : block;
}

// Does part(args, begin, end) on all of `size`, of which each is `weight` elements, in threads where that pays.
void in_threads(void (*part)(const KernelArgs &, u64, u64), const KernelArgs &args, u64 size, u64 weight)
{
    const u64 worth = size * weight / (PARALLEL_FROM / 2);
    u64 threads = args.threads < worth ? args.threads : worth;
    if (threads > u64(MOST_HELPERS) + 1)
        threads = MOST_HELPERS + 1;
    Helpers *own = nullptr;
    if (threads > 1) {
        own = helpers;
        if (!own) {
            Helpers *fresh = new (std::nothrow) Helpers, *none = nullptr;
            if (helpers.compare_exchange_strong(none, fresh)) {
                own = fresh;
            } else {
                delete fresh;
                own = none;
            }
        }
    }
    // another update that comes meanwhile works alone
    if (!own || own->in_use.test_and_set()) {
        part(args, 0, size);
        return;
    }
    const u64 block = block_of(size * weight, threads) / weight;
    own->run(part, args, size, block ? block : 1, threads);
    own->in_use.clear();
}

// ---- the module ----------------------------------------------------------------------------------------------------

const KernelArgs *args_at(PyObject *address)
{
    return static_cast<const KernelArgs *>(PyLong_AsVoidPtr(address));
}

// Calls without the lock of the interpreter where the work is long enough for another thread to use it.
template <class Call>
PyObject *called(const KernelArgs *args, Call call)
{
    if (!args && PyErr_Occurred())
        return nullptr;
    if (args->size < PARALLEL_FROM / 2) {
        call();
    } else {
        Py_BEGIN_ALLOW_THREADS
        call();
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

PyObject *update(PyObject *, PyObject *address)
{
    const KernelArgs *args = args_at(address);
    return called(args, [&] { in_threads(loops->update, *args, args->size, 1); });
}

PyObject *sum(PyObject *, PyObject *address)
{
    const KernelArgs *args = args_at(address);
    return called(args, [&] {
        in_threads(loops->sum, *args, args->chunkCount, CHUNK);
        loops->conclude(*args);
    });
}

PyObject *operate(PyObject *, PyObject *address)
{
    const KernelArgs *args = args_at(address);
    return called(args, [&] { loops->operate(*args); });
}

PyObject *update_part(PyObject *, PyObject *arguments)
{
    PyObject *address;
    u64 begin, end;
    if (!PyArg_ParseTuple(arguments, "OKK", &address, &begin, &end))
        return nullptr;
    const KernelArgs *args = args_at(address);
    return called(args, [&] { loops->update(*args, begin, end); });
}

PyObject *instruction_set_names(PyObject *, PyObject *)
{
    PyObject *names = PyList_New(0);
    for (const InstructionSet *each = instruction_sets(); names && each->name; ++each) {
        PyObject *name = PyUnicode_FromString(each->name);
        if (!name || PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyObject *use(PyObject *, PyObject *name)
{
    for (const InstructionSet *each = instruction_sets(); each->name; ++each) {
        if (PyUnicode_CompareWithASCIIString(name, each->name) == 0) {
            loops = each->loops;
            Py_RETURN_NONE;
        }
    }
    PyErr_Format(PyExc_ValueError, "this processor has no instruction set %R", name);
    return nullptr;
}

PyObject *in_use(PyObject *, PyObject *)
{
    const InstructionSet *each = instruction_sets();
    while (each->loops != loops)
        ++each;
    return PyUnicode_FromString(each->name);
}

// The cores that this process may run on; 0 where the system does not say.
PyObject *cores(PyObject *, PyObject *)
{
    long count = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        count = CPU_COUNT(&set);
#endif
    return PyLong_FromLong(count);
}

PyObject *layout(PyObject *, PyObject *)
{
    static const u64 numbers[] = LAYOUT_NUMBERS;
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(numbers), sizeof numbers);
}

PyObject *sources(PyObject *, PyObject *) { return PyUnicode_FromString(SOURCES); }

PyMethodDef methods[] = {
    {"update", update, METH_O, "Runs the rule once over every segment."},
    {"update_part", update_part, METH_VARARGS, "Runs the rule over some of the elements, counted through all segments."},
    {"sum", sum, METH_O, "Fills the statistics of the gradients."},
    {"operate", operate, METH_O, "Does the operations to the gradients, in place."},
    {"instruction_sets", instruction_set_names, METH_NOARGS, "Names of the instruction sets to choose from, the best last."},
    {"use", use, METH_O, "Chooses an instruction set by name."},
    {"in_use", in_use, METH_NOARGS, "The name of the instruction set that is in use."},
    {"cores", cores, METH_NOARGS, "How many cores this process may run on; 0 where the system does not say."},
    {"layout", layout, METH_NOARGS, "LAYOUT_NUMBERS as 64-bit integers."},
    {"same_arrays", same_arrays, METH_VARARGS, "Whether the values of a dict of dicts are the objects of a list."},
    {"sources", sources, METH_NOARGS, "The SHA-256 of the sources that this was compiled from."},
    {nullptr, nullptr, 0, nullptr},
};

int execute(PyObject *)
{
    static bool once = false;
    if (once)
        return 0;
    once = true;
    const InstructionSet *best = instruction_sets();
    while (best[1].name)
        ++best;
    loops = best->loops;
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, forget_helpers);
#endif
    return 0;
}

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(execute)},
#if defined(Py_GIL_DISABLED)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "The loops of cpu_loops.cpp.", 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace puzzlelib_rmsprop

PyMODINIT_FUNC PyInit__cpu() { return PyModuleDef_Init(&puzzlelib_rmsprop::definition); }
