"""A process group over NVIDIA's NCCL, with one GPU per process, through nccl4py.

Collectives are queued on a stream, without waiting for the GPU. A thread watches that they complete. An NCCL call may never
return if another process has died: failures are recorded first, and no thread waits longer than the timeout.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ArrayError, DependencyError, DeviceError, GroupError, SetupError
from ..kernels.context import ensure_context
from ..validation import number
from .memory import Memory, averaged, memory_of
from .mpi import MPINodeInfo
from .nodeinfo import NodeInfo
from .rendezvous import Rendezvous

__all__ = ["NCCLNodeInfo"]

GRACE = 2.0  # seconds in which NCCL can abort remaining work when the process ends


def _bindings() -> Any:
    try:
        from nccl.bindings import nccl
    except ImportError as error:
        raise _missing(error) from error
    return nccl


def _missing(error: Exception) -> DependencyError:
    return DependencyError(
        f"NCCLNodeInfo needs nccl4py and NCCL: {error}. pip install 'nccl4py>=0.6,<0.7' nvidia-nccl-cu13 "
        f"'cuda-bindings~=13.0' 'pycuda>=2024.1' for CUDA 13, or nccl4py and nvidia-nccl-cu12 for CUDA 12"
    )


class NCCLNodeInfo(NodeInfo):
    """A process group with one GPU per process, and this process's place in it. Arrays never leave the GPUs.

    The processes find each other over MPI, or at an address where process 0 listens. Averages are computed on the device,
    on the stream of the update, without waiting. NCCL does not allow two processes on one GPU.

    If queued work does not complete within ``timeout``, or NCCL reports an error, everything queued is aborted. The
    parameters are then invalid, and the next call raises a :class:`~puzzlelib_rmsprop.errors.GroupError`. No call waits
    for NCCL to abort, or longer than ``timeout`` for NCCL to start or close.

    Args:
        comm: an ``mpi4py.MPI.Comm`` over which the processes meet. ``COMM_WORLD`` by default, if ``address`` is not given.
        address: ``"host:port"`` of process 0. ``index`` and ``gridsize`` are then required, and MPI is not used.
        index: rank of this process, from 0, with ``address`` only. MPI's rank otherwise.
        gridsize: number of processes, with ``address`` only. MPI's otherwise.
        device: index of this process's GPU. By default the rank of the process on its machine according to MPI, or
            ``Config.deviceIdx`` with ``address``.
        timeout: seconds, above 0.

    Raises:
        DependencyError: if nccl4py, NCCL, PyCUDA or mpi4py is missing.
        DeviceError: if there is no such GPU, or the current context is on another one.
        GroupError: if the processes do not meet within ``timeout``, or NCCL reports an error.
        SetupError: if ``address`` is given without ``index`` or ``gridsize``, or with ``comm``, or process 0 cannot listen
            there.

    Example:
        >>> from puzzlelib_rmsprop import NCCLNodeInfo, RMSPropGraves
        >>> def train(net, rank):
        ...     with NCCLNodeInfo(address="10.0.0.1:29500", index=rank, gridsize=8, device=rank % 4) as nodeinfo:
        ...         optimizer = RMSPropGraves(nodeinfo=nodeinfo)
        ...         optimizer.setupOn(net, useGlobalState=True)
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        address: str | None = None,
        index: int | None = None,
        gridsize: int | None = None,
        device: int | None = None,
        timeout: float = 300.0,
    ) -> None:
        self.timeout = number("timeout", timeout, 1e-3)
        self._nccl = _bindings()
        self._mean = int(self._nccl.RedOp.Avg)
        self._meeting: MPINodeInfo | Rendezvous
        if address is None:
            if index is not None or gridsize is not None:
                raise SetupError("index and gridsize need an address; without one they come from MPI")
            self._meeting = MPINodeInfo(comm, timeout=timeout, device=device)
            device = self._meeting.device
        else:
            if comm is not None or index is None or gridsize is None:
                raise SetupError("an address needs index and gridsize, and excludes comm")
            self._meeting = Rendezvous(address, index, gridsize, timeout=timeout)
            device = Config.deviceIdx if device is None else device
        super().__init__(self._meeting.index, self._meeting.gridsize, device)
        self._failure: str | None = None
        self._closed = False
        self._ended = threading.Event()  # set when there is nothing left to watch
        self._lock = threading.Lock()  # NCCL is called by one thread at a time
        self._recording = threading.Lock()
        self._calling: tuple[str, float] | None = None  # the collective being queued, and its start time
        self._queued: deque[tuple[Any, str, float]] = deque()
        self._comm: Any = None
        self._watcher = threading.Thread(target=self._watch, name="nccl watcher", daemon=True)
        try:
            self._make_current()
            try:
                self._nccl.get_version()  # nccl4py loads NCCL at the first call
            except RuntimeError as error:
                raise _missing(error) from error
            own = bytes(self._nccl.get_unique_id()).hex() if self.index == 0 else None
            self._join(bytes.fromhex(self._meeting.allgatherObject(own)[0]))
        except BaseException as error:
            self._meeting.fail(error)
            raise
        atexit.register(self._at_exit)

    def _make_current(self) -> None:
        Config.deviceIdx = self.device
        ensure_context()
        from pycuda import driver

        self._driver = driver
        self._context = driver.Context.get_current()
        current = _ordinal(driver)
        if current != self.device:
            raise DeviceError(
                f"process {self.index} must use GPU {self.device}, but the current CUDA context is on GPU {current}: pop "
                f"that context first, or pass device={current}"
            )

    def _join(self, unique_id: bytes) -> None:
        """Makes the communicator, non-blocking: if a process is missing, waits no longer than the timeout."""
        nccl = self._nccl
        config = nccl.Config()
        config.blocking = 0
        arguments = self.gridsize, self.index, 1, bytearray(unique_id), config.ptr
        try:
            self._comm = self._in_time("making a communicator", nccl.comm_init_rank_scalable, *arguments)
        except nccl.NCCLError as error:
            raise GroupError(
                f"NCCL refuses process {self.index} of {self.gridsize} on GPU {self.device}: {error}"
            ) from error
        self._watcher.start()
        self._until_ready("making a communicator")

    def _in_time(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls NCCL in a new thread, and waits for its result or exception no longer than the timeout."""
        done: list[tuple[Any, Exception | None]] = []

        def call() -> None:
            try:
                self._context.push()
                try:
                    done.append((function(*arguments), None))
                finally:
                    self._context.pop()
            except Exception as error:
                done.append((None, error))

        thread = threading.Thread(target=call, name=f"nccl: {what}", daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not done:
            raise GroupError(self._late(what))
        result, error = done[0]
        if error is not None:
            raise error
        return result

    def _until_ready(self, what: str) -> None:
        """Waits until NCCL has accepted the call, but not for the GPU."""
        began = time.monotonic()
        while True:
            if self._failure is not None:  # the communicator may be gone already
                raise GroupError(self._failure)
            result = int(self._nccl.comm_get_async_error(self._comm))
            if result != self._nccl.Result.InProgress:
                break
            if time.monotonic() - began > self.timeout:
                self._late(what)
            time.sleep(1e-4)
        if result != self._nccl.Result.Success:
            self._break(f"NCCL reports {self._nccl.get_error_string(result)} in {what}")
            raise GroupError(self._failure)

    # ------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        with contextlib.suppress(self._driver.Error):
            self._context.push()
            try:
                while not self._ended.wait(min(self.timeout / 4, 0.5)):
                    try:
                        self._look()
                    except (self._nccl.NCCLError, self._driver.Error) as error:
                        self._break(f"process {self.index} of {self.gridsize} can no longer be watched: {error}")
                if not self._closed:
                    # in this thread, which nobody waits for, because the call may never return
                    with contextlib.suppress(self._nccl.NCCLError):
                        self._nccl.comm_abort(self._comm)
            finally:
                self._context.pop()

    def _look(self) -> None:
        if not self._lock.acquire(blocking=False):
            # another thread is in an NCCL call, which may never return; normally it checks the timeout itself
            calling = self._calling
            if calling is not None and time.monotonic() - calling[1] > self.timeout + min(self.timeout, 1.0):
                self._late(calling[0])
            return
        try:
            while self._queued and self._queued[0][0].query():
                self._queued.popleft()
            result = int(self._nccl.comm_get_async_error(self._comm))
            if result not in (self._nccl.Result.Success, self._nccl.Result.InProgress):
                self._break(f"NCCL reports to process {self.index}: {self._nccl.get_error_string(result)}")
            elif self._queued and time.monotonic() - self._queued[0][2] > self.timeout:
                self._late(self._queued[0][1])
        finally:
            self._lock.release()

    def _late(self, what: str) -> str:
        message = (
            f"process {self.index} of {self.gridsize} has waited {self.timeout:g} s in {what} for the others: one has died, "
            f"hangs, or needs a longer timeout"
        )
        self._break(message)
        return message

    def _break(self, message: str) -> None:
        """Records the first failure. The watcher then aborts all queued work."""
        with self._recording:
            if self._failure is not None or self._closed:
                return
            self._failure = message
        # threads that wait for the GPU continue with invalid numbers: print the failure immediately
        print(f"puzzlelib_rmsprop: {message}; the parameters are no longer valid", file=sys.stderr, flush=True)
        self._ended.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise GroupError(self._failure)
        if self._closed:
            raise GroupError("this nodeinfo is closed")

    def fail(self, error: BaseException) -> None:
        self._break(f"process {self.index} of {self.gridsize} has failed: {type(error).__name__}: {error}")
        self._meeting.fail(error)

    def close(self) -> None:
        if self._closed:
            return
        if self._failure is None:
            self._meeting.barrier()
            with self._turn("close()"):
                self._in_time("close()", self._nccl.comm_finalize, self._comm)
                self._until_ready("close()")
                self._closed = True  # nothing is left to abort
                self._in_time("close()", self._nccl.comm_destroy, self._comm)
        self._at_exit()
        atexit.unregister(self._at_exit)
        self._meeting.close()

    def _at_exit(self) -> None:
        """Ends the watcher, which aborts the communicator unless it was closed."""
        self._ended.set()
        self._watcher.join(GRACE)

    # ----------------------------------------------------------------------------------------- operations

    @contextlib.contextmanager
    def _turn(self, what: str) -> Iterator[None]:
        """Reserves NCCL for this thread. An NCCL error ends the group."""
        if not self._lock.acquire(timeout=self.timeout):  # the watcher hangs in an NCCL call
            raise GroupError(self._late(what))
        try:
            self._check()
            yield
        except self._nccl.NCCLError as error:
            self._break(f"NCCL refuses {what} on process {self.index}: {error}")
            raise GroupError(self._failure) from error
        finally:
            self._calling = None
            self._lock.release()

    def _call(self, what: str, function: str, *arguments: Any, stream: Any) -> None:
        """Queues one collective. ``arguments`` are those of the NCCL function before the communicator."""
        with self._turn(what):
            self._calling = what, time.monotonic()
            handle = 0 if stream is None else int(stream.handle)
            getattr(self._nccl, function)(*arguments, self._comm, handle)
            self._until_ready(what)
            event = self._driver.Event(self._driver.event_flags.DISABLE_TIMING)
            event.record(stream)
            self._queued.append((event, what, time.monotonic()))

    def _kind(self, dtype: np.dtype) -> int:
        return int(getattr(self._nccl.DataType, dtype.name.capitalize()))

    def _memory(self, buffer: Any, stream: Any) -> Memory:
        memory = memory_of(buffer, stream)
        if memory.host is not None:
            raise ArrayError("NCCLNodeInfo needs arrays on a GPU; use MPINodeInfo for arrays on the CPU")
        return memory

    def broadcastBuffer(self, name: str, buffer: Any) -> None:
        memory = self._memory(buffer, None)
        nbytes = memory.size * memory.dtype.itemsize
        address = memory.address
        self._call(
            f"broadcasting {name!r}", "broadcast", address, address, nbytes, self._kind(np.dtype(np.uint8)), 0, stream=None
        )

    def sumTensor(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory = averaged(self._memory(tensor, stream))
        address, kind = memory.address, self._kind(memory.dtype)
        self._call(f"averaging {name!r}", "all_reduce", address, address, memory.size, kind, self._mean, stream=stream)

    def reduceScatter(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory, part, own = self._parts(tensor, stream)
        kind = self._kind(averaged(memory).dtype)
        self._call(f"averaging {name!r}", "reduce_scatter", memory.address, own, part, kind, self._mean, stream=stream)

    def allGather(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory, part, own = self._parts(tensor, stream)
        kind = self._kind(memory.dtype)
        self._call(f"gathering {name!r}", "all_gather", own, memory.address, part, kind, stream=stream)

    def _parts(self, tensor: Any, stream: Any) -> tuple[Memory, int, int]:
        memory = self._memory(tensor, stream)
        if memory.size % self.gridsize:
            raise ArrayError(
                f"the size of a tensor must be a multiple of {self.gridsize}, the number of processes; got {memory.size}"
            )
        part = memory.size // self.gridsize
        return memory, part, memory.address + self.index * part * memory.dtype.itemsize

    def meanValue(self, value: float) -> float:
        return float(np.mean(self.allgatherObject(float(value))))

    def allgatherObject(self, value: Any) -> list[Any]:
        self._check()
        return self._meeting.allgatherObject(value)

    def barrier(self) -> None:
        self._check()
        self._meeting.barrier()


def _ordinal(driver: Any) -> int:
    """Returns the index of the current context's device."""
    current = driver.Context.get_device()
    return next(i for i in range(driver.Device.count()) if driver.Device(i) == current)
