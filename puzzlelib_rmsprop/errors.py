"""Every exception and warning that the library raises on purpose.

All derive from :class:`Error`; each also derives from the built-in exception a caller would expect, so
``except ValueError`` keeps working.
"""

from __future__ import annotations

import sys
import warnings

__all__ = [
    "ArrayError",
    "CheckpointError",
    "CheckpointWarning",
    "ConfigError",
    "CostError",
    "DependencyError",
    "DeviceError",
    "Error",
    "GroupError",
    "GroupWarning",
    "HyperParameterError",
    "KernelWarning",
    "ModuleError",
    "NonFiniteError",
    "NonFiniteWarning",
    "SetupError",
    "SetupWarning",
    "VariableError",
]


class Error(Exception):
    """Base of every exception of this library."""


class ConfigError(Error, ValueError):
    """A setting of :data:`puzzlelib_rmsprop.Config` is unknown or has a value outside its range."""


class DependencyError(Error, ImportError):
    """A package that the call needs is not installed; the message says which one and how to get it."""


class DeviceError(Error, RuntimeError):
    """A GPU, its context or its compiler refuses what was asked of it."""


class GroupError(Error, RuntimeError):
    """Another process of the group has failed, died or hung, or is too late; the group is of no use any more."""


class HyperParameterError(Error, ValueError):
    """A hyper-parameter (learnRate, alpha, momRate, epsilon, rate) is of the wrong type or out of range."""


class SetupError(Error, RuntimeError):
    """Calls in the wrong order, or a net that the optimizer cannot be set up on."""


class VariableError(Error, ValueError):
    """One variable does not fit: its gradient, dtype, shape, rate or name. The message names it."""


class ArrayError(Error, ValueError):
    """An array cannot be used: unknown type, read-only, not contiguous, or overlapping another."""


class CheckpointError(Error, ValueError):
    """A file does not fit the optimizer or net, or cannot be read or written. Nothing was changed."""


class NonFiniteError(Error, ArithmeticError):
    """A gradient is infinite or NaN, and a NonFiniteGuard was told to raise. Nothing was updated."""


class NonFiniteWarning(RuntimeWarning):
    """A gradient is infinite or NaN; the step was skipped."""


class SetupWarning(UserWarning):
    """Something was set that has no effect. The message names it, and the remedy."""


class CheckpointWarning(UserWarning):
    """A file holds something that the optimizer has no place for; it was left unread."""


class KernelWarning(RuntimeWarning):
    """What is faster does not work here: the compiled CPU kernels are not installed, or PyCUDA or its driver is broken."""


class GroupWarning(RuntimeWarning):
    """Several processes were started, and do not find each other: each trains alone."""


class ModuleError(Error, ValueError):
    """A module or container of :mod:`puzzlelib_rmsprop.nets` was built or called wrongly."""


class CostError(Error, ValueError):
    """A cost of :mod:`puzzlelib_rmsprop.nets` was given data that does not fit."""


def warn(message: str, category: type[Warning]) -> None:
    """Warns, and names the line outside this package from which it was called."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, level)
