"""Compares emulated formats of 8-bit state: python -m benchmarks.state_formats steps|characters|digits

`steps` compares steps with float64 for many kinds of gradients, with the emulated formats and with the library's state.
`characters` and `digits` train examples with the emulated formats. The results are in docs/int8-format.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import math
import re
import sys
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puzzlelib_rmsprop.torch import RMSpropGraves

from .accuracy import EXAMPLES

LEARN_RATE, ALPHA, MOM_RATE, EPSILON = 1e-4, 0.95, 0.9, 1e-4


# ---- formats ---------------------------------------------------------------------------------------------------------


@functools.cache
def levels(companding: str, codes: int) -> Tensor:
    """Returns the magnitudes of the codes of a block, ascending from 0. The next one would be 2."""
    i = torch.arange(codes, dtype=torch.float64)
    if companding.startswith("E"):  # piecewise mu-law: a float with these exponent and mantissa bits, minus one
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
    """The format of one state: companding (E3M4, linear, square or softsign), scale and rounding."""

    companding: str
    block: int = 64
    signed: bool = True
    exact: bool = False  # the scale of a block is its largest magnitude in float32, otherwise a power of two
    random: bool = True  # stochastic rounding, otherwise to nearest
    never_zero: bool = True  # a variance above 0 is not stored as 0

    def stored(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a 1-d tensor as it is after storing and reading it."""
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


@dataclass(frozen=True)
class State:
    """The formats of the three states; None keeps float32."""

    mg: Format | None = None
    variance: Format | None = None
    delta: Format | None = None


def in_8_bits(mg: str, variance: str, delta: str, **options: Any) -> State:
    signed = (Format(mg, **options), Format(delta, **options))
    return State(signed[0], Format(variance, signed=False, **options), signed[1])


CHOSEN = ("E3M4", "E4M4", "E2M5")  # the library's
E3M4, E2M5, E4M4 = Format("E3M4"), Format("E2M5"), Format("E4M4", signed=False)
CANDIDATES = {
    "float32": State(),
    "E3M4, E4M4, E2M5": in_8_bits(*CHOSEN),
    **{f"{form}, E4M4, {form}": in_8_bits(form, "E4M4", form) for form in ("E3M4", "E2M5", "E1M6")},
    **{f"{form}, E4M4, {form}": in_8_bits(form, "E4M4", form) for form in ("linear", "square", "softsign")},
    **{f"E3M4, {form}, E2M5": in_8_bits("E3M4", form, "E2M5") for form in ("E2M6", "E3M5", "E5M3", "square", "linear")},
    **{f"E3M4, E4M4, E2M5, blocks of {block}": in_8_bits(*CHOSEN, block=block) for block in (16, 32, 128, 256)},
    "E3M4, E4M4, E2M5, float32 scale": in_8_bits(*CHOSEN, exact=True),
    "E3M4, E4M4, E2M5, to nearest": in_8_bits(*CHOSEN, random=False),
    "E3M4, E4M4, E2M5, variance may be 0": in_8_bits(*CHOSEN, never_zero=False),
    # FlashOptim's
    "softsign, square, softsign, blocks of 32, float32 scale, to nearest, variance may be 0": in_8_bits(
        "softsign", "square", "softsign", block=32, exact=True, random=False, never_zero=False
    ),
    "E3M4, float32, float32": State(mg=E3M4),
    "E2M5, float32, float32": State(mg=E2M5),
    "float32, E4M4, float32": State(variance=E4M4),
    "float32, float32, E3M4": State(delta=E3M4),
    "float32, float32, E2M5": State(delta=E2M5),
}


