"""A process group over MPI, through mpi4py.

All MPI calls are non-blocking and polled, so that a process gets an error if another one is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArrayError, GroupError
from ..validation import number
from .memory import DeviceMemory, Memory, averaged, memory_of, pinned
from .mpi_setup import check_running, communicator, library
from .nodeinfo import NodeInfo

__all__ = ["MPINodeInfo"]

STAGING = 1 << 25  # bytes of each of the two staging buffers
SMALL = 1 << 16  # bytes; below this, the number of messages matters more than their size
PIECE = 1 << 28  # elements per call: MPI's counts have 32 bits
SPIN, PAUSE = 0.05, 2e-4  # seconds of polling without a pause, since MPI progresses only while polled; then the pause
GRACE = 5.0  # seconds in which processes can report their errors before the job is aborted, and for the abort itself
TOLD = 2000  # characters of an error message: a longer one is sent in two steps, and its sender may hang in between


class MPINodeInfo(NodeInfo):
    """A process group started by ``mpirun`` or ``srun``, and this process's place in it.

    Arrays on the CPU are averaged in place; ``reduceScatter`` copies them piece by piece. Arrays on a GPU pass through
    pinned memory, piece by piece. With ``cudaAware=True`` MPI gets their addresses instead, except in ``reduceScatter`` and
    for 16-bit dtypes, which MPI cannot add. 16-bit numbers are added in float32 and rounded once. Large arrays are added in
    the order of the processes.

    A process that waits longer than ``timeout`` for the others raises a :class:`~puzzlelib_rmsprop.errors.GroupError`. A
    process that learns of another's exception raises one immediately. The group cannot be used afterwards: every later call
    raises the error again, and when the process ends, ``MPI_Abort`` ends the remaining ones. A process that ends without
    :meth:`close` waits up to ``timeout`` for the others to end, and processes that wait for it get the error. If a process
    is killed, ``mpirun`` ends the job, and so does ``srun`` with ``--kill-on-bad-exit``; otherwise the timeout applies.

    Args:
        comm: an ``mpi4py.MPI.Comm``, which is duplicated; ``COMM_WORLD`` by default.
        timeout: seconds to wait for the slowest process, above 0. It must exceed the time between two updates, including a
            checkpoint or a validation.
        device: index of this process's GPU. By default the rank of the process on its machine. ``Config.deviceIdx`` is not
            changed: set it yourself.
        cudaAware: True if the MPI library accepts GPU addresses.

    Raises:
        DependencyError: if mpi4py or an MPI library is missing.
        HyperParameterError: if ``timeout`` is not a number above 0.
        SetupError: if MPI is not initialized or already finalized, or ``comm`` is not a process group.

    Warns:
        GroupWarning: if a launcher started several processes but MPI sees only one, because they use different MPIs.

    Example:
        In a script started with ``mpirun -n 4 python train.py``:

        >>> from puzzlelib_rmsprop import MPINodeInfo, RMSPropGraves
        >>> def train(net):
        ...     with MPINodeInfo(timeout=60) as nodeinfo:
        ...         optimizer = RMSPropGraves(nodeinfo=nodeinfo)
        ...         optimizer.setupOn(net, useGlobalState=True)
    """

    def __init__(
        self, comm: Any = None, *, timeout: float = 300.0, device: int | None = None, cudaAware: bool = False
    ) -> None:
        self.timeout = number("timeout", timeout, 1e-3)
        self._MPI = library()
        self.cudaAware = cudaAware
        self._failure: str | None = None
        self._closed = False
        self._staging: dict[bool, list[np.ndarray]] = {}
        self._kept: list[Any] = []  # incomplete requests: MPI may still use their memory
        comm = communicator(self._MPI, comm)
        super().__init__(comm.Get_rank(), comm.Get_size())
        self._comm: Any = None
        self._control: Any = None
        atexit.register(self._at_exit)
        self._comm = self._duplicate(comm)
        self._control = self._duplicate(comm)
        if device is None:
            machines = self.allgatherObject(self._MPI.Get_processor_name())
            device = machines[: self.index].count(machines[self.index])
        self.device = device

    def _duplicate(self, comm: Any) -> Any:
        copy, request = comm.Idup()
        self._wait(request, "making a communicator")
        return copy

    # ------------------------------------------------------------------------------------------ waiting

    def _call(self, what: str, start: Callable[..., Any], *arguments: Any) -> None:
        if self._failure is not None:
            raise GroupError(self._failure)
        if self._closed:
            raise GroupError(f"{what}: this nodeinfo is closed")
        check_running(self._MPI)
        try:
            self._wait(start(*arguments), what)
        except self._MPI.Exception as error:  # for example messages of different sizes: the processes are out of step
            self.fail(error)
            raise GroupError(f"{self._failure}, in {what}") from error

    def _wait(self, request: Any, what: str) -> None:
        try:
            self._poll(request, what)
        except BaseException:
            self._kept.append(request)
            raise

    def _poll(self, request: Any, what: str) -> None:
        began = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - began
            if waited < SPIN:
                time.sleep(0)
                continue
            self._listen()
            if waited > self.timeout:
                self._broken(
                    f"process {self.index} of {self.gridsize} has waited {self.timeout:g} s in {what} for the others: one "
                    f"has died, hangs, or needs a longer timeout"
                )
            time.sleep(PAUSE)

    def _broken(self, message: str) -> None:
        self._failure = message
        raise GroupError(message)

    def _listen(self) -> None:
        """Raises the error that another process has reported, if any."""
        if self._control is not None and self._control.Iprobe(self._MPI.ANY_SOURCE):
            self._broken(self._control.recv(source=self._MPI.ANY_SOURCE))

    def fail(self, error: BaseException) -> None:
        if self._failure is not None or self._closed or self._MPI.Is_finalized():
            return
        self._failure = f"process {self.index} of {self.gridsize} has failed: {type(error).__name__}: {error}"
        self._tell(self._failure)

    def _tell(self, message: str) -> None:
        for other in range(self.gridsize):
            if other != self.index:
                self._kept.append(self._control.isend(message[:TOLD], other))

    def close(self) -> None:
        """Waits for the other processes to close, and closes this process's part of the group.

        Raises:
            GroupError: if another process does not close within the timeout.
        """
        if self._closed or self._failure is not None or self._MPI.Is_finalized():
            return
        self._call("close()", self._control.Ibarrier)
        self._closed = True
        atexit.unregister(self._at_exit)
        self._staging.clear()
        for comm in (self._comm, self._control):
            comm.Free()

    def _at_exit(self) -> None:
        """Ends the group if the process exits without :meth:`close`, so that no other process waits for it."""
        if self._closed or self._MPI.Is_finalized():
            return
        died_of = getattr(sys, "last_value", None)
        if died_of is not None and self._control is not None:
            self.fail(died_of)
        if self._control is not None and self._all_end():
            return
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # MPI_Abort may hang too, and Python cannot start threads any more
        faulthandler.dump_traceback_later(GRACE, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        # MPI_Finalize would wait for requests that never complete
        self._MPI.COMM_WORLD.Abort(1)

    def _all_end(self) -> bool:
        """Waits for the others to end too. Returns False if one has failed or does not end."""
        barrier, began, told = self._control.Ibarrier(), time.monotonic(), self._failure is not None
        # without a failure, others may still have work to do; those that wait for this process are told that it ended
        grace = min(GRACE, self.timeout) if told else self.timeout
        while not barrier.Test():
            waited = time.monotonic() - began
            if not told and waited > min(1.0, grace / 2):
                told = True
                self._tell(
                    f"process {self.index} of {self.gridsize} has failed: RuntimeError: it ended before the others, without "
                    f"close()"
                )
            if waited > grace:
                return False
            time.sleep(PAUSE)
        return self._failure is None

    # ----------------------------------------------------------------------------------------- operations

    def meanValue(self, value: float) -> float:
        total = np.array([float(value)])
        self._call("meanValue()", self._comm.Iallreduce, self._MPI.IN_PLACE, total)
        return float(total[0]) / self.gridsize

    def allgatherObject(self, value: Any) -> list[Any]:
        content = np.frombuffer(self._MPI.pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.gridsize, np.int64)
        self._call("allgatherObject()", self._comm.Iallgather, np.array([content.size]), sizes)
        everything = np.empty(int(sizes.sum()), np.uint8)
        self._call("allgatherObject()", self._comm.Iallgatherv, content, [everything, sizes])
        return [self._MPI.pickle.loads(part.tobytes()) for part in np.split(everything, np.cumsum(sizes)[:-1])]

    def barrier(self) -> None:
        self._call("barrier()", self._comm.Ibarrier)

    def broadcastBuffer(self, name: str, buffer: Any) -> None:
        memory = memory_of(buffer)
        what = f"broadcasting {name!r}"
        if self._takes(memory):
            memory.settle()
            for begin in range(0, memory.size, PIECE):
                self._call(what, self._comm.Ibcast, self._direct(memory, begin, PIECE))
            return
        for begin, (stage,) in self._pieces(memory, memory.size, 1):
            memory.read(begin, stage)
            memory.settle()
            self._call(what, self._comm.Ibcast, _raw(stage))
            memory.write(begin, stage)
            memory.settle()

    def sumTensor(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory = averaged(memory_of(tensor, stream))
        what = f"averaging {name!r}"
        if self.gridsize == 1:
            return
        if memory.host is not None:
            self._average(memory.host, what)
        elif self.cudaAware and memory.dtype.itemsize > 2:
            self._average_on_gpu(memory, stream, what)
        else:
            for begin, (stage,) in self._pieces(memory, memory.size, 1):
                memory.read(begin, stage)
                memory.settle()
                self._average(stage, what)
                memory.write(begin, stage)
                memory.settle()

    def _average(self, content: np.ndarray, what: str) -> None:
        """Averages in place. Large arrays use scatter and gather: MPI's non-blocking reductions (a tree) send more."""
        body = content.size // self.gridsize * self.gridsize if content.nbytes > SMALL else 0
        most = max(1, STAGING // content.itemsize // self.gridsize) * self.gridsize
        for begin in range(0, body, most):
            piece = content[begin : min(begin + most, body)]
            rows = piece.reshape(self.gridsize, -1)
            rows[self.index] = self._reduced(rows, what)
            self._call(what, self._comm.Iallgather, self._MPI.IN_PLACE, _raw(piece))
        rest = content[body:]
        if rest.size:
            # MPI has no 16-bit floats
            wide = rest.astype(np.float32) if rest.itemsize == 2 else rest
            self._call(what, self._comm.Iallreduce, self._MPI.IN_PLACE, wide)
            np.divide(wide, self.gridsize, out=wide)
            if wide is not rest:
                rest[:] = wide.astype(rest.dtype)

    def _average_on_gpu(self, memory: Memory, stream: Any, what: str) -> None:
        from ..kernels import SCALE, Operation, Segment, real_dtype
        from ..kernels.cuda import driver, operate

        size = min(memory.size, STAGING // memory.dtype.itemsize)
        scaled = DeviceMemory(
            int(scratch := driver.mem_alloc(max(1, size * memory.dtype.itemsize))), size, memory.dtype, stream
        )
        for begin in range(0, memory.size, max(1, size)):
            count = min(size, memory.size - begin)
            source = memory.address + begin * memory.dtype.itemsize
            driver.memcpy_dtod_async(scaled.address, source, count * memory.dtype.itemsize, stream)
            segment = Segment(memory.dtype.name, real_dtype(memory.dtype).name, scaled.address, scaled.address, count)
            operate(segment, 0.0, (Operation(SCALE, 1 / self.gridsize),), stream)
            memory.settle()
            self._call(what, self._comm.Iallreduce, self._direct(scaled, 0, count), self._direct(memory, begin, count))
        del scratch

    def _reduced(self, stages: np.ndarray, what: str) -> np.ndarray:
        """Returns the mean over all processes of this process's row, added in the order of the processes."""
        received = self._stage(1, stages.nbytes).view(stages.dtype).reshape(stages.shape)
        self._call(what, self._comm.Ialltoall, _raw(stages.reshape(-1)), _raw(received.reshape(-1)))
        with np.errstate(all="ignore"):  # infinities and NaNs are passed on
            total = received[0].astype(np.float64 if stages.dtype == np.float64 else np.float32)
            for row in received[1:]:
                total += row.astype(total.dtype, copy=False)
            total /= self.gridsize
        return total.astype(stages.dtype, copy=False)

    def reduceScatter(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory, part = self._parts(tensor, stream)
        averaged(memory)
        if self.gridsize == 1:
            return
        for begin, stages in self._pieces(memory, part, self.gridsize):
            for other, stage in enumerate(stages):
                memory.read(other * part + begin, stage)
            memory.settle()
            stages[self.index] = self._reduced(stages, f"averaging {name!r}")
            memory.write(self.index * part + begin, stages[self.index])
            memory.settle()

    def allGather(self, name: str, tensor: Any, stream: Any = None) -> None:
        memory, part = self._parts(tensor, stream)
        if self.gridsize == 1:
            return
        what = f"gathering {name!r}"
        if self._takes(memory) and part < 2**31:
            memory.settle()
            self._call(what, self._comm.Iallgather, self._MPI.IN_PLACE, self._direct(memory, 0, memory.size))
            return
        for begin, stages in self._pieces(memory, part, self.gridsize):
            memory.read(self.index * part + begin, stages[self.index])
            memory.settle()
            self._call(what, self._comm.Iallgather, self._MPI.IN_PLACE, _raw(stages.reshape(-1)))
            for other, stage in enumerate(stages):
                memory.write(other * part + begin, stage)
            memory.settle()

    def _parts(self, tensor: Any, stream: Any) -> tuple[Memory, int]:
        memory = memory_of(tensor, stream)
        if memory.size % self.gridsize:
            raise ArrayError(
                f"the size of a tensor must be a multiple of {self.gridsize}, the number of processes; got {memory.size}"
            )
        return memory, memory.size // self.gridsize

    def _takes(self, memory: Memory) -> bool:
        """Returns whether MPI can use the memory in place."""
        return memory.host is not None or self.cudaAware

    def _direct(self, memory: Memory, begin: int, count: int) -> Any:
        """Returns up to ``count`` elements from ``begin`` on as an MPI buffer: a part of the array, or a GPU address."""
        if memory.host is not None:
            return _raw(memory.host[begin : begin + count])
        count, itemsize = min(count, memory.size - begin), memory.dtype.itemsize
        kind = {1: self._MPI.BYTE, 2: self._MPI.UINT16_T, 4: self._MPI.FLOAT, 8: self._MPI.DOUBLE}[itemsize]
        return [self._MPI.memory.fromaddress(memory.address + begin * itemsize, count * itemsize), kind]

    def _pieces(self, memory: Memory, part: int, rows: int) -> Any:
        """Yields pieces of ``range(part)``: the first index, and a staging array of shape (rows, elements)."""
        itemsize = memory.dtype.itemsize
        most = max(1, STAGING // (rows * itemsize))
        for begin in range(0, part, most):
            count = min(most, part - begin)
            stage = self._stage(0, rows * count * itemsize, memory.host is None)
            yield begin, stage.view(memory.dtype).reshape(rows, count)

    def _stage(self, which: int, nbytes: int, on_gpu: bool = False) -> np.ndarray:
        """Returns a reusable staging buffer: 0 for the array's own content, 1 for what other processes send."""
        kept = self._staging.setdefault(on_gpu, [np.empty(0, np.uint8)] * 2)
        if kept[which].nbytes < nbytes:
            kept[which] = pinned(nbytes) if on_gpu else np.empty(nbytes, np.uint8)
        return kept[which][:nbytes]


def _raw(content: np.ndarray) -> np.ndarray:
    """Returns 16-bit floats as uint16, because MPI has no dtype for them; others unchanged."""
    return content.view(np.uint16) if content.dtype.itemsize == 2 else content
