"""Which CUDA context the library makes arrays in: the current one, or else the primary one of ``Config.deviceIdx``.

The primary context is the one that PuzzleLib, PyTorch, CuPy and Numba share; a second context would make their memory
foreign. Nothing of PyCUDA is imported before the first call.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..config import Config
from ..errors import DependencyError, DeviceError, KernelWarning, warn

__all__ = [
    "NO_CONTEXT",
    "available",
    "default_stream_ended",
    "driver_library",
    "ensure_context",
    "explain",
    "explained",
    "lacks_driver",
    "primary_context",
    "pycuda_module",
    "refuse_after_fork",
    "uncaptured",
]

_ON_THE_CPU = "Config.backend = Config.Backend.cpu works without"
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
NO_CONTEXT = (
    "no CUDA context is current in this thread: push that of the arrays here (context = pycuda.driver.Context.get_current() "
    "in the thread that made them, context.push() in this one), and context.pop() before this thread ends"
)
_AFTER_FORK = (
    "CUDA cannot be used in this process: it was made by fork after its parent had begun to use CUDA. Start it with spawn "
    f"(multiprocessing.set_start_method('spawn')) and make its arrays there; {_ON_THE_CPU}"
)


# ------------------------------------------------------------------------------------------ contexts of threads


class _Held(threading.local):
    """What this thread has pushed, if it has."""

    pushed: _Pushed | None = None


class _Pushed:
    """A context made current. It is popped with the thread, because PyCUDA ends a process whose thread leaves one behind."""

    def __init__(self, context: Any) -> None:
        self._context, self._thread = None, threading.get_ident()
        context.push()
        self._context = context
        _threads.add(self._thread)

    def pop(self) -> bool:
        """Pops it, where it still is there. Whether the driver did: in a process made by fork it does not."""
        context, self._context = self._context, None
        _threads.discard(self._thread)
        # after a fork those of the parent's other threads go, too, in the thread that is left
        if context is None or threading.get_ident() != self._thread:
            return False
        try:
            context.pop()
        except Exception:
            context.detach()  # takes it off PyCUDA's stack whatever the driver says
            return False
        return True

    def __del__(self) -> None:
        self.pop()


_held = _Held()
_threads: set[int] = set()  # those that have pushed one


def _finish() -> None:
    """Pops what is still pushed when the process ends."""
    pushed, _held.pushed = _held.pushed, None
    if pushed is not None:
        _threads.discard(threading.get_ident())
    _end_threads()
    _primary.cache_clear()
    if pushed is None or not pushed.pop():
        return
    from pycuda.tools import clear_context_caches

    with warnings.catch_warnings():
        # kernels that a thread loaded which has ended, and PyCUDA unloads in their thread only: they go with the process
        warnings.simplefilter("ignore")
        clear_context_caches()


def _end_threads() -> None:
    """Ends daemon threads that have a context by SystemExit: Python's own way would leave it behind.

    One that waits for something else is given up after a second; one that still frees its arrays after ten.
    """
    tell, begin, before = ctypes.pythonapi.PyThreadState_SetAsyncExc, time.monotonic(), _positions()
    others = {thread for thread in _threads if tell(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))}
    while others & _threads and time.monotonic() < begin + 10:
        time.sleep(0.001)
        if time.monotonic() > begin + 1:
            now = _positions()
            others = {thread for thread in others if now.get(thread) != before.get(thread)}


def _positions() -> dict[int, tuple[int, int]]:
    """Where each thread is."""
    return {thread: (id(frame), frame.f_lasti) for thread, frame in sys._current_frames().items()}


# now: what the user's program registers runs before it
atexit.register(_finish)


# -------------------------------------------------------------------------------------------- PyCUDA and driver


def pycuda_module(name: str) -> Any:
    """``pycuda.driver`` or another module of PyCUDA.

    Raises:
        DependencyError: it cannot be imported; says why, and the same each time.
    """
    before = {*sys.modules}
    try:
        importlib.import_module("pycuda")  # alone, for an error that says which of the two is missing
        return importlib.import_module(f"pycuda.{name}")
    except BaseException as error:
        # what is left of it would have the next attempt get further, and fail elsewhere
        for left in {*sys.modules} - before:
            if left.partition(".")[0] == "pycuda":
                del sys.modules[left]
        if not isinstance(error, Exception):
            raise
        if _is_not_installed(error):
            fault = f"{error}. Install the driver and pip install 'puzzlelib_rmsprop[cuda]'"
        elif lacks_driver(error):
            fault = f"{error}. Install the driver; in a container, start it with the GPU (docker run --gpus all)"
        else:  # whatever a broken one raises
            fault = (
                f"PyCUDA is installed, but its import fails with {type(error).__name__}: {error}. Build it anew against "
                f"what is installed: pip install --force-reinstall --no-cache-dir pycuda"
            )
        raise DependencyError(f"CUDA needs PyCUDA and an NVIDIA driver: {fault}; {_ON_THE_CPU}") from error


def _is_not_installed(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == "pycuda"


def lacks_driver(error: BaseException) -> bool:
    """Whether it is for want of the NVIDIA driver that PyCUDA cannot be imported."""
    text = str(error)
    if "libcuda.so" in text or "nvcuda" in text:
        return True
    # a PyCUDA that was linked without libcuda misses the driver's functions; so it does beside a driver that is too old
    if "undefined symbol: cu" not in text:
        return False
    try:
        driver_library()
    except OSError:
        return True
    return False


def driver_library() -> ctypes.CDLL:
    """The CUDA driver that PyCUDA has loaded, for the few calls that it does not wrap."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _driver() -> Any:
    """PyCUDA's driver module, with at least one device behind it, and all that arrays need besides."""
    driver = pycuda_module("driver")
    try:
        driver.init()
        count = driver.Device.count()
    except Exception as error:
        refuse_after_fork(error)
        raise DeviceError(f"the NVIDIA driver does not start: {error}. nvidia-smi shows its state; {_ON_THE_CPU}") from error
    if not count:
        raise DeviceError(f"the NVIDIA driver finds no device; CUDA_VISIBLE_DEVICES may hide it. {_ON_THE_CPU}")
    for name in ("tools", "gpuarray"):
        pycuda_module(name)
    return driver


