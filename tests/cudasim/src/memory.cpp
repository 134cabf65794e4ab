// Device, managed and pinned memory: allocation, shadow bytes, and lookup of addresses.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "state.h"

namespace cusim {
namespace {

constexpr size_t kCapacity = size_t(256) << 30;  // address space only; pages are allocated at the first write
constexpr size_t kSmallest = size_t(1) << 30;    // if the machine limits the address space
constexpr size_t kAlignment = 512;
constexpr size_t kPoisoned = size_t(64) << 20;  // larger allocations are only marked in the shadow
constexpr size_t kRemembered = 4096;            // freed allocations that reports can name
constexpr unsigned char kPoison = 0xCD;

uint64_t allocation_number = 0;

void *reserve(size_t size) {
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Clears a range and releases its whole pages, so that freed arrays do not occupy memory.
void clear(uintptr_t begin, size_t size) {
    uintptr_t end = begin + size, first = round_up(begin, 4096), last = end / 4096 * 4096;
    if (first < last) {
        madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
        memset(reinterpret_cast<void *>(begin), 0, first - begin);
        memset(reinterpret_cast<void *>(last), 0, end - last);
    } else {
        memset(reinterpret_cast<void *>(begin), 0, size);
    }
}

const char *kind_name(Kind kind) {
    switch (kind) {
        case Kind::kManaged:
            return "managed";
        case Kind::kPinned:
            return "pinned";
        case Kind::kGlobal:
            return "module";
        default:
            return "device";
    }
}

std::string name_of(const Allocation &a) {
    return format("%s allocation #%llu of context %d on device %d (%zu bytes at 0x%zx)", kind_name(a.kind),
                  static_cast<unsigned long long>(a.number), a.context_number, a.device, a.size, a.base);
}

}  // namespace

Arena::Arena() : capacity(kCapacity) {
    void *memory = reserve(2 * capacity);  // the shadow is the upper half
    while (!memory && capacity > kSmallest) memory = reserve(2 * (capacity /= 2));
    if (!memory) {
        perror("cusim: cannot reserve address space");
        abort();
    }
    base = reinterpret_cast<uintptr_t>(memory);
    shadow = static_cast<uint8_t *>(memory) + capacity;
    cursor = base + kAlignment;
}

Arena::~Arena() { munmap(reinterpret_cast<void *>(base), 2 * capacity); }

uintptr_t Arena::allocate(size_t size, Kind kind, Context *context, unsigned flags) {
    // Leave a gap as large as the allocation, within limits, so that a wrong stride does not hit the next one.
    const size_t room = round_up(size + std::clamp(size, size_t(4096), size_t(256) << 20), kAlignment);
    const uintptr_t end = base + capacity - kAlignment;
    uintptr_t start = 0;
    if (room < end - cursor) {
        start = cursor;
        cursor += room;
    } else {  // the address space is exhausted: use the first gap between live allocations
        uintptr_t gap = base + kAlignment;
        for (const auto &[address, allocation] : live) {
            if (address >= gap && address - gap >= room) break;
            gap = round_up(address + allocation.size + 4096, kAlignment);
        }
        if (gap > end || end - gap < room) return 0;
        start = gap;
    }
    live[start] = {start, size, kind, context, context->number, context->device, flags, ++allocation_number};
    const bool host_writes = kind != Kind::kDevice;  // writes of the host are not tracked: such memory is treated as written
    if (settings.check) memset(shadow_of(start), host_writes ? kWritten : kAddressable, size);
    if (size <= kPoisoned) memset(reinterpret_cast<void *>(start), kPoison, size);
    return start;
}

void Arena::release(uintptr_t start) {
    auto it = live.find(start);
    if (it == live.end()) return;
    clear(start, it->second.size);
    if (settings.check) clear(reinterpret_cast<uintptr_t>(shadow_of(start)), it->second.size);
    freed.push_back(it->second);
    if (freed.size() > kRemembered) freed.pop_front();
    live.erase(it);
}

const Allocation *Arena::find(uintptr_t address, size_t size) const {
    auto it = live.upper_bound(address);
    if (it == live.begin()) return nullptr;
    const Allocation &a = std::prev(it)->second;
    const size_t offset = address - a.base;
    return offset <= a.size && size <= a.size - offset && (offset < a.size || size == 0) ? &a : nullptr;
}

std::string Arena::describe(uintptr_t address) const {
    auto within = [address](const Allocation &a) { return address - a.base < a.size; };
    auto next = live.upper_bound(address);
    const Allocation *before = next == live.begin() ? nullptr : &std::prev(next)->second;
    if (before && within(*before)) return format("%zu bytes into ", address - before->base) + name_of(*before);
    auto old = std::find_if(freed.rbegin(), freed.rend(), within);
    if (old != freed.rend()) return format("%zu bytes into the freed ", address - old->base) + name_of(*old);
    const Allocation *after = next == live.end() ? nullptr : &next->second;
    const size_t past = before ? address - (before->base + before->size) : SIZE_MAX;
    const size_t short_of = after ? after->base - address : SIZE_MAX;
    if (!before && !after) return "no allocation is near";
    if (past <= short_of) return format("%zu bytes past the end of ", past) + name_of(*before);
    return format("%zu bytes before ", short_of) + name_of(*after);
}

bool Arena::check(uintptr_t address, size_t size, bool write, const char **why) const {
    uint8_t *state = shadow_of(address);
    const uint8_t needed = write ? kAddressable : kWritten;
    for (size_t i = 0; i < size; i++) {
        if (i >= base + capacity - address || !(state[i] & kAddressable)) {
            *why = "outside every allocation";
            return false;
        }
        if ((state[i] & needed) != needed) {
            *why = "never written before";
            return false;
        }
    }
    if (write) memset(state, kWritten, size);
    return true;
}

Arena &shared_arena() {
    static Arena *arena = new Arena;  // never freed, because pinned arrays are freed late
    return *arena;
}

std::map<uintptr_t, size_t> registered;

bool is_page_locked(uintptr_t address, size_t size) {
    if (shared_arena().holds(address)) return shared_arena().find(address, size) != nullptr;
    auto it = registered.upper_bound(address);
    if (it == registered.begin()) return false;
    --it;
    return address - it->first < it->second && size <= it->second - (address - it->first);
}

const Allocation *find_allocation(uintptr_t address, size_t size) {
    if (shared_arena().holds(address)) return shared_arena().find(address, size);
    for (Context *context : contexts) {
        if (context->arena.holds(address)) return context->arena.find(address, size);
        for (LoadedModule *module : context->modules) {
            auto it = module->globals.upper_bound(address);
            if (it == module->globals.begin()) continue;
            const Allocation &a = std::prev(it)->second;
            if (address - a.base < a.size && size <= a.size - (address - a.base)) return &a;
        }
    }
    return nullptr;
}

CUresult usable(Context *context, uintptr_t address, size_t size, const char *call) {
    const Allocation *a = find_allocation(address, size);
    const bool own = a && (a->context == context || context->peers.count(a->context) || a->kind == Kind::kManaged ||
                           a->kind == Kind::kPinned);
    if (own) return CUDA_SUCCESS;
    std::string where = "host memory or no memory at all";
    if (a) {
        where = name_of(*a) + ", which belongs to another context: peer access is not enabled";
    } else {
        for (Context *c : contexts)
            if (c->arena.holds(address)) where = c->arena.describe(address);
        if (shared_arena().holds(address)) where = shared_arena().describe(address);
    }
    return fault(CUDA_ERROR_INVALID_VALUE, format("%s: %zu bytes at 0x%zx in context %d: %s", call, size, address,
                                                  context->number, where.c_str()));
}

static Arena *arena_of(uintptr_t address) {
    if (shared_arena().holds(address)) return &shared_arena();
    for (Context *context : contexts)
        if (context->arena.holds(address)) return &context->arena;
    return nullptr;
}

void mark_written(uintptr_t address, size_t size) {
    Arena *arena = settings.check ? arena_of(address) : nullptr;
    if (arena) memset(arena->shadow_of(address), kWritten, size);
}

void copy_bytes(uintptr_t to, uintptr_t from, size_t size) {
    memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), size);
    if (!settings.check) return;
    Arena *target = arena_of(to), *source = arena_of(from);
    if (target && source) {
        memmove(target->shadow_of(to), source->shadow_of(from), size);
    } else if (target) {
        memset(target->shadow_of(to), kWritten, size);
    } else if (source) {
        const uint8_t *state = source->shadow_of(from);
        counters.uninitialised_to_host += size - std::count(state, state + size, uint8_t(kWritten));
    }
}

}  // namespace cusim
