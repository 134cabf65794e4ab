// Barriers, shuffles and votes of PTX, and thread indices. The translator (ptx/) writes calls of these functions.
#pragma once
#include "device_abi.h"
#include "ptx_memory.h"

extern "C" {  // device_runtime.cpp; const: a thread never sees them change
extern const unsigned threadIdx[3], blockIdx[3], blockDim[3], gridDim[3];
}

namespace ptx {

inline unsigned thread_number() { return threadIdx[0] + blockDim[0] * (threadIdx[1] + blockDim[1] * threadIdx[2]); }
inline unsigned lane() { return thread_number() % 32; }

inline cusim::Gathered meet(cusim::Meeting kind, uint32_t mask, uint64_t value, unsigned line) {
    cusim::Gathered all;
    fence();
    cusim_host->meet(kind, mask, value, line, &all);
    fence();
    return all;
}
inline void barrier(unsigned line) { meet(cusim::Meeting::kBlock, 0, 0, line); }
inline uint32_t barrier_count(bool p, unsigned line) { return meet(cusim::Meeting::kBlock, 0, p, line).count; }
inline bool barrier_or(bool p, unsigned line) { return barrier_count(p, line) != 0; }
inline bool barrier_and(bool p, unsigned line) {
    const cusim::Gathered all = meet(cusim::Meeting::kBlock, 0, p, line);
    return all.count == all.threads;
}
inline void warp_barrier(uint32_t mask, unsigned line) { meet(cusim::Meeting::kWarp, mask, 0, line); }

enum Shuffle { UP, DOWN, BFLY, IDX };
// `in_range`: whether the requested lane is in the caller's segment. If it is not, the result is the caller's value.
template <Shuffle S>
inline uint32_t shuffle(uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool &in_range, unsigned line) {
    const cusim::Gathered all = meet(cusim::Meeting::kWarp, mask, value, line);
    const int self = int(lane()), by = b & 31, clamp = c & 31, segment = c >> 8 & 31;
    const int most = (self & segment) | (clamp & ~segment), least = self & segment;
    int from = self;
    switch (S) {
        case UP: from = self - by, in_range = from >= most; break;
        case DOWN: from = self + by, in_range = from <= most; break;
        case BFLY: from = self ^ by, in_range = from <= most; break;
        case IDX: from = least | (by & ~segment), in_range = from <= most; break;
    }
    return uint32_t(all.value[in_range ? from : self]);  // undefined for lanes that do not participate
}

inline uint32_t ballot(bool p, uint32_t mask, unsigned line) {
    const cusim::Gathered all = meet(cusim::Meeting::kWarp, mask, p, line);
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++) votes |= uint32_t((all.participants >> i & 1) && all.value[i]) << i;
    return votes;
}
inline bool any(bool p, uint32_t mask, unsigned line) { return ballot(p, mask, line) != 0; }
inline bool all(bool p, uint32_t mask, unsigned line) { return ballot(!p, mask, line) == 0; }
inline bool uniform(bool p, uint32_t mask, unsigned line) {
    const cusim::Gathered found = meet(cusim::Meeting::kWarp, mask, p, line);
    for (int i = 0; i < 32; i++)
        if ((found.participants >> i & 1) && bool(found.value[i]) != p) return false;
    return true;
}
inline uint32_t match_any(uint64_t value, uint32_t mask, unsigned line) {
    const cusim::Gathered found = meet(cusim::Meeting::kWarp, mask, value, line);
    uint32_t same = 0;
    for (int i = 0; i < 32; i++) same |= uint32_t((found.participants >> i & 1) && found.value[i] == value) << i;
    return same;
}
inline uint32_t match_all(uint64_t value, uint32_t mask, bool &is_same, unsigned line) {
    const cusim::Gathered found = meet(cusim::Meeting::kWarp, mask, value, line);
    is_same = true;
    for (int i = 0; i < 32; i++)
        if ((found.participants >> i & 1) && found.value[i] != value) is_same = false;
    return is_same ? found.participants : 0;
}
template <class Operation, class T>
inline T reduced(T value, uint32_t mask, unsigned line) {
    const cusim::Gathered found = meet(cusim::Meeting::kWarp, mask, uint64_t(uint32_t(value)), line);
    T result = value;
    bool first = true;
    for (int i = 0; i < 32; i++) {
        if (!(found.participants >> i & 1)) continue;
        result = first ? T(found.value[i]) : Operation::next(result, T(found.value[i]));
        first = false;
    }
    return result;
}
// Any set of lanes with the caller is a legal answer; the smallest one exposes wrong assumptions.
inline uint32_t active_lanes() { return 1u << lane(); }
inline void trap(const Memory &memory, unsigned line) { cusim_host->fail("trap", memory.kernel, line); }

}  // namespace ptx
