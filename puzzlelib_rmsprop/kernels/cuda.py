"""The update rule on a GPU: loads and launches ``rmsprop_graves.cu`` through PyCUDA. Also loads the kernels of ``nets``.

The CUDA toolkit is not needed at run time: the package ships the kernels as PTX (a ``.ptx.xz`` beside each ``.cu``, made
by ``tools/make_ptx.py``), which the driver compiles for its GPU and caches. If the driver rejects the PTX (on a GPU older
than Turing, or in the simulator of the tests), ``cuda_compile.py`` compiles the source with ``nvcc``.

Updates use the current context and the given stream, and do not wait for the device.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DependencyError, DeviceError
from . import LENIENT, PLAIN, RANDOMLY_ROUNDED, Hyper, Operation, ScalingPolicy, Segment, StepOptions, layout, real_dtype
from .context import default_stream_ended, explain, explained, pycuda_module
from .cuda_compile import compiled
from .cuda_memory import check_context, device_copy, send
from .cuda_source import shipped_ptx, sources

driver = pycuda_module("driver")
context_dependent_memoize = pycuda_module("tools").context_dependent_memoize

__all__ = ["GradientStatistics", "LiveHyper", "Table", "operate"]

THREADS = layout.LANES  # per block


def constant(name: str, file: str) -> int:
    """Returns a ``constexpr int`` of a CUDA source, which the code that launches the kernels shares."""
    found = re.search(rf"constexpr int {name} = (\d+);", sources(file)[f"{file}.cu"])
    if found is None:
        raise DeviceError(f"{file}.cu has no constant {name}")
    return int(found[1])


# --------------------------------------------------------------------------------------------- loading


@context_dependent_memoize
def _module(file: str) -> Any:
    """Loads the kernels of one source file into the current context."""
    (ptx, why), module = shipped_ptx(file), None
    if ptx is not None:
        try:
            module = driver.module_from_buffer(ptx)
        except driver.Error as error:
            why = f"the driver says: {error}"  # an old driver, or an error of an earlier kernel
    if module is None:
        major, minor = driver.Context.get_device().compute_capability()
        try:
            cubin = compiled(file, f"sm_{major}{minor}")
        except DependencyError as error:
            raise DependencyError(f"{error}. The PTX: {why}") from error
        module = driver.module_from_buffer(cubin)
    return module


@context_dependent_memoize
def function(name: str, file: str = "rmsprop_graves") -> Any:
    """Returns a kernel by name, loaded in the current context."""
    return _module(file).get_function(name)


@context_dependent_memoize
def _most_blocks() -> int:
    # enough to fill every multiprocessor, whatever registers the kernel uses; larger inputs are covered by grid-stride loops
    device = driver.Context.get_device()
    per_multiprocessor = device.get_attribute(driver.device_attribute.MAX_THREADS_PER_MULTIPROCESSOR) // THREADS
    return device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT) * per_multiprocessor * 4


# ------------------------------------------------------------------------------------------- launching


_BLOCK = (THREADS, 1, 1)
_NO_HYPER = Hyper(0.0, 0.0, 0.0, 1.0)  # placeholder for a skipped step
_REALS = (np.dtype(np.float32), np.dtype(np.float64))


def _grid(blocks: int) -> tuple[int, int]:
    return (min(blocks, _most_blocks()), 1)


def _packed_hyper(hyper: Hyper, real: np.dtype) -> bytes:
    return struct.pack("=6d", *layout.pack_hyper(hyper, real))


class LiveHyper:
    """Hyper-parameters in device memory. A launch captured in a CUDA graph reads them at each replay."""

    @explained
    def __init__(self) -> None:
        self._memory = driver.mem_alloc(len(_REALS) * layout.HYPER.itemsize)

    def address(self, real: np.dtype) -> int:
        """Returns the address of the hyper-parameters for arithmetic in ``real``."""
        return int(self._memory) + _REALS.index(real) * layout.HYPER.itemsize

    @explained
    def write(self, hyper: Hyper) -> None:
        """Copies the values to the device, after the work queued before in the default stream and in blocking streams."""
        driver.memcpy_htod(self._memory, b"".join(_packed_hyper(hyper, real) for real in _REALS))
        default_stream_ended()  # a graph may be replayed on any stream


class _Launch(NamedTuple):
    """A kernel with its packed arguments. Bytes from ``at`` on hold the options, which can change at each step."""

    function: Any
    grid: tuple[int, int]
    arguments: bytearray
    at: int = 0

    def queue(self, stream: Any) -> None:
        self.function._launch_kernel(self.grid, _BLOCK, self.arguments, 0, stream)


@context_dependent_memoize
def _always() -> Any:
    """Returns a skip flag in device memory that is set."""
    return device_copy(np.ones(1, np.uint32))


class _Group(NamedTuple):
    """The hyper-parameters, also packed for each dtype, and the options of a group of segments."""

    hyper: Hyper
    packed: dict[np.dtype, bytes]
    options: StepOptions
    plain: bool


class _Uniform:
    """Segments of the same dtypes and group, which one launch updates. Their table is in device memory.

    Step options, master weights and 16-bit or 8-bit state need the ``extended`` kernels, other segments use ``many``.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        first = segments[0]
        self._segments = layout.pack_segments(segments)
        self.group = first.group
        self._real = real_dtype(first.dtype)
        self._name = f"{first.dtype}_{first.state}{'_master' if first.master else ''}"
        self._extended_only = bool(first.master) or first.state in RANDOMLY_ROUNDED
        # packed when needed, because most tables use only one of the two
        self._plain: _Launch | None = None
        self._extended: _Launch | None = None
        self._options: StepOptions | None = None  # the options packed in _extended
        self._chunks: Any = None
        self._on_device: Any = None
        self._stale = self._captured = False  # the table on the device is out of date; a captured launch reads it
        self._former: list[Any] = []
        self._live = 0

    def set_rates(self, rates: np.ndarray) -> None:
        segments = self._segments
        segments["learnRate"], segments["momRate"], segments["wc"] = rates.T
        self._changed()

    def follow(self, live: Any) -> None:
        self._live = live.address(self._real) if live else 0
        self._plain = self._extended = None

    def set_gradients(self, addresses: np.ndarray) -> None:
        if (self._segments["grad"] != addresses).any():
            self._segments["grad"] = addresses
            self._changed()

    def _changed(self) -> None:
        if self._captured:
            self._begin_table()
        self._stale = self._on_device is not None

    def _begin_table(self) -> None:
        """Makes a new table at the next launch. The old one is kept unchanged for captured launches that read it."""
        if self._on_device is not None:
            self._former.append(self._on_device)
        self._plain = self._extended = self._on_device = None
        self._stale = self._captured = False

    def _tables(self) -> tuple[int, int, int]:
        """Returns the addresses of the segments and the chunks in device memory, and the number of chunks."""
        if self._chunks is None:
            chunks = layout.pack_chunks(self._segments)
            self._chunks = device_copy(chunks), len(chunks)
        if self._on_device is None:
            self._on_device = device_copy(self._segments)
        return int(self._on_device), int(self._chunks[0]), self._chunks[1]

    def _packed(self, kernel: str) -> _Launch:
        segments, chunks, count = self._tables()
        head = bytes(layout.HYPER.itemsize) + struct.pack("=4Q", self._live, segments, chunks, count)
        return _Launch(function(f"graves_{kernel}_{self._name}"), _grid(count), bytearray(head), len(head))

    def update(self, group: _Group, stream: Any, captured: bool | None) -> None:
        if captured and self._stale:
            self._begin_table()  # a captured copy would read host memory at each replay
        if captured or (captured is None and self._live):
            self._captured = True
        if self._stale:
            # by stream order, earlier launches have read the table before this copy overwrites it
            send(self._on_device, self._segments, stream)
            self._stale = False
        if group.plain and not self._extended_only:
            launch = self._plain = self._plain or self._packed("many")
        else:
            if self._extended is None:
                self._extended, self._options = self._packed("extended"), None
            launch = self._extended
            if group.options is not self._options:
                launch.arguments[launch.at :] = layout.pack_options(group.options)
                self._options = group.options
        launch.arguments[: layout.HYPER.itemsize] = group.packed[self._real]
        launch.queue(stream)


