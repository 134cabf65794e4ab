"""PyCUDA's devices, arrays and its own kernels run on the simulator."""

import numpy as np
import pytest

from tests.cuda.simulator.machine import SEEDS, ElementwiseKernel, N, ReductionKernel, control, drv, gpuarray, random


def test_devices(context):
    assert drv.Device.count() == 2
    assert [drv.Device(i).name() for i in range(2)] == ["cudasim device 0 (CPU)", "cudasim device 1 (CPU)"]
    assert drv.Device(0).compute_capability() == (9, 0)
    assert drv.Device(drv.Device(1).pci_bus_id()).name() == drv.Device(1).name()
    assert drv.Context.get_device() == drv.Device(0)
    assert drv.Device(0).get_attributes()[drv.device_attribute.WARP_SIZE] == 32


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_gpuarray_arithmetic(dtype):
    a, b = (random(N, seed=s) * 100 + 500 for s in (1, 2))
    a, b = a.astype(dtype), b.astype(dtype)
    x, y = gpuarray.to_gpu(a), gpuarray.to_gpu(b)
    np.testing.assert_allclose((x * 2 + y - x * y).get(), a * 2 + b - a * b, rtol=1e-5)
    np.testing.assert_array_equal(x[3:17].get(), a[3:17])
    np.testing.assert_array_equal(gpuarray.zeros_like(x).get(), np.zeros_like(a))
    np.testing.assert_allclose(float(gpuarray.sum(x, dtype=np.float64).get()), a.sum(dtype=np.float64), rtol=1e-12)
    assert gpuarray.max(x).get() == a.max()
    x.fill(3)
    assert (x.get() == 3).all()


def test_complex_arrays():
    a = random(2, 50).view(np.complex64)
    x = gpuarray.to_gpu(a)
    np.testing.assert_allclose((x * x).get(), a * a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 31, 257, 100_003])
def test_elementwise_kernel(n):
    kernel = ElementwiseKernel("float a, const float *x, float *y", "y[i] = a * x[i] + y[i]", "axpy")
    x, y = random(n, seed=1), random(n, seed=2)
    d, e = gpuarray.to_gpu(x), gpuarray.to_gpu(y)
    kernel(np.float32(3), d, e)
    np.testing.assert_allclose(e.get(), 3 * x + y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_reduction_kernel(seed):
    control.seed(seed)
    norm = ReductionKernel(np.float64, neutral="0", reduce_expr="a+b", map_expr="x[i]*x[i]", arguments="const double *x")
    x = random(12345, dtype=np.float64)
    np.testing.assert_allclose(norm(gpuarray.to_gpu(x)).get(), x @ x, rtol=1e-12)
