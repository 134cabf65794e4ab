// The kernels of nets, except matrix products. 16-bit arrays are computed in float32 and rounded once.
//
// The order of additions depends only on sizes, so that results are reproducible. The errors of costs are summed in double:
// each block writes its sum to `parts`, and the host adds these in order.

#include <cuda_fp16.h>

namespace {

typedef unsigned long long u64;

constexpr int THREADS = 256;  // per block

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float &to) { to = x; }
__device__ __forceinline__ void narrow(double x, double &to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half &to) { to = __float2half_rn(x); }

__device__ __forceinline__ u64 first() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 step() { return u64(gridDim.x) * blockDim.x; }

// Returns the sum over all threads of a block to the first thread.
template <class T>
__device__ __forceinline__ T block_sum(T value)
{
    __shared__ T sums[THREADS];
    sums[threadIdx.x] = value;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return sums[0];
}

// ---- activation functions, forward and backward --------------------------------------------------------------------

struct Sigmoid {
    // by tanh, because exp overflows for large negative x
    template <class Real>
    static __device__ __forceinline__ Real of(Real x, Real) { return Real(0.5) * (tanh(x * Real(0.5)) + Real(1)); }
    template <class Real>
    static __device__ __forceinline__ Real back(Real g, Real y, Real) { return g * y * (Real(1) - y); }
};

struct Tanh {
    template <class Real>
    static __device__ __forceinline__ Real of(Real x, Real) { return tanh(x); }
    template <class Real>
    static __device__ __forceinline__ Real back(Real g, Real y, Real) { return g * (Real(1) - y * y); }
};

struct Relu {
    // not max(), which does not keep NaN
    template <class Real>
    static __device__ __forceinline__ Real of(Real x, Real) { return x < Real(0) ? Real(0) : x; }
    template <class Real>
    static __device__ __forceinline__ Real back(Real g, Real y, Real) { return y > Real(0) ? g : g * Real(0); }
};

struct LeakyRelu {
    template <class Real>
    static __device__ __forceinline__ Real of(Real x, Real slope) { return x > Real(0) ? x : x * slope; }
    template <class Real>
    static __device__ __forceinline__ Real back(Real g, Real y, Real slope) { return y > Real(0) ? g : g * slope; }
};

}  // namespace

