"""What runs on a variable's gradient before each update; PuzzleLib's ``Optimizers.Hooks``."""

from __future__ import annotations

from typing import Any

from .arrays import family_of
from .errors import VariableError
from .hyper import HyperParameter

__all__ = ["Hook", "WeightDecay"]


class Hook:
    """Base class of hooks; any callable with the same arguments will do as well.

    Example:
        >>> from puzzlelib_rmsprop import Hook
        >>> class Halve(Hook):
        ...     def __call__(self, var, state, stream=None):
        ...         var.grad *= 0.5
    """

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Changes ``var.grad`` in place. ``state`` is the variable's own, in local and in global mode."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, var, state, stream=None)")


class WeightDecay(Hook):
    """Pulls parameters towards zero: ``grad -= rate * var.wc * data`` where ``var.wc`` is above 0.

    The minus suits gradients in PuzzleLib's sign (of minus the loss). With an optimizer made with
    ``gradOfLoss=True`` use a plus: ``WeightDecay(rate, gradOfLoss=True)``.

    Args:
        rate: at least 0.
        gradOfLoss: whether the gradients are of the loss itself.

    Raises:
        HyperParameterError: when ``rate`` is no number of at least 0.
        VariableError: when called on a variable without a gradient.

    Example:
        >>> from puzzlelib_rmsprop import RMSPropGraves, WeightDecay
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(WeightDecay(1e-4))
    """

    rate = HyperParameter(0)

    def __init__(self, rate: float, *, gradOfLoss: bool = False) -> None:
        self.rate = rate
        self.gradOfLoss = gradOfLoss

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if not var.wc > 0.0:
            return
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: weight decay needs a gradient, and it has none")
        factor = self.rate * var.wc
        family_of(var.grad).add_scaled(var.grad, var.data, factor if self.gradOfLoss else -factor, stream)
