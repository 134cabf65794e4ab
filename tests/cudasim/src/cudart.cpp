// The few calls of the CUDA runtime that scikit-cuda binds at import, on the driver's current context.
#include <cuda.h>

#define API extern "C" __attribute__((visibility("default"))) int

extern "C" __attribute__((visibility("default"))) const char *cudaGetErrorString(int code) {
    const char *text = nullptr;
    cuGetErrorString(static_cast<CUresult>(code), &text);
    return text;
}
API cudaMalloc(CUdeviceptr *address, size_t size) { return cuMemAlloc(address, size); }
API cudaFree(CUdeviceptr address) { return cuMemFree(address); }
API cudaMallocPitch(CUdeviceptr *address, size_t *pitch, size_t width, size_t height) {
    return cuMemAllocPitch(address, pitch, width, height, 4);
}
API cudaMemcpy(CUdeviceptr to, CUdeviceptr from, size_t size, int) { return cuMemcpy(to, from, size); }
API cudaMemGetInfo(size_t *free_bytes, size_t *total) { return cuMemGetInfo(free_bytes, total); }
API cudaGetDevice(int *device) { return cuCtxGetDevice(device); }
API cudaDriverGetVersion(int *version) { return cuDriverGetVersion(version); }
API cudaRuntimeGetVersion(int *version) { return cuDriverGetVersion(version); }
