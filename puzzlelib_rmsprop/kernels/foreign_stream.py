"""Orders PyCUDA's work with streams of other libraries, whose handles PyCUDA cannot wrap.

Work is queued on a stream of PyCUDA, which waits for the other streams by events; then they wait for it. The host does not
wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DeviceError
from .context import driver_library, ensure_context, explained, pycuda_module, refuse_after_fork, uncaptured

__all__ = ["launching_on"]

_LEGACY = (0, 1)  # handles of the default stream: NULL and CU_STREAM_LEGACY
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit ordering with the default stream
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


@contextlib.contextmanager
def launching_on(*handles: int, stream: Any = None) -> Iterator[Any]:
    """A context manager for work that runs after the work queued in other streams, and before their later work.

    Streams are ordered by events, so this also works during a CUDA graph capture. The joint stream, on which the work is
    queued, is created once per context and thread.

    Args:
        handles: ``CUstream`` handles (or ``cudaStream_t``, which is the same) as integers: 0 and 1 are the default stream, 2
            is the per-thread default stream. All streams must belong to the current context.
        stream: a blocking ``pycuda.driver.Stream`` (it is ordered with the default stream) to use instead of the joint one.

    Returns:
        The ``pycuda.driver.Stream`` on which to queue work inside the ``with`` block. If all handles are the default stream,
        no events are needed, and this is ``stream`` itself; None is the default stream.

    Raises:
        DeviceError: a stream was destroyed or belongs to another context, or a call of the driver failed.
        DependencyError: PyCUDA or the driver's library is missing.

    Example:
        >>> from puzzlelib_rmsprop.kernels.foreign_stream import launching_on
        >>> with launching_on(0) as stream:
        ...     print(stream)
        None
    """
    others = {0 if handle in _LEGACY else handle for handle in handles}
    if not others - {0}:
        yield stream
        return
    ensure_context()
    joint = _joint(threading.get_ident())
    own = joint.stream if stream is None else stream
    for handle in others:
        joint.order(handle, own.handle)
    try:
        yield own
    except BaseException:
        # work queued before the error is ordered too; an error of the driver must not hide the first one
        with contextlib.suppress(DeviceError):
            for handle in others:
                joint.order(own.handle, handle)
        raise
    for handle in others:
        joint.order(own.handle, handle)


class _Joint:
    """The joint stream of a thread in a context, and the event that orders it with other streams."""

    @explained
    def __init__(self) -> None:
        self._event = ctypes.c_void_p()
        with uncaptured():
            self.stream = pycuda_module("driver").Stream(_NON_BLOCKING)
            _call("cuEventCreate", ctypes.byref(self._event), ctypes.c_uint(_DISABLE_TIMING))

    def order(self, first: int, second: int) -> None:
        """Makes the second stream wait for the work queued so far in the first."""
        # the wait refers to the last record of the event, so the event may be recorded again immediately
        _call("cuEventRecord", self._event, ctypes.c_void_p(first))
        _call("cuStreamWaitEvent", ctypes.c_void_p(second), self._event, ctypes.c_uint(0))


def _joint(thread: int) -> _Joint:
    """Returns the joint stream of a thread. With a shared one, a capture in one thread would include work of others."""
    return _joints()(thread)


@functools.cache
def _joints() -> Callable[[int], _Joint]:
    # PyCUDA is imported at the first use
    return pycuda_module("tools").context_dependent_memoize(lambda thread: _Joint())


@functools.cache
def _library() -> ctypes.CDLL:
    return driver_library()


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the driver. Raises DeviceError if it returns an error."""
    code = getattr(_library(), name)(*arguments)
    if not code:
        return
    refuse_after_fork()
    text = ctypes.c_char_p()
    _library().cuGetErrorName(code, ctypes.byref(text))
    raise DeviceError(
        f"{name} fails with {(text.value or b'an unknown error').decode()} ({code}) while work is ordered with a stream of "
        f"another library: the stream must belong to the CUDA context of the arrays and must not have been destroyed"
    )
