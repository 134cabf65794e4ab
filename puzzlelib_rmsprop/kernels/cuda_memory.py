"""Tables in device memory: made at any time, within a capture of a CUDA graph too, and written anew in a stream's order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DeviceError
from .context import NO_CONTEXT, explained, pycuda_module, refuse_after_fork, uncaptured

driver = pycuda_module("driver")

__all__ = ["check_context", "device_copy", "send"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_STAGED = 2**15  # bytes; the driver takes so many from the host's memory at once, whatever the device is doing


def check_context(own: Any) -> None:
    """Raises DeviceError where another CUDA context is current, or none."""
    current = driver.Context.get_current()
    if current != own:
        if current is None:
            refuse_after_fork()
            raise DeviceError(NO_CONTEXT)
        raise DeviceError("the CUDA context that is current is not the one the arrays lie in; push that one first")


@pycuda_module("tools").context_dependent_memoize
def _stream() -> Any:
    """A stream that is ordered with no other."""
    return driver.Stream(_NON_BLOCKING)


@explained
def device_copy(host: np.ndarray) -> Any:
    """A copy in device memory, there for every stream. Waits for that copy alone, not for what the device has to do."""
    with uncaptured():
        memory = driver.mem_alloc(max(host.nbytes, 1))
        send(memory, host, _stream())
        _stream().synchronize()
    return memory


def send(memory: Any, host: np.ndarray, stream: Any) -> None:
    """Queues a copy into device memory on ``stream``. What the host's memory holds now counts; nothing waits."""
    content = host.reshape(-1).view(np.uint8)
    for start in range(0, content.size, _STAGED):
        driver.memcpy_htod_async(int(memory) + start, content[start : start + _STAGED], stream)
