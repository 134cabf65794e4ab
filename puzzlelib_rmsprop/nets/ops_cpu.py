"""The operations of :mod:`.ops` on the CPU, in NumPy. Each takes and returns arrays of ``gpuarray``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import CPUArray

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


def matmul(
    a: Any, b: Any, transpA: bool = False, transpB: bool = False, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Returns ``a @ b``, or sets ``out = alpha * a @ b + beta * out``, with ``a`` and ``b`` transposed on request."""
    a, b = (a.T if transpA else a), (b.T if transpB else b)
    if out is None:
        return np.matmul(a, b)
    return _accumulate(out, np.matmul(a, b), alpha, beta)


def _accumulate(out: Any, value: Any, alpha: float, beta: float) -> Any:
    if beta != 1.0:
        # NaN * 0 is NaN, so for beta = 0 fill with zeros
        out *= beta
        if beta == 0.0:
            out.fill(0)
    out += value if alpha == 1.0 else alpha * value
    return out


def add_row(matrix: Any, row: Any) -> None:
    """Adds ``row`` to every row of ``matrix``, in place."""
    matrix += row


def sum_rows(matrix: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Computes ``out = alpha * matrix.sum(axis=0) + beta * out``."""
    return _accumulate(out, matrix.sum(axis=0), alpha, beta)


def activate(kind: str, data: Any, slope: float = 0.0) -> Any:
    """Returns sigmoid, tanh, relu or leakyRelu (with ``slope`` below zero) of every element."""
    if kind == "sigmoid":
        # through tanh, because exp overflows for large negative data
        return data.dtype.type(0.5) * (np.tanh(data * data.dtype.type(0.5)) + data.dtype.type(1))
    if kind == "tanh":
        return np.tanh(data)
    if kind == "relu":
        return np.maximum(data, 0)
    return np.where(data > 0, data, data * data.dtype.type(slope)).view(type(data))


def activate_backward(kind: str, grad: Any, outdata: Any, slope: float = 0.0) -> Any:
    """Returns the gradient of an activation's input, from the gradient of its output and the output."""
    if kind == "sigmoid":
        return grad * outdata * (1 - outdata)
    if kind == "tanh":
        return grad * (1 - outdata * outdata)
    if kind == "relu":
        return grad * (outdata > 0)
    return np.where(outdata > 0, grad, grad * grad.dtype.type(slope)).view(type(grad))


def mean_squared_error(pred: Any, target: Any) -> tuple[Any, float]:
    """Returns ``(target - pred) / size`` and ``sum((target - pred)**2) / (2*size)``."""
    diff = target - pred
    return diff / diff.dtype.type(diff.size), float(np.vdot(diff, diff)) / (2 * diff.size)


def cross_entropy(scores: Any, labels: Any) -> tuple[Any, float]:
    """Returns ``(onehot(labels) - softmax(scores)) / n`` and the mean ``-log softmax[label]``, for (n, classes) scores."""
    count = scores.shape[0]
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponent = np.exp(shifted)
    total = exponent.sum(axis=1, keepdims=True)
    rows = np.arange(count)
    error = float(np.sum(np.log(total[:, 0]) - shifted[rows, labels])) / count
    grad = -exponent / total
    grad[rows, labels] += 1
    grad /= grad.dtype.type(count)
    return grad, error


def most_probable(scores: Any) -> Any:
    """Returns the class of the highest score in each row, int32."""
    return np.argmax(scores, axis=1).astype(np.int32).view(CPUArray)


def count_different(a: Any, b: Any) -> int:
    """Returns the number of elements in which two int32 arrays differ."""
    return int(np.count_nonzero(a != b))


def label_range(labels: Any) -> tuple[int, int]:
    """Returns the smallest and the largest label."""
    return int(labels.min()), int(labels.max())
