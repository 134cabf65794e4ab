"""Stand-ins for PuzzleLib's classes, written from the description of what they do; and a small net to hold variables."""

import numpy as np


class CPUArray:
    """PuzzleLib's CPU array: the NumPy array is in ``.data``; no arithmetic of NumPy's own on it."""

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
            self.grad = CPUArray(data.shape, data.dtype, data=zeros, acquire=True)
        self.learnRate, self.momRate, self.wc = 1.0, 1.0, 0.0

    hasUpdater = property(lambda self: self.updater is not None)

    def update(self, learnRate):
        self.updater(self, learnRate)


class Net:
    """The net protocol and nothing else: names to variables, and like PuzzleLib's an attribute with each one's data."""

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
        setattr(self, name.replace(".", "_"), var.data)
        self.vars[name] = var
