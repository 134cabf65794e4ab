"""Hyper-parameters as attributes that validate the values assigned to them."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DependencyError, HyperParameterError, SetupError, SetupWarning, warn

__all__ = [
    "BELOW_ONE",
    "BELOW_ONE_HINT",
    "FLOAT32_MAX",
    "FLOAT32_TINY",
    "Checked",
    "HyperParameter",
    "Misnamed",
    "bfloat16",
    "flag",
    "immutable",
    "is_masked",
    "learn_rate",
    "misnamed",
    "number",
    "plain_number",
    "shown",
    "state_dtype",
    "text_hint",
    "whole",
]

FLOAT32_TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number
FLOAT32_MAX = float(np.finfo(np.float32).max)  # a larger number becomes infinite in float32
BELOW_ONE = 1 - 2**-25  # the bound of numbers that have to stay below 1 in float32
BELOW_ONE_HINT = " (in float32, 1 - 2**-25 and above is rounded to 1)"


def shown(value: Any) -> str:
    """Returns a value's text for an error message; Python cannot print an int of more than 4,300 digits."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be printed"


def is_masked(value: Any) -> bool:
    """Returns whether a value is a masked array, without importing numpy.ma, which takes a megabyte."""
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(value, module.MaskedArray)


_IMMUTABLE = (("jax", "Array", "JAX arrays"), ("tensorflow", "Tensor", "TensorFlow's tensors"))


def immutable(value: Any) -> str | None:
    """Returns the name of an immutable kind of arrays, None for other values; their libraries are not imported."""
    for name, kind, what in _IMMUTABLE:
        found = getattr(sys.modules.get(name), kind, None)
        if found is not None and isinstance(value, found):
            return what
    return None


def plain_number(value: Any) -> Any:
    """Returns the number in a 0-d array of NumPy or another library; any other value unchanged."""
    if getattr(value, "shape", None) != () or isinstance(value, numbers.Number) or is_masked(value):
        return value
    try:
        # ml_dtypes' bfloat16 has no item()
        return float(value) if str(value.dtype) == "bfloat16" else value.item()
    except Exception:
        return value


def number(name: str, value: Any, least: float, below: float = math.inf, hint: str = "") -> float:
    """Returns ``value`` as a float if it is a real number with ``least <= value < below``.

    Raises:
        HyperParameterError: names the parameter, the rule and the value.
    """
    value = plain_number(value)
    real = _real(value)
    if real is None:
        kind = type(value).__name__
        raise HyperParameterError(f"{name} must be a number; got {shown(value)} of type {kind}{text_hint(value)}")
    if not (least <= real < below and math.isfinite(real)):
        rule = "" if least == -math.inf else f", at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        got = repr(value) if math.isfinite(real) or not isinstance(value, int) else "an int too large for a float"
        raise HyperParameterError(f"{name} must be a finite number{rule}; got {got}{hint}")
    return real


def _real(value: Any) -> float | None:
    """Returns a real number as a float, infinite if it is too large; None if the value is not a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except TypeError:  # NumPy's timedelta64 is an integer to Python
        return None


def text_hint(value: Any) -> str:
    """Returns a remedy for a string that holds a number: YAML 1.1 reads 1e-4 as a string."""
    try:
        return f": use float({value!r})" if isinstance(value, str) and math.isfinite(float(value)) else ""
    except ValueError:
        return ""


def whole(name: str, value: Any, least: int, below: int) -> int:
    """Returns ``value`` as an int if it is an integer of any type with ``least <= value < below``.

    Raises:
        HyperParameterError: names the parameter, the rule and the value.
    """
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) < below:
        bits = below.bit_length() - 1
        most = f"2**{bits} - 1" if below == 1 << bits else str(below - 1)
        raise HyperParameterError(f"{name} must be an int from {least} to {most}; got {shown(value)}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Returns ``value`` as a bool if it is a bool of Python or NumPy, 0 or 1; a string such as "False" would be true.

    Raises:
        HyperParameterError: names the option, the rule and the value.
    """
    value = plain_number(value)
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise HyperParameterError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def learn_rate(name: str, value: Any) -> float:
    """Returns a learning rate: 0, or a normal number of float32. Raises HyperParameterError."""
    rate = number(name, value, 0, FLOAT32_MAX, ". To subtract the step, create the optimizer with gradOfLoss=True")
    if 0 < rate < FLOAT32_TINY:
        raise HyperParameterError(
            f"{name} must be 0, or at least {FLOAT32_TINY:.2g}: smaller numbers are flushed to 0; got {value!r}"
        )
    return rate


