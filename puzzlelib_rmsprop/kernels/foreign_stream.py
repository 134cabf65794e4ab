"""Work in the order of another library's streams, whose handles PyCUDA cannot wrap.

PyCUDA's stream waits for theirs by an event, the work goes there, and theirs wait for it; the host waits for nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DeviceError
from .context import driver_library, ensure_context, explained, pycuda_module, refuse_after_fork

__all__ = ["launching_on"]

_LEGACY = (0, 1)  # the default stream: no handle at all, and CU_STREAM_LEGACY
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the default stream by itself
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


@contextlib.contextmanager
def launching_on(*handles: int, stream: Any = None) -> Iterator[Any]:
    """A stream for PyCUDA whose work comes after what the streams of ``handles`` were given, and before what they will be.

    Streams are joined by events, so that it works while they are captured in a CUDA graph, too. The joint stream is made
    once for each context and thread.

    Args:
        handles: of ``CUstream`` (a ``cudaStream_t`` is one), as whole numbers: 0 and 1 are the default stream, 2 is that of
            the thread. All of the context that is current.
        stream: a ``pycuda.driver.Stream`` ordered with the default one, to be used in place of the joint stream.

    Returns:
        The ``pycuda.driver.Stream`` to launch on, until the ``with`` ends; where the default stream is all there is, what
        was given as ``stream``, which costs nothing: None, the default stream itself.

    Raises:
        DeviceError: a stream is gone or of another context, or the driver refuses; names its call.
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
        # what was queued before it failed counts as well; why it failed is what the caller wants to know
        with contextlib.suppress(DeviceError):
            for handle in others:
                joint.order(own.handle, handle)
        raise
    for handle in others:
        joint.order(own.handle, handle)


class _Joint:
    """PyCUDA's stream of a thread in a context, and the event by which it is joined with others."""

    @explained
    def __init__(self) -> None:
        self.stream = pycuda_module("driver").Stream(_NON_BLOCKING)
        self._event = ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self._event), ctypes.c_uint(_DISABLE_TIMING))

    def order(self, first: int, second: int) -> None:
        """Has the second stream wait for what the first was given so far."""
        # a wait is for the event as it stands now: it may be recorded again at once
        _call("cuEventRecord", self._event, ctypes.c_void_p(first))
        _call("cuStreamWaitEvent", ctypes.c_void_p(second), self._event, ctypes.c_uint(0))


def _joint(thread: int) -> _Joint:
    """That of the current context. One a thread, or a thread's work would get into the graph that another captures."""
    return _joints()(thread)


@functools.cache
def _joints() -> Callable[[int], _Joint]:
    # PyCUDA is imported at the first use only
    return pycuda_module("tools").context_dependent_memoize(lambda thread: _Joint())


@functools.cache
def _library() -> ctypes.CDLL:
    return driver_library()


def _call(name: str, *arguments: Any) -> None:
    """Calls the driver. DeviceError where it answers with an error."""
    code = getattr(_library(), name)(*arguments)
    if not code:
        return
    refuse_after_fork()
    text = ctypes.c_char_p()
    _library().cuGetErrorName(code, ctypes.byref(text))
    raise DeviceError(
        f"{name} fails with {(text.value or b'an unknown error').decode()} ({code}) where work is put in the order of a "
        f"stream of another library: the stream has to be there still, and of the CUDA context that the arrays lie in"
    )
