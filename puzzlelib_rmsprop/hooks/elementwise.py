"""Hooks that are an operation on each gradient element: decay, scaling, clipping to a range."""

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
    """A hook that is an operation on each gradient element, which the update can do in passing."""

    def _ops(self) -> tuple[Operation, ...]:
        raise NotImplementedError

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: {type(self).__name__} needs a gradient, and it has none")
        common_family(var.grad, var.data).operate(var.grad, var.data, var.wc, self._ops(), stream)


class WeightDecay(ElementwiseHook):
    """Pulls parameters towards zero, those of variables whose ``var.wc`` is above 0: it is 0 until you set it.

    ``grad -= rate * var.wc * data``; a plus, where gradients are of the loss itself. Or ``decoupled``, which leaves the
    gradient, and so the averages, alone (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019): the step
    then takes ``learnRate * var.learnRate * rate * var.wc * data`` off as well. Several decays add up.

    Args:
        rate: at least 0.
        gradOfLoss: whether the gradients are of the loss itself; None: as the optimizer that runs it says (its
            ``gradOfLoss``). PuzzleLib's optimizers do not say, nor does a call by hand: then they are of minus the loss.
        decoupled: wherever it stands among the hooks it is part of the step, and a step that is skipped decays nothing.
            Only in this library's optimizers, and not in a subclass of this hook. In an optimizer with an ``updateVar`` of
            its own it is taken off before that is called, by the optimizer's ``learnRate``.

    Raises:
        HyperParameterError: when ``rate`` is no number of at least 0.
        VariableError: when called on a variable without a gradient.
        SetupError: when one that is decoupled is called by hand or by another library's optimizer.

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
        # a subclass with an __init__ of its own may have set neither: `is` is not taken in by the descriptor
        if self.decoupled is True:
            raise SetupError(
                f"a decoupled {type(self).__name__} is a part of the step, and cannot be run by itself: addHook() a "
                f"WeightDecay(rate, decoupled=True), not a subclass, to one of this library's optimizers"
            )
        of_loss = self.gradOfLoss if isinstance(self.gradOfLoss, bool) else GRAD_OF_LOSS.get()
        return (Operation(self._kind, self.rate if of_loss else -self.rate),)


class Lasso(WeightDecay):
    """Pulls parameters towards zero by the same amount each: ``grad -= rate * var.wc * sign(data)`` where ``var.wc`` > 0.

    Arguments and sign as for :class:`WeightDecay`, but that it cannot be decoupled.

    Example:
        >>> from puzzlelib_rmsprop import Lasso, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(Lasso(1e-5))
    """

    _kind = LASSO

    def __init__(self, rate: float, *, gradOfLoss: bool | None = None) -> None:
        super().__init__(rate, gradOfLoss=gradOfLoss)


class GradientScaling(ElementwiseHook):
    """Multiplies every gradient: ``grad *= factor``.

    Args:
        factor: finite. (1/n for gradients that are sums over n.)

    Raises:
        HyperParameterError: when ``factor`` is no finite number.

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
    """Clips every gradient element to ``[lower, upper]``; a NaN stays one.

    Args:
        lower, upper: finite, ``lower`` not above ``upper``.

    Raises:
        HyperParameterError: when they are not.

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
        self._check_order()  # each may be assigned before the other, so they are looked at together when they are used
        return (Operation(CLIP, self.lower, self.upper),)
