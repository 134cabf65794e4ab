"""Contexts, and arrays that are rejected on CUDA: of another context or device, freed, unaligned or strided."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.arrays import cuda_family
from puzzlelib_rmsprop.errors import ArrayError, DeviceError, Error
from puzzlelib_rmsprop.kernels import Hyper, StepOptions
from tests.cuda.extended import Measured, table_of
from tests.cuda.variables import HYPER, make
from tests.standins import Net


def test_mixed_devices_are_refused(cuda):
    with pytest.raises(Error, match="'b': its data must be a numpy.ndarray.*got a pycuda.gpuarray.GPUArray"):
        RMSPropGraves().setupOn(Net(a=Variable(np.zeros(2, np.float32)), b=cuda.var(np.zeros(2, np.float32))))


def test_arrays_of_another_context(cuda):
    import pycuda.autoprimaryctx
    from pycuda import driver

    net, optimizer = make(cuda, [(20,)], False)
    optimizer.update()
    before = net.getVar("v0000").data.get()
    other = pycuda.autoprimaryctx.device.make_context()
    try:
        with pytest.raises(ArrayError, match="'v0000': its data lies in another CUDA context"):
            RMSPropGraves().setupOn(net)
        with pytest.raises(DeviceError, match="context that is current is not the one the arrays lie in"):
            optimizer.update()
        assert optimizer.t == 1
        # a net made in this context works
        mine, own = make(cuda, [(20,)], True)
        own.update()
        assert np.isfinite(mine.getVar("v0000").data.get()).all()
        del mine, own
    finally:
        other.pop()
        other.detach()
    assert np.array_equal(net.getVar("v0000").data.get(), before)
    optimizer.update()
    assert driver.Context.get_current() == pycuda.autoprimaryctx.context


def test_no_context_in_this_thread(cuda):
    import threading

    net, _ = make(cuda, [(20,)], False)
    caught = []

    def work():
        try:
            RMSPropGraves().setupOn(net)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "no CUDA context is current in this thread" in str(caught[0])


def test_freed_arrays(cuda):
    array = cuda.make(np.ones(10, np.float32))
    var = Variable(array)
    array.gpudata.free()
    with pytest.raises(ArrayError, match="'W': its data.*freed"):
        RMSPropGraves().setupOn(Net(W=var))


class NoContexts:
    """The driver's library as if all memory came from a pool: it belongs to a device, not to a context."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        return getattr(self._library, name)

    def cuPointerGetAttribute(self, data, attribute, address):
        return 1 if attribute == 1 else self._library.cuPointerGetAttribute(data, attribute, address)


def test_memory_without_a_context(cuda, monkeypatch):
    real = cuda_family.driver_library()
    monkeypatch.setattr(cuda_family, "driver_library", lambda: NoContexts(real))
    array = cuda.make(np.ones(10, np.float32))
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(W=Variable(array)))
    optimizer.update()
    array.gpudata.free()
    with pytest.raises(ArrayError, match="'W': its data.*freed"):
        RMSPropGraves().setupOn(Net(W=Variable(array)))


def test_arrays_off_their_dtype(cuda):
    # PyCUDA can make a view at any byte; a kernel that reads unaligned memory destroys the context
    from pycuda import gpuarray as device

    held = cuda.make(np.zeros(64, np.uint8))
    for dtype, off in (("float32", 2), ("float16", 1), ("float64", 4)):
        array = device.GPUArray((5,), dtype, base=held, gpudata=int(held.gpudata) + off)
        with pytest.raises(
            ArrayError, match=f"'W': its data must be aligned to its dtype {dtype}; it starts at the unaligned address 0x"
        ):
            RMSPropGraves().setupOn(Net(W=Variable(array, grad=array)))


def test_arrays_of_the_other_byte_order(cuda):
    array = cuda.make(np.ones(5, ">f4"))
    with pytest.raises(ArrayError, match="'W': its data must be in the machine's byte order; its dtype is >f4"):
        RMSPropGraves().setupOn(Net(W=Variable(array, grad=cuda.make(np.ones(5, ">f4")))))


def test_strided_arrays(cuda):
    array = cuda.make(np.ones((4, 6), np.float32))
    with pytest.raises(ArrayError, match="'W': its data must be C-contiguous"):
        RMSPropGraves().setupOn(Net(W=Variable(array.T, grad=array.T)))


def test_another_context_is_refused(kernels):
    import pycuda.autoprimaryctx

    measured = Measured(kernels, [("float32", [10])])
    table = table_of(kernels, measured.variables[0])
    other = pycuda.autoprimaryctx.device.make_context()
    try:
        for call in (measured.run, lambda: table.update(Hyper(**HYPER), options=StepOptions(zeroGrad=True))):
            with pytest.raises(DeviceError, match="context that is current is not the one the arrays lie in"):
                call()
    finally:
        other.pop()
        other.detach()
