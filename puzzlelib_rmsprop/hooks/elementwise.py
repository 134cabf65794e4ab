"""Elementwise hooks: decay, scaling, clipping to a range."""

from __future__ import annotations

import math
from typing import Any

from ..arrays import common_family
from ..errors import HyperParameterError, SetupError, VariableError
from ..kernels import CLIP, DECAY, LASSO, SCALE, Operation
from ..validation import FLOAT32_MAX, Checked, HyperParameter, flag
from .base import GRAD_OF_LOSS, Hook

__all__ = ["GradientHardClipping", "GradientScaling", "Lasso", "WeightDecay"]


class ElementwiseHook(Hook):
    """Base class of elementwise hooks, which the update can apply while it reads the gradients."""

    def _ops(self) -> tuple[Operation, ...]:
        raise NotImplementedError

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: {type(self).__name__} needs a gradient, and it has none")
        common_family(var.grad, var.data).operate(var.grad, var.data, var.wc, self._ops(), stream)


class WeightDecay(ElementwiseHook):
    """L2 weight decay, for variables with ``var.wc`` above 0. The default of ``wc`` is 0.

    Computes ``grad -= rate * var.wc * data``, or ``+=`` if the gradients are those of the loss itself. With
    ``decoupled=True`` (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019) the gradient, and with it the
    running averages, is unchanged, and the step also subtracts ``learnRate * var.learnRate * rate * var.wc * data`` from the
    parameters. Several decays add up.

    Args:
        rate: the decay rate, at least 0.
        gradOfLoss: True if the gradients are those of the loss itself. Default: the ``gradOfLoss`` of the optimizer that
            runs the hook; False in PuzzleLib's optimizers and in a direct call.
        decoupled: apply the decay in the step, whatever the hook's position. A skipped step decays nothing. Works only in
            this library's optimizers, and not in a subclass of this hook. If the optimizer overrides ``updateVar``, the
            decay is subtracted before the call, with the optimizer's ``learnRate``.

    Raises:
        HyperParameterError: if ``rate`` is not a number of at least 0.
        VariableError: if called on a variable without a gradient.
        SetupError: if decoupled, and called directly or by another library's optimizer.

    Example:
        >>> from puzzlelib_rmsprop import RMSPropGraves, WeightDecay
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(WeightDecay(1e-4))
    """

    _kind = DECAY
    rate = HyperParameter(0, FLOAT32_MAX)
    gradOfLoss = Checked(lambda name, value: None if value is None else flag(name, value))
    decoupled = Checked(flag)

    def __init__(self, rate: float, *, gradOfLoss: bool | None = None, decoupled: bool = False) -> None:
        self.rate = rate
        self.gradOfLoss = gradOfLoss
        self.decoupled = decoupled

    def _ops(self) -> tuple[Operation, ...]:
        # a subclass may not call __init__, and the attribute is then the descriptor: hence `is`
        if self.decoupled is True:
            raise SetupError(
                f"a decoupled {type(self).__name__} is part of the step and cannot be called as a hook: pass a "
                f"WeightDecay(rate, decoupled=True), not a subclass, to addHook() of one of this library's optimizers"
            )
        of_loss = self.gradOfLoss if isinstance(self.gradOfLoss, bool) else GRAD_OF_LOSS.get()
        return (Operation(self._kind, self.rate if of_loss else -self.rate),)


class Lasso(WeightDecay):
    """L1 decay: ``grad -= rate * var.wc * sign(data)``, for variables with ``var.wc`` above 0.

    Arguments, sign and errors are those of :class:`WeightDecay`, without ``decoupled``.

    Example:
        >>> from puzzlelib_rmsprop import Lasso, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(Lasso(1e-5))
    """

    _kind = LASSO

    def __init__(self, rate: float, *, gradOfLoss: bool | None = None) -> None:
        super().__init__(rate, gradOfLoss=gradOfLoss)


class GradientScaling(ElementwiseHook):
    """Multiplies every gradient by a factor: ``grad *= factor``.

    Args:
        factor: a finite number, such as 1/n for gradients that are sums over n samples.

    Raises:
        HyperParameterError: if ``factor`` is not a finite number.

    Example:
        >>> from puzzlelib_rmsprop import GradientScaling, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientScaling(1 / 8))
    """

    factor = HyperParameter(-FLOAT32_MAX, FLOAT32_MAX)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, self.factor),)


class GradientHardClipping(ElementwiseHook):
    """Clips every gradient element to ``[lower, upper]``. NaN stays NaN.

    Args:
        lower: the lower bound, finite.
        upper: the upper bound, finite and at least ``lower``.

    Raises:
        HyperParameterError: if a bound is not finite, or ``lower`` is above ``upper``.

    Example:
        >>> from puzzlelib_rmsprop import GradientHardClipping, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientHardClipping(-1.0, 1.0))
    """

    lower = HyperParameter(-math.inf)
    upper = HyperParameter(-math.inf)

    def __init__(self, lower: float, upper: float) -> None:
        self.lower, self.upper = lower, upper
        self._check_order()

    def _check_order(self) -> None:
        if self.lower > self.upper:
            raise HyperParameterError(f"lower must not be above upper; got {self.lower!r} and {self.upper!r}")

    def _ops(self) -> tuple[Operation, ...]:
        self._check_order()  # the bounds can be assigned in any order, so they are compared when used
        return (Operation(CLIP, self.lower, self.upper),)
