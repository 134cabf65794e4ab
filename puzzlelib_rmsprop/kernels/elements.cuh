// How the threads of a block go over the elements of a segment: which are whose, and vectors of them in one load.
#pragma once
#include "rule.h"

namespace puzzlelib_rmsprop {
namespace KERNEL_NAMESPACE {

constexpr int THREADS = LANES;  // of a block
static_assert(CHUNK % THREADS == 0, "a chunk has every lane as often, and is aligned as its segment is");

// Memory at an address out of a table. It is global memory, which the compiler cannot know: it would take slower loads.
template <class T>
__device__ __forceinline__ T *global(u64 address)
{
    return static_cast<T *>(__cvta_global_to_generic(address));
}

// N elements of T, at most 16 bytes, as one word in registers.
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

// Elements from an address to the first one that is aligned for a vector.
template <int N, class T>
__device__ __forceinline__ u32 ahead(const T *address)
{
    return (N - u32(u64(address)) / sizeof(T) % N) % N;
}
constexpr u32 NEVER = ~u32(0);

// Elements [0, n) shared among `threads` threads, of which this is number `thread`: work.at<N>(i) does N of them from
// the i-th on. From element `aligned` on they are aligned for vectors; NEVER: nowhere.
template <int N, class Work>
__device__ __forceinline__ void share(const Work &work, u32 aligned, u32 n, u32 thread, u32 threads)
{
    const u32 first = aligned != NEVER && aligned < n ? aligned : n;
    const u32 last = n - (n - first) % N;
    for (u32 i = first + thread * N; i < last; i += threads * N)
        work.template at<N>(i);
    // what is left in front of the vectors and behind them
    const u32 between = last - first;
    for (u32 i = thread; i < n - between; i += threads)
        work.template at<1>(i < first ? i : i + between);
}

// Where a chunk begins in its segment, and how many elements it has.
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
