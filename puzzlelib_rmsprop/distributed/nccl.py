"""A group of processes with a GPU each, over NVIDIA's NCCL, through nccl4py.

The collectives are queued on a stream, and nothing here waits for the GPU; a thread watches that what was queued ends.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections import deque
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


def _bindings() -> Any:
    try:
        from nccl.bindings import nccl
    except ImportError as error:
        raise _missing(error) from error
    return nccl


def _missing(error: Exception) -> DependencyError:
    return DependencyError(
        f"NCCLNodeInfo needs nccl4py and NCCL: {error}. pip install 'puzzlelib_rmsprop[nccl]' for CUDA 13, or nccl4py "
        f"and nvidia-nccl-cu12 for CUDA 12"
    )


class NCCLNodeInfo(NodeInfo):
    """This process's place in a group with a GPU each, whose arrays never leave the GPUs.

    The processes find each other over MPI, or at an address where process 0 listens. Averages are taken on the device, on
    the stream of the update, without a wait for either. NCCL refuses two processes on one GPU.

    What was queued and has not ended within ``timeout`` is aborted, and so is everything when NCCL reports an error; the
    parameters are of no use then, and the next call raises :class:`~puzzlelib_rmsprop.errors.GroupError`.

    Args:
        comm: an ``mpi4py.MPI.Comm`` to meet on; ``COMM_WORLD`` by default, where no ``address`` is given.
        address: ``"host:port"`` of process 0; then ``index`` and ``gridsize`` are needed, and MPI is not.
        index, gridsize: this process's number, and how many there are; MPI's where it is used.
        device: index of this process's GPU; by default MPI's number of the process on its machine, or ``Config.deviceIdx``.
        timeout: seconds, above 0.

    Raises:
        DependencyError: nccl4py, NCCL, PyCUDA or mpi4py is missing.
        DeviceError: there is no such GPU, or another one is current.
        GroupError: the processes do not meet within ``timeout``, or NCCL refuses them.
        SetupError: ``address`` without ``index`` or ``gridsize``, or with ``comm``.

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
                raise SetupError("index and gridsize go with an address; over MPI they are MPI's")
            self._meeting = MPINodeInfo(comm, timeout=timeout, device=device)
            device = self._meeting.device
        else:
            if comm is not None or index is None or gridsize is None:
                raise SetupError("an address needs index and gridsize, and takes no comm")
            self._meeting = Rendezvous(address, index, gridsize, timeout=timeout)
            device = Config.deviceIdx if device is None else device
        super().__init__(self._meeting.index, self._meeting.gridsize, device)
        self._failure: str | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._queued: deque[tuple[Any, float]] = deque()
        self._comm: Any = None
        try:
            self._make_current()
            try:
                self._nccl.get_version()  # nccl4py looks for NCCL's library at the first call
            except RuntimeError as error:
                raise _missing(error) from error
            own = bytes(self._nccl.get_unique_id()).hex() if self.index == 0 else None
            self._comm = self._join(bytes.fromhex(self._meeting.allgatherObject(own)[0]))
        except BaseException as error:
            self._meeting.fail(error)
            raise
        self._watcher = threading.Thread(target=self._watch, name="nccl watcher", daemon=True)
        self._watcher.start()
        atexit.register(self._at_exit)

    def _make_current(self) -> None:
        Config.deviceIdx = self.device
        ensure_context()
        from pycuda import driver

        self._driver = driver
        self._context = driver.Context.get_current()
        current = _ordinal(driver)
        if current != self.device:
            raise DeviceError(f"process {self.index} is to use GPU {self.device}, but a context of GPU {current} is current")

    def _join(self, unique_id: bytes) -> Any:
        """The communicator, made without blocking, so that a missing process costs the timeout and no more."""
        nccl = self._nccl
        config = nccl.Config()
        config.blocking = 0
        try:
            comm = nccl.comm_init_rank_scalable(self.gridsize, self.index, 1, bytearray(unique_id), config.ptr)
        except nccl.NCCLError as error:
            raise GroupError(
                f"NCCL refuses process {self.index} of {self.gridsize} on GPU {self.device}: {error}"
            ) from error
        self._comm = comm
        self._until_ready("making a communicator")
        return comm

    def _until_ready(self, what: str) -> None:
        """Waits, on the host only, until NCCL has taken what it was given."""
        began = time.monotonic()
        while (result := int(self._nccl.comm_get_async_error(self._comm))) == self._nccl.Result.InProgress:
            if time.monotonic() - began > self.timeout:
                self._abort(
                    f"process {self.index} of {self.gridsize} has waited {self.timeout:g} s in {what} for the others"
                )
                raise GroupError(self._failure)
            time.sleep(1e-4)
        if result != self._nccl.Result.Success:
            self._abort(f"NCCL reports {self._nccl.get_error_string(result)} in {what}")
            raise GroupError(self._failure)

    # ------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        with contextlib.suppress(self._driver.Error):
            self._context.push()
            try:
                while not self._ended.wait(min(self.timeout / 4, 0.5)):
                    self._look()
            finally:
                self._context.pop()

    def _look(self) -> None:
        with self._lock:
            if self._failure is not None or self._ended.is_set():
                return
            while self._queued and self._queued[0][0].query():
                self._queued.popleft()
            result = int(self._nccl.comm_get_async_error(self._comm))
            if result not in (self._nccl.Result.Success, self._nccl.Result.InProgress):
                self._abort(f"NCCL reports to process {self.index}: {self._nccl.get_error_string(result)}")
            elif self._queued and time.monotonic() - self._queued[0][1] > self.timeout:
                self._abort(
                    f"process {self.index} of {self.gridsize} has waited {self.timeout:g} s for the others: one has died, "
                    f"hangs, or needs a longer timeout"
                )

    def _abort(self, message: str) -> None:
        self._failure = message
        # whoever waits for the GPU goes on, with numbers of no use: say so where it is seen
        print(f"puzzlelib_rmsprop: {message}; the parameters are of no use any more", file=sys.stderr, flush=True)
        self._nccl.comm_abort(self._comm)

    def _check(self) -> None:
        if self._failure is not None:
            raise GroupError(self._failure)
        if self._ended.is_set():
            raise GroupError("this nodeinfo is closed")

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None and not self._ended.is_set():
                self._abort(f"process {self.index} of {self.gridsize} has failed: {type(error).__name__}: {error}")
        self._meeting.fail(error)

    def close(self) -> None:
        if self._ended.is_set():
            return
        if self._failure is None:
            self._meeting.barrier()
        self._ended.set()
        self._watcher.join()
        atexit.unregister(self._at_exit)
        if self._failure is None:
            self._nccl.comm_finalize(self._comm)
            self._until_ready("close()")
            self._nccl.comm_destroy(self._comm)
        self._meeting.close()

    def _at_exit(self) -> None:
        self._ended.set()
        self._watcher.join()
        if self._failure is None:
            self._nccl.comm_abort(self._comm)

    # --------------------------------------------------------------------------------------- what it does

    def _call(self, what: str, function: str, *arguments: Any, stream: Any) -> None:
        """Queues one collective. ``arguments`` stand between the buffers and the communicator."""
        with self._lock:
            self._check()
            handle = 0 if stream is None else int(stream.handle)
            try:
                getattr(self._nccl, function)(*arguments, self._comm, handle)
                self._until_ready(what)
            except self._nccl.NCCLError as error:
                self._abort(f"NCCL refuses {what} on process {self.index}: {error}")
                raise GroupError(self._failure) from error
            event = self._driver.Event(self._driver.event_flags.DISABLE_TIMING)
            event.record(stream)
            self._queued.append((event, time.monotonic()))

    def _kind(self, dtype: np.dtype) -> int:
        return int(getattr(self._nccl.DataType, dtype.name.capitalize()))

    def _memory(self, buffer: Any, stream: Any) -> Memory:
        memory = memory_of(buffer, stream)
        if memory.host is not None:
            raise ArrayError("NCCLNodeInfo works on arrays of a GPU; use MPINodeInfo for those of the host")
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
            raise ArrayError(f"a tensor in {self.gridsize} equal parts cannot be of size {memory.size}")
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
    """The number of the current context's device."""
    current = driver.Context.get_device()
    return next(i for i in range(driver.Device.count()) if driver.Device(i) == current)
