"""Stand-ins for PuzzleLib's classes, written from their documented behaviour, and a small net of variables."""

import numpy as np


class CPUArray:
    """PuzzleLib's CPU array: the NumPy array is in ``.data``; it has no arithmetic of its own."""

    def __init__(self, shape, dtype, data=None, acquire=False):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        if data is None:
            data, acquire = np.empty(self.shape, self.dtype), True
        if data.shape != self.shape or data.dtype != self.dtype:
            raise AssertionError("PuzzleLib asserts here")
        self.data = data if acquire else np.array(data, order="C", copy=True)

    size = property(lambda self: self.data.size)
    ndim = property(lambda self: self.data.ndim)
    nbytes = property(lambda self: self.data.nbytes)
    strides = property(lambda self: self.data.strides)

    def get(self, copy=True):
        return np.copy(self.data) if copy else self.data

    def set(self, ary):
        self.data[...] = ary.data if isinstance(ary, CPUArray) else ary

    def fill(self, value):
        self.data[...] = value

    def _around(self, data):
        return CPUArray(data.shape, data.dtype, data=data, acquire=True)

    def reshape(self, *shape):
        return self._around(self.data.reshape(*shape))

    def ravel(self):
        return self._around(self.data.reshape(self.data.size))

    def view(self, dtype):
        return self._around(self.data.view(dtype))

    @staticmethod
    def toDevice(ary):
        return CPUArray(ary.shape, ary.dtype, data=ary)


class Buffer:
    """PuzzleLib's device memory: an address and a size, sliced in bytes; a slice keeps the whole memory alive."""

    def __init__(self, ptr, size, base):
        self.ptr, self.size, self._base = ptr, size, base

    def __getitem__(self, part):
        begin, end, _ = part.indices(self.size)
        return Buffer(self.ptr + begin, end - begin, self._base)


class GPUArray:
    """PuzzleLib's CUDA array: created by keyword, in the primary context; float16 and float32. Uses PyCUDA's driver API."""

    def __init__(self, shape, dtype, gpudata=None):
        from pycuda import driver

        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        self.strides = np.empty(self.shape, np.dtype(dtype)).strides
        self.contiguous, self.device = True, 0
        if gpudata is None:
            memory = driver.mem_alloc(max(self.nbytes, 1))
            gpudata = Buffer(int(memory), max(self.nbytes, 1), memory)
        self.gpudata = gpudata

    ptr = property(lambda self: self.gpudata.ptr)
    ndim = property(lambda self: len(self.shape))

    def get(self):
        from pycuda import driver

        content = np.empty(self.shape, self.dtype)
        if self.size:
            driver.memcpy_dtoh(content, self.ptr)
        return content

    def set(self, ary):
        from pycuda import driver

        content = np.array(ary.get() if isinstance(ary, GPUArray) else ary, self.dtype, order="C")
        if content.shape != self.shape:
            raise ValueError("PuzzleLib refuses another shape")
        if self.size:
            driver.memcpy_htod(self.ptr, content)

    def fill(self, value):
        self.set(np.full(self.shape, value, self.dtype))

    @staticmethod
    def empty(shape, dtype, allocator=None):
        return GPUArray(shape=shape, dtype=dtype)

    @staticmethod
    def toGpu(ary):
        made = GPUArray(shape=ary.shape, dtype=ary.dtype)
        made.set(ary)
        return made


class PuzzleVariable:
    """PuzzleLib's Variable: plain attributes; with an updater it has neither gradient nor rates."""

    def __init__(self, data, name=None, withgrad=True, grad=None, updater=None, postUpdater=None):
        self.name, self.data, self.updater = name, data, updater
        if updater is not None:
            return
        self.postUpdater = postUpdater
        self.grad = grad
        if grad is None and withgrad:
            zeros = np.zeros(data.shape, data.dtype)
            self.grad = GPUArray.toGpu(zeros) if isinstance(data, GPUArray) else CPUArray.toDevice(zeros)
        self.learnRate, self.momRate, self.wc = 1.0, 1.0, 0.0

    hasUpdater = property(lambda self: self.updater is not None)

    def update(self, learnRate):
        self.updater(self, learnRate)


class Net:
    """The protocol of nets only: maps names to variables, and like PuzzleLib has an attribute with each variable's data."""

    def __init__(self, variables=None, **more):
        self.vars = {}
        for name, var in {**(variables or {}), **more}.items():
            self.setVar(name, var)

    def getVarTable(self):
        table = {}
        for name, var in self.vars.items():
            table.setdefault(var, []).append(name)
        return table

    def getVar(self, name):
        return self.vars[name]

    def setVar(self, name, var):
        attribute = name.replace(".", "_")
        if not hasattr(type(self), attribute) and attribute != "vars":  # names may be anything
            setattr(self, attribute, var.data)
        self.vars[name] = var
