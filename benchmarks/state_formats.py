"""Formats of the state in 8 bits, tried before kernels were written: python -m benchmarks.state_formats steps|digits|...

Emulated in PyTorch: a number is stored as the nearest codes' values below or above it. docs/int8-state.md has what came out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import sys
import unittest.mock
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEARN_RATE, ALPHA, MOM_RATE, EPSILON = 1e-4, 0.95, 0.9, 1e-4


# ---- formats ---------------------------------------------------------------------------------------------------------


@functools.cache
def levels(companding: str, codes: int) -> Tensor:
    """Magnitudes that the codes of a block stand for, ascending from 0. The next one would be 2."""
    i = torch.arange(codes, dtype=torch.float64)
    if companding.startswith("E"):  # mu-law in pieces: a float of so many bits, less one
        exponents, steps = 2 ** int(companding[1]), 2 ** int(companding[3])
        top = 2.0 ** (exponents - 1) - 1
        y = 2.0 ** (i // steps) * (1 + i % steps / steps)
        found = (y - 1) / top
        found = found[found < 2]
    else:
        q = i / codes
        found = 2 * {"linear": q, "square": q * q, "softsign": q / (2 - q)}[companding]
    return found.float()


@dataclass(frozen=True)
class Format:
    """One entity's: E3M4, linear, square (a code is the number's root) or softsign; with what scale, and how rounded."""

    companding: str
    block: int = 32
    signed: bool = True
    exact: bool = False  # a block's scale is its largest magnitude as a float32, else that one's power of two
    random: bool = True  # else to nearest
    never_zero: bool = True  # a variance above 0 is not stored as 0

    def stored(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What is read back after x, of one dimension, was stored."""
        table = levels(self.companding, 128 if self.signed else 256)
        blocks = torch.nn.functional.pad(x, (0, -len(x) % self.block)).view(-1, self.block)
        top = blocks.abs().amax(1, keepdim=True)
        scale = top / table[-1] if self.exact else torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent - 1)
        m = blocks.abs() / torch.where(top > 0, scale, 1)
        below = (torch.searchsorted(table, m, right=True) - 1).clamp(max=len(table) - 2)
        share = (m - table[below]) / (table[below + 1] - table[below])
        up = share > (torch.rand(m.shape, generator=generator) if self.random else 0.5)
        code = below + up
        if self.never_zero and not self.signed:
            code = torch.where(m > 0, code.clamp(min=1), code)
        return (table[code] * scale).copysign(blocks).view(-1)[: len(x)]


