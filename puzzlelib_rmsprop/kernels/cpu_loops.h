// The functions that cpu.cpp calls, one set for each instruction set.

#pragma once

#include "layout.h"

namespace puzzlelib_rmsprop {

struct Loops {
    // Updates elements [begin, end), counted through all segments in order.
    void (*update)(const KernelArgs &args, u64 begin, u64 end);
    // Computes the sums of squares of chunks [begin, end).
    void (*sum)(const KernelArgs &args, u64 begin, u64 end);
    // Adds the sums of the chunks and writes the statistics.
    void (*conclude)(const KernelArgs &args);
    // Applies the operations to the gradients of all segments, in place.
    void (*operate)(const KernelArgs &args);
};

namespace baseline {
extern const Loops loops;
}
namespace avx2 {
extern const Loops loops;
}
namespace avx512 {
extern const Loops loops;
}

}  // namespace puzzlelib_rmsprop
