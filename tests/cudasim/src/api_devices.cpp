// Entry points: cuInit, and properties of devices.
#include <pthread.h>

#include <cstdio>
#include <new>

#include "api.h"

bool cusim::initialised = false;

// In a forked process, a driver initialised by the parent cannot be used, and cannot be initialised again.
static bool forked = false;
static const int at_fork = pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] {
    forked = forked || initialised;
    initialised = false;
    new (&lock) std::recursive_mutex;  // the child's thread has another id and cannot unlock the parent's lock
});

API cuInit(unsigned flags) {
    LOCKED;
    REQUIRE(flags == 0 && !at_fork);
    if (forked) return CUDA_ERROR_NOT_INITIALIZED;
    initialised = true;
    return settings.devices > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
API cuDeviceGetCount(int *count) {
    *count = settings.devices;
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}
API cuDeviceGet(CUdevice *device, int ordinal) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
API cuDeviceGetName(char *name, int size, CUdevice device) {
    snprintf(name, size, "cudasim device %d (CPU)", device);
    return CUDA_SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
    *bytes = settings.memory;
    return CUDA_SUCCESS;
}
API cuDeviceComputeCapability(int *major, int *minor, CUdevice) {
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}
API cuDeviceGetPCIBusId(char *id, int size, CUdevice device) {
    snprintf(id, size, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}
API cuDeviceGetByPCIBusId(CUdevice *device, const char *id) {
    unsigned bus;
    if (sscanf(id, "%*x:%x", &bus) != 1 || bus < 1 || bus > unsigned(settings.devices))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = int(bus) - 1;
    return CUDA_SUCCESS;
}
API cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b) {
    *can = a != b;
    return CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
            *value = 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
            *value = 64;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
            *value = 0x7fffffff;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
            *value = 65535;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
            *value = 48 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
            *value = 227 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            *value = 228 * 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
            *value = 65536;
            break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
            *value = 32;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
            *value = 0x7fffffff;
            break;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
            *value = 1000000;
            break;
        case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
            *value = 512;
            break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
            *value = 4;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
            *value = 32;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
            *value = 2048;
            break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
            *value = 9;
            break;
        case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
            *value = device + 1;
            break;
        case CU_DEVICE_ATTRIBUTE_INTEGRATED:
        case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
        case CU_DEVICE_ATTRIBUTE_TCC_DRIVER:
        case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
        case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
        case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
            *value = 0;
            break;
        default:
            *value = 1;  // most others are capabilities
    }
    return CUDA_SUCCESS;
}
