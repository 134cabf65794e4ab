"""The update rule on the CPU: packs the arguments of the compiled library (``cpu.cpp``) and calls it once per step.

Addresses and sizes are not checked here. The caller keeps the arrays alive, contiguous and without overlap.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError, KernelWarning, warn

# reference: not in the first update, because a process forked during an import would wait for it for ever
from . import LENIENT, PLAIN, Hyper, Operation, ScalingPolicy, Segment, StepOptions, layout, reference

library: Any
try:
    library = importlib.import_module("._cpu", __package__)
except ImportError as error:
    library, missing = None, error

__all__ = ["VARIABLE", "GradientStatistics", "Table", "chosen", "instruction_sets", "operate"]

VARIABLE = "PUZZLELIB_RMSPROP_CPU"  # environment variable: an instruction set, or "numpy" for reference.py
# a wheel built without a compiler is in pip's cache: it has to be built again
REMEDY = (
    "install a C++ compiler (Debian: apt-get install g++; macOS: xcode-select --install), then build the package again in "
    "its source folder: pip install --force-reinstall --no-cache-dir --no-deps . (an editable install, or a Python started "
    "in that folder: -e .)"
)


def instruction_sets() -> list[str]:
    """Returns the values of ``PUZZLELIB_RMSPROP_CPU`` that this machine supports, the fastest last."""
    return ["numpy", *(library.instruction_sets() if library is not None else ())]


def _choose() -> bool:
    """Returns whether to use the compiled library, and selects the instruction set given by the environment."""
    if library is not None:
        layout.check_layout(struct.unpack(f"{len(library.layout()) // 8}Q", library.layout()), "the compiled CPU library")
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in instruction_sets():
        why = "" if library is not None else f"; the compiled library is missing ({missing}): {REMEDY}"
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(instruction_sets())} on this machine; got {wanted!r}{why}")
    if library is None or wanted == "numpy":
        return False
    if wanted:
        library.use(wanted)
    return True


_compiled = _choose()
_warned = False


def chosen() -> ModuleType:
    """Returns this module, or :mod:`.reference`, with a warning if the compiled library is missing."""
    global _warned
    if _compiled:
        return sys.modules[__name__]
    if library is None and not os.environ.get(VARIABLE) and not _warned:
        _warned = True
        text = f"the compiled CPU kernels are missing ({missing}), so updates run in NumPy, several times slower: {REMEDY}"
        warn(text, KernelWarning)
    return reference


class _Args:
    """The ``KernelArgs`` of packed segments."""

    def __init__(self, segments: np.ndarray) -> None:
        self.segments = segments
        self.size = int(segments["size"].sum())
        self.groups = int(segments["group"].max(initial=0)) + 1
        self.options = np.zeros(self.groups, layout.STEP_OPTIONS)
        self._args = np.zeros(1, layout.KERNEL_ARGS)
        self.address = self._args.ctypes.data
        self.bytes = self._args.view(np.uint8).data
        self._threads = 0
        self.set(segments=segments.ctypes.data, options=self.options.ctypes.data, count=len(segments), size=self.size)

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            self._args[name] = value

    def set_options(self, group: int, options: StepOptions) -> None:
        self.options[group] = np.frombuffer(layout.pack_options(options), layout.STEP_OPTIONS)[0]

    def put(self, field: str, content: bytes) -> None:
        begin = layout.KERNEL_ARGS.fields[field][1]  # type: ignore[index]
        self.bytes[begin : begin + len(content)] = content

    def update_threads(self, most: int | None = None) -> None:
        """Sets the number of threads: ``Config.numThreads``, but at most ``most`` and the cores of the process."""
        threads = min(Config.numThreads, library.cores() or Config.numThreads, most or Config.numThreads)
        if threads != self._threads:
            self._threads = threads
            self.set(threads=threads)


class Table:
    """Variables that are packed once and updated by one call per step.

    Args:
        segments: the variables, of any dtypes and groups. Their arrays must stay alive and in place, be contiguous and not
            overlap.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._args = _Args(layout.pack_segments(segments))
        self._hypers = np.zeros((self._args.groups, 2), layout.HYPER)
        self._args.set(hypers=self._hypers.ctypes.data)
        self._address, self._large = self._args.address, self._args.size >= layout.PARALLEL_FROM
        self._hyper: list[Hyper | None] = [None] * self._args.groups
        self._options = [PLAIN] * self._args.groups
        self._zeroing: _Args | None = None

    def set_rates(self, rates: Sequence[tuple[float, float, float]]) -> None:
        """Sets each segment's factors on learnRate and momRate, and its wc. The defaults are 1, 1 and 0."""
        segments = self._args.segments
        segments["learnRate"], segments["momRate"], segments["wc"] = np.array(rates, np.float64).reshape(len(segments), 3).T

    def set_gradients(self, addresses: Sequence[int], stream: Any = None) -> None:
        """Sets the address of each segment's gradient."""
        self._args.segments["grad"] = addresses

    def set_group(self, group: int, hyper: Hyper, options: StepOptions = PLAIN) -> None:
        """Sets the hyper-parameters and options that :meth:`run` uses for the segments of one group."""
        if hyper is not self._hyper[group]:
            for number, real in enumerate((np.float32, np.float64)):
                self._hypers[group, number] = layout.pack_hyper(hyper, np.dtype(real))
            self._hyper[group] = hyper
        if options is not self._options[group]:
            self._args.set_options(group, options)
            self._options[group] = options

    def update(self, hyper: Hyper, stream: Any = None, options: StepOptions = PLAIN) -> None:
        """Updates every segment once; all must belong to group 0. ``stream`` is ignored on the CPU."""
        if hyper is not self._hyper[0] or options is not self._options[0]:
            self.set_group(0, hyper, options)
        self.run(stream)

    def run(self, stream: Any = None, most_threads: int | None = None) -> None:
        """Updates every segment once. ``stream`` is ignored on the CPU."""
        if self._large:
            self._args.update_threads(most_threads)
        library.update(self._address)

    def zero_gradients(self, stream: Any = None) -> None:
        """Sets every gradient to zero, by a skipped step with ``zeroGrad``."""
        if self._zeroing is None:
            self._zeroing = _Args(self._args.segments)
            self._zeroing.set(hypers=self._hypers.ctypes.data)
            for group in range(self._zeroing.groups):
                self._zeroing.set_options(group, StepOptions(zeroGrad=True, skip=_ALWAYS.ctypes.data))
        if self._large:
            self._zeroing.update_threads()
        library.update(self._zeroing.address)


