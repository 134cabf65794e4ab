// The structs that Python fills in and the kernels read, on the CPU and in CUDA alike.
//
// layout.py reads this file and makes NumPy dtypes of the structs; sizes and offsets are compared when a library or module
// is loaded.

#pragma once

#include <cstddef>

namespace puzzlelib_rmsprop {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr int MAX_OPERATIONS = 8;  // on a gradient, in one step

// A sum of squares goes by lane: the index of an element within its chunk modulo LANES, of a chunk modulo CHUNK_LANES.
constexpr int LANES = 256;
constexpr int CHUNK_LANES = 512;

// State in 8 bits: every BLOCK elements of a variable share scales, one byte for each of its STATES (mg, variance, delta).
constexpr int BLOCK = 64;
constexpr int STATES = 3;

constexpr int PARALLEL_FROM = 32768;  // elements from which on a further thread of the CPU is worth its while

// Hyper-parameters, in the precision of Python. alpha is one that the arithmetic's dtype can hold, beta is 1 - alpha and
// gain alpha*(1 - alpha). RMSProp that is not centered has beta = 0 and gain = 1 - alpha.
struct Hyper {
    double learnRate, alpha, beta, gain, momRate, epsilon;
};

// One variable, or one part of a flat buffer: contiguous arrays that nothing else overlaps.
struct Segment {
    u64 param, grad, mg, variance, delta;  // addresses
    u64 scales;                            // address of those of state in 8 bits, or 0
    u64 master;                            // address of a float32 copy of 16-bit parameters, or 0
    u64 size;                              // elements
    u64 begin;                             // elements of all segments before this one
    u64 first;                             // index of the first element within its variable
    double learnRate, momRate;             // factors on those of Hyper
    double wc;                             // the variable's factor on weight decay
    u32 key;                               // names the variable, for random rounding
    u32 kind;                              // its dtypes: an index to KINDS in layout.py
    u64 group;                             // its hyper-parameters and options: an index
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
    double decay;  // of parameters: times the learning rates and wc, the part that they lose of themselves
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
    u32 bad;         // bad steps in a row, this one the last of them; 0 where it is good
    u32 good;        // good steps since the scale last moved
    u64 skipped;     // bad steps so far
};

// The limit of the norm, and how the loss scale moves; interval 0: not at all.
struct ScalingPolicy {
    double limit, growth, backoff, least, most;
    u64 interval;
};

// The arguments of the CPU's library. `partials` and what follows are for statistics.
struct KernelArgs {
    // addresses: of a group there are two Hyper, for arithmetic in float and in double, and one StepOptions
    u64 segments, hypers, options;
    u64 count;  // segments
    u64 size;   // elements of all segments
    u64 threads;
    u64 chunks, partials, chunkCount, statistics;  // addresses and a number
    ScalingPolicy policy;
};

// What layout.py compares: of each struct the size and the offsets of its fields, in order, and the numbers.
#define AT(STRUCT, FIELD) offsetof(STRUCT, FIELD)
#define LAYOUT_NUMBERS                                                                                                  \
    {                                                                                                                   \
        sizeof(Hyper), AT(Hyper, learnRate), AT(Hyper, alpha), AT(Hyper, beta), AT(Hyper, gain), AT(Hyper, momRate),    \
            AT(Hyper, epsilon), sizeof(Segment), AT(Segment, param), AT(Segment, grad), AT(Segment, mg),                \
            AT(Segment, variance), AT(Segment, delta), AT(Segment, scales), AT(Segment, master), AT(Segment, size), AT(Segment, begin),      \
            AT(Segment, first), AT(Segment, learnRate), AT(Segment, momRate), AT(Segment, wc), AT(Segment, key),        \
            AT(Segment, kind), AT(Segment, group), sizeof(Chunk), AT(Chunk, segment), AT(Chunk, index),                 \
            sizeof(Operation), AT(Operation, kind), AT(Operation, value), AT(Operation, other), AT(Operation, address), \
            sizeof(Operations), AT(Operations, count), AT(Operations, operation), sizeof(StepOptions),                  \
            AT(StepOptions, skip), AT(StepOptions, seed), AT(StepOptions, zeroGrad), AT(StepOptions, decay),            \
            AT(StepOptions, operations),                                                                                \
            sizeof(SquareSum), AT(SquareSum, sum), AT(SquareSum, large), AT(SquareSum, bad), sizeof(Statistics),        \
            AT(Statistics, norm), AT(Statistics, factor), AT(Statistics, scale), AT(Statistics, unscale),               \
            AT(Statistics, bad), AT(Statistics, good), AT(Statistics, skipped), sizeof(ScalingPolicy),                  \
            AT(ScalingPolicy, limit), AT(ScalingPolicy, growth), AT(ScalingPolicy, backoff), AT(ScalingPolicy, least),  \
            AT(ScalingPolicy, most), AT(ScalingPolicy, interval), sizeof(KernelArgs), AT(KernelArgs, segments),         \
            AT(KernelArgs, hypers), AT(KernelArgs, options), AT(KernelArgs, count), AT(KernelArgs, size),               \
            AT(KernelArgs, threads), AT(KernelArgs, chunks), AT(KernelArgs, partials), AT(KernelArgs, chunkCount),      \
            AT(KernelArgs, statistics), AT(KernelArgs, policy), MAX_OPERATIONS, CHUNK, BLOCK                            \
    }

}  // namespace puzzlelib_rmsprop
