"""The few device operations that nets need, all of them here; each runs where its arrays are.

:mod:`.ops_cpu` and :mod:`.ops_cuda` have them under the same names; the latter is imported when a CUDA array comes.
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
    """The module that works on the memory that all of these arrays are in."""
    on_cuda = [PyCUDAFamily.of(array) is not None for array in arrays]
    if not any(on_cuda):
        return ops_cpu
    if not all(on_cuda):
        raise ArrayError(
            "a net, its data and its target must be all on CUDA or all on the CPU; got "
            + " and ".join(f"{'CUDA' if cuda else 'CPU'} {tuple(a.shape)}" for cuda, a in zip(on_cuda, arrays, strict=True))
            + ". Config.backend says where gpuarray makes arrays"
        )
    from . import ops_cuda

    return ops_cuda


def matmul(
    a: Any, b: Any, transpA: bool = False, transpB: bool = False, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """``out = alpha * a @ b + beta * out``, with either matrix transposed on request; without ``out`` a new ``a @ b``."""
    return _at(a, b, *([] if out is None else [out])).matmul(a, b, transpA, transpB, out, alpha, beta)


def add_row(matrix: Any, row: Any) -> None:
    """Adds ``row`` to every row of ``matrix``, in place."""
    _at(matrix, row).add_row(matrix, row)


def sum_rows(matrix: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """``out = alpha * (the sum of the matrix's rows) + beta * out``."""
    return _at(matrix, out).sum_rows(matrix, out, alpha, beta)


def activate(kind: str, data: Any, slope: float = 0.0) -> Any:
    """sigmoid, tanh, relu or leakyRelu (with ``slope`` below zero) of every element."""
    return _at(data).activate(kind, data, slope)


def activate_backward(kind: str, grad: Any, outdata: Any, slope: float = 0.0) -> Any:
    """The gradient before the activation, from that after it and from what it gave."""
    return _at(grad, outdata).activate_backward(kind, grad, outdata, slope)


def mean_squared_error(pred: Any, target: Any) -> tuple[Any, float]:
    """``(target - pred) / size``, and ``sum((target - pred)**2) / (2*size)``."""
    return _at(pred, target).mean_squared_error(pred, target)


def cross_entropy(scores: Any, labels: Any) -> tuple[Any, float]:
    """For (n, classes) scores: ``(onehot(labels) - softmax(scores)) / n``, and the mean of ``-log softmax[label]``."""
    return _at(scores, labels).cross_entropy(scores, labels)


def most_probable(scores: Any) -> Any:
    """The class of the highest score in each row, int32."""
    return _at(scores).most_probable(scores)


def count_different(a: Any, b: Any) -> int:
    """How many elements of two int32 arrays differ."""
    return _at(a, b).count_different(a, b)


def label_range(labels: Any) -> tuple[int, int]:
    """The least and the greatest of some integers."""
    return _at(labels).label_range(labels)
