"""Array families and gpuarray: recognizing arrays, views, flat buffers, overlap."""

import numpy as np
import pytest

from puzzlelib_rmsprop import gpuarray
from puzzlelib_rmsprop.arrays import family_of, refuse_overlap
from puzzlelib_rmsprop.arrays.flat import layout
from puzzlelib_rmsprop.errors import ArrayError
from puzzlelib_rmsprop.kernels import DECAY, SCALE, Operation
from tests import standins


def test_gpuarray_makes_arrays_numpy_works_on():
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    ary = gpuarray.to_gpu(host)
    assert isinstance(ary, gpuarray.GPUArray)
    host[0, 0] = 99
    assert ary[0, 0] == 0, "a copy"
    assert (ary.shape, ary.dtype, ary.size, ary.nbytes) == ((2, 3), np.float32, 6, 24)
    assert type(ary.get()) is np.ndarray
    assert ary.get() is not ary
    assert ary.ptr == ary.ctypes.data
    ary.fill(2)
    assert (ary @ ary.T).tolist() == [[12, 12], [12, 12]]
    assert ary.reshape(3, 2).shape == (3, 2)
    assert ary.ravel().shape == (6,)
    assert ary.view(np.uint32).dtype == np.uint32
    ary.set(np.arange(6).reshape(2, 3))
    assert ary.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_gpuarray_shapes_and_dtypes():
    assert gpuarray.zeros(3).tolist() == [0, 0, 0]
    assert gpuarray.zeros((2, 0), np.float64).dtype == np.float64
    assert gpuarray.empty((), dtype=np.float32).shape == ()
    assert gpuarray.to_gpu(np.asfortranarray(np.ones((2, 3)))).flags.c_contiguous
    assert gpuarray.to_gpu([1, 2]).tolist() == [1, 2]
    assert {dtype for dtype, _ in gpuarray.dtypesSupported()} == {np.float16, np.float32, np.float64}


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 2)), [1]])
def test_set_refuses_another_shape(wrong):
    ary = gpuarray.zeros((2, 3))
    with pytest.raises(ArrayError, match=r"needs an array of shape \(2, 3\)"):
        ary.set(wrong)


def test_set_refuses_another_kind():
    with pytest.raises(ArrayError, match="cannot convert complex128 to float32"):
        gpuarray.zeros(2).set(np.zeros(2, complex))


def test_to_gpu_refuses_what_is_not_numbers():
    with pytest.raises(ArrayError, match="needs numbers; got str"):
        gpuarray.to_gpu("abc")


def test_stream_manager():
    first = gpuarray.streamManager.borrow(2)
    second = gpuarray.streamManager.borrow(1)
    assert len({id(s) for s in first + second}) == 3
    for stream in first:
        stream.synchronize()
    gpuarray.streamManager.give(first + second)
    assert {id(s) for s in gpuarray.streamManager.borrow(3)} == {id(s) for s in first + second}
    gpuarray.streamManager.clear()


# ------------------------------------------------------------------------------------------- families


def test_every_family(arrays):
    host = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = arrays.make(host)
    family = family_of(array)
    assert family == family_of(arrays.make(np.zeros(2)))
    assert hash(family) == hash(family_of(array))
    assert family.fault(array) is None
    content = family.get(array)
    assert type(content) is np.ndarray
    assert np.array_equal(content, host)
    content[:] = 0
    assert np.array_equal(family.get(array), host), "get copies"

    zeros = family.zeros((2, 2), np.dtype(np.float64))
    assert type(zeros) is arrays.made(array)
    assert (arrays.shape(zeros), arrays.dtype(zeros)) == ((2, 2), np.float64)
    assert (family.shape(array), family.dtype(array)) == ((3, 4), np.float32)
    assert (family.size(array), family.nbytes(array)) == (12, 48)
    flat = family.zeros((12,), np.dtype(np.float32))
    part = family.view(flat, 5, (2, 3))
    assert type(part) is arrays.made(array)
    family.set(part, np.ones((2, 3), np.float32))
    assert family.get(flat).tolist() == [0] * 5 + [1] * 6 + [0]
    assert family.address(part) == family.address(flat) + 20
    family.copy(part, family.view(flat, 0, (2, 3)))
    family.fill_zero(flat)
    assert not family.get(part).any()
    with pytest.raises(ArrayError, match="cannot copy"):
        family.set(flat, np.zeros(3))


