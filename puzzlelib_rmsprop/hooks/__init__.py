"""Hooks that change gradients before each update: those of PuzzleLib's ``Optimizers.Hooks``, and more.

In :class:`~puzzlelib_rmsprop.RMSPropGraves` the library's own hooks need no extra pass over memory: the update applies them
while it reads the gradients, and ``var.grad`` is not changed. In an optimizer with its own update rule, or if a user's hook
comes after them, each of them changes ``var.grad`` in a separate pass.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import SetupError
from .base import Hook, StatisticsHook
from .clipping import GradientClipping
from .elementwise import GradientHardClipping, GradientScaling, Lasso, WeightDecay
from .guard import LossScaling, NonFiniteGuard

__all__ = [
    "FUSED",
    "GradientClipping",
    "GradientHardClipping",
    "GradientScaling",
    "Hook",
    "Lasso",
    "LossScaling",
    "NonFiniteGuard",
    "StatisticsHook",
    "WeightDecay",
    "check_hooks",
]

# hooks that the update applies while it reads the gradients; not their subclasses, which may do something else
FUSED = (WeightDecay, Lasso, GradientScaling, GradientHardClipping, GradientClipping, NonFiniteGuard, LossScaling)


def check_hooks(hooks: Sequence[Any]) -> None:
    """Raises SetupError if one of ``hooks`` is not a hook, or cannot be combined with the others."""
    for hook in hooks:
        if not callable(hook):
            raise SetupError(f"a hook must be callable as hook(var, state, stream); got {hook!r}")
        if isinstance(hook, WeightDecay) and type(hook) is not WeightDecay and hook.decoupled is True:
            hook._ops()  # raises
        if isinstance(hook, StatisticsHook) and sum(hook is other for other in hooks) > 1:
            name = type(hook).__name__
            raise SetupError(f"a {name} holds the statistics of one position among the hooks: add a second {name} instead")
