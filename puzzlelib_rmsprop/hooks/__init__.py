"""What is done to gradients before each update; PuzzleLib's ``Optimizers.Hooks``, and more of them.

The library's own hooks cost no pass over memory in :class:`~puzzlelib_rmsprop.RMSPropGraves`: what they do to a gradient is
done while the update reads it, and ``var.grad`` itself stays as ``backward`` left it. Added in front of a hook that is
not the library's, and in an optimizer with a rule of its own, they change ``var.grad``, in a pass each.
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

# what the update does while it reads the gradients; a subclass may mean something else, so the type has to be exact
FUSED = (WeightDecay, Lasso, GradientScaling, GradientHardClipping, GradientClipping, NonFiniteGuard, LossScaling)


def check_hooks(hooks: Sequence[Any]) -> None:
    """Raises SetupError for what is no hook, or cannot stand among the others."""
    for hook in hooks:
        if not callable(hook):
            raise SetupError(f"a hook must be callable as hook(var, state, stream); got {hook!r}")
        if isinstance(hook, WeightDecay) and type(hook) is not WeightDecay and hook.decoupled is True:
            hook._ops()  # says why not
        if isinstance(hook, StatisticsHook) and sum(hook is other for other in hooks) > 1:
            raise SetupError(f"a {type(hook).__name__} keeps the statistics of one place among the hooks: add a second one")
