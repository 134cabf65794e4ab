"""The hyper-parameters of all contenders, and the interface for timing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4

Arrays = list[np.ndarray]


class LeftOut(Exception):
    """A contender cannot take part, with the reason."""


class Where(NamedTuple):
    """``device`` is cpu or cuda; ``threads`` is for this library and PyTorch, the other frameworks choose themselves."""

    device: str
    threads: int


def nothing() -> None:
    pass


class Work(NamedTuple):
    """A contender with its arrays.

    ``zero`` sets the gradients to zero in place, if the contender does that; ``synchronize`` waits for a GPU.
    """

    step: Callable[[], Any]
    read: Callable[[], Arrays]
    fill: Callable[[Arrays], Any]
    zero: Callable[[], Any] = nothing
    synchronize: Callable[[], Any] = nothing


def aligned(content: np.ndarray) -> np.ndarray:
    """Returns a copy that is aligned to a cache line, as the frameworks align their arrays."""
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
