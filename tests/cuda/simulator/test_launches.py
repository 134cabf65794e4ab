"""Compiling, loading and launching kernels: records and errors."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.simulator.machine import NON_BLOCKING, OUT, N, SourceModule, compiler, control, drv, gpuarray, zeros


def test_prepared_calls_and_launch_records(module):
    x, stream = gpuarray.zeros(N, np.float32), drv.Stream()
    drv.Context.synchronize()
    control.reset()
    add = module.get_function("add").prepare("Pfi")
    add.prepared_async_call((4, 1), (256, 1, 1), stream, x.gpudata, 1.5, N)
    add.prepared_call((5, 1), (200, 1, 1), x.gpudata, 1.5, N)
    assert control.blocking() == []
    assert control.counters()["pending"] == 2
    assert control.launches() == [
        {"name": "add", "grid": [4, 1, 1], "block": [256, 1, 1], "shared": 0},
        {"name": "add", "grid": [5, 1, 1], "block": [200, 1, 1], "shared": 0},
    ]
    assert (x.get() == 3).all()
    assert control.blocking() == ["cuMemcpyDtoH"]
    counts = control.counters()
    assert (counts["launches"], counts["copies"], counts["memsets"], counts["pending"]) == (2, 1, 0, 0)


def test_kernel_parameters_as_pointers(module):
    """The other launch form of cuLaunchKernel, which PyCUDA does not use."""
    driver = ctypes.CDLL("libcuda.so.1")
    # an older build of the simulator, with another module layout, may have left some
    images = sorted(Path(OUT, "cache").glob("*.cubin"), key=lambda path: path.stat().st_mtime, reverse=True)
    path = next(p for p in images if b"affine_bf16" in p.read_bytes())
    handle, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoad(ctypes.byref(handle), str(path).encode()) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), handle, b"add") == 0
    x = gpuarray.zeros(N, np.float32)
    values = [ctypes.c_uint64(int(x.gpudata)), ctypes.c_float(2.5), ctypes.c_int(N)]
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(v) for v in values))
    assert driver.cuLaunchKernel(function, 4, 1, 1, 256, 1, 1, 0, None, pointers, None) == 0
    assert (x.get() == 2.5).all()
    assert driver.cuModuleUnload(handle) == 0


@pytest.mark.parametrize("target", ["cubin", "ptx", "fatbin"])
def test_targets_of_the_compiler(context, target, tmp_path):
    image = compiler.compile("__global__ void one(int *x) { *x = 1; }", target=target)
    (tmp_path / "image").write_bytes(image)
    for loaded in (drv.module_from_buffer(image), drv.module_from_file(str(tmp_path / "image"))):
        x = gpuarray.zeros(1, np.int32)
        loaded.get_function("one")(x, block=(1, 1, 1))
        assert x.get() == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\x50\xed\x55\xba" + bytes(100), "no kernel image is available"),  # a fatbin for real devices
        (b".version 8.0" + bytes(100), "device kernel image is invalid"),
    ],
)
def test_images_that_are_not_for_this_device(context, image, message):
    with control.ptx(False), pytest.raises(drv.Error, match=message):
        drv.module_from_buffer(image)


def test_many_launches_without_waiting(module):
    x = zeros()
    stream = drv.Stream(NON_BLOCKING)
    for _ in range(3000):  # more than a queue holds
        module.get_function("add")(x, np.float32(1), np.int32(1), block=(1, 1, 1), stream=stream)
    stream.synchronize()
    assert x.get()[0] == 3000


def test_limits_of_a_launch(module):
    add = module.get_function("add")
    x = gpuarray.zeros(N, np.float32)
    for how in (
        {"block": (1025, 1, 1)},
        {"block": (1, 1, 65)},
        {"block": (1, 1, 1), "grid": (1, 65536)},
        {"block": (1, 1, 1), "shared": 48 * 1024 + 1},
    ):
        with pytest.raises(drv.LogicError, match="invalid argument"):
            add(x, np.float32(1), np.int32(N), **how)


def test_wrong_argument_size(module):
    x = gpuarray.zeros(N, np.float32)
    with pytest.raises(drv.LogicError, match="kernel add: 12 bytes of arguments given, its parameters take 16"):
        module.get_function("add")(x, np.float32(1), block=(1, 1, 1))
    control.clear_fault()


def test_compile_error_names_the_line():
    with pytest.raises(drv.CompileError, match=r"kernel.cu:2:.*undeclared_thing"):
        SourceModule("__global__ void broken(int *p) { p[0] = undeclared_thing; }")
