// How the libraries beside the driver (cuBLAS) queue work of their own. Exported by libcuda.so.1.
#pragma once
#include <cuda.h>

#include <cstddef>

extern "C" {
// Queues run(data) on a stream; run comes exactly once, or drop(data) where the work never runs.
CUresult cusim_submit(CUstream stream, const char *name, CUresult (*run)(void *), void *data, void (*drop)(void *));
// Checks an operand as a kernel's accesses are checked: columns of width bytes, pitch bytes apart.
CUresult cusim_operand(const char *name, const void *start, size_t width, size_t columns, size_t pitch, int write);
}
