"""Hyper-parameters as attributes that check what is assigned to them."""

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
FLOAT32_MAX = float(np.finfo(np.float32).max)  # the arithmetic would take more for an infinity
BELOW_ONE = 1 - 2**-25  # the bound of numbers that have to stay below 1 in float32
BELOW_ONE_HINT = " (in float32, 1 - 2**-25 and above is rounded to 1)"


def shown(value: Any) -> str:
    """A value in an error message; Python refuses to print an int of more than 4,300 digits."""
    try:
        return repr(value)
    except Exception:
        return f"one of type {type(value).__name__} that cannot be printed"


def is_masked(value: Any) -> bool:
    """Whether it is an array with a mask; numpy.ma, which takes a megabyte, is not imported for that."""
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(value, module.MaskedArray)


_IMMUTABLE = (("jax", "Array", "JAX arrays"), ("tensorflow", "Tensor", "TensorFlow's tensors"))


def immutable(value: Any) -> str | None:
    """What arrays of this kind are called, where nobody may write into them; their libraries are not imported for that."""
    for name, kind, what in _IMMUTABLE:
        found = getattr(sys.modules.get(name), kind, None)
        if found is not None and isinstance(value, found):
            return what
    return None


def plain_number(value: Any) -> Any:
    """A number in a 0-d array, NumPy's or another library's, by itself; anything else as it is."""
    if getattr(value, "shape", None) != () or isinstance(value, numbers.Number) or is_masked(value):
        return value
    try:
        # ml_dtypes' bfloat16 has no item()
        return float(value) if str(value.dtype) == "bfloat16" else value.item()
    except Exception:
        return value


def number(name: str, value: Any, least: float, below: float = math.inf, hint: str = "") -> float:
    """``value`` as a float, where it is a real number with ``least <= value < below``.

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


def text_hint(value: Any) -> str:
    """What to do with a text that is a number: YAML 1.1 reads 1e-4 as text."""
    try:
        return f": use float({value!r})" if isinstance(value, str) and math.isfinite(float(value)) else ""
    except ValueError:
        return ""


def whole(name: str, value: Any, least: int, below: int) -> int:
    """``value`` as an int, where it is a whole number of any kind with ``least <= value < below``.

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
    """``value`` as a bool, where it is one, NumPy's, or 0 or 1: a text such as "False" would count as true.

    Raises:
        HyperParameterError: names the option, the rule and the value.
    """
    value = plain_number(value)
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise HyperParameterError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def learn_rate(name: str, value: Any) -> float:
    """A learning rate: 0, or what float32 can hold. Raises HyperParameterError."""
    rate = number(name, value, 0, FLOAT32_MAX, ". To subtract the step, make the optimizer with gradOfLoss=True")
    if 0 < rate < FLOAT32_TINY:
        raise HyperParameterError(
            f"{name} must be 0, or at least {FLOAT32_TINY:.2g}: float32 takes less for 0; got {value!r}"
        )
    return rate


def state_dtype(dtype: Any) -> np.dtype:
    """NumPy's int8, or bfloat16, which ml_dtypes brings. Raises HyperParameterError, DependencyError."""
    name = getattr(dtype, "__name__", str(dtype))
    if name == "int8":
        return np.dtype(np.int8)
    if name != "bfloat16":
        raise HyperParameterError(f"stateDtype must be None, 'bfloat16' or 'int8'; got {shown(dtype)}")
    return bfloat16("stateDtype='bfloat16'")


def bfloat16(what: str) -> np.dtype:
    """NumPy's bfloat16, for ``what`` needs it. DependencyError where ml_dtypes is missing."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise DependencyError(
            f"{what} needs ml_dtypes, where NumPy's bfloat16 is: pip install 'puzzlelib_rmsprop[bfloat16]'"
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


class Checked:
    """An attribute whose every assignment goes through ``check(name, value)``, which raises or gives what is kept.

    After each assignment the owner's method ``_hyper_changed()`` is called, where it has one.

    Args:
        fixed: whether it belongs to the state, and cannot change once its owner, an optimizer, is set up.
    """

    def __init__(self, check: Callable[[str, Any], Any], fixed: bool = False) -> None:
        self._check, self._fixed = check, fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def check(self, value: Any) -> Any:
        """What would be kept of ``value``; raises what its assignment would."""
        return self._check(self._name, value)

    if TYPE_CHECKING:  # there is none, so that reading one is as fast as any attribute of an instance

        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    def __set__(self, instance: Any, value: Any) -> None:
        value = self._check(self._name, value)
        kept = instance.__dict__
        if self._fixed and kept.get("module") is not None and value != kept.get(self._name):
            raise SetupError(f"{self._name} cannot change after setupOn(), which made the state for it; got {value!r}")
        kept[self._name] = value
        changed = getattr(instance, "_hyper_changed", None)
        if changed is not None:
            changed()


class Misnamed:
    """An attribute that has no effect: what other libraries call ``right``, or what is easily typed in its place.

    To assign it warns; it is kept all the same. Not where it is registered by ``setAttr``, nor in a subclass of the
    ``owner``, which may read it.
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
    """Decorates a class with :class:`Misnamed` attributes: the right name -> the others, with blanks between them."""

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
