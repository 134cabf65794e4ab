"""A group of processes over MPI, through mpi4py.

No call of MPI here blocks: each is started and then polled, so that a process whose partner is gone gets an error.
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

STAGING = 1 << 25  # bytes of each of the two buffers that pieces pass through
SMALL = 1 << 16  # bytes up to which the number of messages counts, not their size
PIECE = 1 << 28  # elements a call: MPI counts in 32 bits
SPIN, PAUSE = 0.05, 2e-4  # seconds: polling without a pause first, since MPI works only while it is polled; then with one
GRACE = 5.0  # seconds that processes get to say what happened to them before the job is ended, and MPI to end it
TOLD = (
    2000  # characters of what happened: whoever hears of a longer message waits for the rest, from a process that may hang
)


class MPINodeInfo(NodeInfo):
    """This process's place among those that ``mpirun`` or ``srun`` started, and what they do together.

    Arrays of the host are averaged where they are; in ``reduceScatter`` they are copied piece by piece. Those on a GPU pass
    through pinned memory, piece by piece; with ``cudaAware=True`` MPI gets their addresses, except for 16-bit numbers, which
    it cannot add, and in ``reduceScatter``. 16-bit numbers are added in float32 and rounded once. Large arrays are added in
    the order of the processes.

    A process that waits longer than ``timeout`` for the others gets a :class:`~puzzlelib_rmsprop.errors.GroupError`; so
    does one that hears of another's exception, at once. The group is of no use then: every later call raises it again, and
    when the process ends, ``MPI_Abort`` ends those that are left. A process that ends without :meth:`close` waits as long
    for the others to end, and those that wait for it get the error. A process killed from outside ends the job under
    ``mpirun`` and, with ``--kill-on-bad-exit``, under ``srun``; otherwise the timeout does.

    Args:
        comm: an ``mpi4py.MPI.Comm``; ``COMM_WORLD`` by default. It is duplicated, not used.
        timeout: seconds to wait for the slowest process, above 0: longer than anything that one may do between two
            updates, a checkpoint or a validation, say.
        device: index of this process's GPU; by default the process's number on its machine. ``Config.deviceIdx`` is yours
            to set.
        cudaAware: whether MPI takes addresses of a GPU.

    Raises:
        DependencyError: mpi4py or an MPI library is missing.
        HyperParameterError: ``timeout`` is no number above 0.
        SetupError: MPI is not started or has ended, or ``comm`` is no group of processes.

    Warns:
        GroupWarning: a launcher has started several processes, and MPI sees one: they belong to two MPIs.

    Example:
        In a script that ``mpirun -n 4 python train.py`` starts:

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
        self._kept: list[Any] = []  # requests that are not complete: MPI may use their memory yet
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
        except self._MPI.Exception as error:  # a message of another size, say: the processes are out of step
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
        """Raises what another process has said that it died of."""
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
        """Waits for the other processes to close too.

        Raises:
            GroupError: one has not within the timeout.
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
        """A process that ends without :meth:`close`, by an exception or not, leaves none of the others waiting."""
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
        # MPI_Abort may hang as well; threads of Python's cannot be started any more
        faulthandler.dump_traceback_later(GRACE, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        # requests that will never be complete: MPI_Finalize would wait for them
        self._MPI.COMM_WORLD.Abort(1)

    def _all_end(self) -> bool:
        """Waits for the others to end too; False where one has failed or does not."""
        barrier, began, told = self._control.Ibarrier(), time.monotonic(), self._failure is not None
        # others may have work of their own left where nothing has failed; those that wait for this process are told
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

    # --------------------------------------------------------------------------------------- what it does

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
        """In place. Large arrays by a scatter and a gather: MPI's own reductions that do not block send more (a tree)."""
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
        """The mean of what every process has in this one's row, added in the order of the processes."""
        received = self._stage(1, stages.nbytes).view(stages.dtype).reshape(stages.shape)
        self._call(what, self._comm.Ialltoall, _raw(stages.reshape(-1)), _raw(received.reshape(-1)))
        with np.errstate(all="ignore"):  # infinities and NaN are the caller's
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
            raise ArrayError(f"a tensor in {self.gridsize} equal parts cannot be of size {memory.size}")
        return memory, memory.size // self.gridsize

    def _takes(self, memory: Memory) -> bool:
        """Whether MPI can use it where it is."""
        return memory.host is not None or self.cudaAware

    def _direct(self, memory: Memory, begin: int, count: int) -> Any:
        """Elements from ``begin`` on, at most ``count``, as MPI takes them: a part of the array, or a GPU's address."""
        if memory.host is not None:
            return _raw(memory.host[begin : begin + count])
        count, itemsize = min(count, memory.size - begin), memory.dtype.itemsize
        kind = {1: self._MPI.BYTE, 2: self._MPI.UINT16_T, 4: self._MPI.FLOAT, 8: self._MPI.DOUBLE}[itemsize]
        return [self._MPI.memory.fromaddress(memory.address + begin * itemsize, count * itemsize), kind]

    def _pieces(self, memory: Memory, part: int, rows: int) -> Any:
        """Begin and stage, an array of (rows, elements), of one piece after another of ``range(part)``."""
        itemsize = memory.dtype.itemsize
        most = max(1, STAGING // (rows * itemsize))
        for begin in range(0, part, most):
            count = min(most, part - begin)
            stage = self._stage(0, rows * count * itemsize, memory.host is None)
            yield begin, stage.view(memory.dtype).reshape(rows, count)

    def _stage(self, which: int, nbytes: int, on_gpu: bool = False) -> np.ndarray:
        """Memory that is kept: 0 is what the array passes through, 1 what others send."""
        kept = self._staging.setdefault(on_gpu, [np.empty(0, np.uint8)] * 2)
        if kept[which].nbytes < nbytes:
            kept[which] = pinned(nbytes) if on_gpu else np.empty(nbytes, np.uint8)
        return kept[which][:nbytes]


def _raw(content: np.ndarray) -> np.ndarray:
    """The same numbers under a dtype that MPI knows; it has none for 16-bit floats."""
    return content.view(np.uint16) if content.dtype.itemsize == 2 else content
