// The part of cuBLAS (v2 interface) that small nets use, on the simulated streams. build.sh adds every other name that
// scikit-cuda looks up; these return CUBLAS_STATUS_NOT_SUPPORTED.
#include <algorithm>
#include <cmath>
#include <functional>

#include "submit.h"

namespace {

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13 };

struct Handle {
    CUstream stream = nullptr;
    int device_scalars = 0;
};

Status status_of(CUresult result) { return result == CUDA_SUCCESS ? kSuccess : kExecutionFailed; }

Status submit(const Handle *handle, const char *name, std::function<CUresult()> work) {
    using Work = std::function<CUresult()>;
    return status_of(cusim_submit(
        handle->stream, name, [](void *data) { return (*static_cast<Work *>(data))(); }, new Work(std::move(work)),
        [](void *data) { delete static_cast<Work *>(data); }));
}

// A scalar argument: read from the host now, or from the device when the work runs.
template <class T>
struct Scalar {
    const T *device;
    T value;

    Scalar(const Handle *handle, const T *p) : device(handle->device_scalars ? p : nullptr), value(device ? T() : *p) {}
    CUresult get(const char *name, T *out) const {
        *out = value;
        if (!device) return CUDA_SUCCESS;
        if (CUresult bad = cusim_operand(name, device, sizeof(T), 1, 0, 0)) return bad;
        *out = *device;
        return CUDA_SUCCESS;
    }
};

template <class T>
CUresult vector(const char *name, const T *x, int n, int step, bool write) {
    const size_t pitch = size_t(std::abs(step)) * sizeof(T);
    return step == 1 ? cusim_operand(name, x, n * sizeof(T), 1, 0, write)
                     : cusim_operand(name, x, sizeof(T), n, pitch, write);
}

template <class T>
CUresult matrix(const char *name, const T *a, int rows, int columns, int ld, bool write) {
    return cusim_operand(name, a, rows * sizeof(T), columns, size_t(ld) * sizeof(T), write);
}

// BLAS counts from the other end if the step is negative.
template <class T>
T *first(T *x, int n, int step) {
    return step < 0 ? x - (n - 1) * std::ptrdiff_t(step) : x;
}

#define TRY(call) \
    if (CUresult bad = (call)) return bad

template <class T>
int gemm(const char *name, Handle *handle, int op_a, int op_b, int m, int n, int k, const T *alpha_, const T *a,
         int lda, const T *b, int ldb, const T *beta_, T *c, int ldc) {
    if (!handle) return kNotInitialized;
    const bool ta = op_a != 0, tb = op_b != 0;
    if (m < 0 || n < 0 || k < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) ||
        ldc < std::max(1, m))
        return kInvalidValue;
    if (!m || !n) return kSuccess;
    Scalar<T> alpha(handle, alpha_), beta(handle, beta_);
    return submit(handle, name, [=] {
        T al, be;
        TRY(alpha.get(name, &al));
        TRY(beta.get(name, &be));
        TRY(matrix(name, a, ta ? k : m, ta ? m : k, lda, false));
        TRY(matrix(name, b, tb ? n : k, tb ? k : n, ldb, false));
        if (be != T(0)) TRY(matrix(name, c, m, n, ldc, false));
        TRY(matrix(name, c, m, n, ldc, true));
        for (int j = 0; j < n; j++) {
            T *column = c + size_t(j) * ldc;
            for (int i = 0; i < m; i++) {
                T sum = 0;
                for (int l = 0; l < k; l++)
                    sum += a[ta ? l + size_t(i) * lda : i + size_t(l) * lda] *
                           b[tb ? j + size_t(l) * ldb : l + size_t(j) * ldb];
                column[i] = al * sum + (be != T(0) ? be * column[i] : T(0));
            }
        }
        return CUDA_SUCCESS;
    });
}

template <class T>
int gemv(const char *name, Handle *handle, int op, int m, int n, const T *alpha_, const T *a, int lda, const T *x_,
         int incx, const T *beta_, T *y_, int incy) {
    if (!handle) return kNotInitialized;
    if (m < 0 || n < 0 || lda < std::max(1, m) || !incx || !incy) return kInvalidValue;
    if (!m || !n) return kSuccess;
    const int nx = op ? m : n, ny = op ? n : m;
    Scalar<T> alpha(handle, alpha_), beta(handle, beta_);
    return submit(handle, name, [=] {
        T al, be;
        TRY(alpha.get(name, &al));
        TRY(beta.get(name, &be));
        TRY(matrix(name, a, m, n, lda, false));
        TRY(vector(name, x_, nx, incx, false));
        if (be != T(0)) TRY(vector(name, y_, ny, incy, false));
        TRY(vector(name, y_, ny, incy, true));
        const T *x = first(x_, nx, incx);
        T *y = first(y_, ny, incy);
        for (int i = 0; i < ny; i++) {
            T sum = 0;
            for (int l = 0; l < nx; l++)
                sum += a[op ? l + size_t(i) * lda : i + size_t(l) * lda] * x[l * std::ptrdiff_t(incx)];
            T &out = y[i * std::ptrdiff_t(incy)];
            out = al * sum + (be != T(0) ? be * out : T(0));
        }
        return CUDA_SUCCESS;
    });
}

