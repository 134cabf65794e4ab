"""The base classes of hooks, and of hooks that need statistics of all gradients of a step."""

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

# the sign of the gradients while an optimizer of this thread runs its hooks; at other times PuzzleLib's
GRAD_OF_LOSS: ContextVar[bool] = ContextVar("gradOfLoss", default=False)


class Hook:
    """Base class of hooks. Any callable with the same arguments can be used as a hook too.

    Example:
        >>> from puzzlelib_rmsprop import Hook
        >>> class Halve(Hook):
        ...     def __call__(self, var, state, stream=None):
        ...         var.grad *= 0.5
    """

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Changes ``var.grad`` in place.

        Args:
            var: the :class:`~puzzlelib_rmsprop.Variable`.
            state: the variable's own state, in local and in global mode: a dict of entity name to array.
            stream: the stream of the update, or None for the default stream.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, var, state, stream=None)")

    def getState(self) -> dict[str, Any] | None:
        """Returns what a checkpoint saves of the hook, a dict of numbers and strings, or None for nothing."""
        return None

    def checkState(self, state: dict[str, Any]) -> None:
        """Raises an exception if ``state`` cannot come from :meth:`getState`. Changes nothing."""

    def setState(self, state: dict[str, Any]) -> None:
        """Restores a state returned by :meth:`getState`."""


class StatisticsHook(Hook):
    """Base class of hooks that need statistics of all gradients before the step, computed in one reduction without waiting.

    Frozen variables are left out. The statistics are those of the gradients after the hooks before this one. With a
    nodeinfo, this hook and every hook after it get the averaged gradients. An instance belongs to one optimizer.
    """

    def __init__(self) -> None:
        self._family: Family | None = None
        self._record: Any = None
        self._unbound = np.zeros(1, STATISTICS)  # the record before there is one on the gradients' device
        self._unbound["scale"] = self._unbound["unscale"] = 1.0

    def _bind(self, family: Family) -> None:
        """Creates the record on the gradients' device, and copies the former one into it."""
        if self._record is not None and self._family == family:
            return
        before = self._read()
        self._family, self._record = family, family.zeros((STATISTICS.itemsize // 8,), np.dtype(np.float64))
        self._write(before)

    def _read(self) -> np.ndarray:
        """Returns the record. On a GPU, waits for all work queued before."""
        if self._record is None or self._family is None:
            return self._unbound.copy()
        # the step may be on a stream that is not ordered with the default stream, which reads
        self._family.synchronize()
        return self._family.get(self._record).view(STATISTICS)

    def _write(self, record: np.ndarray) -> None:
        if self._family is None:
            self._unbound = record.copy()
        else:
            self._family.set(self._record, record.view(np.float64))

    def _field(self, name: str) -> int:
        """Returns the address of a field of the record."""
        if self._family is None:
            raise SetupError(f"{type(self).__name__} belongs to no optimizer yet: call addHook() and setupOn() first")
        return self._family.address(self._record) + dict(STATISTICS.fields or {})[name][1]

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy()

    def _ops(self) -> tuple[Operation, ...]:
        return ()

    def _tripped(self, variables: Sequence[Any]) -> None:
        """Reacts to the record of a step on the host, if the hook needs that."""
