// The structs that Python writes and the kernels read, on the CPU and in CUDA.
//
// layout.py parses this file to make NumPy dtypes of the structs. Sizes and offsets are compared when the CPU library is
// loaded.

#pragma once

#include <cstddef>

namespace puzzlelib_rmsprop {

typedef unsigned long long u64;
typedef unsigned int u32;

constexpr int MAX_OPERATIONS = 8;  // on a gradient, in one step

// Squares are summed in lanes, so that the order of additions is the same on every device. The lane of an element is its
// index within its chunk modulo LANES, the lane of a chunk is its index modulo CHUNK_LANES.
constexpr int LANES = 256;
constexpr int CHUNK_LANES = 512;

// 8-bit state: BLOCK elements of a variable share scales, one byte for each of the STATES arrays (mg, variance, delta).
constexpr int BLOCK = 64;
constexpr int STATES = 3;

constexpr int PARALLEL_FROM = 32768;  // the number of elements from which a second CPU thread pays off

// Hyper-parameters in double precision. alpha is rounded to the dtype of the arithmetic, beta is 1 - alpha, and gain is
// alpha*(1 - alpha). If RMSProp is not centered, beta is 0 and gain is 1 - alpha.
struct Hyper {
    double learnRate, alpha, beta, gain, momRate, epsilon;
};

// One variable, or a part of a flat buffer. The arrays are contiguous and do not overlap.
struct Segment {
    u64 param, grad, mg, variance, delta;  // addresses
    u64 scales;                            // address of the scales of 8-bit state, or 0
    u64 master;                            // address of float32 master weights of 16-bit parameters, or 0
    u64 size;                              // number of elements
    u64 begin;                             // number of elements in all previous segments
    u64 first;                             // index of the first element within its variable
    double learnRate, momRate;             // factors on the rates of Hyper
    double wc;                             // the variable's factor on weight decay
    u32 key;                               // identifies the variable, for stochastic rounding
    u32 kind;                              // dtypes: an index into KINDS in layout.py
    u64 group;                             // index of its hyper-parameters and options
};

// Elements [index*CHUNK, (index + 1)*CHUNK) of a segment.
struct Chunk {
    u32 segment, index;
};
constexpr int CHUNK = 8192;

// An operation on the gradient g of a parameter p. SCALE: g*value, also multiplied by the double at `address` unless that is
// 0. CLIP: clips g to [value, other]. DECAY: g + value*wc*p; LASSO: g + value*wc*sign(p); both only if wc > 0.
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

// Options of a step in addition to the hyper-parameters.
struct StepOptions {
    u64 skip;      // address of a u32, or 0; if that number is not 0, nothing is updated
    u32 seed[2];   // of this step, for stochastic rounding
    u64 zeroGrad;  // whether gradients are set to zero after they are read, also in a skipped step
    double decay;  // decoupled weight decay, multiplied by the learning rates and wc
    Operations operations;
};

// A sum of squares in double that does not overflow unless its square root does: squares of numbers >= LARGE (rule.h) are
// scaled down and summed separately.
struct SquareSum {
    double sum, large;
    u64 bad;  // whether a square is infinite or NaN in the arithmetic's dtype
};

// Statistics of all gradients of a step. A step is bad if the square of a gradient is infinite or NaN.
struct Statistics {
    double norm;
    double factor;   // scales the gradients to the limit of the norm
    double scale;    // loss scale of the next step
    double unscale;  // 1/scale of this step
    u32 bad;         // number of consecutive bad steps up to this one; 0 if this one is good
    u32 good;        // number of good steps since the scale last changed
    u64 skipped;     // number of bad steps so far
};

// The limit of the norm, and how the loss scale changes. If interval is 0, the scale is constant.
struct ScalingPolicy {
    double limit, growth, backoff, least, most;
    u64 interval;
};

// The arguments of the CPU library. Fields from `chunks` on are for statistics.
struct KernelArgs {
    // addresses; each group has two Hyper, for arithmetic in float and in double, and one StepOptions
    u64 segments, hypers, options;
    u64 count;  // number of segments
    u64 size;   // number of elements in all segments
    u64 threads;
    u64 chunks, partials, chunkCount, statistics;  // addresses, and the number of chunks
    ScalingPolicy policy;
};

// Compared with layout.py: the size of each struct and the offsets of its fields, in order, then constants.
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
