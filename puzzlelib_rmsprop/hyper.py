"""Hyper-parameters as attributes that check what is assigned to them."""

from __future__ import annotations

import math
import numbers
from typing import Any

from .errors import HyperParameterError

__all__ = ["HyperParameter", "number"]


def number(name: str, value: Any, least: float, below: float = math.inf, hint: str = "") -> float:
    """``value`` as a float, where it is a real number with ``least <= value < below``.

    Raises:
        HyperParameterError: names the parameter, the rule and the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise HyperParameterError(f"{name} must be a number; got {value!r} of type {type(value).__name__}")
    if not (least <= float(value) < below and math.isfinite(value)):
        rule = "" if least == -math.inf else f", at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        raise HyperParameterError(f"{name} must be a finite number{rule}; got {value!r}{hint}")
    return float(value)


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
