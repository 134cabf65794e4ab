"""Cost functions: the error of a net's output, and the gradient of minus the error."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import gpuarray
from ..errors import CostError
from . import ops

__all__ = ["MSE", "Cost", "CrossEntropy"]


class Cost:
    """Base class of costs. A counterpart of PuzzleLib's ``Cost``.

    ``error, grad = cost(pred, target)``. **Sign:** ``grad`` is the gradient of *minus* the error with respect to
    ``pred``. :class:`~puzzlelib_rmsprop.RMSPropGraves` expects this sign.

    Attributes:
        error: the error of the last call.
        grad: the gradient of the last call.
        valError: the validation error of the last ``validate``.
    """

    def __init__(self) -> None:
        self.error: float | None = None
        self.valError: float | None = None
        self.grad: Any = None
        self.resetAccumulator()

    def resetAccumulator(self) -> None:
        """Resets the sums behind :meth:`getMeanError`."""
        self._accumulated = 0.0
        self.numOfSamples = 0

    def getError(self) -> float | None:
        """Returns the error of the last call."""
        return self.error

    def getMeanError(self) -> float:
        """Returns the mean error of all samples since :meth:`resetAccumulator`. Raises CostError if there were none."""
        if not self.numOfSamples:
            raise CostError(f"{type(self).__name__}: no samples since resetAccumulator()")
        return self._accumulated / self.numOfSamples

    def getValError(self) -> float | None:
        """Returns the result of the last ``validate``."""
        return self.valError

    def __call__(self, pred: Any, target: Any, queryError: bool = True) -> Any:
        """Returns ``(error, grad)``, or only ``grad`` with ``queryError=False``.

        Raises:
            CostError: if the shapes or dtypes do not fit.
        """
        self._check(pred, target)
        self.grad, self.error = self.calcGrad(pred, target)
        self._accumulated += self.error * pred.shape[0]
        self.numOfSamples += pred.shape[0]
        return (self.error, self.grad) if queryError else self.grad

    def validate(self, pred: Any, target: Any) -> float:
        """Returns the validation error: for MSE the error, for CrossEntropy the fraction of misclassified samples."""
        self._check(pred, target)
        self.valError = self.calcVal(pred, target)
        return self.valError

    def calcGrad(self, pred: Any, target: Any) -> tuple[Any, float]:
        """Returns gradient and error. Defined by subclasses."""
        raise NotImplementedError

    def calcVal(self, pred: Any, target: Any) -> float:
        """Returns the validation error. Defined by subclasses."""
        raise NotImplementedError

    def checkDataShape(self, pred: Any, target: Any) -> None:
        """Raises CostError if the data does not fit. Overridden by subclasses."""

    def _check(self, pred: Any, target: Any) -> None:
        own = type(self).__name__
        for what, array in (("pred", pred), ("target", target)):
            if not isinstance(array, gpuarray.GPUArray):
                raise CostError(f"{own}: {what} must be made with gpuarray.to_gpu; got {type(array).__name__}")
        if pred.ndim == 0 or pred.shape[0] == 0:
            raise CostError(f"{own}: pred must have at least one sample; its shape is {pred.shape}")
        self.checkDataShape(pred, target)


class MSE(Cost):
    """Half the mean squared error: ``sum((target - pred)**2) / (2*size)``, for arrays of the same shape and dtype.

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
                f"MSE: pred and target must have the same shape and dtype; got {pred.shape}, {pred.dtype} and "
                f"{target.shape}, {target.dtype}"
            )


class CrossEntropy(Cost):
    """The mean of ``-log softmax(scores)[label]``, for scores of shape (n, classes) and labels of shape (n,).

    Labels are int32, from 0 to ``classes - 1``.

    Args:
        maxlabels: the required number of classes; None accepts any.

    Attributes:
        mostProb: the classes predicted in the last ``validate``, int32 of shape (n,).

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
        """Returns the fraction of samples whose label has the highest score: ``1 - validate(scores, labels)``."""
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