_ALWAYS = np.ones(1, np.uint32)  # a skip flag that is set


class GradientStatistics:
    """The global norm of the gradients of many variables, and whether all their squares are finite.

    Args:
        segments: the variables. Only gradients, parameters and master weights are read.
        record: address of a ``STATISTICS`` record. Its ``scale`` must be above 0.
    """

    def __init__(self, segments: Sequence[Segment], record: int) -> None:
        self._args = _Args(layout.pack_segments(segments))
        self._chunks = layout.pack_chunks(self._args.segments)
        self._partials = np.zeros(len(self._chunks), layout.SQUARE_SUM)
        self._args.set(
            chunks=self._chunks.ctypes.data,
            partials=self._partials.ctypes.data,
            chunkCount=len(self._chunks),
            statistics=record,
        )
        self._told: Any = None

    def set_decays(self, decays: Sequence[float]) -> None:
        """Sets each segment's wc. The default is 0."""
        self._args.segments["wc"] = decays

    def run(self, operations: tuple[Operation, ...] = (), policy: ScalingPolicy = LENIENT, stream: Any = None) -> None:
        """Writes the statistics of the gradients after ``operations`` to the record. ``stream`` is ignored on the CPU."""
        if (operations, policy) != self._told:
            self._args.set_options(0, StepOptions(operations))
            self._args.put("policy", layout.pack_policy(policy))
            self._told = operations, policy
        self._args.update_threads()
        library.sum(self._args.address)


def operate(segment: Segment, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
    """Applies operations to the gradient of a segment in place. A 16-bit gradient is rounded once, at the end."""
    args = _Args(layout.pack_segments([segment]))
    args.segments["wc"] = wc
    args.set_options(0, StepOptions(tuple(operations)))
    library.operate(args.address)
