"""Checks whether the arrays of all states are still the same objects; in C++ (``look.cpp``), as a Python loop is slow."""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["same_arrays", "same_arrays_in_python", "same_objects"]


def same_objects(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Returns whether two sequences hold the same objects, compared by identity."""
    return len(first) == len(second) and not any(map(operator.is_not, first, second))


def same_arrays_in_python(states: dict[Any, dict[str, Any]], arrays: list[Any]) -> bool:
    """Returns whether the values of all ``states``, in order, are the objects in ``arrays``."""
    inner = states.values()
    if sum(map(len, inner)) != len(arrays):
        return False
    return not any(map(operator.is_not, itertools.chain.from_iterable(map(dict.values, inner)), arrays))


same_arrays: Callable[[dict[Any, dict[str, Any]], list[Any]], bool]
try:
    same_arrays = importlib.import_module("._cpu", __package__).same_arrays
except (ImportError, AttributeError):  # built without a compiler, or an outdated library, which the first update rejects
    same_arrays = same_arrays_in_python
