"""Clipping of the gradients by their global norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import common_family
from ..errors import VariableError
from ..kernels import SCALE, Operation, ScalingPolicy
from ..validation import HyperParameter
from .base import StatisticsHook

__all__ = ["GradientClipping"]


class GradientClipping(StatisticsHook):
    """Scales all gradients of a step by the same factor, so that their global norm is at most ``threshold``.

    The norm is the root of the sum of squares over all variables and dtypes, accumulated in float64. Called on a single
    variable, as PuzzleLib's own optimizers do, the hook clips that variable's norm.

    Args:
        threshold: the largest norm, above 0.

    Attributes:
        norm: the norm of the last step's gradients before clipping. On a GPU, reading it waits for the step.

    Raises:
        HyperParameterError: if ``threshold`` is not a number above 0.

    Example:
        >>> from puzzlelib_rmsprop import GradientClipping, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientClipping(5.0))
    """

    threshold = HyperParameter(float(np.finfo(np.float32).tiny))

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    @property
    def norm(self) -> float:
        """The norm of the last step's gradients before clipping."""
        return float(self._read()["norm"][0])

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy(limit=self.threshold)

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, 1.0, address=self._field("factor")),)

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: {type(self).__name__} needs a gradient, and it has none")
        family, alone = common_family(var.grad, var.data), GradientClipping(self.threshold)
        alone._bind(family)
        segments = [family.gradient_segment(var.data, var.grad)]
        statistics = family.statistics(segments, alone._field("norm"), [var.grad])
        statistics.run((), alone._scaling_policy(), stream)
        family.operate(var.grad, var.data, 0.0, alone._ops(), stream)
        if stream is not None:
            stream.synchronize()  # the record is freed when this call returns
