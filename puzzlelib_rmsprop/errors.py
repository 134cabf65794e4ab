"""The exceptions and warnings of the library.

All exceptions derive from :class:`Error`. Each also derives from the built-in exception that a caller would expect, so
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
    """Base class of every exception of this library."""


class ConfigError(Error, ValueError):
    """A setting of :data:`puzzlelib_rmsprop.Config` is unknown or has a value outside its range."""


class DependencyError(Error, ImportError):
    """A package that the call needs is not installed; the message says which one and how to get it."""


class DeviceError(Error, RuntimeError):
    """A GPU, its context or its compiler cannot do what was requested."""


class GroupError(Error, RuntimeError):
    """Another process of the group failed, died, hung or timed out; the group can no longer be used."""


class HyperParameterError(Error, ValueError):
    """A hyper-parameter (learnRate, alpha, momRate, epsilon, rate) has the wrong type or is out of range."""


class SetupError(Error, RuntimeError):
    """Methods were called in the wrong order, or the optimizer cannot be set up on the net."""


class VariableError(Error, ValueError):
    """The gradient, dtype, shape, rate or name of a variable is not valid. The message names the variable."""


class ArrayError(Error, ValueError):
    """An array cannot be used: its type is unknown, or it is read-only, not contiguous, or overlaps another array."""


class CheckpointError(Error, ValueError):
    """A checkpoint does not match the optimizer or net, or cannot be read or written. Nothing was changed."""


class NonFiniteError(Error, ArithmeticError):
    """A gradient is infinite, NaN or too large to square, and a NonFiniteGuard was told to raise. Nothing was updated."""


class NonFiniteWarning(RuntimeWarning):
    """A gradient is infinite, NaN or too large to square; the step was skipped."""


class SetupWarning(UserWarning):
    """A setting has no effect. The message names it and the remedy."""


class CheckpointWarning(UserWarning):
    """A checkpoint and the optimizer differ. The message names what was ignored or left unchanged."""


class KernelWarning(RuntimeWarning):
    """A faster backend is not available: the compiled CPU kernels are missing, or PyCUDA or its driver does not work."""


class GroupWarning(RuntimeWarning):
    """Several processes were started but did not find each other: each trains alone."""


class ModuleError(Error, ValueError):
    """A module or container of :mod:`puzzlelib_rmsprop.nets` was constructed or called incorrectly."""


class CostError(Error, ValueError):
    """A cost of :mod:`puzzlelib_rmsprop.nets` was given data that is not valid for it."""


def warn(message: str, category: type[Warning]) -> None:
    """Issues a warning that points at the calling line outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, level)