def test_families_differ():
    host = np.zeros(2, np.float32)
    families = [family_of(a) for a in (host, gpuarray.to_gpu(host), standins.CPUArray.toDevice(host))]
    assert len(set(families)) == 3


def test_subclass_of_puzzlelibs_array():
    class Mine(standins.CPUArray):
        pass

    assert family_of(Mine((2,), np.float32)) == family_of(standins.CPUArray((2,), np.float32))


@pytest.mark.parametrize("what", [[1.0], 3.0, None, "x", np.ma.zeros(3), memoryview(b"abc")])
def test_unknown_arrays(what):
    with pytest.raises(ArrayError, match="arrays must come from"):
        family_of(what)


def test_faults():
    family = family_of(np.zeros(1))
    square = np.zeros((4, 4), np.float32)
    assert "C-contiguous" in family.fault(square.T[:, :2])
    assert "C-contiguous" in family.fault(np.asfortranarray(np.zeros((2, 3))))
    locked = np.zeros(3)
    locked.flags.writeable = False
    assert "read-only" in family.fault(locked)
    odd = np.zeros(17, np.uint8)[1:].view(np.float32)
    assert "aligned" in family.fault(odd)
    swapped = np.zeros(3, np.dtype(np.float32).newbyteorder())
    assert "byte order" in family.fault(swapped)


def test_operations_on_gradients(arrays):
    y, x = arrays.make(np.array([1, 2], np.float64)), arrays.make(np.array([10, 20], np.float64))
    family = family_of(y)
    family.operate(y, x, 2.0, (Operation(DECAY, 0.25), Operation(SCALE, 2.0)))
    assert arrays.get(y).tolist() == [12, 24]
    with pytest.raises(ArrayError, match="of the same shape and dtype"):
        family.operate(y, arrays.make(np.zeros(3)), 1.0, ())
    with pytest.raises(ArrayError, match="C-contiguous"):
        family_of(np.zeros(1)).operate(np.zeros(4)[::2], np.zeros(2), 1.0, ())


# --------------------------------------------------------------------------------------- flat buffers


def test_shared_array():
    shared = gpuarray.SharedArray(np.float32)
    shared.register((2, 3), np.float32, "a")
    shared.register((), np.float32, "b")
    shared.register((0, 5), np.float32, "c")
    shared.register((4,), np.float32, "d")
    shared.build()
    assert shared.ary.tolist() == [0] * 11
    for name, shape in (("a", (2, 3)), ("b", ()), ("c", (0, 5)), ("d", (4,))):
        assert shared[name].shape == shape
    shared["d"].fill(1)
    assert shared.ary.tolist() == [0] * 7 + [1] * 4
    with pytest.raises(ArrayError, match="built already"):
        shared.register((1,), np.float32, "e")


def test_shared_array_refusals():
    shared = gpuarray.SharedArray(np.float32)
    shared.register((2,), np.float32, "a")
    with pytest.raises(ArrayError, match="'a' is registered already"):
        shared.register((2,), np.float32, "a")
    with pytest.raises(ArrayError, match="'b' must be of the buffer's dtype float32; got float64"):
        shared.register((2,), np.float64, "b")


@pytest.mark.parametrize(
    ("dtype", "alignment", "offsets", "size"),
    [
        ("float32", 1, [0, 3, 3, 8], 9),
        ("float32", 16, [0, 4, 4, 12], 16),
        ("float64", 16, [0, 4, 4, 10], 12),
        ("float16", 16, [0, 8, 8, 16], 24),
    ],
)
def test_layout(dtype, alignment, offsets, size):
    shapes = {"a": (3,), "b": (0,), "c": (5,), "d": (1, 1)}
    found, total = layout(shapes, np.dtype(dtype), alignment)
    assert (list(found.values()), total) == (offsets, size)


def test_overlap():
    refuse_overlap([("a", 0, 8), ("b", 8, 8), ("empty", 4, 0)])
    with pytest.raises(ArrayError, match="a overlaps b in memory"):
        refuse_overlap([("a", 4, 8), ("b", 0, 8)])
    with pytest.raises(ArrayError, match="b overlaps a in memory"):
        refuse_overlap([("a", 0, 100), ("b", 10, 4), ("c", 50, 1)])
