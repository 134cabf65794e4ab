"""Hyper-parameters as attributes that check what is assigned to them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from .errors import HyperParameterError

__all__ = ["HyperParameter", "flag", "number"]


def number(name: str, value: Any, least: float, below: float = math.inf, hint: str = "") -> float:
    """``value`` as a float, where it is a real number with ``least <= value < below``.

    Raises:
        HyperParameterError: names the parameter, the rule and the value.
    """
    real = _real(value)
    if real is None:
        raise HyperParameterError(f"{name} must be a number; got {value!r} of type {type(value).__name__}")
    if not (least <= real < below and math.isfinite(real)):
        rule = "" if least == -math.inf else f", at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        got = repr(value) if math.isfinite(real) or not isinstance(value, int) else "an int beyond every float"
        raise HyperParameterError(f"{name} must be a finite number{rule}; got {got}{hint}")
    return real


def _real(value: Any) -> float | None:
    """A real number as a float, infinite where it is beyond every float; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except TypeError:  # NumPy's timedelta64 is an integer to Python
        return None


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool, where it is one, NumPy's, or 0 or 1: a text such as "False" would count as true.

    Raises:
        HyperParameterError: names the option, the rule and the value.
    """
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise HyperParameterError(f"{name} must be True or False; got {value!r}")
    return bool(value)


class HyperParameter:
    """A float attribute with a range. Subclasses of an optimizer may assign it freely within that range.

    After each assignment the owner's method ``_hyper_changed()`` is called, where it has one.
    """

    def __init__(self, least: float, below: float = math.inf, hint: str = "") -> None:
        self._range = least, below, hint

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._slot = name, f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.__dict__[self._slot]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._slot] = number(self._name, value, *self._range)
        changed = getattr(instance, "_hyper_changed", None)
        if changed is not None:
            changed()