def state_dtype(dtype: Any) -> np.dtype:
    """Returns NumPy's int8, or bfloat16 from ml_dtypes. Raises HyperParameterError, DependencyError."""
    name = getattr(dtype, "__name__", str(dtype))
    if name == "int8":
        return np.dtype(np.int8)
    if name != "bfloat16":
        raise HyperParameterError(f"stateDtype must be None, 'bfloat16' or 'int8'; got {shown(dtype)}")
    return bfloat16("stateDtype='bfloat16'")


def bfloat16(what: str) -> np.dtype:
    """Returns bfloat16, which ``what`` needs. Raises DependencyError if ml_dtypes is missing."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise DependencyError(
            f"{what} needs ml_dtypes, which adds bfloat16 to NumPy: pip install 'ml_dtypes>=0.4'"
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


class Checked:
    """An attribute whose assignments pass through ``check(name, value)``, which raises or returns the value to keep.

    After each assignment the owner's method ``_hyper_changed()`` is called if it has one.

    Args:
        fixed: whether the attribute determines the state, so that it cannot change once its owner is set up.
    """

    def __init__(self, check: Callable[[str, Any], Any], fixed: bool = False) -> None:
        self._check, self._fixed = check, fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def check(self, value: Any) -> Any:
        """Returns the value that an assignment would keep; raises the same errors."""
        return self._check(self._name, value)

    if TYPE_CHECKING:  # not defined at run time, so that reading is as fast as for any instance attribute

        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    def __set__(self, instance: Any, value: Any) -> None:
        value = self._check(self._name, value)
        kept = instance.__dict__
        if self._fixed and kept.get("module") is not None and value != kept.get(self._name):
            raise SetupError(f"{self._name} cannot change after setupOn(), which created the state for it; got {value!r}")
        kept[self._name] = value
        changed = getattr(instance, "_hyper_changed", None)
        if changed is not None:
            changed()


class Misnamed:
    """An attribute that has no effect: another library's name for the attribute ``right``, or a likely typo of it.

    Assigning it warns, but keeps the value. There is no warning if the attribute is registered with ``setAttr``, or in a
    subclass of ``owner``, which may read it.
    """

    def __init__(self, name: str, right: str, owner: type) -> None:
        self._name, self._right, self._owner = name, right, owner

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        try:
            return vars(instance)[self._name]
        except (KeyError, TypeError):
            raise AttributeError(f"there is no attribute {self._name!r}: use {self._right}") from None

    def __set__(self, instance: Any, value: Any) -> None:
        kept = vars(instance)
        if type(instance) is self._owner and self._name not in kept and self._name not in kept.get("attrs", ()):
            warn(f"{type(instance).__name__}.{self._name} has no effect: use {self._right}", SetupWarning)
        kept[self._name] = value

    def __delete__(self, instance: Any) -> None:
        vars(instance).pop(self._name, None)


def misnamed(**names: str) -> Callable[[type], Any]:
    """Decorates a class with :class:`Misnamed` attributes: right name -> wrong names, separated by spaces."""

    def decorate(owner: type) -> type:
        for right, others in names.items():
            for name in others.split():
                setattr(owner, name, Misnamed(name, right, owner))
        return owner

    return decorate


class HyperParameter(Checked):
    """A float attribute with a range. Subclasses of an optimizer may assign it freely within that range."""

    def __init__(self, least: float, below: float = math.inf, hint: str = "") -> None:
        super().__init__(lambda name, value: number(name, value, least, below, hint))