def step(
    g: Tensor,
    kept: Sequence[Tensor],
    state: State,
    generator: torch.Generator,
    rate: float = LEARN_RATE,
    epsilon: float = EPSILON,
) -> tuple[Tensor, list[Tensor]]:
    """Returns the step of the rule, and mg, variance and delta as they are stored. Computed in the tensors' dtype."""
    mg, variance, delta = kept
    d = g - mg
    mg = ALPHA * mg + (1 - ALPHA) * g
    variance = ALPHA * variance + ALPHA * (1 - ALPHA) * d * d
    delta = MOM_RATE * delta + rate * g / (variance + epsilon).sqrt()
    formats = (state.mg, state.variance, state.delta)
    stored = zip((mg, variance, delta), formats, strict=True)
    return delta, [format.stored(x, generator) if format else x for x, format in stored]


# ---- steps compared with float64 -------------------------------------------------------------------------------------

PER_CASE = 1024


@dataclass(frozen=True)
class Gradients:
    """Normal gradients whose scales in a block are log-uniform over a factor of ``spread``."""

    spread: float
    ratio: float = 0.0  # mean over standard deviation
    largest: float | None = None  # otherwise the smallest is 1, so that epsilon does not matter
    share: float = 1.0  # of gradients that are not 0, at random
    alive: float = 1.0  # share of elements whose gradient is not always 0

    def __str__(self) -> str:
        words = [f"{self.spread:g}".replace("e+0", "e"), f"{self.ratio:g}"]
        words += [] if self.largest is None else ["small"]
        words += [] if self.share == 1 else ["sparse"]
        words += [] if self.alive == 1 else ["dead"]
        return " ".join(words)

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
    """The steps of one case compared with float64's."""

    error: float  # root mean square of the difference, relative to float64's steps
    length: float  # length of the steps along float64's, mean over elements
    shortest: float  # the same, 1st percentile
    largest: float  # largest step in learning rates


Take = Callable[[Tensor], Tensor]  # gradients -> step


def emulated(state: State, dtype: torch.dtype = torch.float32) -> Take:
    generator = torch.Generator().manual_seed(1)
    kept = [torch.zeros(len(CASES) * PER_CASE, dtype=dtype) for _ in range(3)]

    def take(g: Tensor) -> Tensor:
        taken, kept[:] = step(g.to(dtype), kept, state, generator)
        return taken

    return take


def of_the_library(state_dtype: str | None) -> Take:
    p = torch.zeros(len(CASES) * PER_CASE)
    optimizer = RMSpropGraves([p], maximize=True, state_dtype=state_dtype)

    def take(g: Tensor) -> Tensor:
        p.zero_()  # so that it holds the step afterwards
        p.grad = g
        optimizer.step()
        return p

    return take


def compared(takers: Sequence[Take], steps: int) -> list[list[Found]]:
    """Returns the results of each taker for each case, compared with the first taker."""
    draw = torch.Generator().manual_seed(0)
    sd = torch.cat([case.sizes(draw) for case in CASES])
    each = functools.partial(torch.repeat_interleave, repeats=PER_CASE)
    mean = sd * each(torch.tensor([case.ratio for case in CASES], dtype=torch.float64))
    mean = mean * torch.randint(0, 2, mean.shape, generator=draw).mul(2).sub(1)
    share = each(torch.tensor([case.share for case in CASES]))
    along, square, largest = (torch.zeros(len(takers), len(sd), dtype=torch.float64) for _ in range(3))
    for _ in range(steps):
        g = (mean + sd * torch.randn(sd.shape, generator=draw)).float()
        g = g * (torch.rand(sd.shape, generator=draw) < share)
        right = takers[0](g).clone()
        for number, take in enumerate(takers):
            taken = take(g).double() if number else right
            along[number] += taken * right
            square[number] += taken * taken
            largest[number] = torch.maximum(largest[number], taken.abs().nan_to_num(math.inf))
    cases = range(len(CASES))
    return [[of_a_case(case, along[n], square[n], square[0], largest[n]) for case in cases] for n in range(len(takers))]


