"""Copies, memsets, and host memory."""

import ctypes

import numpy as np
import pytest

from tests.cuda.simulator.machine import N, control, drv, gpuarray, random


def test_copies_and_memsets(module):
    x = gpuarray.empty((6, 8), np.float32)
    drv.memset_d32(x.gpudata, 0x3F800000, 48)
    assert (x.get() == 1).all()
    drv.memset_d8(int(x.gpudata) + 4, 0, 8)
    assert x.get()[0].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    part = np.zeros((3, 4), np.float32)
    copy = drv.Memcpy2D()
    copy.set_src_device(x.gpudata)
    copy.set_dst_host(part)
    copy.src_pitch, copy.dst_pitch, copy.width_in_bytes, copy.height = 32, 16, 16, 3
    copy(aligned=True)
    np.testing.assert_array_equal(part, x.get()[:3, :4])
    y = gpuarray.empty_like(x)
    drv.memcpy_dtod(y.gpudata, x.gpudata, x.nbytes)
    np.testing.assert_array_equal(x.get(), y.get())
    matrix = gpuarray.to_gpu(random(7, 5))
    np.testing.assert_array_equal(matrix[2:5, 1:4].get(), matrix.get()[2:5, 1:4])
    pitched, pitch = drv.mem_alloc_pitch(100, 10, 4)
    assert pitch == 512
    pitched.free()


def test_pinned_managed_and_registered_memory(module):
    copy = module.get_function("copy")
    pinned = drv.pagelocked_empty(N, np.float32)
    managed = drv.managed_zeros(N, np.float32, mem_flags=drv.mem_attach_flags.GLOBAL)
    registered = np.ones(N, np.float32)
    address = ctypes.c_void_p(registered.ctypes.data)
    driver = ctypes.CDLL("libcuda.so.1")  # PyCUDA 2026.1's own register_host_memory crashes in Python's memory management
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    assert driver.cuMemHostRegister_v2(address, ctypes.c_size_t(registered.nbytes), 0) == 0
    copy(np.intp(pinned.base.get_device_pointer()), np.intp(address.value), np.int32(N), **config)
    drv.Context.synchronize()
    assert driver.cuMemHostUnregister(address) == 0
    assert (pinned == 1).all()
    pinned[:] = random(N)
    copy(managed, np.intp(pinned.base.get_device_pointer()), np.int32(N), **config)
    drv.Context.synchronize()
    np.testing.assert_array_equal(managed, pinned)


def test_copies_out_of_bounds():
    x = gpuarray.zeros(N, np.float32)
    for call in (
        lambda: drv.memcpy_dtoh(np.zeros(N + 1, np.float32), x.gpudata),
        lambda: drv.memcpy_htod(x.gpudata, np.zeros(N + 1, np.float32)),
        lambda: drv.memset_d8(x.gpudata, 0, 4 * N + 1),
        lambda: drv.memcpy_dtod(x.gpudata, int(x.gpudata) + 4, 4 * N),
    ):
        with pytest.raises(drv.LogicError, match=r"400[14] bytes|4000 bytes at"):
            call()
        control.clear_fault()


def test_what_is_known_of_initialisation_goes_with_copies(module):
    x, y, z = (gpuarray.empty(N, np.float32) for _ in range(3))
    drv.memset_d8(x.gpudata, 0, 400)
    drv.memcpy_dtod(y.gpudata, x.gpudata, x.nbytes)
    module.get_function("copy")(z, y, np.int32(100), block=(100, 1, 1))
    y.get()
    assert control.counters()["uninitialised_to_host"] == 3600
    module.get_function("copy")(z, y, np.int32(101), block=(101, 1, 1))
    with pytest.raises(drv.LogicError, match=r"never written before \(400 bytes into"):
        drv.Context.synchronize()
    control.clear_fault()