class Table:
    """Variables that are packed once and updated by one launch per group and combination of dtypes.

    A table can only be used in the context in which it was made.

    Args:
        segments: the variables, of any dtypes. Their arrays must stay alive and in place, be contiguous and not overlap.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        alike: dict[tuple[int, str, str, bool], list[int]] = {}
        for number, segment in enumerate(segments):
            if segment.size:
                kind = segment.group, segment.dtype, segment.state, bool(segment.master)
                alike.setdefault(kind, []).append(number)
        self._launched = [(_Uniform([segments[n] for n in numbers]), numbers) for numbers in alike.values()]
        self._groups: dict[int, _Group] = {}
        self._context = driver.Context.get_current()
        self._flag = _always()
        self._zeroing = StepOptions(zeroGrad=True, skip=int(self._flag))

    def set_rates(self, rates: Sequence[tuple[float, float, float]]) -> None:
        """Sets each segment's factors on learnRate and momRate, and its wc. The defaults are 1, 1 and 0."""
        all_rates = np.array(rates, np.float64).reshape(len(rates), 3)
        for uniform, numbers in self._launched:
            uniform.set_rates(all_rates[numbers])

    def set_gradients(self, addresses: Sequence[int]) -> None:
        """Sets the address of each segment's gradient, from the next launch on."""
        found = np.array(addresses, np.uint64)
        for uniform, numbers in self._launched:
            uniform.set_gradients(found[numbers])

    def set_group(self, group: int, hyper: Hyper, options: StepOptions = PLAIN) -> None:
        """Sets the hyper-parameters and options that :meth:`run` uses for the segments of one group."""
        known = self._groups.get(group)
        if known is None or hyper != known.hyper:
            packed = {real: _packed_hyper(hyper, real) for real in _REALS}
        elif options is not known.options:
            packed = known.packed
        else:
            return
        self._groups[group] = _Group(hyper, packed, options, options == PLAIN)

    def follow(self, live: Any, group: int = 0) -> None:
        """Makes a group's launches read hyper-parameters from device memory, at ``live.address(dtype)``; None stops this.

        Options of a captured launch keep the values that they had at capture.
        """
        for uniform, _ in self._launched:
            if uniform.group == group:
                uniform.follow(live)

    def update(self, hyper: Hyper, stream: Any = None, options: StepOptions = PLAIN) -> None:
        """Queues the update of every segment on ``stream``. All must belong to group 0."""
        self.set_group(0, hyper, options)
        self.run(stream)

    def run(self, stream: Any = None, captured: bool | None = None) -> None:
        """Queues the update of every segment on ``stream``.

        ``captured`` tells whether ``stream`` is being captured in a CUDA graph. None means unknown: segments that follow a
        :class:`LiveHyper` are treated as captured.
        """
        if not self._launched:
            return
        check_context(self._context)
        try:
            for uniform, _ in self._launched:
                uniform.update(self._groups[uniform.group], stream, captured)
        except driver.Error as error:
            explain(error)
            raise

    def zero_gradients(self, stream: Any = None) -> None:
        """Sets every gradient to zero on ``stream``, by a skipped step with ``zeroGrad``."""
        known = self._groups.get(0)
        self.update(known.hyper if known else _NO_HYPER, stream, self._zeroing)


