// How the threads of a block share the elements of a segment, and vector loads and stores.
#pragma once
#include "rule.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

constexpr int THREADS = LANES;  // per block
static_assert(CHUNK % THREADS == 0, "a chunk has the same number of elements in every lane, and its segment's alignment");

// Returns a pointer to global memory. The compiler cannot tell the memory space of an address and would use slower loads.
template <class T>
__device__ __forceinline__ T *global(u64 address)
{
    return static_cast<T *>(__cvta_global_to_generic(address));
}

// N elements of T (at most 16 bytes) that are loaded and stored by one instruction.
template <class T, int N>
struct Pack {
    struct alignas(N * sizeof(T)) Word {
        T item[N];
    };
    Word word;

    __device__ __forceinline__ void load(const T *from) { word = *reinterpret_cast<const Word *>(from); }
    __device__ __forceinline__ void store(T *to) const { *reinterpret_cast<Word *>(to) = word; }
    __device__ __forceinline__ T &operator[](int i) { return word.item[i]; }
};

// Returns the number of elements from an address to the first one that is aligned for a vector of N.
template <int N, class T>
__device__ __forceinline__ u32 ahead(const T *address)
{
    return (N - u32(u64(address)) / sizeof(T) % N) % N;
}
constexpr u32 NEVER = ~u32(0);

// Divides elements [0, n) among `threads` threads, of which this is number `thread`. work.at<N>(i) processes the N elements
// from i on. Element `aligned` is the first one aligned for vectors; NEVER: there is none.
template <int N, class Work>
__device__ __forceinline__ void share(const Work &work, u32 aligned, u32 n, u32 thread, u32 threads)
{
    const u32 first = aligned != NEVER && aligned < n ? aligned : n;
    const u32 last = n - (n - first) % N;
    for (u32 i = first + thread * N; i < last; i += threads * N)
        work.template at<N>(i);
    // the elements before and after the vectors
    const u32 between = last - first;
    for (u32 i = thread; i < n - between; i += threads)
        work.template at<1>(i < first ? i : i + between);
}

// The first element of a chunk within its segment, and its number of elements.
struct Part {
    u64 begin;
    u32 size;

    __device__ __forceinline__ Part(const Chunk &chunk, const Segment &segment) : begin(u64(chunk.index) * CHUNK)
    {
        const u64 left = segment.size - begin;
        size = left < CHUNK ? u32(left) : CHUNK;
    }
};

}  // namespace KERNEL_NAMESPACE
}  // namespace puzzlelib_rmsprop
