"""What a contender gives to those who time it, and what all contenders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4

Arrays = list[np.ndarray]


class LeftOut(Exception):
    """Why a contender does not take part."""


class Where(NamedTuple):
    """``device`` is cpu or cuda; ``threads`` what ours, PyTorch and the copy may use, the others use what they choose."""

    device: str
    threads: int


class Clock(NamedTuple):
    """How a library measures on a GPU."""

    event: Callable[[], Any]
    seconds: Callable[[Any, Any], float]
    synchronize: Callable[[], Any]


class Work(NamedTuple):
    """A contender at work. ``zero``: sets the gradients to zero in place, None where there is nothing to zero."""

    step: Callable[[], Any]
    read: Callable[[], Arrays]
    fill: Callable[[Arrays], Any]
    zero: Callable[[], Any] | None = None
    clock: Clock | None = None


def aligned(content: np.ndarray) -> np.ndarray:
    """A copy at an address that a cache line starts at, where every framework puts its arrays."""
    memory = np.empty(content.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copied = memory[start : start + content.nbytes].view(content.dtype)
    copied[:] = content
    return copied


def fill_arrays(targets: Arrays) -> Callable[[Arrays], None]:
    def fill(contents: Arrays) -> None:
        for target, content in zip(targets, contents, strict=True):
            target[:] = content

    return fill


def event_clock(make: Callable, milliseconds: Callable, synchronize: Callable) -> Clock:
    """A clock by events of a GPU: ``make()`` gives one, ``milliseconds(first, last)`` the time between two."""

    def event() -> Any:
        made = make()
        made.record()
        return made

    def seconds(first: Any, last: Any) -> float:
        last.synchronize()
        return milliseconds(first, last) / 1e3

    return Clock(event, seconds, synchronize)


def pycuda_clock() -> Clock:
    from pycuda import driver

    return event_clock(driver.Event, lambda first, last: first.time_till(last), driver.Context.synchronize)