def available() -> bool:
    """Whether PyCUDA and a device are here. Warns where they are, and do not work.

    Raises:
        DeviceError: in a process made by fork, where the parent's CUDA cannot be used.
    """
    try:
        _driver()
    except (DependencyError, DeviceError) as error:
        cause = error.__cause__
        refuse_after_fork(cause or error)
        # a laptop without a GPU, or one without PyCUDA, or with all of the GPUs hidden, has no fault
        if cause is not None and not (_is_not_installed(cause) or lacks_driver(cause) or _finds_no_device(cause)):
            warn(f"arrays are made on the CPU, because CUDA does not work here: {error}", KernelWarning)
        return False
    return True


def _finds_no_device(error: BaseException) -> bool:
    return any(text in str(error) for text in ("no CUDA-capable device", "stub library"))


def ensure_context() -> None:
    """Makes sure that PyCUDA has a current context in this thread. One that was made here is popped at exit.

    Raises:
        DependencyError: PyCUDA or the driver's library is missing.
        DeviceError: there is no device, or none of that number, or the current context is one that PyCUDA cannot share; or
            the process was made by fork, after its parent had begun to use CUDA.
    """
    driver = sys.modules.get("pycuda.driver")
    # of a module that another thread is importing, not all is there
    current = getattr(driver, "Context", None)
    if current is not None and current.get_current() is not None:
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
        context = _primary(index)
    except driver.Error as error:
        raise DeviceError(f"CUDA device {index} gives no context: {error}") from error
    if foreign and context.handle != foreign:
        raise DeviceError(
            f"the current CUDA context, {foreign:#x}, is neither PyCUDA's nor the primary one of device {index}, so PyCUDA "
            f"cannot use it; make the primary one current (pycuda.autoprimaryctx)"
        )
    _held.pushed = _Pushed(context)


@functools.cache
def _primary(index: int) -> Any:
    """The primary context of a device: one object for all threads, or PyCUDA could not free an array in another thread."""
    return pycuda_module("driver").Device(index).retain_primary_context()


@contextlib.contextmanager
def primary_context(index: int) -> Iterator[None]:
    """Makes the primary context of a device current for a while, whichever was before.

    Raises:
        DependencyError, DeviceError: there is no PyCUDA, no driver, or no such device.
    """
    _driver()
    context = _primary(index)
    context.push()
    try:
        yield
    finally:
        context.pop()


@contextlib.contextmanager
def uncaptured() -> Iterator[None]:
    """Inside, this thread may allocate and wait, though a stream, which is not used here, is captured in a CUDA graph."""
    mode = ctypes.c_int(_RELAXED)
    exchange = driver_library().cuThreadExchangeStreamCaptureMode
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


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


# ------------------------------------------------------------------------------------------------- explanations


def refuse_after_fork(error: BaseException | None = None) -> None:
    """Raises DeviceError where the driver, which the parent has started, does not start in a process made by fork."""
    with contextlib.suppress(OSError):
        if driver_library().cuInit(0) == _NOT_INITIALIZED:
            raise DeviceError(_AFTER_FORK) from error


def explain(error: Exception) -> None:
    """Raises DeviceError where a call to PyCUDA failed because of a fork, or a thread without a context, or a stream."""
    refuse_after_fork(error)
    if "no currently active context" in str(error) or not _current()[0]:
        raise DeviceError(NO_CONTEXT) from error
    if "invalid resource handle" in str(error):
        raise DeviceError(
            f"{error}: a handle, such as the stream's, is of another CUDA context than the current one, or is gone. Make "
            f"the stream while the arrays' context is current"
        ) from error


_Call = TypeVar("_Call", bound=Callable[..., Any])


def explained(call: _Call) -> _Call:
    """A decorator: :func:`explain` for what PyCUDA raises in ``call``."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            driver = sys.modules.get("pycuda.driver")
            if driver is not None and isinstance(error, driver.Error):
                explain(error)
            raise

    return wrapper  # type: ignore[return-value]
