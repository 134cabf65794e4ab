"""Devices, contexts, threads and leaks."""

import ctypes
import threading

import numpy as np
import pytest

from tests.cuda.simulator.machine import N, control, drv, gpuarray, random, zeros


class Other:
    """A new context on a device, current inside `with`."""

    def __init__(self, device):
        self.context = drv.Device(device).make_context()
        self.context.pop()

    def __enter__(self):
        self.context.push()
        return self

    def __exit__(self, *_):
        drv.Context.pop()


def context_of(address):
    handle = ctypes.c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuPointerGetAttribute(ctypes.byref(handle), 1, ctypes.c_uint64(address)) == 0
    return handle


@pytest.mark.parametrize("device", [0, 1])
def test_contexts(module, device):
    driver = ctypes.CDLL("libcuda.so.1")
    before = control.leaks()
    other = Other(device)
    x = gpuarray.to_gpu(random(N))
    with other:
        assert drv.Context.get_device() == drv.Device(device)
        free, total = drv.mem_get_info()
        y = gpuarray.to_gpu(random(N, seed=3))
        assert drv.mem_get_info() == (free - y.nbytes, total)
        np.testing.assert_array_equal((y + y).get(), 2 * random(N, seed=3))
        owner, ordinal, kind = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint()
        for attribute, value in ((1, owner), (2, kind), (9, ordinal)):
            assert driver.cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(int(y.gpudata) + 8)) == 0
        current = ctypes.c_void_p()
        assert driver.cuCtxGetCurrent(ctypes.byref(current)) == 0
        assert (owner.value, ordinal.value, kind.value) == (current.value, device, 2)
        assert drv.mem_get_address_range(int(y.gpudata) + 8) == (int(y.gpudata), y.nbytes)
    assert drv.Context.get_device() == drv.Device(0)
    np.testing.assert_array_equal((x + x).get(), 2 * random(N))
    after = control.leaks()
    assert after["contexts"] == before["contexts"] + 1
    y.gpudata.free()
    other.context.detach()
    assert control.leaks()["contexts"] == before["contexts"]


def test_peer_copy():
    x = gpuarray.to_gpu(random(N))
    other = Other(1)
    with other:
        y = gpuarray.empty(N, np.float32)
        addresses = [int(y.gpudata), int(x.gpudata)]
        sides = [v for a in addresses for v in (ctypes.c_uint64(a), context_of(a))]
        assert ctypes.CDLL("libcuda.so.1").cuMemcpyPeer(*sides, ctypes.c_size_t(x.nbytes)) == 0
        np.testing.assert_array_equal(y.get(), random(N))
        y.gpudata.free()
    other.context.detach()


def test_peer_access(module, context):
    other = Other(1)
    with other:
        y = gpuarray.to_gpu(random(N))
        drv.Context.synchronize()
    x = zeros()
    context.enable_peer_access(other.context)
    module.get_function("copy")(x, y, np.int32(N), grid=(4, 1), block=(256, 1, 1))
    np.testing.assert_array_equal(x.get(), random(N))
    context.disable_peer_access(other.context)
    with other:
        y.gpudata.free()
    other.context.detach()


def test_calls_from_several_threads(module, context):
    failures = []

    def work(seed):
        context.push()
        try:
            for _ in range(20):
                x = gpuarray.to_gpu(random(N, seed=seed))
                module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1))
                if not (x.get() == random(N, seed=seed) + np.float32(1)).all():
                    failures.append(seed)
            del x
        finally:
            context.pop()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_leaks_are_counted(module):
    before = control.leaks()
    x, stream, event = gpuarray.empty(N, np.float32), drv.Stream(), drv.Event()
    after = control.leaks()
    assert {k: after[k] - before[k] for k in after} == {
        "allocations": 1,
        "streams": 1,
        "events": 1,
        "modules": 0,
        "contexts": 0,
    }
    del x, stream, event
    assert control.leaks() == before


@pytest.mark.parametrize("device", [0, 1])
def test_pointer_of_another_context(module, device):
    x = gpuarray.zeros(N, np.float32)
    other = Other(device)
    with other:
        y = gpuarray.zeros(N, np.float32)
    module.get_function("copy")(x, y, np.int32(1), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match=rf"another context, peer access is not enabled .* on device {device}"):
        drv.Context.synchronize()
    control.clear_fault()
    with pytest.raises(drv.LogicError, match="belongs to another context: peer access is not enabled"):
        drv.memcpy_dtoh(np.zeros(1, np.float32), y.gpudata)
    control.clear_fault()
    with other:
        y.gpudata.free()
    other.context.detach()


def test_stream_and_function_of_another_context(module):
    x = gpuarray.zeros(N, np.float32)
    other = Other(1)
    with other:
        stream = drv.Stream()
        with pytest.raises(drv.LogicError, match="invalid resource handle"):
            module.get_function("add")(np.uintp(0), np.float32(1), np.int32(0), block=(1, 1, 1))
    with pytest.raises(drv.LogicError, match="invalid resource handle"):
        module.get_function("add")(x, np.float32(1), np.int32(N), block=(1, 1, 1), stream=stream)
    with other:
        del stream
    other.context.detach()