template <class T>
int axpy(const char *name, Handle *handle, int n, const T *alpha_, const T *x_, int incx, T *y_, int incy) {
    if (!handle) return kNotInitialized;
    if (n <= 0) return kSuccess;
    Scalar<T> alpha(handle, alpha_);
    return submit(handle, name, [=] {
        T al;
        TRY(alpha.get(name, &al));
        TRY(vector(name, x_, n, incx, false));
        TRY(vector(name, y_, n, incy, false));
        TRY(vector(name, y_, n, incy, true));
        const T *x = first(x_, n, incx);
        T *y = first(y_, n, incy);
        for (std::ptrdiff_t i = 0; i < n; i++) y[i * incy] += al * x[i * incx];
        return CUDA_SUCCESS;
    });
}

template <class T>
int scal(const char *name, Handle *handle, int n, const T *alpha_, T *x, int incx) {
    if (!handle) return kNotInitialized;
    if (n <= 0 || incx <= 0) return kSuccess;
    Scalar<T> alpha(handle, alpha_);
    return submit(handle, name, [=] {
        T al;
        TRY(alpha.get(name, &al));
        TRY(vector(name, x, n, incx, false));
        TRY(vector(name, x, n, incx, true));
        for (std::ptrdiff_t i = 0; i < n; i++) x[i * incx] *= al;
        return CUDA_SUCCESS;
    });
}

// Results are written to the host, which waits for them, or to the device.
template <class T, class Reduce>
int reduce(const char *name, Handle *handle, int n, const T *x_, int incx, const T *y_, int incy, T *result,
           Reduce value) {
    if (!handle) return kNotInitialized;
    const bool on_device = handle->device_scalars;
    Status status = submit(handle, name, [=] {
        if (n > 0) TRY(vector(name, x_, n, incx, false));
        if (n > 0) TRY(vector(name, y_, n, incy, false));
        if (on_device) TRY(cusim_operand(name, result, sizeof(T), 1, 0, 1));
        *result = n > 0 ? value(first(x_, n, incx), first(y_, n, incy)) : T(0);
        return CUDA_SUCCESS;
    });
    return status == kSuccess && !on_device ? status_of(cuStreamSynchronize(handle->stream)) : status;
}

template <class T>
int dot(const char *name, Handle *handle, int n, const T *x_, int incx, const T *y_, int incy, T *result) {
    return reduce(name, handle, n, x_, incx, y_, incy, result, [=](const T *x, const T *y) {
        T sum = 0;
        for (std::ptrdiff_t i = 0; i < n; i++) sum += x[i * incx] * y[i * incy];
        return sum;
    });
}

template <class T>
int nrm2(const char *name, Handle *handle, int n, const T *x_, int incx, T *result) {
    return reduce(name, handle, n, x_, incx, x_, incx, result, [=](const T *x, const T *) {
        double sum = 0;
        for (std::ptrdiff_t i = 0; i < n; i++) sum += double(x[i * incx]) * x[i * incx];
        return T(std::sqrt(sum));
    });
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasCreate_v2(Handle **handle) {
    *handle = new Handle;
    return kSuccess;
}
API cublasDestroy_v2(Handle *handle) {
    delete handle;
    return kSuccess;
}
API cublasGetVersion_v2(Handle *, int *version) {
    *version = 130000;
    return kSuccess;
}
API cublasSetStream_v2(Handle *handle, CUstream stream) {
    handle->stream = stream;
    return kSuccess;
}
API cublasGetStream_v2(Handle *handle, CUstream *stream) {
    *stream = handle->stream;
    return kSuccess;
}
API cublasSetPointerMode_v2(Handle *handle, int mode) {
    handle->device_scalars = mode;
    return kSuccess;
}
API cublasGetPointerMode_v2(Handle *handle, int *mode) {
    *mode = handle->device_scalars;
    return kSuccess;
}
API cublasSetMathMode(Handle *, int) { return kSuccess; }

#define CUSIM_BLAS(T, letter)                                                                                        \
    API cublas##letter##gemm_v2(Handle *h, int ta, int tb, int m, int n, int k, const T *alpha, const T *a, int lda, \
                                const T *b, int ldb, const T *beta, T *c, int ldc) {                                 \
        return gemm<T>("cublas" #letter "gemm", h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);            \
    }                                                                                                                \
    API cublas##letter##gemv_v2(Handle *h, int t, int m, int n, const T *alpha, const T *a, int lda, const T *x,     \
                                int incx, const T *beta, T *y, int incy) {                                           \
        return gemv<T>("cublas" #letter "gemv", h, t, m, n, alpha, a, lda, x, incx, beta, y, incy);                  \
    }                                                                                                                \
    API cublas##letter##axpy_v2(Handle *h, int n, const T *alpha, const T *x, int incx, T *y, int incy) {            \
        return axpy<T>("cublas" #letter "axpy", h, n, alpha, x, incx, y, incy);                                      \
    }                                                                                                                \
    API cublas##letter##scal_v2(Handle *h, int n, const T *alpha, T *x, int incx) {                                  \
        return scal<T>("cublas" #letter "scal", h, n, alpha, x, incx);                                               \
    }                                                                                                                \
    API cublas##letter##dot_v2(Handle *h, int n, const T *x, int incx, const T *y, int incy, T *result) {            \
        return dot<T>("cublas" #letter "dot", h, n, x, incx, y, incy, result);                                       \
    }                                                                                                                \
    API cublas##letter##nrm2_v2(Handle *h, int n, const T *x, int incx, T *result) {                                 \
        return nrm2<T>("cublas" #letter "nrm2", h, n, x, incx, result);                                              \
    }
CUSIM_BLAS(float, S)
CUSIM_BLAS(double, D)
