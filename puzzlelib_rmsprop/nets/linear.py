"""A fully connected layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import gpuarray
from ..errors import ModuleError
from ..variable import Variable
from . import ops
from .module import Module

__all__ = ["Linear"]

_SCHEMES = ("none", "xavier", "xavier_uniform", "xavier_normal", "he", "gaussian", "uniform")


class Linear(Module):
    """Computes ``data @ W + b``, from shape (n, insize) to (n, outsize). A counterpart of PuzzleLib's ``Linear``.

    Args:
        insize: number of input features, at least 1.
        outsize: number of output features, at least 1.
        wscale: standard deviation of the scheme ``"gaussian"``, or bound of ``"uniform"``.
        useBias: add ``b``, which is initialized to zeros.
        initscheme: initialization of ``W``: ``"xavier_uniform"`` (the default, with the bound ``sqrt(3/insize)``),
            ``"xavier"`` or ``"xavier_normal"``, ``"he"``, ``"gaussian"``, ``"uniform"``, or ``"none"`` to leave it
            uninitialized. Random numbers come from NumPy's global generator: ``np.random.seed`` makes them repeatable.
        name: name of the module within a container.
        empty: create no variables; set them with ``setVar``.
        transpose: store ``W`` with shape (outsize, insize).

    Raises:
        ModuleError: if a size or the scheme is invalid.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> Linear(3, 2)(gpuarray.zeros((5, 3))).shape
        (5, 2)
    """

    W: Any
    b: Any

    def __init__(
        self,
        insize: int,
        outsize: int,
        wscale: float = 1.0,
        useBias: bool = True,
        initscheme: str | None = None,
        name: str | None = None,
        empty: bool = False,
        transpose: bool = False,
    ) -> None:
        super().__init__(name)
        for what, size in (("insize", insize), ("outsize", outsize)):
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ModuleError(f"Linear: {what} must be an int of at least 1; got {size!r}")
        if initscheme is not None and initscheme not in _SCHEMES:
            raise ModuleError(f"Linear: initscheme must be one of {', '.join(_SCHEMES)}; got {initscheme!r}")
        self.transpose = transpose
        self.useBias = useBias
        self.W, self.b = None, None
        if empty:
            return
        W = _initial(initscheme or "xavier_uniform", (outsize, insize) if transpose else (insize, outsize), insize, wscale)
        self.setVar("W", Variable(gpuarray.to_gpu(W), name="W"))
        if useBias:
            self.setVar("b", Variable(gpuarray.zeros((outsize,), self.calctype), name="b"))

    def updateData(self, data: Any) -> None:
        self.data = ops.matmul(data, self.W, transpB=self.transpose)
        if self.useBias:
            ops.add_row(self.data, self.b)

    def updateGrad(self, grad: Any) -> None:
        self.grad = ops.matmul(grad, self.W, transpB=not self.transpose)

    def accGradParams(self, grad: Any, scale: float = 1.0, momentum: float = 0.0) -> None:
        a, b = (grad, self.inData) if self.transpose else (self.inData, grad)
        ops.matmul(a, b, transpA=True, out=self.vars["W"].grad, alpha=scale, beta=momentum)
        if self.useBias:
            ops.sum_rows(grad, out=self.vars["b"].grad, alpha=scale, beta=momentum)

    def checkDataShape(self, shape: tuple[int, ...]) -> None:
        if self.W is None:
            raise ModuleError(f"{self} was made with empty=True: set its W with setVar first")
        insize = self.W.shape[1 if self.transpose else 0]
        if len(shape) != 2 or shape[1] != insize:
            raise ModuleError(f"{self}: data must be of shape (n, {insize}); got {shape}")


def _initial(scheme: str, shape: tuple[int, int], fan_in: int, wscale: float) -> np.ndarray:
    if scheme == "none":
        return np.empty(shape, np.float32)
    if scheme in ("xavier_uniform", "uniform"):
        bound = wscale if scheme == "uniform" else math.sqrt(3.0 / fan_in)
        return np.random.uniform(-bound, bound, shape).astype(np.float32)
    spread = {"gaussian": wscale, "he": math.sqrt(2.0 / fan_in)}.get(scheme, math.sqrt(1.0 / fan_in))
    return np.random.normal(0.0, spread, shape).astype(np.float32)
