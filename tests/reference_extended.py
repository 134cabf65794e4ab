"""The reference for everything beyond the update rule, in NumPy: gradient operations, stochastic rounding, statistics.

Like :mod:`tests.reference` it imports nothing from the library. Every operation is rounded once, in the dtype of the
arithmetic (``real``), so that results must match bit for bit.

An operation is (kind, value, other, content): ``content`` is the number at its address, or None if it has no address.
"""

import numpy as np

from tests import reference_int8
from tests.reference import coefficients
from tests.reference_random import number_of

SCALE, CLIP, DECAY, LASSO = range(4)
STATE = ("mg", "variance", "delta")


def bfloat16(values):
    """Rounds float32 to nearest bfloat16, ties to even; returns float32."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16) << np.uint64(16)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.astype(np.uint32).view(np.float32))


def nearest(values, dtype):
    """Rounds to a dtype, given by its name, and back."""
    values = np.asarray(values)
    with np.errstate(over="ignore"):
        return bfloat16(values) if dtype == "bfloat16" else values.astype(dtype).astype(values.dtype)


# ----------------------------------------------------------------------------------------- gradient operations


def applied(ops, g, p, wc):
    """Returns a gradient after the operations; ``g`` and ``p`` have the dtype of the arithmetic."""
    real = g.dtype.type
    with np.errstate(all="ignore"):
        for kind, value, other, content in ops:
            if kind == SCALE:
                g = g * real(np.float64(value) * (1.0 if content is None else np.float64(content)))
            elif kind == CLIP:
                g = np.where(g < real(value), real(value), g)
                g = np.where(g > real(other), real(other), g)
            elif not wc > 0:
                continue
            elif kind == DECAY:
                g = g + real(np.float64(value) * wc) * p
            else:
                g = g + real(np.float64(value) * wc) * np.where(p > 0, real(1), np.where(p < 0, real(-1), p))
    return g


# ---------------------------------------------------------------------------------------- stochastic rounding


def numbers(seed, key, first, size):
    """Returns the 16-bit random numbers of the elements from ``first`` on: for mg, the variance and delta."""
    x = number_of(seed, key, first, size)
    return x & 0xFFFF, x >> 16, x >> 8 & 0xFFFF


def at_random(values, r):
    """Rounds float32 up or down to bfloat16, depending on 16 random bits; returns float32."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = np.where(np.isinf(values), bits >> np.uint64(16), bits + r >> np.uint64(16))
    rounded = np.where(np.isnan(values), np.uint64(0x7FC0), rounded)
    return (rounded << np.uint64(16)).astype(np.uint32).view(np.float32)


# ---------------------------------------------------------------------------------------------------- update


class Extended:
    """One variable. ``dtype`` and ``state`` are names of dtypes; all arrays are kept in the dtype of the arithmetic.

    8-bit state is also kept as its codes and scales, in uint8.
    """

    def __init__(self, param, dtype, state, master=False, wc=0.0, first=0, key=0, rates=(1.0, 1.0)):
        self.real = np.dtype(np.float64 if dtype == "float64" else np.float32)
        self.dtype, self.state, self.wc, self.first, self.key, self.rates = dtype, state, wc, first, key, rates
        self.param = np.asarray(param).astype(self.real)
        self.master = self.param.copy() if master else None
        self.mg, self.variance, self.delta = (np.zeros_like(self.param) for _ in range(3))
        self.codes = {name: np.zeros(self.param.size, np.uint8) for name in STATE} if state == "int8" else {}
        self.scales = np.zeros((-(-self.param.size // reference_int8.BLOCK), 3), np.uint8)

    def step(self, grad, learnRate, alpha, momRate, epsilon, ops=(), skip=False, seed=(0, 0), decay=0.0):
        if skip:
            return
        real = self.real.type
        lost = real(abs(learnRate * self.rates[0]) * decay * max(self.wc, 0.0))
        learnRate, momRate = real(learnRate * self.rates[0]), real(momRate * self.rates[1])
        (alpha, beta, gain), epsilon = coefficients(alpha, real), real(epsilon)
        p = self.param
        if self.master is not None:
            p = np.where(nearest(self.master, self.dtype) == self.param, self.master, self.param)
        g = applied(ops, np.asarray(grad).astype(self.real), p, self.wc)
        with np.errstate(all="ignore"):
            d = g - self.mg
            mg = alpha * self.mg + beta * g
            variance = alpha * self.variance + gain * d * d
            delta = momRate * self.delta + learnRate * g / np.sqrt(variance + epsilon)
            p = p + (delta - lost * p if lost else delta)
        self._store({"mg": mg, "variance": variance, "delta": delta}, seed)
        self.param = nearest(p, self.dtype)
        if self.master is not None:
            self.master = p

    def _store(self, state, seed):
        drawn = reference_int8.dithers if self.state == "int8" else numbers
        for i, random in enumerate(drawn(seed, self.key, self.first, self.param.size)):
            name = STATE[i]
            if self.state == "int8":
                self.codes[name], self.scales[:, i] = reference_int8.codes_of(state[name], name, random)
                stored = reference_int8.values(self.codes[name], self.scales[:, i], name)
            elif self.state == "bfloat16":
                stored = at_random(state[name], random)
            else:
                stored = nearest(state[name], self.state)
            setattr(self, name, stored)

    def buffers(self):
        found = {"param": self.param} | {name: getattr(self, name) for name in STATE}
        if self.codes:
            found |= self.codes | {"scales": self.scales.ravel()}
        return found if self.master is None else found | {"master": self.master}


# ------------------------------------------------------------------------------------------------ statistics


class Statistics:
    """Statistics of all gradients of a step, and the loss scale."""

    def __init__(self, scale=1.0):
        self.norm = self.unscale = 0.0
        self.factor, self.scale = 1.0, scale
        self.bad = self.good = self.skipped = 0

    def run(self, gradients, limit=np.inf, growth=1.0, backoff=1.0, interval=0, least=2.0**-24, most=2.0**24):
        """Updates them; ``gradients``: after their operations, in the dtype of the arithmetic."""
        with np.errstate(all="ignore"):
            bad = int(not all(np.isfinite(np.square(g)).all() for g in gradients))
            everything = np.concatenate([np.asarray(g, np.longdouble).ravel() for g in gradients] or [np.zeros(0)])
            self.norm = float(np.sqrt(np.sum(everything * everything)))
            self.factor = limit / self.norm if self.norm > limit else np.nan if np.isnan(self.norm) else 1.0
        self.unscale = 1.0 / self.scale
        self.bad = self.bad + 1 if bad else 0  # number of bad steps in a row
        self.skipped += bad
        if interval and bad:
            self.scale, self.good = max(self.scale * backoff, least), 0
        elif interval:
            self.good += 1
            if self.good >= interval:
                self.scale, self.good = min(self.scale * growth, most), 0