def of_a_case(case: int, along: Tensor, square: Tensor, exact: Tensor, largest: Tensor) -> Found:
    along, square, exact, largest = (x[case * PER_CASE : (case + 1) * PER_CASE] for x in (along, square, exact, largest))
    length = along[exact > 0] / exact[exact > 0]
    error = (square.sum() - 2 * along.sum() + exact.sum()).clamp(min=0) / exact.sum()
    return Found(error.sqrt().item(), length.mean().item(), length.quantile(0.01).item(), largest.max().item() / LEARN_RATE)


# ---- trainings -------------------------------------------------------------------------------------------------------


class Emulated(torch.optim.Optimizer):
    """The rule for float32 parameters, with state in an emulated format."""

    def __init__(self, params: Sequence[Tensor], state: State, seed: int, lr: float, eps: float = EPSILON) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        self.formats, self.generator = state, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault("kept", [torch.zeros(p.numel()) for _ in range(3)])
                taken, kept[:] = step(p.grad.view(-1), kept, self.formats, self.generator, -group["lr"], group["eps"])
                p.view(-1).add_(taken)


def trained(example: str, options: Sequence[str], state: State, seed: int) -> float:
    """Trains an example with state in an emulated format; returns the number in its last line."""
    module = importlib.import_module(example)
    module.RMSpropGraves = lambda params, state_dtype=None, **options: Emulated(params, state, seed, **options)
    text = io.StringIO()
    with unittest.mock.patch.object(sys, "argv", [example, "--seed", str(seed), *options]), contextlib.redirect_stdout(text):
        module.main()
    return float(re.search(r": ([\d.]+)", text.getvalue().splitlines()[-1])[1])


# ---- command line ----------------------------------------------------------------------------------------------------

# the cases in the tables
ERRORS = [
    "1 0",
    "100 0",
    "1000 0",
    "1e6 0",
    "1 1",
    "1000 1",
    "1 10",
    "1000 10",
    "1 100",
    "1000 100",
    "1000 0 small",
    "1000 0 sparse",
]
LARGEST = ["1 0", "1000 0", "1e6 0", "1000 0 small", "1000 0 sparse", "1000 0 dead", "1000 1", "1000 10", "1000 100"]


def table(heading: str, columns: Sequence[str], rows: dict[str, list[float]], digits: int) -> None:
    print(f"\n{heading}\n\n| mg, variance, delta | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in values)} |", flush=True)


def steps(count: int) -> None:
    ours = {f"{dtype or 'float32'} state, the library's": of_the_library(dtype) for dtype in (None, "bfloat16", "int8")}
    takers = {"float64": emulated(State(), torch.float64), **ours}
    takers |= {name: emulated(state) for name, state in CANDIDATES.items()}
    found = dict(zip(takers, compared(list(takers.values()), count), strict=True))
    place = {str(case): number for number, case in enumerate(CASES)}

    def rows(columns: Sequence[str], what: Callable[[Found], float]) -> dict[str, list[float]]:
        return {name: [what(each[place[column]]) for column in columns] for name, each in found.items()}

    table("error of a step in %", ERRORS, rows(ERRORS, lambda of: 100 * of.error), 1)
    table("length of the steps", ERRORS, rows(ERRORS, lambda of: of.length), 3)
    table("length of the shortest steps", ERRORS, rows(ERRORS, lambda of: of.shortest), 3)
    table("largest step in learning rates", LARGEST, rows(LARGEST, lambda of: of.largest), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["steps", "characters", "digits"], help="comparison to run")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 1000; characters: the example's)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    names = list(CANDIDATES)
    parser.add_argument("--formats", nargs="+", choices=names, default=names, metavar="FORMAT", help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "steps":
        steps(args.steps or 1000)
        return
    sys.path.insert(0, str(EXAMPLES))
    options = ["--steps", str(args.steps)] if args.steps else []
    seeds = range(args.seeds)
    rows = {
        name: [trained(f"torch_{args.what}", options, CANDIDATES[name], seed) for seed in seeds] for name in args.formats
    }
    table(f"torch_{args.what}", [f"seed {seed}" for seed in seeds], rows, 4)


if __name__ == "__main__":
    main()
