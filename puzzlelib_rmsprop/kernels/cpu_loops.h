// What cpu.cpp calls: one copy of the loops for each instruction set.

#pragma once

#include "layout.h"

namespace puzzlelib_rmsprop {

struct Loops {
    // Updates elements [begin, end) of the segments, counted through all of them in order.
    void (*update)(const KernelArgs &args, u64 begin, u64 end);
    // The sums of squares of chunks [begin, end).
    void (*sum)(const KernelArgs &args, u64 begin, u64 end);
    // Adds the chunks' sums up and draws the conclusions.
    void (*conclude)(const KernelArgs &args);
    // Operations on the gradients of the segments, in place.
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
