// The CPU library, a Python extension module: instruction sets, threads, and the functions that cpu.py calls.
//
// These take the address of a KernelArgs and do not check it. The caller keeps the arrays alive, in place, contiguous and
// without overlap.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
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
bool has(int leaf_register, int bit)  // leaf_register: a register of CPUID leaf 7, 0 is ebx
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

// The instruction sets of this machine, the fastest last, terminated by a null name.
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

const Loops *loops;  // of the selected instruction set

// ---- threads -------------------------------------------------------------------------------------------------------

// Threads take blocks of elements until none is left, so that they end together even if another program uses a core.
constexpr u64 LEAST_BLOCK = 4096, MOST_BLOCK = 131072;
constexpr int MOST_HELPERS = 255;
// How long a helper spins before it sleeps: longer than the Python code between two calls, but too short to take a core from
// the rest of the training.
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

// Spins until a condition holds. Returns false after `most`.
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

// Runs one job at a time, in blocks that the caller and the helper threads take. The caller waits only for helpers that have
// begun, so a helper that wakes up late does not delay it.
class Helpers {
    typedef void Part(const KernelArgs &, u64, u64);

  public:
    // Calls part(args, begin, end) for the blocks of [0, size), in at most `threads` threads.
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
            // helpers must not handle the program's signals, only their own faults
            sigset_t all, before;
            sigfillset(&all);
            for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL})
                sigdelset(&all, fault);
            pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
            bool good = true;
            try {
                std::thread([this] { help(); }).detach();
            } catch (...) {  // no more threads can be started: use fewer
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
            // count this thread first, then check the job again: the caller closes the job first, then waits for this count
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

// Never freed, because helpers may outlive everything else. A forked child has no helpers and starts its own.
std::atomic<Helpers *> helpers{nullptr};

#if !defined(_WIN32)
void forget_helpers() { helpers = nullptr; }
#endif

u64 block_of(u64 size, u64 threads)
{
    const u64 block = size / (threads * 8) / 64 * 64;
    return block < LEAST_BLOCK ? LEAST_BLOCK : block > MOST_BLOCK ? MOST_BLOCK : block;
}

// Calls part(args, begin, end) for all of [0, size), in threads if that pays off. Each unit of `size` is `weight` elements.
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
    // a concurrent update runs in its own thread only
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

// Releases the interpreter lock (GIL) during the call if the work is long enough for other threads to benefit.
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

// Returns the number of cores that this process may use, or 0 if it is unknown.
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
    {"update", update, METH_O, "Updates every segment once."},
    {"update_part", update_part, METH_VARARGS, "Updates a range of elements, counted through all segments."},
    {"sum", sum, METH_O, "Writes the statistics of the gradients."},
    {"operate", operate, METH_O, "Applies the operations to the gradients, in place."},
    {"instruction_sets", instruction_set_names, METH_NOARGS, "Returns the names of the supported instruction sets."},
    {"use", use, METH_O, "Selects an instruction set by name."},
    {"in_use", in_use, METH_NOARGS, "Returns the name of the selected instruction set."},
    {"cores", cores, METH_NOARGS, "Returns the number of cores that this process may use, or 0 if unknown."},
    {"layout", layout, METH_NOARGS, "Returns LAYOUT_NUMBERS as 64-bit integers."},
    {"same_arrays", same_arrays, METH_VARARGS, "Returns whether the values of a dict of dicts are the objects of a list."},
    {"sources", sources, METH_NOARGS, "Returns the SHA-256 of the sources of this library."},
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
