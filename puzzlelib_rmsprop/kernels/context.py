"""The CUDA context for new arrays: the current one, or else the primary context of device ``Config.deviceIdx``.

PuzzleLib, PyTorch, CuPy and Numba share the primary context, and their memory cannot be used in another one.
PyCUDA is imported at the first call.
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

_ON_THE_CPU = "Config.backend = Config.Backend.cpu works without a GPU"
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
NO_CONTEXT = (
    "no CUDA context is current in this thread: push the arrays' context here (context = "
    "pycuda.driver.Context.get_current() in the thread that made them, then context.push() in this one), and call "
    "context.pop() before this thread ends"
)
_AFTER_FORK = (
    "CUDA cannot be used in this process: it was forked after its parent had initialized CUDA. Start it with spawn "
    f"(multiprocessing.set_start_method('spawn')) and make its arrays there; {_ON_THE_CPU}"
)


# ------------------------------------------------------------------------------------------ contexts of threads


class _Held(threading.local):
    """The context that this library has pushed in this thread, if any."""

    pushed: _Pushed | None = None


class _Pushed:
    """A pushed context. It is popped when its thread ends, because PyCUDA aborts a process if a thread leaves one behind."""

    def __init__(self, context: Any) -> None:
        self._context, self._thread = None, threading.get_ident()
        context.push()
        self._context = context
        _threads.add(self._thread)

    def pop(self) -> bool:
        """Pops the context if it is still pushed. Returns whether the driver popped it (in a forked process it cannot)."""
        context, self._context = self._context, None
        _threads.discard(self._thread)
        # in a forked process, contexts of the parent's other threads are deleted in the only thread
        if context is None or threading.get_ident() != self._thread:
            return False
        try:
            context.pop()
        except Exception:
            context.detach()  # removes it from PyCUDA's stack even if the driver fails
            return False
        return True

    def __del__(self) -> None:
        self.pop()


_held = _Held()
_threads: set[int] = set()  # threads with a pushed context


def _finish() -> None:
    """Pops the contexts that are still pushed when the process ends."""
    pushed, _held.pushed = _held.pushed, None
    if pushed is not None:
        _threads.discard(threading.get_ident())
    _end_threads()
    _primary.cache_clear()
    if pushed is None or not pushed.pop():
        return
    from pycuda.tools import clear_context_caches

    with warnings.catch_warnings():
        # PyCUDA unloads kernels only in the thread that loaded them; those of ended threads are freed with the process
        warnings.simplefilter("ignore")
        clear_context_caches()


def _end_threads() -> None:
    """Raises SystemExit in daemon threads with a pushed context: Python would stop them without popping it.

    Waits up to one second for a blocked thread, and up to ten for one that is still running (it may be freeing arrays).
    """
    tell, begin, before = ctypes.pythonapi.PyThreadState_SetAsyncExc, time.monotonic(), _positions()
    others = {thread for thread in _threads if tell(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))}
    while others & _threads and time.monotonic() < begin + 10:
        time.sleep(0.001)
        if time.monotonic() > begin + 1:
            now = _positions()
            others = {thread for thread in others if now.get(thread) != before.get(thread)}


def _positions() -> dict[int, tuple[int, int]]:
    """Returns the frame and the last instruction of each thread."""
    return {thread: (id(frame), frame.f_lasti) for thread, frame in sys._current_frames().items()}


# registered at import, so that it runs after the functions that the user's program registers
atexit.register(_finish)


# -------------------------------------------------------------------------------------------- PyCUDA and driver


def pycuda_module(name: str) -> Any:
    """Imports ``pycuda.driver`` or another submodule of PyCUDA.

    Raises:
        DependencyError: the import failed. The message gives the reason, and is the same at each attempt.
    """
    before = {*sys.modules}
    try:
        importlib.import_module("pycuda")  # first, so that the error tells a missing package from a missing submodule
        return importlib.import_module(f"pycuda.{name}")
    except BaseException as error:
        # remove partly imported modules, or the next attempt would fail with another error
        for left in {*sys.modules} - before:
            if left.partition(".")[0] == "pycuda":
                del sys.modules[left]
        if not isinstance(error, Exception):
            raise
        if _is_not_installed(error):
            fault = f"{error}. Install the driver and PyCUDA: pip install 'pycuda>=2024.1' 'scikit-cuda==0.5.3'"
        elif lacks_driver(error):
            fault = f"{error}. Install the driver; in a container, start it with the GPU (docker run --gpus all)"
        else:  # a broken installation may raise anything
            fault = (
                f"PyCUDA is installed, but its import fails with {type(error).__name__}: {error}. Build it again with the "
                f"installed CUDA toolkit and NumPy: pip install --force-reinstall --no-cache-dir pycuda"
            )
        raise DependencyError(f"CUDA needs PyCUDA and an NVIDIA driver: {fault}; {_ON_THE_CPU}") from error


def _is_not_installed(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == "pycuda"


def lacks_driver(error: BaseException) -> bool:
    """Returns whether PyCUDA cannot be imported because the NVIDIA driver is missing."""
    text = str(error)
    if "libcuda.so" in text or "nvcuda" in text:
        return True
    # PyCUDA linked without libcuda lacks the driver's functions; but symbols are also undefined if the driver is too old
    if "undefined symbol: cu" not in text:
        return False
    try:
        driver_library()
    except OSError:
        return True
    return False


def driver_library() -> ctypes.CDLL:
    """Returns the CUDA driver's library, for the few functions that PyCUDA does not wrap."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _driver() -> Any:
    """Initializes CUDA and returns ``pycuda.driver``. Raises if a module that arrays need, or a device, is missing."""
    driver = pycuda_module("driver")
    try:
        driver.init()
        count = driver.Device.count()
    except Exception as error:
        refuse_after_fork(error)
        text = f"the NVIDIA driver does not start: {error}. nvidia-smi shows its state; {_ON_THE_CPU}"
        raise DeviceError(text) from error
    if not count:
        raise DeviceError(f"the NVIDIA driver finds no device; CUDA_VISIBLE_DEVICES may hide it. {_ON_THE_CPU}")
    for name in ("tools", "gpuarray"):
        pycuda_module(name)
    return driver


