"""Faults in kernels are reported with the kernel, the address and the thread."""

import numpy as np
import pytest

from tests.cuda.simulator.machine import SEEDS, N, control, drv, gpuarray, random


def copy_args(to, from_, n=1):
    return np.uintp(to), np.uintp(from_), np.int32(n)


FAULTS = {
    # name: (kernel and arguments, given the address of N floats; the report's pattern)
    "read by one": (
        lambda x: ("copy", copy_args(x, x + 4 * N)),
        r"kernel copy: read of 4 bytes at 0x\w+: outside every "
        r"allocation \(0 bytes past the end of device allocation #\d+ of context \d+ on device 0 "
        r"\(4000 bytes at 0x\w+\)\); block \(0, 0, 0\), thread \(0, 0, 0\)",
    ),
    "write by one": (lambda x: ("copy", copy_args(x + 4 * N, x)), "kernel copy: write of 4 bytes .*0 bytes past the end"),
    "vector past the end": (lambda x: ("copy4", copy_args(x, x + 4 * N)[:2]), "kernel copy4: read of .*past the end"),
    "before the start": (lambda x: ("copy", copy_args(x, x - 4)), "read of 4 bytes .*(4 bytes before|past the end of)"),
    "misaligned vector": (lambda x: ("copy4", copy_args(x, x + 4)[:2]), "kernel copy4: access at .* not a multiple of 16"),
    "misaligned scalar": (lambda x: ("copy", copy_args(x, x + 2)), "kernel copy: access at .* not a multiple of 4"),
    "null": (lambda x: ("copy", copy_args(x, 0)), "read of 4 bytes at 0x0: a null pointer"),
    "deadlock": (
        lambda x: ("deadlock", (np.uintp(x),)),
        r"kernel deadlock: deadlock: 16 threads \(0, 1.* wait at "
        r"__syncthreads in line \d+, 16 threads \(16.* wait at a warp operation",
    ),
    "divergent barriers": (lambda x: ("two_barriers", (np.uintp(x),)), "met at different barriers, in lines"),
    "mask without the caller": (lambda x: ("left_out", (np.uintp(x),)), "mask 0x1, which leaves it out"),
    "shared memory by one": (lambda x: ("shared_by_one", (np.uintp(x),)), "at offset 128 of 128 bytes of dynamic shared"),
    "trap": (lambda x: ("trap", (np.uintp(x),)), r"kernel trap: __trap\(\) failed, kernel.cu:\d+; block"),
    "assert": (lambda x: ("asserts", (np.uintp(x),)), r"kernel asserts: x\[0\] == 12345 failed, kernel.cu:\d+; block"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_planted_fault(module, fault, seed):
    call, message = FAULTS[fault]
    x = gpuarray.to_gpu(random(N))
    name, args = call(int(x.gpudata))
    control.seed(seed)
    threads = 64 if name == "two_barriers" else 32 if name in ("deadlock", "left_out", "shared_by_one") else 1
    module.get_function(name)(*args, block=(threads, 1, 1), shared=128)
    with pytest.raises(drv.Error, match=message) as caught:
        drv.Context.synchronize()
    with pytest.raises(drv.Error):  # the context is broken now
        x.get()
    assert control.clear_fault() in str(caught.value)
    np.testing.assert_array_equal(x.get()[32:], random(N)[32:])


@pytest.mark.parametrize("checked", ["read", "atomic"])
def test_uninitialised_read(module, checked):
    x, y = gpuarray.empty(N, np.float32), gpuarray.zeros(N, np.float32)
    drv.memset_d8(x.gpudata, 0, 4 * 700)
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    arguments = {"read": ("copy", (y, x)), "atomic": ("add", (x, np.float32(1)))}[checked]
    module.get_function(arguments[0])(*arguments[1], np.int32(700), **config)
    drv.Context.synchronize()
    module.get_function(arguments[0])(*arguments[1], np.int32(701), **config)
    with pytest.raises(drv.LogicError, match=r"read of 4 bytes .*never written before \(2800 bytes into device"):
        drv.Context.synchronize()
    assert r"block (2, 0, 0), thread (188, 0, 0)" in control.clear_fault()


def test_use_after_free(module):
    x, y = gpuarray.zeros(N, np.float32), gpuarray.zeros(N, np.float32)
    address = int(x.gpudata)
    del x
    again = [gpuarray.zeros(N, np.float32) for _ in range(3)]  # the address is not reused
    module.get_function("copy")(y, np.uintp(address + 8), np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match="8 bytes into the freed device allocation"):
        drv.Context.synchronize()
    control.clear_fault()
    with pytest.raises(drv.LogicError, match=r"cuMemcpyDtoH: 4 bytes .* into the freed"):
        drv.memcpy_dtoh(np.zeros(1, np.float32), address)
    control.clear_fault()
    assert len(again) == 3


def test_host_pointer_in_a_kernel(module):
    x, host = gpuarray.zeros(N, np.float32), np.zeros(N, np.float32)
    module.get_function("copy")(x, np.uintp(host.ctypes.data), np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match=r"read of 4 bytes at .*: pageable host memory"):
        drv.Context.synchronize()
    control.clear_fault()
