"""The operations on arrays that nets need. Each runs on the device of its arrays.

:mod:`.ops_cpu` and :mod:`.ops_cuda` implement them under the same names. The latter is imported for the first CUDA array.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..arrays.pycuda_array import PyCUDAFamily
from ..errors import ArrayError
from . import ops_cpu

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


def _at(*arrays: Any) -> ModuleType:
    """Returns the module for the device of these arrays."""
    on_cuda = [PyCUDAFamily.of(array) is not None for array in arrays]
    if not any(on_cuda):
        return ops_cpu
    if not all(on_cuda):
        raise ArrayError(
            "a net, its data and its target must all be on CUDA or all on the CPU; got "
            + " and ".join(f"{'CUDA' if cuda else 'CPU'} {tuple(a.shape)}" for cuda, a in zip(on_cuda, arrays, strict=True))
            + ". Config.backend selects the device of gpuarray's arrays"
        )
    from . import ops_cuda

    return ops_cuda


def matmul(
    a: Any, b: Any, transpA: bool = False, transpB: bool = False, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Returns ``a @ b``, or sets ``out = alpha * a @ b + beta * out``, with ``a`` and ``b`` transposed on request."""
    return _at(a, b, *([] if out is None else [out])).matmul(a, b, transpA, transpB, out, alpha, beta)


def add_row(matrix: Any, row: Any) -> None:
    """Adds ``row`` to every row of ``matrix``, in place."""
    _at(matrix, row).add_row(matrix, row)


def sum_rows(matrix: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Computes ``out = alpha * matrix.sum(axis=0) + beta * out``."""
    return _at(matrix, out).sum_rows(matrix, out, alpha, beta)


def activate(kind: str, data: Any, slope: float = 0.0) -> Any:
    """Returns sigmoid, tanh, relu or leakyRelu (with ``slope`` below zero) of every element."""
    return _at(data).activate(kind, data, slope)


def activate_backward(kind: str, grad: Any, outdata: Any, slope: float = 0.0) -> Any:
    """Returns the gradient of an activation's input, from the gradient of its output and the output."""
    return _at(grad, outdata).activate_backward(kind, grad, outdata, slope)


def mean_squared_error(pred: Any, target: Any) -> tuple[Any, float]:
    """Returns ``(target - pred) / size`` and ``sum((target - pred)**2) / (2*size)``."""
    return _at(pred, target).mean_squared_error(pred, target)


def cross_entropy(scores: Any, labels: Any) -> tuple[Any, float]:
    """Returns ``(onehot(labels) - softmax(scores)) / n`` and the mean ``-log softmax[label]``, for (n, classes) scores."""
    return _at(scores, labels).cross_entropy(scores, labels)


def most_probable(scores: Any) -> Any:
    """Returns the class of the highest score in each row, int32."""
    return _at(scores).most_probable(scores)


def count_different(a: Any, b: Any) -> int:
    """Returns the number of elements in which two int32 arrays differ."""
    return _at(a, b).count_different(a, b)


def label_range(labels: Any) -> tuple[int, int]:
    """Returns the smallest and the largest label."""
    return _at(labels).label_range(labels)
