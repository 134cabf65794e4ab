"""scikit-cuda's cuBLAS on the simulator."""

import importlib.util

import numpy as np
import pytest

from tests.cuda.simulator.machine import NON_BLOCKING, control, drv, gpuarray, random


@pytest.fixture
def cublas():
    if not importlib.util.find_spec("skcuda"):
        pytest.skip("needs scikit-cuda")
    from skcuda import cublas

    return cublas


@pytest.mark.filterwarnings("ignore")  # scikit-cuda's import warns of its own age
class TestCublas:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_products(self, cublas, dtype):
        letter = "S" if dtype == np.float32 else "D"
        a, b, c = random(5, 7, dtype=dtype), random(7, 4, dtype=dtype), random(5, 4, dtype=dtype)
        dev = [gpuarray.to_gpu(m) for m in (a, b, c, a.T.copy(), b.T.copy(), random(20, dtype=dtype))]
        handle, stream = cublas.cublasCreate(), drv.Stream(NON_BLOCKING)
        cublas.cublasSetStream(handle, stream.handle)
        assert cublas.cublasGetStream(handle) == stream.handle
        drv.Context.synchronize()  # wait until the copies have arrived
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        call = {name: getattr(cublas, f"cublas{letter}{name}") for name in ("gemm", "gemv", "dot", "axpy", "scal", "nrm2")}
        control.reset()
        # row-major arrays are the transposed column-major ones: C^T = B^T A^T
        call["gemm"](handle, "n", "n", 4, 5, 7, 2.0, dev[1].gpudata, 4, dev[0].gpudata, 7, 0.5, dev[2].gpudata, 4)
        assert control.counters()["pending"] == 1
        assert control.blocking() == []
        stream.synchronize()
        np.testing.assert_allclose(dev[2].get(), 2 * a @ b + c / 2, **tolerance)
        call["gemm"](handle, "t", "t", 4, 5, 7, 1.0, dev[4].gpudata, 7, dev[3].gpudata, 5, 0.0, dev[2].gpudata, 4)
        call["gemv"](handle, "t", 7, 5, 1.0, dev[0].gpudata, 7, dev[1].gpudata, 4, 0.0, dev[5].gpudata, 2)
        call["axpy"](handle, 20, 3.0, dev[2].gpudata, 1, dev[2].gpudata, 1)
        call["scal"](handle, 20, 0.25, dev[2].gpudata, 1)
        stream.synchronize()
        np.testing.assert_allclose(dev[2].get(), a @ b, **tolerance)
        np.testing.assert_allclose(dev[5].get()[:10:2], a @ b[:, 0], **tolerance)
        np.testing.assert_array_equal(dev[5].get()[1:10:2], random(20, dtype=dtype)[1:10:2])
        dot = call["dot"](handle, 20, dev[0].gpudata, 1, dev[1].gpudata, 1)
        np.testing.assert_allclose(dot, a.ravel()[:20] @ b.ravel()[:20], **tolerance)
        np.testing.assert_allclose(call["nrm2"](handle, 35, dev[0].gpudata, 1), np.linalg.norm(a), **tolerance)
        cublas.cublasDestroy(handle)

    def test_faults(self, cublas):
        handle = cublas.cublasCreate()
        x, y = gpuarray.zeros(10, np.float32), gpuarray.empty(10, np.float32)
        cublas.cublasSaxpy(handle, 11, 1.0, x.gpudata, 1, x.gpudata, 1)
        with pytest.raises(drv.LogicError, match="cublasSaxpy: 44 bytes"):
            drv.Context.synchronize()
        control.clear_fault()
        cublas.cublasSaxpy(handle, 10, 1.0, y.gpudata, 1, x.gpudata, 1)
        with pytest.raises(drv.LogicError, match=r"cublasSaxpy: read of 40 bytes .* never written before"):
            drv.Context.synchronize()
        control.clear_fault()
        with pytest.raises(cublas.cublasNotSupported):
            cublas.cublasCcopy(handle, 5, x.gpudata, 1, y.gpudata, 1)
        cublas.cublasDestroy(handle)
