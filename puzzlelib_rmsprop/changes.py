"""A number that changes whenever a variable, a net or a state of this library does.

An optimizer that saw the number before it looked at its net need not look again while the number is the same: so a step
costs the same, however many variables there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["WatchedDict", "touch"]

count = 0
_numbers = itertools.count(1)


def touch() -> None:
    """Changes ``count`` to a number that it never was, whichever thread calls."""
    global count
    count = next(_numbers)


def _touching(name: str) -> Callable:
    method = getattr(dict, name)

    def call(self: WatchedDict, *args: Any, **kwargs: Any) -> Any:
        touch()
        return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = name, method.__doc__
    return call


class WatchedDict(dict):
    """A ``dict`` that touches ``count`` whenever it is changed."""

    __setitem__ = _touching("__setitem__")
    __delitem__ = _touching("__delitem__")
    __ior__ = _touching("__ior__")
    clear = _touching("clear")
    pop = _touching("pop")
    popitem = _touching("popitem")
    setdefault = _touching("setdefault")
    update = _touching("update")
