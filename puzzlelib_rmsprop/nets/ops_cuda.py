"""The operations of :mod:`.ops` on CUDA: matrix products through cuBLAS, the others through the kernels of ``nets.cu``.

All work is queued on the default stream of the current context. Only functions that return a number wait for it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ..arrays.pycuda_array import PyCUDAFamily
from ..errors import ArrayError
from ..kernels import cuda
from . import cublas

__all__ = [
    "activate",
    "activate_backward",
    "add_row",
    "count_different",
    "cross_entropy",
    "label_range",
    "matmul",
    "mean_squared_error",
    "most_probable",
    "sum_rows",
]

_THREADS = cuda.constant("THREADS", "nets")
_BLOCKS = 1024  # upper limit: enough for any GPU, and constant so that sums have the same order on each
_FAMILY = PyCUDAFamily()
_SINGLE = np.dtype(np.float32)


def _launch(name: str, threads: int, *arguments: Any) -> None:
    """Launches a kernel on ``threads`` rows or elements. Arguments are arrays, ints or floats."""
    blocks = min(-(-threads // _THREADS), _BLOCKS)
    if blocks:
        packed = b"".join(map(_packed, arguments))
        cuda.function(name, "nets")._launch_kernel((blocks, 1), (_THREADS, 1, 1), packed, 0, None)


def _packed(argument: Any) -> bytes:
    if isinstance(argument, float):
        return struct.pack("=d", argument)
    return struct.pack("=Q", argument if isinstance(argument, int) else _address(argument))


def _address(array: Any) -> int:
    fault = _FAMILY.fault(array)
    if fault is not None:
        raise ArrayError(f"an array of shape {tuple(array.shape)} {fault}")
    return _FAMILY.address(array)


def _parts(threads: int, dtype: Any) -> Any:
    """Returns an array for the partial sums of the blocks of a launch."""
    return _FAMILY.empty((min(-(-threads // _THREADS), _BLOCKS),), np.dtype(dtype))


def matmul(
    a: Any, b: Any, transpA: bool = False, transpB: bool = False, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Returns ``a @ b``, or sets ``out = alpha * a @ b + beta * out``, with ``a`` and ``b`` transposed on request.

    float16 matrices are multiplied in float32.
    """
    if out is None:
        shape = (a.shape[1 if transpA else 0], b.shape[0 if transpB else 1])
        out, alpha, beta = _FAMILY.empty(shape, a.dtype), 1.0, 0.0
    if out.dtype == np.float16:
        wide = _widened(out) if beta else _FAMILY.empty(out.shape, _SINGLE)
        matmul(_widened(a), _widened(b), transpA, transpB, wide, alpha, beta)
        _launch("narrow_float16", out.size, wide, out, out.size)
        return out
    rows, columns = out.shape
    inner = a.shape[0 if transpA else 1]
    if out.size and not inner:  # an empty sum: without cuBLAS, because empty matrices have no address
        sum_rows(_FAMILY.empty((0, out.size), out.dtype), out.ravel(), alpha, beta)
    elif out.size:
        # cuBLAS is column-major and sees transposed matrices: out.T = b.T @ a.T
        cublas.gemm(
            out.dtype,
            (transpB, transpA),
            (columns, rows, inner),
            (alpha, beta),
            (_address(b), b.shape[1]),
            (_address(a), a.shape[1]),
            (_address(out), columns),
        )
    return out


def _widened(matrix: Any) -> Any:
    wide = _FAMILY.empty(matrix.shape, _SINGLE)
    _launch("widen_float16", matrix.size, matrix, wide, matrix.size)
    return wide


def add_row(matrix: Any, row: Any) -> None:
    """Adds ``row`` to every row of ``matrix``, in place."""
    _launch(f"add_row_{matrix.dtype}", matrix.size, matrix, row, matrix.size, row.size)


def sum_rows(matrix: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Computes ``out = alpha * matrix.sum(axis=0) + beta * out``."""
    _launch(f"sum_rows_{matrix.dtype}", out.size, matrix, out, *matrix.shape, float(alpha), float(beta))
    return out


def activate(kind: str, data: Any, slope: float = 0.0) -> Any:
    """Returns sigmoid, tanh, relu or leakyRelu (with ``slope`` below zero) of every element."""
    out = _FAMILY.empty(data.shape, data.dtype)
    _launch(f"{kind}_{data.dtype}", data.size, data, out, data.size, float(slope))
    return out


def activate_backward(kind: str, grad: Any, outdata: Any, slope: float = 0.0) -> Any:
    """Returns the gradient of an activation's input, from the gradient of its output and the output."""
    out = _FAMILY.empty(grad.shape, grad.dtype)
    _launch(f"back_{kind}_{grad.dtype}", grad.size, grad, outdata, out, grad.size, float(slope))
    return out


def mean_squared_error(pred: Any, target: Any) -> tuple[Any, float]:
    """Returns ``(target - pred) / size`` and ``sum((target - pred)**2) / (2*size)``."""
    grad = _FAMILY.empty(pred.shape, pred.dtype)
    parts = _parts(pred.size, np.float64)
    _launch(f"squared_error_{pred.dtype}", pred.size, pred, target, grad, parts, pred.size)
    return grad, float(parts.get().sum()) / (2 * pred.size)


def cross_entropy(scores: Any, labels: Any) -> tuple[Any, float]:
    """Returns ``(onehot(labels) - softmax(scores)) / n`` and the mean ``-log softmax[label]``, for (n, classes) scores."""
    rows, classes = scores.shape
    grad = _FAMILY.empty(scores.shape, scores.dtype)
    parts = _parts(rows, np.float64)
    _launch(f"cross_entropy_{scores.dtype}", rows, scores, labels, grad, parts, rows, classes)
    return grad, float(parts.get().sum()) / rows


def most_probable(scores: Any) -> Any:
    """Returns the class of the highest score in each row, int32."""
    rows, classes = scores.shape
    out = _FAMILY.empty((rows,), np.dtype(np.int32))
    _launch(f"most_probable_{scores.dtype}", rows, scores, out, rows, classes)
    return out


def count_different(a: Any, b: Any) -> int:
    """Returns the number of elements in which two int32 arrays differ."""
    parts = _parts(a.size, np.uint64)
    _launch("count_different", a.size, a, b, parts, a.size)
    return int(parts.get().sum())


def label_range(labels: Any) -> tuple[int, int]:
    """Returns the smallest and the largest label."""
    # the caller waits for the result anyway, and there are few labels
    host = labels.get()
    return int(host.min()), int(host.max())