def available() -> bool:
    """Returns whether PyCUDA and a device are available. Warns if they are present but do not work.

    Raises:
        DeviceError: the process was forked after its parent had initialized CUDA.
    """
    try:
        _driver()
    except (DependencyError, DeviceError) as error:
        cause = error.__cause__
        refuse_after_fork(cause or error)
        # no warning if the machine has no GPU, no driver or no PyCUDA, or if all GPUs are hidden
        if cause is not None and not (_is_not_installed(cause) or lacks_driver(cause) or _finds_no_device(cause)):
            warn(f"arrays are made on the CPU, because CUDA does not work here: {error}", KernelWarning)
        return False
    return True


def _finds_no_device(error: BaseException) -> bool:
    return any(text in str(error) for text in ("no CUDA-capable device", "stub library"))


def ensure_context() -> None:
    """Makes a context current in this thread if PyCUDA has none. A context pushed here is popped when the thread ends.

    Raises:
        DependencyError: PyCUDA or the driver's library is missing.
        DeviceError: no device was found, ``Config.deviceIdx`` is out of range, PyCUDA cannot use the current context, or the
            process was forked after its parent had initialized CUDA.
    """
    driver = sys.modules.get("pycuda.driver")
    # a module that another thread is importing may be incomplete
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
        raise DeviceError(f"the primary context of CUDA device {index} cannot be created: {error}") from error
    if foreign and context.handle != foreign:
        raise DeviceError(
            f"PyCUDA cannot use the current CUDA context, {foreign:#x}: it is neither PyCUDA's nor the primary context of "
            f"device {index}. Make the primary context current (import pycuda.autoprimaryctx)"
        )
    _held.pushed = _Pushed(context)


@functools.cache
def _primary(index: int) -> Any:
    """Returns a device's primary context. All threads share this object, so that PyCUDA can free arrays in any of them."""
    return pycuda_module("driver").Device(index).retain_primary_context()


@contextlib.contextmanager
def primary_context(index: int) -> Iterator[None]:
    """A context manager that makes the primary context of a device current.

    Raises:
        DependencyError: PyCUDA or the driver's library is missing.
        DeviceError: no device was found.
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
    """A context manager in which this thread may allocate and wait while another stream is captured in a CUDA graph."""
    mode = ctypes.c_int(_RELAXED)
    exchange = driver_library().cuThreadExchangeStreamCaptureMode
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


def default_stream_ended() -> None:
    """Waits for the work in the default stream, for streams that are not ordered with it.

    This includes copies from the host: they return when the driver has read the host's memory, before the copy is complete.
    """
    if "pycuda.driver" in sys.modules:
        # PyCUDA's events need a context that PyCUDA knows, but PuzzleLib makes its own current. The result is ignored: the
        # next call reports the same error
        driver_library().cuStreamSynchronize(None)


def _current() -> tuple[int, int]:
    """Returns the handle of the current context, whoever made it, and its device; zeros if there is none."""
    library, context, device = driver_library(), ctypes.c_void_p(), ctypes.c_int()
    library.cuCtxGetCurrent(ctypes.byref(context))
    if context.value:
        library.cuCtxGetDevice(ctypes.byref(device))
    return context.value or 0, device.value


# ------------------------------------------------------------------------------------------------- explanations


def refuse_after_fork(error: BaseException | None = None) -> None:
    """Raises DeviceError in a process that was forked after its parent had initialized CUDA."""
    with contextlib.suppress(OSError):
        if driver_library().cuInit(0) == _NOT_INITIALIZED:
            raise DeviceError(_AFTER_FORK) from error


def explain(error: Exception) -> None:
    """Raises DeviceError if a PyCUDA call failed because of a fork, a missing context or an invalid stream."""
    refuse_after_fork(error)
    if "no currently active context" in str(error) or not _current()[0]:
        raise DeviceError(NO_CONTEXT) from error
    if "invalid resource handle" in str(error):
        raise DeviceError(
            f"{error}: a handle, such as the stream's, belongs to another CUDA context, or was destroyed. Make the stream "
            f"while the arrays' context is current"
        ) from error


_Call = TypeVar("_Call", bound=Callable[..., Any])


def explained(call: _Call) -> _Call:
    """A decorator that passes errors of PyCUDA to :func:`explain`."""

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
