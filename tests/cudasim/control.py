"""Functions by which tests query the simulator: launches, waits, faults and leaks."""

import ctypes
import json
from contextlib import contextmanager

from tests.cudasim import _loaded


def _call(name: str, *args, restype=None):
    if not _loaded:
        raise RuntimeError("no simulator in this process: call tests.cudasim.activate() first")
    function = getattr(_loaded[0], f"cusim_{name}")
    function.restype = restype
    return function(*args)


def _text(name: str) -> str:
    return _call(name, restype=ctypes.c_char_p).decode()


def seed(value: int) -> None:
    """Seed the order of queued work, of blocks and of threads."""
    _call("seed", ctypes.c_ulonglong(value))


@contextmanager
def eager():
    """A context manager in which work runs at submission instead of when a call waits for it."""
    _call("eager", 1)
    try:
        yield
    finally:
        _call("eager", 0)


@contextmanager
def ptx(execute: bool):
    """A context manager in which PTX modules are executed or refused, whatever CUSIM_PTX is."""
    before = _call("ptx", int(execute), restype=ctypes.c_int)
    try:
        yield
    finally:
        _call("ptx", before)


def reset() -> None:
    """Reset the counters and the last fault."""
    _call("reset")


def counters() -> dict[str, int]:
    """Launches, memsets, copies, allocations, frees, blocking calls, faults, PTX modules since reset(); work pending now."""
    return json.loads(_text("counters"))


def launches() -> list[dict]:
    """Name, grid, block and dynamic shared memory of each launch since reset()."""
    return json.loads(_text("launches"))


def blocking() -> list[str]:
    """The calls since reset() that waited for the device."""
    return json.loads(_text("blocking"))


def fault() -> str:
    """The report of the last fault, or an empty string."""
    return _text("fault")


def clear_fault() -> str:
    """Make contexts that a fault broke usable again (unlike on a device), and return the report of the fault."""
    text = fault()
    _call("clear_fault")
    return text


def leaks() -> dict[str, int]:
    """How many allocations, streams, events, modules and contexts are alive."""
    return json.loads(_text("leaks"))
