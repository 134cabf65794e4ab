"""Which CUDA context the library makes arrays in: the current one, or else the primary one of ``Config.deviceIdx``.

The primary context is the one that PuzzleLib, PyTorch, CuPy and Numba share; a second context would make their memory
foreign. Nothing of PyCUDA is imported before the first call.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
import threading
import warnings
from typing import Any

from ..config import Config
from ..errors import DependencyError, DeviceError

__all__ = ["available", "default_stream_ended", "driver_library", "ensure_context"]

_ON_THE_CPU = "Config.backend = Config.Backend.cpu works without"


class _Held(threading.local):
    """What this thread has pushed, if it has."""

    pushed: _Pushed | None = None


class _Pushed:
    """A context made current. It is popped with the thread, because PyCUDA ends a process whose thread leaves one behind."""

    def __init__(self, context: Any) -> None:
        self._context = context
        context.push()

    def __del__(self) -> None:
        self._context.pop()


_held = _Held()


def driver_library() -> ctypes.CDLL:
    """The CUDA driver that PyCUDA has loaded, for the few calls that it does not wrap."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _driver() -> Any:
    """PyCUDA's driver module, with at least one device behind it."""
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise DependencyError(
            f"CUDA needs PyCUDA and an NVIDIA driver: {error}. Install the driver and pip install "
            f"'puzzlelib_rmsprop[cuda]'; {_ON_THE_CPU}"
        ) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise DeviceError(f"the NVIDIA driver does not start: {error}. nvidia-smi shows its state; {_ON_THE_CPU}") from error
    if not count:
        raise DeviceError(f"the NVIDIA driver finds no device; CUDA_VISIBLE_DEVICES may hide it. {_ON_THE_CPU}")
    return driver


def available() -> bool:
    """Whether PyCUDA and a device are here."""
    try:
        _driver()
    except (DependencyError, DeviceError):
        return False
    return True


def ensure_context() -> None:
    """Makes sure that PyCUDA has a current context in this thread. One that was made here is popped at exit.

    Raises:
        DependencyError: PyCUDA or the driver's library is missing.
        DeviceError: there is no device, or none of that number, or the current context is one that PyCUDA cannot share.
    """
    module = sys.modules.get("pycuda.driver")
    if module is not None and module.Context.get_current() is not None:
        return
    driver = _driver()
    foreign, index = _current()
    if not foreign:
        index = Config.deviceIdx
        if index >= driver.Device.count():
            raise DeviceError(
                f"Config.deviceIdx must be below the number of CUDA devices, {driver.Device.count()}; got {index}"
            )
    try:
        context = driver.Device(index).retain_primary_context()
    except driver.Error as error:
        raise DeviceError(f"CUDA device {index} gives no context: {error}") from error
    if foreign and context.handle != foreign:
        raise DeviceError(
            f"the current CUDA context, {foreign:#x}, is neither PyCUDA's nor the primary one of device {index}, so PyCUDA "
            f"cannot use it; make the primary one current (pycuda.autoprimaryctx)"
        )
    if threading.current_thread() is threading.main_thread():
        atexit.register(_finish)
    _held.pushed = _Pushed(context)


def default_stream_ended() -> None:
    """Waits until what the default stream was given has ended, for streams that are not ordered with it.

    A copy from the host, too, returns before it has arrived: when the driver has read the host's memory.
    """
    if "pycuda.driver" in sys.modules:
        # not by PyCUDA's events: those need a context that PyCUDA knows, and PuzzleLib makes its own current; what fails
        # here fails at the next call again
        driver_library().cuStreamSynchronize(None)


def _current() -> tuple[int, int]:
    """The thread's context, whoever made it, and its device; zeros where there is none."""
    library, context, device = driver_library(), ctypes.c_void_p(), ctypes.c_int()
    library.cuCtxGetCurrent(ctypes.byref(context))
    if context.value:
        library.cuCtxGetDevice(ctypes.byref(device))
    return context.value or 0, device.value


def _finish() -> None:
    _held.pushed = None
    from pycuda.tools import clear_context_caches

    with warnings.catch_warnings():
        # kernels that a thread loaded which has ended, and PyCUDA unloads in their thread only: they go with the process
        warnings.simplefilter("ignore")
        clear_context_caches()
