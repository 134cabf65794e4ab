"""Stand-ins for libraries with arrays on a GPU, which implement the protocols like the real ones.

Each works on its own non-blocking stream, like a program that has made one current; the simulator delays all work on it.
PyCUDA allocates the memory; the driver is called directly to copy and to wait.
"""

import ctypes
import sys
import types
from collections import namedtuple
from contextlib import contextmanager

import numpy as np

from puzzlelib_rmsprop.kernels.context import driver_library


class Stream:
    """A stream that is not ordered with the default stream, created through the driver without PyCUDA."""

    def __init__(self):
        made = ctypes.c_void_p()
        assert driver_library().cuStreamCreate(ctypes.byref(made), 1) == 0  # CU_STREAM_NON_BLOCKING
        self.ptr = made.value

    def synchronize(self):
        assert driver_library().cuStreamSynchronize(ctypes.c_void_p(self.ptr)) == 0


class DefaultStream(Stream):
    def __init__(self):
        self.ptr = 0


class Memory:
    """Device memory, or a part of it, with shape and dtype."""

    def __init__(self, shape, dtype, base=None, address=None):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        if address is None:
            from pycuda import driver

            base = driver.mem_alloc(max(self.nbytes, 1))
            address = int(base)
        self.base, self.address = base, address

    def copy(self, stream):
        copied = Memory(self.shape, self.dtype)
        copied.write(self.read(stream), stream)
        return copied

    def part(self, begin, shape):
        return Memory(shape, self.dtype, self.base, self.address + begin * self.dtype.itemsize)

    def write(self, content, stream):
        content = np.array(np.broadcast_to(content, self.shape), self.dtype, order="C")
        if self.size:
            where = ctypes.c_uint64(self.address), content.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(self.nbytes)
            assert driver_library().cuMemcpyHtoDAsync_v2(*where, ctypes.c_void_p(stream.ptr)) == 0

    def read(self, stream):
        content = np.empty(self.shape, self.dtype)
        if self.size:
            where = content.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(self.address), ctypes.c_size_t(self.nbytes)
            assert driver_library().cuMemcpyDtoHAsync_v2(*where, ctypes.c_void_p(stream.ptr)) == 0
            stream.synchronize()
        return content


# ------------------------------------------------------------------------------------- the bare protocol


class Version3:
    """An array that has only the protocol, without shape or dtype; it names the stream of its work."""

    _stream = None

    def __init__(self, content, on=None, **said):
        content = np.asarray(content)
        self.stream = self._own() if on is None else on
        self.memory, self.said = Memory(content.shape, content.dtype), said
        self.memory.write(content, self.stream)

    def __reduce__(self):
        return type(self), (self.memory.read(self.stream),)

    def __deepcopy__(self, memo):
        return type(self)(self.memory.read(self.stream), self.stream, **self.said)

    @classmethod
    def _own(cls):
        Version3._stream = Version3._stream or Stream()
        return Version3._stream

    @property
    def __cuda_array_interface__(self):
        memory, address = self.memory, self.memory.address if self.memory.size else 0
        described = {"shape": memory.shape, "typestr": memory.dtype.str, "data": (address, False), "version": 3}
        return {**described, "strides": None, "stream": self.stream.ptr, **self.said}


class Version2(Version3):
    """An array that names no stream; its library works on the default stream."""

    @classmethod
    def _own(cls):
        return DefaultStream()

    @property
    def __cuda_array_interface__(self):
        described = {**super().__cuda_array_interface__, "version": 2, **self.said}
        del described["stream"]
        return described


# ------------------------------------------------------------------------------------------------ CuPy


class CuPyArray:
    """``cupy.ndarray``: all work is on the current stream."""

    def __init__(self, memory, strides=None):
        self.memory, self.shape, self.dtype = memory, memory.shape, memory.dtype
        self.size, self.nbytes, self.ndim = memory.size, memory.nbytes, len(memory.shape)
        self.strides = np.empty(self.shape, self.dtype).strides if strides is None else strides
        self.flags = types.SimpleNamespace(c_contiguous=strides is None)
        self.data = types.SimpleNamespace(ptr=memory.address)

    def get(self):
        return self.memory.read(current())

    def set(self, content):
        self.memory.write(content, current())

    def __deepcopy__(self, memo):
        return CuPyArray(self.memory.copy(current()))

    def __reduce__(self):
        return cupy_made, (self.get(),)

    def reshape(self, shape):
        return CuPyArray(self.memory.part(0, shape))

    def __getitem__(self, part):
        begin, end, _ = part.indices(self.size)
        return CuPyArray(self.memory.part(begin, (end - begin,)))

    @property
    def T(self):
        return CuPyArray(self.memory.part(0, self.shape[::-1]), self.strides[::-1])


