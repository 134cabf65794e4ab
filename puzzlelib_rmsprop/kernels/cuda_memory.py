"""Tables in device memory. They can be made at any time, also during a CUDA graph capture, and updated in stream order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DeviceError
from .context import NO_CONTEXT, explained, pycuda_module, refuse_after_fork, uncaptured

driver = pycuda_module("driver")

__all__ = ["check_context", "device_copy", "send"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_STAGED = 2**15  # bytes; the driver copies this many from host memory before the call returns, even if the device is busy


def check_context(own: Any) -> None:
    """Raises DeviceError unless ``own`` is the current CUDA context."""
    current = driver.Context.get_current()
    if current != own:
        if current is None:
            refuse_after_fork()
            raise DeviceError(NO_CONTEXT)
        raise DeviceError("the CUDA context that is current is not the one the arrays lie in; push that one first")


@pycuda_module("tools").context_dependent_memoize
def _stream() -> Any:
    """Returns a stream that is not ordered with any other."""
    return driver.Stream(_NON_BLOCKING)


@explained
def device_copy(host: np.ndarray) -> Any:
    """Returns a copy in device memory, ready for use in any stream. Waits for this copy, but not for other work."""
    with uncaptured():
        memory = driver.mem_alloc(max(host.nbytes, 1))
        send(memory, host, _stream())
        _stream().synchronize()
    return memory


def send(memory: Any, host: np.ndarray, stream: Any) -> None:
    """Queues a copy to device memory on ``stream``. The host array may be changed as soon as this returns."""
    content = host.reshape(-1).view(np.uint8)
    for start in range(0, content.size, _STAGED):
        driver.memcpy_htod_async(int(memory) + start, content[start : start + _STAGED], stream)
