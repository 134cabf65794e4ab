"""What all contenders share, and what each gives to those who time it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4

Arrays = list[np.ndarray]


class LeftOut(Exception):
    """Why a contender does not take part."""


class Where(NamedTuple):
    """``device`` is cpu or cuda; ``threads`` what ours and PyTorch may use, the others use what they choose."""

    device: str
    threads: int


def nothing() -> None:
    pass


class Work(NamedTuple):
    """A contender at work.

    ``zero`` sets the gradients to zero in place, and does nothing where there is nothing to zero; ``synchronize`` waits for
    a GPU.
    """

    step: Callable[[], Any]
    read: Callable[[], Arrays]
    fill: Callable[[Arrays], Any]
    zero: Callable[[], Any] = nothing
    synchronize: Callable[[], Any] = nothing


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
