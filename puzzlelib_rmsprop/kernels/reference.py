"""The update rule in NumPy. It runs if the compiled library is missing, and ``doctor`` compares the library with it.

Results are bit-identical to the library's, except for subnormal numbers: this module flushes gradients, state and parameters
to zero; the library also flushes intermediate results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import (
    CLIP,
    DECAY,
    LASSO,
    LENIENT,
    PLAIN,
    SCALE,
    STATE,
    Hyper,
    Operation,
    ScalingPolicy,
    Segment,
    StepOptions,
    int8_state,
    layout,
    real_dtype,
)

__all__ = ["Coefficients", "GradientStatistics", "Table", "graves", "operate"]

TILE = 1 << 14  # elements processed at a time, so that they stay in the cache
LARGE, SHRINK = 2.0**480, 2.0**-600  # as in rule.h


class Coefficients(NamedTuple):
    """Hyper-parameters as scalars in the dtype of the arithmetic."""

    learnRate: Any
    alpha: Any
    beta: Any
    gain: Any
    momRate: Any
    epsilon: Any

    @classmethod
    def of(cls, hyper: Hyper, dtype: Any, learnRate: float = 1.0, momRate: float = 1.0) -> Coefficients:
        """Returns the coefficients of a segment. Its factors are applied in float64, and the results are rounded once."""
        real = np.dtype(dtype)
        lr, alpha, beta, gain, momentum, epsilon = layout.pack_hyper(hyper, real)
        numbers = (lr * learnRate, alpha, beta, gain, momentum * momRate, epsilon)
        return cls(*(flushed(np.array(layout.rounded(number, real), real))[()] for number in numbers))


def graves(
    param: Any, g: Any, mg: Any, variance: Any, delta: Any, c: Coefficients, decay: Any = 0
) -> tuple[Any, Any, Any, Any]:
    """Returns param, mg, variance and delta after one step, in the coefficients' dtype. Graves (2013), eq. 38-45."""
    g = flushed(g)
    d = g - mg
    mg = flushed(c.alpha * mg + c.beta * g)
    variance = flushed(c.alpha * variance + c.gain * d * d)
    delta = flushed(c.momRate * delta + c.learnRate * g / np.sqrt(variance + c.epsilon))
    param = flushed(param)
    step = flushed(delta - flushed(decay * param)) if decay else delta
    return flushed(param + step), mg, variance, delta


def decay_of(decay: float, hyper: Hyper, dtype: Any, learnRate: float, wc: float) -> Any:
    """Returns the factor of decoupled weight decay, computed in float64 and rounded once."""
    part = abs(hyper.learnRate * learnRate) * decay * wc if wc > 0.0 else 0.0
    return flushed(np.array(layout.rounded(part, np.dtype(dtype)), dtype))[()]


def flushed(x: np.ndarray) -> np.ndarray:
    """Returns ``x`` with subnormal numbers replaced by zeros."""
    small = np.abs(x) < np.finfo(x.dtype).tiny
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


# ---------------------------------------------------------------------------------------------- numbers in memory