class Float32:
    def stored(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x


class BFloat16:
    """Rounded at random, as the library does."""

    def stored(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randint(0, 1 << 16, x.shape, generator=generator, dtype=torch.int32)
        return ((x.view(torch.int32) + noise) & -65536).view(torch.float32)


@dataclass(frozen=True)
class State:
    """The formats of the three entities."""

    mg: Format | Float32 | BFloat16
    variance: Format | Float32 | BFloat16
    delta: Format | Float32 | BFloat16


def in_8_bits(signed: str, unsigned: str, block: int = 32, **options: bool) -> State:
    both = Format(signed, block, **options)
    return State(both, Format(unsigned, block, signed=False, **options), both)


FLOAT32, BFLOAT16 = State(*3 * [Float32()]), State(*3 * [BFloat16()])


def step(
    g: Tensor,
    mg: Tensor,
    variance: Tensor,
    delta: Tensor,
    state: State | None,
    generator: torch.Generator,
    rate: float = LEARN_RATE,
    epsilon: float = EPSILON,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rule; returns the step and what is stored. Without a state nothing is rounded but by the tensors' dtype."""
    d = g - mg
    mg = ALPHA * mg + (1 - ALPHA) * g
    variance = ALPHA * variance + ALPHA * (1 - ALPHA) * d * d
    taken = delta = MOM_RATE * delta + rate * g / (variance + epsilon).sqrt()
    if state:
        mg, variance = state.mg.stored(mg, generator), state.variance.stored(variance, generator)
        delta = state.delta.stored(delta, generator)
    return taken, mg, variance, delta


# ---- steps beside float64 --------------------------------------------------------------------------------------------

PER_CASE = 1024


@dataclass(frozen=True)
class Gradients:
    """Normal numbers whose sizes in a block are spread evenly over that many powers of ten."""

    spread: float
    ratio: float = 0.0  # mean over standard deviation
    largest: float | None = None  # else the smallest is 1, so that epsilon helps nobody
    share: float = 1.0  # of gradients that are not 0, at random
    alive: float = 1.0  # of elements whose gradient is ever not 0

    def __str__(self) -> str:
        words = [f"spread {self.spread:g}", f"mean/sd {self.ratio:g}"]
        words += [] if self.largest is None else [f"largest {self.largest:g}"]
        words += [] if self.share == 1 else [f"{self.share:.0%} not 0"]
        words += [] if self.alive == 1 else [f"{1 - self.alive:.0%} dead"]
        return ", ".join(words)

    def sizes(self, generator: torch.Generator) -> Tensor:
        exponents = torch.rand(PER_CASE, generator=generator, dtype=torch.float64)
        sizes = self.spread**exponents
        if self.largest is not None:
            sizes = sizes * (self.largest / self.spread)
        return sizes * (torch.rand(PER_CASE, generator=generator) < self.alive)


SPREADS = (1, 10, 100, 1000, 1e6)
CASES = [
    *(Gradients(spread, ratio) for ratio in (0, 1, 10, 100) for spread in SPREADS),
    *(Gradients(spread, ratio, largest=0.01) for ratio in (0, 10) for spread in SPREADS),
    *(Gradients(spread, share=0.01) for spread in SPREADS),
    *(Gradients(spread, alive=0.5) for spread in SPREADS),
]


@dataclass
class Found:
    """Of one case: steps beside float64's."""

    error: float  # root mean square of the difference, over that of float64's steps
    path: float  # the same of all steps' sum
    length: float  # mean over elements of the steps' length along float64's
    shortest: float  # the least element's
    largest: float  # in learning rates
    finite: bool


def compared(state: State, steps: int, seed: int = 0) -> tuple[list[Found], list[float]]:
    """What the state makes of each case, and the largest step of float64."""
    draw = torch.Generator().manual_seed(seed)
    rounding = torch.Generator().manual_seed(seed + 1)
    sd = torch.cat([case.sizes(draw) for case in CASES])
    each = functools.partial(torch.repeat_interleave, repeats=PER_CASE)
    mean = sd * each(torch.tensor([case.ratio for case in CASES], dtype=torch.float64))
    mean = mean * torch.randint(0, 2, mean.shape, generator=draw).mul(2).sub(1)
    share = each(torch.tensor([case.share for case in CASES]))
    exact = [torch.zeros_like(sd) for _ in range(3)]
    rough = [torch.zeros_like(sd, dtype=torch.float32) for _ in range(3)]
    along, square, error = torch.zeros_like(sd), torch.zeros_like(sd), torch.zeros_like(sd)
    way, apart = torch.zeros_like(sd), torch.zeros_like(sd)
    largest, largest_exact = torch.zeros_like(sd), torch.zeros_like(sd)
    for _ in range(steps):
        g = (mean + sd * torch.randn(sd.shape, generator=draw)).float()
        g = g * (torch.rand(sd.shape, generator=draw) < share)
        right, *exact = step(g.double(), *exact, None, rounding)
        taken, *rough = step(g, *rough, state, rounding)
        along += taken * right
        square += right * right
        error += (taken - right) ** 2
        way += right
        apart += taken - right
        largest = torch.maximum(largest, taken.abs().double().nan_to_num(math.inf))
        largest_exact = torch.maximum(largest_exact, right.abs())
    found = []
    for case in range(len(CASES)):
        part = slice(case * PER_CASE, (case + 1) * PER_CASE)
        alive = square[part] > 0
        length = along[part][alive] / square[part][alive]
        found.append(
            Found(
                (error[part].sum() / square[part].sum()).sqrt().item(),
                (apart[part].norm() / way[part].norm()).item(),
                length.mean().item(),
                length.quantile(0.01).item(),
                largest[part].max().item() / LEARN_RATE,
                bool(error[part].isfinite().all()),
            )
        )
    return found, (largest_exact.view(len(CASES), -1).amax(1) / LEARN_RATE).tolist()


# ---- trainings -------------------------------------------------------------------------------------------------------


class Emulated(torch.optim.Optimizer):
    """The rule for float32 parameters, with a state that is stored in other formats."""

    def __init__(self, params: Sequence[Tensor], state: State, seed: int, lr: float, eps: float = EPSILON) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        self.formats, self.generator = state, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault("kept", [torch.zeros(p.numel()) for _ in range(3)])
                taken, *kept[:] = step(p.grad.view(-1), *kept, self.formats, self.generator, -group["lr"], group["eps"])
                p.view(-1).add_(taken)


def printed(example: str, options: Sequence[str], state: State, seed: int) -> str:
    """What an example prints whose optimizer keeps such a state."""
    module = importlib.import_module(example)
    module.RMSpropGraves = lambda params, state_dtype=None, **options: Emulated(params, state, seed, **options)
    text = io.StringIO()
    with unittest.mock.patch.object(sys, "argv", [example, "--seed", str(seed), *options]), contextlib.redirect_stdout(text):
        module.main()
    return text.getvalue()
