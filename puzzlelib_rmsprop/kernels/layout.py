"""The structs of ``layout.h`` as NumPy dtypes, parsed from it, and functions that pack their contents."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DependencyError, SetupError
from . import Hyper, Operation, ScalingPolicy, Segment, StepOptions

__all__ = [
    "BLOCK",
    "CHUNK",
    "CHUNKS",
    "CHUNK_LANES",
    "HYPER",
    "KERNEL_ARGS",
    "KINDS",
    "LANES",
    "MAX_OPERATIONS",
    "PARALLEL_FROM",
    "SEGMENT",
    "SQUARE_SUM",
    "STATISTICS",
    "STEP_OPTIONS",
    "check_layout",
    "pack_chunks",
    "pack_hyper",
    "pack_operations",
    "pack_options",
    "pack_policy",
    "pack_segments",
    "rounded",
]

with open(os.path.join(os.path.dirname(__file__), "layout.h"), encoding="utf-8") as _file:
    _TEXT = _file.read()
_NUMBERS = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", _TEXT)}
MAX_OPERATIONS = _NUMBERS["MAX_OPERATIONS"]
CHUNK, BLOCK = _NUMBERS["CHUNK"], _NUMBERS["BLOCK"]  # elements
LANES, CHUNK_LANES = _NUMBERS["LANES"], _NUMBERS["CHUNK_LANES"]
PARALLEL_FROM = _NUMBERS["PARALLEL_FROM"]  # elements


def _structs() -> dict[str, np.dtype]:
    """Returns a dtype for every struct of layout.h, by name."""
    types: dict[str, Any] = {"u64": np.uint64, "u32": np.uint32, "double": np.float64}
    for struct_name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", re.sub("//.*", "", _TEXT), re.DOTALL):
        fields: list[tuple[Any, ...]] = []
        for kind, names in re.findall(r"(\w+) ([^;]+);", body):
            for name, count in re.findall(r"(\w+)(?:\[(\w+)\])?(?:, |$)", names):
                size = int(_NUMBERS.get(count, count or 1))
                fields.append((name, types[kind], size) if count else (name, types[kind]))
        types[struct_name] = np.dtype(fields, align=True)
    return types


_STRUCTS = _structs()
HYPER, SEGMENT, CHUNKS, OPERATIONS = (_STRUCTS[name] for name in ("Hyper", "Segment", "Chunk", "Operations"))
SQUARE_SUM, STATISTICS, KERNEL_ARGS = (_STRUCTS[name] for name in ("SquareSum", "Statistics", "KernelArgs"))
STEP_OPTIONS = _STRUCTS["StepOptions"]

# The kinds of segments that have kernels: dtype of the parameter, dtype of the state, whether there are master weights.
KINDS = (
    ("float32", "float32", False),
    ("float64", "float64", False),
    ("float16", "float32", False),
    ("bfloat16", "float32", False),
    ("float32", "bfloat16", False),
    ("float16", "bfloat16", False),
    ("bfloat16", "bfloat16", False),
    ("float16", "float32", True),
    ("bfloat16", "float32", True),
    ("float16", "bfloat16", True),
    ("bfloat16", "bfloat16", True),
    ("float32", "int8", False),
    ("float16", "int8", False),
    ("bfloat16", "int8", False),
    ("float16", "int8", True),
    ("bfloat16", "int8", True),
)
_KIND = {kind: number for number, kind in enumerate(KINDS)}


def _numbers() -> list[int]:
    """Returns the expected value of ``LAYOUT_NUMBERS`` in layout.h."""
    found: list[int] = []
    for each in (each for each in _STRUCTS.values() if isinstance(each, np.dtype)):
        found += [each.itemsize, *(each.fields[name][1] for name in each.names)]  # type: ignore[index, union-attr]
    return [*found, MAX_OPERATIONS, CHUNK, BLOCK]


def check_layout(numbers: Sequence[int], what: str) -> None:
    """Raises DependencyError if ``what``, a library, was compiled from another layout.h."""
    if list(numbers) != _numbers():
        raise DependencyError(f"{what} does not belong to this version of the package: install the package again")


def rounded(value: float, real: np.dtype) -> float:
    """Rounds ``value`` to the dtype of the arithmetic. Overflow gives infinity, whatever ``np.seterr`` is set to."""
    return ctypes.c_float(value).value if real == np.float32 else float(value)


def pack_hyper(hyper: Hyper, real: np.dtype) -> tuple[float, ...]:
    """Returns the fields of ``Hyper`` in layout.h.

    ``beta`` and ``gain`` are computed from alpha rounded to the dtype of the arithmetic: then alpha + beta is exactly 1, and
    the mean of a constant gradient is that gradient.
    """
    learnRate, alpha, momRate, epsilon, centered = hyper
    alpha = rounded(alpha, real)
    beta, gain = (1.0 - alpha, alpha * (1.0 - alpha)) if centered else (0.0, 1.0 - alpha)
    return learnRate, alpha, beta, gain, momRate, epsilon


def pack_segments(segments: Sequence[Segment]) -> np.ndarray:
    """Returns an array of ``SEGMENT``. The factors on the rates are 1, and wc is 0."""
    packed = np.zeros(len(segments), SEGMENT)
    for name in ("param", "grad", "mg", "variance", "delta", "scales", "master", "size", "first", "key", "group"):
        packed[name] = [getattr(segment, name) for segment in segments]
    packed["kind"] = [_KIND[segment.dtype, segment.state, bool(segment.master)] for segment in segments]
    sizes = packed["size"].astype(np.int64)
    packed["begin"] = np.cumsum(sizes) - sizes
    packed["learnRate"] = packed["momRate"] = 1.0
    return packed


def pack_chunks(segments: np.ndarray) -> np.ndarray:
    """Returns the chunks of packed segments, in order."""
    sizes = segments["size"].astype(np.int64)
    counts = -(-sizes // CHUNK)
    chunks = np.zeros(int(counts.sum()), CHUNKS)
    chunks["segment"] = np.repeat(np.arange(len(sizes)), counts)
    chunks["index"] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
    return chunks


def pack_operations(operations: Sequence[Operation]) -> bytes:
    """Returns the bytes of ``Operations`` in layout.h. Raises SetupError if there are too many."""
    if len(operations) > MAX_OPERATIONS:
        raise SetupError(f"a gradient takes at most {MAX_OPERATIONS} operations in one step; got {len(operations)}")
    packed = b"".join([struct.pack("=Q2dQ", *operation) for operation in operations])
    return (struct.pack("=Q", len(operations)) + packed).ljust(OPERATIONS.itemsize, b"\0")


def pack_options(options: StepOptions) -> bytes:
    """Returns the bytes of ``StepOptions`` in layout.h."""
    head = struct.pack("=Q2IQd", options.skip, *options.seed, options.zeroGrad, options.decay)
    return head + pack_operations(options.operations)


def pack_policy(policy: ScalingPolicy) -> bytes:
    """Returns the bytes of ``ScalingPolicy`` in layout.h."""
    limit, growth, backoff, interval, least, most = policy
    return struct.pack("=5dQ", limit, growth, backoff, least, most, interval)