#define ACTIVATION(NAME, KIND, STORED, REAL)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        NAME(const STORED *data, STORED *out, u64 n, double slope)                                                    \
    {                                                                                                                 \
        for (u64 i = first(); i < n; i += step())                                                                     \
            narrow(KIND::of(widen(data[i]), REAL(slope)), out[i]);                                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        back_##NAME(const STORED *grad, const STORED *outdata, STORED *out, u64 n, double slope)                      \
    {                                                                                                                 \
        for (u64 i = first(); i < n; i += step())                                                                     \
            narrow(KIND::back(widen(grad[i]), widen(outdata[i]), REAL(slope)), out[i]);                               \
    }

#define ACTIVATIONS(TYPE, STORED, REAL)               \
    ACTIVATION(sigmoid_##TYPE, Sigmoid, STORED, REAL) \
    ACTIVATION(tanh_##TYPE, Tanh, STORED, REAL)       \
    ACTIVATION(relu_##TYPE, Relu, STORED, REAL)       \
    ACTIVATION(leakyRelu_##TYPE, LeakyRelu, STORED, REAL)

ACTIVATIONS(float32, float, float)
ACTIVATIONS(float64, double, double)
ACTIVATIONS(float16, __half, float)

// ---- rows, costs ---------------------------------------------------------------------------------------------------

template <class Stored>
__device__ __forceinline__ void add_row(Stored *matrix, const Stored *row, u64 n, u64 columns)
{
    for (u64 i = first(); i < n; i += step())
        narrow(widen(matrix[i]) + widen(row[i % columns]), matrix[i]);
}

// out = alpha * (sum of the rows) + beta * out. If beta is 0, out is not read, because it may contain NaN.
template <class Stored, class Real>
__device__ __forceinline__ void sum_rows(const Stored *matrix, Stored *out, u64 rows, u64 columns, Real alpha, Real beta)
{
    for (u64 c = first(); c < columns; c += step()) {
        Real sum = 0;
        for (u64 r = 0; r < rows; ++r)
            sum += widen(matrix[r * columns + c]);
        sum *= alpha;
        if (beta != Real(0))
            sum += beta * widen(out[c]);
        narrow(sum, out[c]);
    }
}

// grad = (target - pred) / n; parts = sums of (target - pred)^2 over each block.
template <class Stored, class Real>
__device__ __forceinline__ void squared_error(const Stored *pred, const Stored *target, Stored *grad, double *parts, u64 n)
{
    double sum = 0;
    for (u64 i = first(); i < n; i += step()) {
        const Real diff = widen(target[i]) - widen(pred[i]);
        narrow(diff / Real(n), grad[i]);
        sum += double(diff) * double(diff);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = sum;
}

// For each row of scores: grad = (onehot(label) - softmax) / rows; parts = sums of -log(softmax[label]) over each block.
template <class Stored, class Real>
__device__ __forceinline__ void cross_entropy(const Stored *scores, const int *labels, Stored *grad, double *parts,
                                              u64 rows, u64 classes)
{
    double error = 0;
    for (u64 r = first(); r < rows; r += step()) {
        const Stored *row = scores + r * classes;
        Real most = widen(row[0]);
        for (u64 c = 1; c < classes; ++c)
            most = widen(row[c]) > most ? widen(row[c]) : most;
        Real total = 0;
        for (u64 c = 0; c < classes; ++c)
            total += exp(widen(row[c]) - most);
        const u64 label = labels[r];
        for (u64 c = 0; c < classes; ++c)
            narrow((Real(c == label) - exp(widen(row[c]) - most) / total) / Real(rows), grad[r * classes + c]);
        error += double(log(total) - (widen(row[label]) - most));
    }
    error = block_sum(error);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = error;
}

// argmax of each row: the first of equal scores. NaN is the highest, as in NumPy.
template <class Stored, class Real>
__device__ __forceinline__ void most_probable(const Stored *scores, int *out, u64 rows, u64 classes)
{
    for (u64 r = first(); r < rows; r += step()) {
        const Stored *row = scores + r * classes;
        int best = 0;
        for (u64 c = 1; c < classes; ++c) {
            const Real x = widen(row[c]), most = widen(row[best]);
            if (x > most || (x != x && most == most))
                best = int(c);
        }
        out[r] = best;
    }
}

#define NETS(TYPE, STORED, REAL)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        add_row_##TYPE(STORED *matrix, const STORED *row, u64 n, u64 columns)                                         \
    {                                                                                                                 \
        add_row(matrix, row, n, columns);                                                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        sum_rows_##TYPE(const STORED *matrix, STORED *out, u64 rows, u64 columns, double alpha, double beta)          \
    {                                                                                                                 \
        sum_rows<STORED, REAL>(matrix, out, rows, columns, REAL(alpha), REAL(beta));                                  \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        squared_error_##TYPE(const STORED *pred, const STORED *target, STORED *grad, double *parts, u64 n)            \
    {                                                                                                                 \
        squared_error<STORED, REAL>(pred, target, grad, parts, n);                                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        cross_entropy_##TYPE(const STORED *scores, const int *labels, STORED *grad, double *parts, u64 rows,          \
                             u64 classes)                                                                             \
    {                                                                                                                 \
        cross_entropy<STORED, REAL>(scores, labels, grad, parts, rows, classes);                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        most_probable_##TYPE(const STORED *scores, int *out, u64 rows, u64 classes)                                   \
    {                                                                                                                 \
        most_probable<STORED, REAL>(scores, out, rows, classes);                                                      \
    }

NETS(float32, float, float)
NETS(float64, double, double)
NETS(float16, __half, float)

// parts = numbers of different elements in each block.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_different(const int *a, const int *b, u64 *parts, u64 n)
{
    u64 count = 0;
    for (u64 i = first(); i < n; i += step())
        count += a[i] != b[i];
    count = block_sum(count);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = count;
}

// ---- conversion of 16-bit matrices, which are multiplied in float32 ------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) widen_float16(const __half *from, float *to, u64 n)
{
    for (u64 i = first(); i < n; i += step())
        to[i] = widen(from[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) narrow_float16(const float *from, __half *to, u64 n)
{
    for (u64 i = first(); i < n; i += step())
        narrow(from[i], to[i]);
}
