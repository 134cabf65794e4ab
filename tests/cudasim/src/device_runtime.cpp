// Linked into every kernel module: the built-in variables, and the hooks that the compiler's instrumentation calls.
// The modules are compiled with -fsanitize=thread, which calls functions like __tsan_read4(address) before every access
// to memory that is not a plain local variable. Here these functions are the memory checker; libtsan is not used.
#include <cstring>

#include "device_abi.h"

using cusim::Host;

// code translated from PTX reads them itself: include/ptx_memory.h
extern "C" {
const Host *cusim_host = nullptr;
cusim::Window cusim_window = {0, 0, nullptr};
unsigned cusim_patience = 1u << 20;
}

namespace {

constexpr unsigned kPatience = 1u << 20;
const Host *&host = cusim_host;
cusim::Window &window = cusim_window;
unsigned &patience = cusim_patience;

template <class Word>
inline Word repeat(uint8_t byte) {
    return static_cast<Word>(~static_cast<Word>(0)) / 0xFF * byte;
}

// Word has as many bytes as the access, so that one comparison checks all of its shadow.
template <class Word, bool write>
inline void check(const void *address) {
    // Only before reads: an atomic operation is a read followed by a write, and nothing may come between.
    if (!write && --patience == 0) {
        patience = kPatience;
        if (host) host->spin();
    }
    uintptr_t offset = reinterpret_cast<uintptr_t>(address) - window.base;
    if (offset < window.size) {
        Word state;
        memcpy(&state, window.shadow + offset, sizeof state);
        const Word needed = repeat<Word>(write ? cusim::kAddressable : cusim::kWritten);
        if ((state & needed) == needed) {
            if (write) {
                const Word written = repeat<Word>(cusim::kWritten);
                memcpy(window.shadow + offset, &written, sizeof written);
            }
            return;
        }
    }
    if (host) host->access(address, sizeof(Word), write);
}

template <class Word, bool write>
void check_volatile(const void *address) {
    if (host) host->meet(cusim::Meeting::kVolatile, 0, reinterpret_cast<uintptr_t>(address), 0, nullptr);
    check<Word, write>(address);
}

void check_range(const void *address, size_t size, bool write) {
    if (host && size) host->access(address, size, write);
}

}  // namespace

extern "C" {

unsigned threadIdx[3], blockIdx[3], blockDim[3], gridDim[3];
alignas(1024) unsigned char cusim_dynamic_shared[227 * 1024];
cusim::Kernel *cusim_kernels = nullptr;

// The linker defines these if the module has __shared__ variables.
extern unsigned char __start_cusim_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cusim_shared[] __attribute__((weak, visibility("hidden")));

void cusim_meet(cusim::Meeting kind, uint32_t mask, uint64_t value, unsigned line, cusim::Gathered *result) {
    host->meet(kind, mask, value, line, result);
}
int cusim_lane() { return int(host->lane()); }
void cusim_trap(const char *file, unsigned line) { host->fail("__trap()", file, line); }

// called by a failed assert() of a kernel
void __assert_fail(const char *assertion, const char *file, unsigned line, const char *) noexcept {
    host->fail(assertion, file, line);
    __builtin_unreachable();
}

__attribute__((visibility("default"))) void cusim_module(cusim::Module *module) {
    *module = {cusim_kernels,
               &window,
               &host,
               threadIdx,
               blockIdx,
               blockDim,
               gridDim,
               cusim_dynamic_shared,
               sizeof cusim_dynamic_shared,
               __start_cusim_shared,
               __stop_cusim_shared};
}

#define CUSIM_ACCESS(size, Word)                                                                 \
    void __tsan_read##size(const void *p) { check<Word, false>(p); }                             \
    void __tsan_write##size(void *p) { check<Word, true>(p); }                                   \
    void __tsan_unaligned_read##size(const void *p) { check<Word, false>(p); }                   \
    void __tsan_unaligned_write##size(void *p) { check<Word, true>(p); }                         \
    void __tsan_volatile_read##size(const void *p) { check_volatile<Word, false>(p); }           \
    void __tsan_volatile_write##size(void *p) { check_volatile<Word, true>(p); }                 \
    void __tsan_unaligned_volatile_read##size(const void *p) { check_volatile<Word, false>(p); } \
    void __tsan_unaligned_volatile_write##size(void *p) { check_volatile<Word, true>(p); }

CUSIM_ACCESS(1, uint8_t)
CUSIM_ACCESS(2, uint16_t)
CUSIM_ACCESS(4, uint32_t)
CUSIM_ACCESS(8, uint64_t)
CUSIM_ACCESS(16, unsigned __int128)

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_read_range(const void *p, size_t n) { check_range(p, n, false); }
void __tsan_write_range(void *p, size_t n) { check_range(p, n, true); }

// -fsanitize=alignment is the only instrumentation that still sees a float4 after the compiler has split its access.
struct SourceLocation {
    const char *file;
    unsigned line, column;
};
struct TypeMismatch {
    SourceLocation location;
    void *type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch *data, const void *p) {
    if (host) host->misaligned(p, size_t(1) << data->log_alignment, data->location.file, data->location.line);
}

// Calls of the C library are not instrumented. The linker's --wrap redirects those of kernels to these functions.
void *__real_memcpy(void *, const void *, size_t);
void *__real_memmove(void *, const void *, size_t);
void *__real_memset(void *, int, size_t);
void *__wrap_memcpy(void *to, const void *from, size_t n) {
    check_range(from, n, false);
    check_range(to, n, true);
    return __real_memcpy(to, from, n);
}
void *__wrap_memmove(void *to, const void *from, size_t n) {
    check_range(from, n, false);
    check_range(to, n, true);
    return __real_memmove(to, from, n);
}
void *__wrap_memset(void *to, int value, size_t n) {
    check_range(to, n, true);
    return __real_memset(to, value, n);
}

}  // extern "C"
