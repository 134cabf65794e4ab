"""The base classes: of every hook, and of those that look at all gradients of a step before one is used."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..arrays import Family
from ..errors import SetupError
from ..kernels import Operation, ScalingPolicy
from ..kernels.layout import STATISTICS

__all__ = ["GRAD_OF_LOSS", "Hook", "StatisticsHook"]

# the sign of the gradients, for whatever is called while an optimizer of this thread runs its hooks; outside PuzzleLib's
GRAD_OF_LOSS: ContextVar[bool] = ContextVar("gradOfLoss", default=False)


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

    def getState(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the hook, of numbers and strings; None for nothing."""
        return None

    def checkState(self, state: dict[str, Any]) -> None:
        """Raises an exception where ``state`` is not of the kind that :meth:`getState` gives; changes nothing."""

    def setState(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`getState` gave."""


class StatisticsHook(Hook):
    """Base class of the hooks that look at all gradients of a step before one is used: one reduction, no wait for a GPU.

    Frozen variables do not count. With a nodeinfo such a hook, and every hook added after it, sees the averaged gradients.
    It looks at the gradients as they come to it, not at what hooks after it make of them. One belongs to one optimizer.
    """

    def __init__(self) -> None:
        self._family: Family | None = None
        self._record: Any = None
        self._unbound = np.zeros(1, STATISTICS)  # what it holds until it has a place where the gradients are
        self._unbound["scale"] = self._unbound["unscale"] = 1.0

    def _bind(self, family: Family) -> None:
        """Makes the record where the gradients are; what it holds moves along."""
        if self._record is not None and self._family == family:
            return
        before = self._read()
        self._family, self._record = family, family.zeros((STATISTICS.itemsize // 8,), np.dtype(np.float64))
        self._write(before)

    def _read(self) -> np.ndarray:
        """The record, on a GPU after everything queued before."""
        if self._record is None or self._family is None:
            return self._unbound.copy()
        # the step may have been queued on a stream that the default one, which reads, is not ordered with
        self._family.synchronize()
        return self._family.get(self._record).view(STATISTICS)

    def _write(self, record: np.ndarray) -> None:
        if self._family is None:
            self._unbound = record.copy()
        else:
            self._family.set(self._record, record.view(np.float64))

    def _field(self, name: str) -> int:
        """The address of a field of the record."""
        if self._family is None:
            raise SetupError(f"{type(self).__name__} belongs to no optimizer yet: addHook() and setupOn() first")
        return self._family.address(self._record) + dict(STATISTICS.fields or {})[name][1]

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy()

    def _ops(self) -> tuple[Operation, ...]:
        return ()

    def _tripped(self, variables: Sequence[Any]) -> None:
        """Looks at the record, where that cannot be left to the device."""
