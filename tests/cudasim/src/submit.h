// How other libraries (cuBLAS) queue work. Exported by libcuda.so.1.
#pragma once
#include <cuda.h>

#include <cstddef>

extern "C" {
// Queues run(data) on a stream. Either run is called exactly once, or drop(data) if the work never runs.
CUresult cusim_submit(CUstream stream, const char *name, CUresult (*run)(void *), void *data, void (*drop)(void *));
// Checks an operand like accesses of a kernel: columns of width bytes, pitch bytes apart.
CUresult cusim_operand(const char *name, const void *start, size_t width, size_t columns, size_t pitch, int write);
}
