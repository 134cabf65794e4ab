"""Costs: how far a net's output is from the target, and the gradient of minus that."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import gpuarray
from ..errors import CostError
from . import ops

__all__ = ["MSE", "Cost", "CrossEntropy"]


class Cost:
    """Base class of costs; PuzzleLib's class of that name.

    ``error, grad = cost(pred, target)``. **Sign:** ``grad`` is the gradient of *minus* the error with respect to
    ``pred``, which is what :class:`~puzzlelib_rmsprop.RMSPropGraves` expects to be backpropagated.

    Attributes:
        error, grad: of the last call.
        valError: of the last :meth:`validate`.
    """

    def __init__(self) -> None:
        self.error: float | None = None
        self.valError: float | None = None
        self.grad: Any = None
        self.resetAccumulator()

    def resetAccumulator(self) -> None:
        """Starts :meth:`getMeanError` anew."""
        self._accumulated = 0.0
        self.numOfSamples = 0

    def getError(self) -> float | None:
        """The error of the last call."""
        return self.error

    def getMeanError(self) -> float:
        """The mean error over all samples since :meth:`resetAccumulator`. Raises CostError where there were none."""
        if not self.numOfSamples:
            raise CostError(f"{type(self).__name__}: no samples since resetAccumulator()")
        return self._accumulated / self.numOfSamples

    def getValError(self) -> float | None:
        """The result of the last :meth:`validate`."""
        return self.valError

    def __call__(self, pred: Any, target: Any, queryError: bool = True) -> Any:
        """``(error, grad)``, or ``grad`` alone with ``queryError=False``.

        Raises:
            CostError: where the shapes or dtypes do not fit.
        """
        self._check(pred, target)
        self.grad, self.error = self.calcGrad(pred, target)
        self._accumulated += self.error * pred.shape[0]
        self.numOfSamples += pred.shape[0]
        return (self.error, self.grad) if queryError else self.grad

    def validate(self, pred: Any, target: Any) -> float:
        """The validation error: for MSE the error, for CrossEntropy the share of samples that are classified wrongly."""
        self._check(pred, target)
        self.valError = self.calcVal(pred, target)
        return self.valError

    def calcGrad(self, pred: Any, target: Any) -> tuple[Any, float]:
        """Gradient and error; what a subclass writes."""
        raise NotImplementedError

    def calcVal(self, pred: Any, target: Any) -> float:
        """The validation error; what a subclass writes."""
        raise NotImplementedError

    def checkDataShape(self, pred: Any, target: Any) -> None:
        """Raises CostError for data that does not fit; what a subclass writes."""

    def _check(self, pred: Any, target: Any) -> None:
        own = type(self).__name__
        for what, array in (("pred", pred), ("target", target)):
            if not isinstance(array, gpuarray.GPUArray):
                raise CostError(f"{own}: {what} must be made with gpuarray.to_gpu; got {type(array).__name__}")
        if pred.ndim == 0 or pred.shape[0] == 0:
            raise CostError(f"{own}: pred must have samples; its shape is {pred.shape}")
        self.checkDataShape(pred, target)


class MSE(Cost):
    """Half the mean squared difference: ``sum((target - pred)**2) / (2*size)``; arrays of one shape and dtype.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> from puzzlelib_rmsprop.nets import MSE
        >>> error, grad = MSE()(gpuarray.zeros((2, 1)), gpuarray.to_gpu(np.array([[2.0], [0.0]], np.float32)))
        >>> error, grad.get().tolist()
        (1.0, [[1.0], [0.0]])
    """

    def calcGrad(self, pred: Any, target: Any) -> tuple[Any, float]:
        return ops.mean_squared_error(pred, target)

    def calcVal(self, pred: Any, target: Any) -> float:
        return ops.mean_squared_error(pred, target)[1]

    def checkDataShape(self, pred: Any, target: Any) -> None:
        if pred.shape != target.shape or pred.dtype != target.dtype:
            raise CostError(
                f"MSE: pred and target must be of one shape and dtype; got {pred.shape}, {pred.dtype} and "
                f"{target.shape}, {target.dtype}"
            )


class CrossEntropy(Cost):
    """The mean of ``-log softmax(scores)[label]``: scores (n, classes), labels (n,) int32 from 0.

    Args:
        maxlabels: the number of classes that scores must have, if given.

    Attributes:
        mostProb: the classes that the last :meth:`validate` found, (n,) int32.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> from puzzlelib_rmsprop.nets import CrossEntropy
        >>> scores = gpuarray.to_gpu(np.array([[4, 0, 0], [0, 4, 0]], np.float32))
        >>> labels = gpuarray.to_gpu(np.array([0, 2], np.int32))
        >>> CrossEntropy().accuracy(scores, labels)
        0.5
    """

    def __init__(self, maxlabels: int | None = None) -> None:
        super().__init__()
        self.maxlabels = maxlabels
        self.mostProb: Any = None

    def calcGrad(self, pred: Any, target: Any) -> tuple[Any, float]:
        return ops.cross_entropy(pred, target)

    def calcVal(self, pred: Any, target: Any) -> float:
        self.mostProb = ops.most_probable(pred)
        return ops.count_different(self.mostProb, target) / target.size

    def accuracy(self, scores: Any, labels: Any) -> float:
        """The share of samples whose highest score is their label's: 1 less :meth:`validate`."""
        return 1.0 - self.validate(scores, labels)

    def checkDataShape(self, pred: Any, target: Any) -> None:
        if pred.ndim != 2 or target.shape != pred.shape[:1]:
            raise CostError(f"CrossEntropy needs scores (n, classes) and labels (n,); got {pred.shape} and {target.shape}")
        if target.dtype != np.int32:
            raise CostError(f"CrossEntropy: labels must be of dtype int32; got {target.dtype}")
        classes = pred.shape[1]
        if self.maxlabels is not None and classes != self.maxlabels:
            raise CostError(f"CrossEntropy: scores must have maxlabels = {self.maxlabels} columns; got {classes}")
        least, most = ops.label_range(target)
        if least < 0 or most >= classes:
            raise CostError(f"CrossEntropy: labels must be from 0 to {classes - 1}; got {least if least < 0 else most}")
