// The structs that Python fills in and the kernels read, on the CPU and in CUDA alike.
//
// layout.py has the same structs as NumPy dtypes; their sizes and offsets are compared when a library or module is loaded.

#pragma once

#include <cstddef>

namespace puzzlelib_rmsprop {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr int MAX_OPERATIONS = 8;  // on a gradient, in one step

// Hyper-parameters, in the precision of Python. alpha is one that the arithmetic's dtype can hold, beta is 1 - alpha and
// gain alpha*(1 - alpha). RMSProp that is not centered has beta = 0 and gain = 1 - alpha.
struct Hyper {
    double learnRate, alpha, beta, gain, momRate, epsilon;
};

// One variable, or one stretch of a flat buffer: contiguous arrays that nothing else overlaps.
struct Segment {
    u64 param, grad, mg, variance, delta;  // addresses
    u64 master;                            // address of a float32 copy of 16-bit parameters, or 0
    u64 size;                              // elements
    u64 begin;                             // elements of all segments before this one
    u64 first;                             // index of the first element within its variable
    double learnRate, momRate;             // factors on those of Hyper
    double wc;                             // the variable's factor on weight decay
    u32 key;                               // names the variable, for random rounding
    u32 kind;                              // its dtypes: an index to KINDS in layout.py
    u64 hyper;                             // its hyper-parameters: an index
};

// Elements [index*CHUNK, (index + 1)*CHUNK) of a segment.
struct Chunk {
    u32 segment, index;
};
constexpr int CHUNK = 8192;

// An operation on a gradient g of a parameter p. SCALE: g*value, and times the double at `address` where that is not 0.
// CLIP: at least `value`, at most `other`. DECAY: g + value*wc*p, LASSO: g + value*wc*sign(p), both where wc is above 0.
struct Operation {
    u64 kind;
    double value, other;
    u64 address;
};
constexpr u32 SCALE = 0, CLIP = 1, DECAY = 2, LASSO = 3, NOTHING = 4;

struct Operations {
    u64 count;
    Operation operation[MAX_OPERATIONS];
};

// What a step does besides the rule.
struct StepOptions {
    u64 skip;      // address of a u32, or 0; where it is not 0, nothing is updated
    u32 seed[2];   // of the step, for random rounding
    u64 zeroGrad;  // whether gradients are set to zero after they were read, skipped or not
    Operations operations;
};

// A sum of squares in double that cannot overflow where its root does not: squares of numbers from LARGE on are summed
// apart, scaled down.
struct SquareSum {
    double sum, large;
    u64 bad;  // whether a square is infinite or NaN in the arithmetic's dtype
};

// What is known of all gradients of a step together, and what follows from it.
struct Statistics {
    double norm;
    double factor;   // brings the norm to the limit
    double scale;    // the loss scale of the next step
    double unscale;  // 1/scale of this one
    u32 bad, good;   // whether this step is bad; good steps since the scale last moved
    u64 skipped;     // bad steps so far
};

// The limit of the norm, and how the loss scale moves; interval 0: not at all.
struct ScalingPolicy {
    double limit, growth, backoff, least, most;
    u64 interval;
};

// The arguments of the CPU's library. `partials` and what follows are for statistics.
struct KernelArgs {
    u64 segments, hypers;  // addresses
    u64 count;             // segments
    u64 size;              // elements of all segments
    u64 threads;
    StepOptions options;
    u64 chunks, partials, chunkCount, statistics;  // addresses and a number
    ScalingPolicy policy;
};

// What layout.py compares: of each struct the size and the offsets of its fields, and the numbers that both need to know.
#define LAYOUT_NUMBERS                                                                                              \
    {                                                                                                               \
        sizeof(Hyper), offsetof(Hyper, learnRate), offsetof(Hyper, alpha), offsetof(Hyper, beta),                   \
            offsetof(Hyper, gain), offsetof(Hyper, momRate), offsetof(Hyper, epsilon),                              \
            sizeof(Segment), offsetof(Segment, param), offsetof(Segment, grad), offsetof(Segment, mg),              \
            offsetof(Segment, variance), offsetof(Segment, delta), offsetof(Segment, master),                       \
            offsetof(Segment, size), offsetof(Segment, begin), offsetof(Segment, first),                            \
            offsetof(Segment, learnRate), offsetof(Segment, momRate), offsetof(Segment, wc),                        \
            offsetof(Segment, key), offsetof(Segment, kind), offsetof(Segment, hyper),                              \
            sizeof(Chunk), offsetof(Chunk, segment), offsetof(Chunk, index),                                        \
            sizeof(Operation), offsetof(Operation, kind), offsetof(Operation, value),                               \
            offsetof(Operation, other), offsetof(Operation, address),                                               \
            sizeof(Operations), offsetof(Operations, count), offsetof(Operations, operation),                       \
            sizeof(StepOptions), offsetof(StepOptions, skip), offsetof(StepOptions, seed),                          \
            offsetof(StepOptions, zeroGrad), offsetof(StepOptions, operations),                                     \
            sizeof(SquareSum), offsetof(SquareSum, sum), offsetof(SquareSum, large), offsetof(SquareSum, bad),      \
            sizeof(Statistics), offsetof(Statistics, norm), offsetof(Statistics, factor),                           \
            offsetof(Statistics, scale), offsetof(Statistics, unscale), offsetof(Statistics, bad),                  \
            offsetof(Statistics, good), offsetof(Statistics, skipped),                                              \
            sizeof(ScalingPolicy), offsetof(ScalingPolicy, limit), offsetof(ScalingPolicy, growth),                 \
            offsetof(ScalingPolicy, backoff), offsetof(ScalingPolicy, least), offsetof(ScalingPolicy, most),        \
            offsetof(ScalingPolicy, interval),                                                                      \
            sizeof(KernelArgs), offsetof(KernelArgs, segments), offsetof(KernelArgs, hypers),                       \
            offsetof(KernelArgs, count), offsetof(KernelArgs, size), offsetof(KernelArgs, threads),                 \
            offsetof(KernelArgs, options), offsetof(KernelArgs, chunks), offsetof(KernelArgs, partials),            \
            offsetof(KernelArgs, chunkCount), offsetof(KernelArgs, statistics), offsetof(KernelArgs, policy),       \
            MAX_OPERATIONS, CHUNK                                                                                   \
    }

}  // namespace puzzlelib_rmsprop
