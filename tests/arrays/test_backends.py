"""gpuarray on each backend: the device of new arrays, streams, and the errors if CUDA is missing."""

import sys
import types

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, Variable, gpuarray
from puzzlelib_rmsprop.arrays import CPUArray
from puzzlelib_rmsprop.errors import ArrayError, DependencyError, DeviceError, SetupError
from puzzlelib_rmsprop.kernels import context


def test_arrays_are_made_where_the_backend_says(backend):
    if backend == "cuda":
        from pycuda.gpuarray import GPUArray as Kind
    else:
        Kind = CPUArray
    for array in (gpuarray.to_gpu([1.0, 2.0]), gpuarray.empty(3), gpuarray.zeros((2, 2)), Variable(gpuarray.zeros(2)).grad):
        assert type(array) is Kind
        assert isinstance(array, gpuarray.GPUArray)
    assert not isinstance(np.zeros(3), gpuarray.GPUArray)


def test_content_shape_and_dtype(backend):
    for content in (
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.array(2.5),
        np.zeros((0, 4), np.float32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
    ):
        array = gpuarray.to_gpu(content)
        assert (array.shape, array.dtype) == (content.shape, content.dtype)
        assert array.flags.c_contiguous
        assert np.array_equal(array.get(), content)
    for shape, expected in ((3, (3,)), ((2, 0), (2, 0)), ((), ()), ([2, 3], (2, 3)), (np.int64(2), (2,))):
        assert gpuarray.empty(shape).shape == expected
        zeros = gpuarray.zeros(shape, np.float64)
        assert zeros.dtype == np.float64
        assert not zeros.get().any()
    with pytest.raises(ArrayError, match="needs numbers; got str"):
        gpuarray.to_gpu("abc")


def test_shared_array_follows_the_backend(backend):
    shared = gpuarray.SharedArray(np.float32)
    shared.register((3,), np.float32, "a")
    shared.register((2,), np.float32, "b")
    shared.build()
    assert type(shared["a"]) is type(gpuarray.zeros(1))
    assert shared.offsets == {"a": 0, "b": 4 if backend == "cuda" else 3}
    assert not shared.ary.get().any()


def test_streams(backend):
    manager = gpuarray.StreamManager()
    first, second = manager.borrow(2), manager.borrow(1)
    assert len({id(stream) for stream in first + second}) == 3
    if backend == "cuda":
        from pycuda.driver import Stream

        assert all(type(stream) is Stream for stream in first)
    for stream in first:
        stream.synchronize()
    manager.give(first + second)
    with pytest.raises(SetupError, match="that borrow"):
        manager.give(first)
    assert {id(stream) for stream in manager.borrow(3)} == {id(stream) for stream in first + second}
    # borrowed on one device, given back while the other is selected
    cpu = gpuarray.StreamManager()
    lent = cpu.borrow(1)
    Config.backend = Config.Backend.cpu
    cpu.give(lent)
    assert type(cpu.borrow(1)[0]) is gpuarray.Stream


def test_auto_takes_cuda_where_it_is(monkeypatch):
    Config.backend = Config.Backend.auto
    for there in (True, False):
        made = []
        monkeypatch.setattr(gpuarray, "_cuda_is_there", lambda there=there: there)
        monkeypatch.setattr(context, "ensure_context", lambda made=made: made.append("context"))
        gpuarray._family()
        assert made == ["context"] * there


def test_what_is_missing_is_said(monkeypatch):
    Config.backend = Config.Backend.cuda
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    message = r"needs PyCUDA and an NVIDIA driver.*pip install 'pycuda>=2024\.1' 'scikit-cuda==0\.5\.3'"
    with pytest.raises(DependencyError, match=message):
        gpuarray.zeros(2)
    assert not context.available()


class Refused(Exception):
    pass


def refuse():
    raise Refused("cuInit failed: no CUDA-capable device is detected")


@pytest.mark.parametrize(
    ("init", "count", "message"),
    [(refuse, 1, "does not start: cuInit failed.*nvidia-smi"), (lambda: None, 0, "finds no device.*CUDA_VISIBLE_DEVICES")],
)
def test_no_device_is_said(init, count, message, monkeypatch):
    driver = types.ModuleType("pycuda.driver")
    driver.Error, driver.init = Refused, init
    driver.Device = types.SimpleNamespace(count=lambda: count)
    driver.Context = types.SimpleNamespace(get_current=lambda: None)
    package = types.ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    Config.backend = Config.Backend.cuda
    with pytest.raises(DeviceError, match=message):
        gpuarray.zeros(2)
    assert not context.available()