_current = []


def current():
    if not _current:
        _current.append(Stream())
    return _current[-1]


@contextmanager
def using(stream):
    """Works like ``with stream:`` in CuPy, and ``with torch.cuda.stream(stream)``."""
    _current.append(stream)
    yield stream
    _current.pop()


def cupy_made(content):
    made = CuPyArray(Memory(np.shape(content), np.asarray(content).dtype))
    made.set(content)
    return made


def cupy():
    """Returns a module with the part of CuPy that the library uses."""
    module = types.ModuleType("cupy")
    module.ndarray, module.__version__ = CuPyArray, "14.2.0"
    module.empty = lambda shape, dtype: CuPyArray(Memory(shape, dtype))
    module.cuda = types.SimpleNamespace(get_current_stream=current)
    return module


# --------------------------------------------------------------------------------------------- PyTorch


class TorchDtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


TORCH_DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "uint8", "complex64")
TORCH_DTYPES = {name: TorchDtype(name) for name in TORCH_DTYPES}
Device = namedtuple("Device", "type index")
DEVICE = Device("cuda", 0)


class Tensor:
    """``torch.Tensor`` on a CUDA device: all work is on the current stream; assigning ``.data`` replaces its memory."""

    __torch_dispatch__ = None
    layout, is_nested, device, requires_grad = "torch.strided", False, DEVICE, False

    def __init__(self, memory, strides=None):
        self.memory, self._strides = memory, strides

    shape = property(lambda self: self.memory.shape)
    dtype = property(lambda self: TORCH_DTYPES[self.memory.dtype.name])
    nbytes = property(lambda self: self.memory.nbytes)

    def numel(self):
        return self.memory.size

    def element_size(self):
        return self.memory.dtype.itemsize

    def data_ptr(self):
        return self.memory.address if self.memory.size else 0

    def is_contiguous(self):
        return self._strides is None

    def stride(self):
        return self._strides

    def is_neg(self):
        return False

    def is_inference(self):
        return False

    def detach(self):
        return Tensor(self.memory)

    def view(self, shape):
        return Tensor(self.memory.part(0, shape))

    def __getitem__(self, part):
        begin, end, _ = part.indices(self.memory.size)
        return Tensor(self.memory.part(begin, (end - begin,)))

    def __deepcopy__(self, memo):
        return Tensor(self.memory.copy(current()))

    def __reduce__(self):
        return torch_made, (self.memory.read(current()),)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        assert (other.shape, other.dtype) == (self.shape, self.dtype)
        self.memory = other.memory

    @property
    def T(self):
        return Tensor(self.memory.part(0, self.shape[::-1]), (1, self.shape[1]))

    @property
    def __cuda_array_interface__(self):
        raise AssertionError("PyTorch's tensors are recognized without this protocol")


def torch_made(content):
    content = np.asarray(content)
    made = Tensor(Memory(content.shape, content.dtype))
    made.memory.write(content, current())
    return made


def torch():
    """Returns a module with the part of PyTorch that the library uses."""
    module = types.ModuleType("torch")
    vars(module).update(TORCH_DTYPES)
    module.Tensor, module.strided = Tensor, "torch.strided"
    module.version = types.SimpleNamespace(hip=None)
    module.empty = lambda shape, *, dtype, device: Tensor(Memory(shape, bfloat16_too(dtype.name)))
    module.cuda = types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=current().ptr))
    return module


def bfloat16_too(name):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


# ------------------------------------------------------------------------------------ families for tests


def stream_of(array):
    """Returns the stream on which its library currently works on an array."""
    return array.stream if isinstance(array, Version3) else current()


def add_to(arrays, kind, variable):
    """Adds a family of arrays for each stand-in; the modules of PyTorch and CuPy exist only during tests with them."""

    class Foreign(kind):
        modules, own = {}, None

        def get(self, array):
            return array.memory.read(stream_of(array)) if hasattr(array, "memory") else array.get()

        def put(self, array, content):
            if hasattr(array, "memory"):
                array.memory.write(content, stream_of(array))
            else:
                kind.put(array, content)

        def shape(self, array):
            return array.memory.shape if hasattr(array, "memory") else array.shape

        def dtype(self, array):
            return array.memory.dtype if hasattr(array, "memory") else array.dtype

        def made(self, array):
            return self.own or type(array)

    for name, make, module in (
        ("cuda-cupy", cupy_made, cupy),
        ("cuda-torch", torch_made, torch),
        ("cuda-interface2", Version2, None),
        ("cuda-interface3", Version3, None),
    ):
        arrays[name] = Foreign(name, make, variable)
        if module is None:
            arrays[name].own = sys.modules["pycuda.gpuarray"].GPUArray
        else:
            arrays[name].modules = {module.__name__: module()}