def _array(address: int, size: int, dtype: str) -> np.ndarray:
    """Returns memory as an array. bfloat16, which NumPy does not have, is returned as uint16."""
    kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    if size == 0:
        return np.zeros(0, kind)
    memory: Any = (ctypes.c_char * (size * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, kind)


def _widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(real_dtype(dtype))


def _narrowed(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to nearest. Every NaN becomes the same NaN in 16 bits."""
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
    if dtype == "float16":
        return np.where(np.isnan(x), np.float16(np.nan), x.astype(np.float16))
    return x


def _mixed(x: Any, y: Any = 0) -> Any:
    """As ``mixed`` in numbers.h, for uint32 arrays."""
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = ((x ^ x >> np.uint32(15)) + np.uint32(y)) * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)


def _random(seeds: tuple[int, int], key: int, first: int, size: int) -> np.ndarray:
    """Returns 32 random bits for each element from index ``first`` on, as ``Random`` in numbers.h."""
    index = np.uint64(first) + np.arange(size, dtype=np.uint64)
    named = _mixed(np.array([seeds[0] ^ key], np.uint32))
    high = (index >> np.uint64(32)).astype(np.uint32)
    return _mixed(index.astype(np.uint32) ^ _mixed(named + high), seeds[1])


def _randomly_rounded(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    rounded = (x.view(np.uint32) + (random & np.uint32(0xFFFF))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


# ------------------------------------------------------------------------------------------------------- segments


class _Tile:
    """A range of a segment's elements, in the dtype of the arithmetic."""

    def __init__(self, segment: Segment, low: int, high: int) -> None:
        self.segment, self.low, self.size = segment, low, high - low
        self.stored = self._of("param", segment.dtype)
        self.param = _widened(self.stored, segment.dtype)
        if segment.master:
            # the master weights are used, unless the parameter was changed since the last step
            self.master = self._of("master", "float32")
            same = _widened(_narrowed(self.master, segment.dtype), segment.dtype) == self.param
            self.param = np.where(same, self.master, self.param)
        self.grad = self._of("grad", segment.dtype)

    def _of(self, name: str, dtype: str) -> np.ndarray:
        itemsize = {"float32": 4, "float64": 8}.get(dtype, 2)
        return _array(getattr(self.segment, name) + self.low * itemsize, self.size, dtype)

    def gradient(self, operations: Sequence[Operation], wc: float) -> np.ndarray:
        """Returns the gradient after the operations."""
        g, real = _widened(self.grad, self.segment.dtype), real_dtype(self.segment.dtype).type
        for kind, value, other, address in operations:
            if kind == SCALE:
                factor = ctypes.c_double.from_address(address).value if address else 1.0
                g = g * flushed(np.array(np.float64(value) * factor, real))[()]  # a subnormal factor is 0, as in the library
            elif kind == CLIP:
                g = np.where(g < real(value), real(value), g)
                g = np.where(g > real(other), real(other), g)
            elif kind in (DECAY, LASSO) and wc > 0.0:
                sign = np.where(self.param > 0, real(1), np.where(self.param < 0, real(-1), self.param))
                g = g + real(np.float64(value) * wc) * (self.param if kind == DECAY else sign)
        return g

    def update(self, g: np.ndarray, c: Coefficients, decay: Any, seed: tuple[int, int]) -> None:
        step = self._in_blocks if self.segment.state == "int8" else self._in_floats
        param = step(g, c, decay, seed)
        self.stored[...] = _narrowed(param, self.segment.dtype)
        if self.segment.master:
            self.master[...] = param

    def _in_floats(self, g: np.ndarray, c: Coefficients, decay: Any, seed: tuple[int, int]) -> np.ndarray:
        segment, kind = self.segment, self.segment.state
        state = [self._of(name, kind) for name in STATE]
        mg, variance, delta = (_widened(array, kind) for array in state)
        param, *new = graves(self.param, g, mg, variance, delta, c, decay)
        random = _random(seed, segment.key, segment.first + self.low, self.size) if kind == "bfloat16" else None
        for array, x, shift in zip(state, new, (0, 16, 8), strict=True):
            array[...] = x if random is None else _randomly_rounded(x, random >> np.uint32(shift))
        return param

    def _in_blocks(self, g: np.ndarray, c: Coefficients, decay: Any, seed: tuple[int, int]) -> np.ndarray:
        segment, blocks = self.segment, int8_state.blocks_of(self.size)
        first = segment.scales + self.low // layout.BLOCK * len(STATE)
        scales = _array(first, blocks * len(STATE), "uint8").reshape(blocks, len(STATE))
        codes = [_array(getattr(segment, name) + self.low, self.size, "uint8") for name in STATE]
        mg, variance, delta = (int8_state.decoded(codes[n], scales[:, n], name) for n, name in enumerate(STATE))
        param, *new = graves(self.param, g, mg, variance, delta, c, decay)
        numbers = _random(seed, segment.key, segment.first + self.low, self.size)[:: layout.BLOCK]
        for n, name in enumerate(STATE):
            codes[n][...], scales[:, n] = int8_state.encoded(new[n], name, int8_state.random_bits(numbers, name))
        return param


def _tiles(segment: Segment, size: int) -> list[_Tile]:
    return [_Tile(segment, low, min(low + size, segment.size)) for low in range(0, segment.size, size)]


class Table:
    """As :class:`puzzlelib_rmsprop.kernels.cpu.Table`."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = list(segments)
        self._rates = [(1.0, 1.0, 0.0)] * len(self._segments)
        self._groups: dict[int, tuple[Hyper, StepOptions]] = {}

    def set_gradients(self, addresses: Sequence[int], stream: Any = None) -> None:
        """Sets the address of each segment's gradient."""
        self._segments = [s._replace(grad=int(a)) for s, a in zip(self._segments, addresses, strict=True)]

    def set_group(self, group: int, hyper: Hyper, options: StepOptions = PLAIN) -> None:
        """Sets the hyper-parameters and options that :meth:`run` uses for the segments of one group."""
        self._groups[group] = hyper, options

    def set_rates(self, rates: Sequence[tuple[float, float, float]]) -> None:
        """Sets each segment's factors on learnRate and momRate, and its wc. The defaults are 1, 1 and 0."""
        self._rates = [(float(learnRate), float(momRate), float(wc)) for learnRate, momRate, wc in rates]

    def update(self, hyper: Hyper, stream: Any = None, options: StepOptions = PLAIN) -> None:
        """Updates every segment once; all must belong to group 0. ``stream`` is ignored on the CPU."""
        self.set_group(0, hyper, options)
        self.run(stream)

    def run(self, stream: Any = None, most_threads: int | None = None) -> None:
        """Updates every segment once, in one thread. ``stream`` is ignored on the CPU."""
        with np.errstate(all="ignore"):
            for segment, (learnRate, momRate, wc) in zip(self._segments, self._rates, strict=True):
                hyper, options = self._groups[segment.group]
                skip = options.skip and ctypes.c_uint32.from_address(options.skip).value
                real = real_dtype(segment.dtype)
                c = Coefficients.of(hyper, real, learnRate, momRate)
                decay = decay_of(options.decay, hyper, real, learnRate, wc)
                for tile in _tiles(segment, TILE):
                    if not skip:
                        tile.update(tile.gradient(options.operations, wc), c, decay, options.seed)
                    if options.zeroGrad:
                        tile.grad[...] = 0

    def zero_gradients(self, stream: Any = None) -> None:
        """Sets every gradient to zero."""
        for segment in self._segments:
            _Tile(segment, 0, segment.size).grad[...] = 0


class GradientStatistics:
    """As :class:`puzzlelib_rmsprop.kernels.cpu.GradientStatistics`."""

    def __init__(self, segments: Sequence[Segment], record: int) -> None:
        self._segments = list(segments)
        self._decays = [0.0] * len(self._segments)
        self._record = _array(record, layout.STATISTICS.itemsize, "uint8").view(layout.STATISTICS)

    def set_decays(self, decays: Sequence[float]) -> None:
        """Sets each segment's wc. The default is 0."""
        self._decays = [float(wc) for wc in decays]

    def run(self, operations: tuple[Operation, ...] = (), policy: ScalingPolicy = LENIENT, stream: Any = None) -> None:
        """Writes the statistics of the gradients after ``operations`` to the record. ``stream`` is ignored on the CPU."""
        with np.errstate(all="ignore"):
            chunks = [
                _square_sum(tile.gradient(operations, wc))
                for segment, wc in zip(self._segments, self._decays, strict=True)
                for tile in _tiles(segment, layout.CHUNK)
            ]
            _conclude(self._record, _by_halves(_in_lanes(np.array(chunks).reshape(-1, 3), layout.CHUNK_LANES)), policy)


def _square_sum(g: np.ndarray) -> tuple[Any, Any, Any]:
    """Returns a chunk's sum of squares, the scaled sum of large squares, and whether a square is infinite or NaN."""
    square = g * g
    bad = not np.isfinite(square).all()
    wide = g.astype(np.float64)
    small = np.abs(wide) < LARGE if g.dtype == np.float64 else np.ones(g.shape, bool)
    squares = np.stack([np.where(small, wide * wide, 0.0), np.where(small, 0.0, np.square(wide * SHRINK))], axis=1)
    total, large = _by_halves(_in_lanes(squares, layout.LANES))
    return total, large, bad


def _in_lanes(rows: np.ndarray, lanes: int) -> np.ndarray:
    """Adds the rows of each lane, in order. The lane of a row is its index modulo ``lanes``."""
    found = np.zeros((lanes, rows.shape[1]))
    for low in range(0, len(rows), lanes):
        part = rows[low : low + lanes]
        found[: len(part)] += part
    return found


def _by_halves(lanes: np.ndarray) -> np.ndarray:
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]


def _conclude(record: np.ndarray, total: np.ndarray, policy: ScalingPolicy) -> None:
    """As ``conclude`` in rule.h."""
    small, large, bad = total[0], total[1], total[2] > 0
    norm = np.sqrt(small) if large == 0.0 else np.sqrt(large + small * SHRINK * SHRINK) / SHRINK
    scale = float(record["scale"][0])
    record["norm"], record["unscale"] = norm, 1.0 / scale
    record["bad"] = min(int(record["bad"][0]) + 1, 2**32 - 1) if bad else 0
    record["factor"] = policy.limit / norm if norm > policy.limit else 1.0 if norm == norm else norm
    record["skipped"] += np.uint64(bad)
    if policy.interval == 0:
        return
    good = 0 if bad else int(record["good"][0]) + 1
    if bad:
        scale = max(scale * policy.backoff, policy.least)
    elif good >= policy.interval:
        scale, good = min(scale * policy.growth, policy.most), 0
    record["scale"], record["good"] = scale, good


def operate(segment: Segment, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
    """Applies operations to the gradient of a segment in place. A 16-bit gradient is rounded once, at the end."""
    with np.errstate(all="ignore"):
        for tile in _tiles(segment, TILE):
            tile.grad[...] = _narrowed(tile.gradient(operations, wc), segment.dtype)
