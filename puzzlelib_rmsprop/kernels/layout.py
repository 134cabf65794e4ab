"""The structs of ``layout.h`` as NumPy dtypes, and how segments, options and hyper-parameters are written into them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import numpy as np

from ..errors import DependencyError, SetupError
from . import Hyper, Operation, ScalingPolicy, Segment, StepOptions, real_dtype

__all__ = [
    "CHUNK",
    "HYPER",
    "KERNEL_ARGS",
    "KINDS",
    "SEGMENT",
    "SQUARE_SUM",
    "STATISTICS",
    "check_layout",
    "pack_chunks",
    "pack_hyper",
    "pack_operations",
    "pack_options",
    "pack_policy",
    "pack_segments",
    "rounded",
]

MAX_OPERATIONS = 8
CHUNK = 8192  # elements

_U64, _U32, _F64 = np.uint64, np.uint32, np.float64


def _struct(fields: str, **types: object) -> np.dtype:
    """A struct of the named fields, u64 where ``types`` says nothing else."""
    return np.dtype([(name, types.get(name, _U64)) for name in fields.split()], align=True)


HYPER = np.dtype([(name, _F64) for name in ("learnRate", "alpha", "beta", "gain", "momRate", "epsilon")])
SEGMENT = _struct(
    "param grad mg variance delta master size begin first learnRate momRate wc key kind hyper",
    learnRate=_F64,
    momRate=_F64,
    wc=_F64,
    key=_U32,
    kind=_U32,
)
CHUNKS = _struct("segment index", segment=_U32, index=_U32)
OPERATION = _struct("kind value other address", value=_F64, other=_F64)
OPERATIONS = _struct("count operation", operation=(OPERATION, MAX_OPERATIONS))
STEP_OPTIONS = _struct("skip seed zeroGrad operations", seed=(_U32, 2), operations=OPERATIONS)
SQUARE_SUM = _struct("sum large bad", sum=_F64, large=_F64)
STATISTICS = _struct(
    "norm factor scale unscale bad good skipped", norm=_F64, factor=_F64, scale=_F64, unscale=_F64, bad=_U32, good=_U32
)
SCALING_POLICY = np.dtype([(name, _F64) for name in ("limit", "growth", "backoff", "least", "most")] + [("interval", _U64)])
KERNEL_ARGS = _struct(
    "segments hypers count size threads options chunks partials chunkCount statistics policy",
    options=STEP_OPTIONS,
    policy=SCALING_POLICY,
)

# The dtypes of a segment that there are kernels for: of the parameter, of the state, and whether there is a master copy.
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
)
_KIND = {kind: number for number, kind in enumerate(KINDS)}


def _numbers() -> list[int]:
    """What ``LAYOUT_NUMBERS`` in layout.h has to be."""
    found: list[int] = []
    structs = (HYPER, SEGMENT, CHUNKS, OPERATION, OPERATIONS, STEP_OPTIONS, SQUARE_SUM, STATISTICS, SCALING_POLICY, KERNEL_ARGS)
    for each in structs:
        found += [each.itemsize, *(each.fields[name][1] for name in each.names)]  # type: ignore[index, union-attr]
    return [*found, MAX_OPERATIONS, CHUNK]


def check_layout(numbers: Sequence[int], what: str) -> None:
    """Raises DependencyError where ``what``, a library or module, was compiled from another layout.h."""
    if list(numbers) != _numbers():
        raise DependencyError(f"{what} was compiled from other sources than this package's: install the package again")


def rounded(value: float, real: np.dtype) -> float:
    """``value`` as the arithmetic's dtype holds it; raises nothing, whatever ``np.seterr`` says."""
    return ctypes.c_float(value).value if real == np.float32 else float(value)


def pack_hyper(hyper: Hyper, real: np.dtype) -> tuple[float, ...]:
    """The fields of ``Hyper`` in layout.h.

    ``beta`` and ``gain`` are of the alpha that the arithmetic holds: then alpha + beta is 1 to the last bit, and the mean of
    a constant gradient is that gradient.
    """
    learnRate, alpha, momRate, epsilon, centered = hyper
    alpha = rounded(alpha, real)
    beta, gain = (1.0 - alpha, alpha * (1.0 - alpha)) if centered else (0.0, 1.0 - alpha)
    return learnRate, alpha, beta, gain, momRate, epsilon


def pack_segments(segments: Sequence[Segment]) -> np.ndarray:
    """An array of ``SEGMENT``, rates 1, wc 0. ``hyper`` is 1 where the arithmetic is float64, else 0."""
    packed = np.zeros(len(segments), SEGMENT)
    for name in ("param", "grad", "mg", "variance", "delta", "master", "size", "first", "key"):
        packed[name] = [getattr(segment, name) for segment in segments]
    packed["kind"] = [_KIND[segment.dtype, segment.state, bool(segment.master)] for segment in segments]
    packed["hyper"] = [real_dtype(segment.dtype) == np.float64 for segment in segments]
    sizes = packed["size"].astype(np.int64)
    packed["begin"] = np.cumsum(sizes) - sizes
    packed["learnRate"] = packed["momRate"] = 1.0
    return packed


def pack_chunks(segments: np.ndarray) -> np.ndarray:
    """The chunks of packed segments, in their order."""
    sizes = segments["size"].astype(np.int64)
    counts = -(-sizes // CHUNK)
    chunks = np.zeros(int(counts.sum()), CHUNKS)
    chunks["segment"] = np.repeat(np.arange(len(sizes)), counts)
    chunks["index"] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
    return chunks


def pack_operations(operations: Sequence[Operation]) -> bytes:
    """The bytes of ``Operations`` in layout.h. Raises SetupError for too many."""
    if len(operations) > MAX_OPERATIONS:
        raise SetupError(f"a gradient takes at most {MAX_OPERATIONS} operations in one step; got {len(operations)}")
    packed = b"".join([struct.pack("=Q2dQ", *operation) for operation in operations])
    return (struct.pack("=Q", len(operations)) + packed).ljust(OPERATIONS.itemsize, b"\0")


def pack_options(options: StepOptions) -> bytes:
    """The bytes of ``StepOptions`` in layout.h."""
    return struct.pack("=Q2IQ", options.skip, *options.seed, options.zeroGrad) + pack_operations(options.operations)


def pack_policy(policy: ScalingPolicy) -> bytes:
    """The bytes of ``ScalingPolicy`` in layout.h."""
    limit, growth, backoff, interval, least, most = policy
    return struct.pack("=5dQ", limit, growth, backoff, least, most, interval)