class GradientStatistics:
    """The global norm of the gradients of many variables, and whether all their squares are finite.

    It can only be used in the context in which it was made. One launch per dtype computes sums, and a last one adds them, in
    the same order as on the CPU.

    Args:
        segments: the variables. Only gradients, parameters and master weights are read.
        record: address of a ``STATISTICS`` record in device memory. Its ``scale`` must be above 0.
    """

    @explained
    def __init__(self, segments: Sequence[Segment], record: int) -> None:
        self._segments = layout.pack_segments(segments)
        chunks = layout.pack_chunks(self._segments)
        self._dtypes = sorted({segment.dtype for segment in segments if segment.size})
        self._context = driver.Context.get_current()
        self._chunks = device_copy(chunks) if len(chunks) else None
        self._partials = driver.mem_alloc(max(len(chunks), 1) * layout.SQUARE_SUM.itemsize)
        self._count = len(chunks)
        self._conclude = function("statistics_conclude")
        self._conclude_head = struct.pack("=3Q", int(self._partials), len(chunks), record)
        self._operations: tuple[Operation, ...] = ()
        self.set_decays([0.0] * len(segments))

    def set_decays(self, decays: Sequence[float]) -> None:
        """Sets each segment's wc. The default is 0."""
        self._segments["wc"] = decays
        self._launches = []
        if self._chunks is None:
            return
        self._on_device = device_copy(self._segments)
        for dtype in self._dtypes:
            kinds = sum(1 << number for number, kind in enumerate(layout.KINDS) if kind[0] == dtype)
            addresses = int(self._on_device), int(self._chunks), self._count, int(self._partials), kinds
            head = struct.pack("=5Q", *addresses)
            arguments = bytearray(head + layout.pack_operations(self._operations))
            self._launches.append(_Launch(function(f"statistics_{dtype}"), _grid(self._count), arguments, len(head)))

    @explained
    def run(self, operations: tuple[Operation, ...] = (), policy: ScalingPolicy = LENIENT, stream: Any = None) -> None:
        """Writes the statistics of the gradients after ``operations`` to the record.

        The work is queued on ``stream``; no memory is allocated.
        """
        check_context(self._context)
        if operations != self._operations:
            packed = layout.pack_operations(operations)
            for launch in self._launches:
                launch.arguments[launch.at :] = packed
            self._operations = operations
        for launch in self._launches:
            launch.queue(stream)
        arguments = self._conclude_head + layout.pack_policy(policy)
        self._conclude._launch_kernel((1, 1), (layout.CHUNK_LANES, 1, 1), arguments, 0, stream)


@explained
def operate(segment: Segment, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
    """Applies operations to the gradient of a segment in place. A 16-bit gradient is rounded once, at the end."""
    if not segment.size:
        return
    packed = layout.pack_segments([segment])
    packed["wc"] = wc
    arguments = bytearray(packed.tobytes() + layout.pack_operations(operations))
    _Launch(function(f"operate_{segment.dtype}"), _grid(-(-segment.size // THREADS)), arguments).queue(stream)
