"""How far float32 rounding takes centered RMSProp from its formula, against the size of a nearly constant gradient.

    python -m benchmarks.error_plot --peers all --out docs/numerics.png

Takes steps with the default options, here and in other libraries, each beside its own formula in float64. Prints a table
of the relative errors of the parameters' movement, and draws it. tests/stress/peers.py has the libraries.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.stress import peers
from tests.stress.numerics import machine

STEPS = 300
# the variance is its square of the mean square, 1e-8, which is below the unit roundoff of float32, 6e-8
NOISE = 1e-4
LEVELS = tuple(10 ** (exponent / 4) for exponent in range(-8, 21))
QUICK = (0.1, 1.0, 10.0, 58.0)
ELEMENTS = 64  # parameters for each level, each with noise of its own
# name in the plot, colour (Okabe and Ito's), marker
STYLES = {
    "here": ("this library", "#0072b2", "o"),
    "PyTorch": ("PyTorch", "#d55e00", "s"),
    "TensorFlow": ("TensorFlow", "#e69f00", "^"),
    "Optax": ("Optax", "#009e73", "D"),
    "Paddle": ("Paddle", "#cc79a7", "v"),
    "PuzzleLib": ("PuzzleLib", "#56b4e9", "P"),
    "formula": ("PuzzleLib's formula", "#000000", "X"),
}
BAND = 100  # height of the band at the top, as a factor


def errors(name: str, levels: Sequence[float], noise: float, steps: int) -> list[float]:
    """The largest relative error of the parameters of each level; infinite if one of them is NaN or infinite."""
    from puzzlelib_rmsprop import Config

    Config.backend = Config.Backend.cpu
    np.seterr(all="ignore")
    rng = np.random.default_rng(7)
    sizes = np.repeat(levels, ELEMENTS)
    start, config = np.zeros((1, sizes.size), np.float32), np.array([peers.DEFAULTS])
    peer, exact = peers.PEERS[name]("float32", start, config), peers.Exact(start, config)
    for _ in range(steps):
        grad = (sizes * (1 + noise * rng.standard_normal(sizes.size))).astype(np.float32)
        peer.step(grad)
        exact.step(grad)
    moved = exact.params[getattr(peers.PEERS[name], "outside", False)]
    found = np.abs(peer.read().astype(np.float64) - moved) / np.abs(moved)
    return np.where(np.isfinite(found), found, np.inf).reshape(len(levels), ELEMENTS).max(axis=1).tolist()


def measure(name: str, levels: Sequence[float], noise: float, steps: int) -> list[float]:
    """:func:`errors` in a process of its own: some libraries crash where another one is loaded."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(errors, name, levels, noise, steps).result()


def table(levels: Sequence[float], found: dict[str, list[float]]) -> str:
    """A row for each level."""
    others = [name for name in found if name not in ("here", "formula")]  # the line above the table has those versions
    rows = [["gradient", *(f"{STYLES[name][0]} {peers.version(name) if name in others else ''}".strip() for name in found)]]
    rows.append(["---:"] * len(rows[0]))
    for number, level in enumerate(levels):
        cells = (column[number] for column in found.values())
        rows.append([f"{level:.3g}", *(f"{cell:.1e}" if math.isfinite(cell) else "not finite" for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(levels: Sequence[float], found: dict[str, list[float]], steps: int, path: Path) -> None:
    """Lines over the size of the gradient; what is not finite is a mark in the band at the top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain = {"font.size": 16, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
    with pyplot.rc_context(plain):
        figure, axes = pyplot.subplots(figsize=(8, 7), layout="constrained")
        values = [cell for column in found.values() for cell in column if math.isfinite(cell) and cell]
        low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
        axes.axhspan(high * 1.5, high * BAND, color="#eeeeee", linewidth=0)
        for name, column in reversed(found.items()):  # ours is drawn last, on top
            label, colour, marker = STYLES[name]
            ours = name == "here"
            drawn: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6 if ours else 7}
            if not ours:
                drawn |= {"markerfacecolor": "none", "markeredgewidth": 1.5}
            finite = [cell if math.isfinite(cell) else math.nan for cell in column]
            axes.plot(levels, finite, label=label, linewidth=3.5 if ours else 1.6, **drawn)
            lost = [level for level, cell in zip(levels, column, strict=True) if not math.isfinite(cell)]
            row = high * BAND ** (0.22 + 0.78 * list(found).index(name) / len(found))
            axes.plot(lost, [row] * len(lost), linestyle="none", **drawn)
        axes.set(xscale="log", yscale="log", ylim=(low, high * BAND))
        axes.set_xlabel("size of the gradient")
        axes.set_ylabel(f"relative error after {steps} steps")
        ticks = [10.0**exponent for exponent in range(-6, 1, 2) if low <= 10.0**exponent <= high]
        axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        beside = axes.get_yaxis_transform()
        axes.text(-0.015, high * BAND**0.55, "NaN or\ninfinite", transform=beside, ha="right", va="center")
        axes.set_xticks([0.01, 1, 100, 10_000], ["0.01", "1", "100", "10,000"])
        axes.minorticks_off()
        axes.grid(True, color="#dddddd", linewidth=0.8)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, facecolor="white")
        pyplot.close(figure)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.error_plot", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--peers", nargs="+", metavar="NAME", default=["here", "formula"], help=f"{', '.join(STYLES)}; all: those installed")
    add("--noise", type=float, default=NOISE, help=f"relative standard deviation of the gradient (default: {NOISE:g})")
    add("--steps", type=int, default=STEPS, help=f"steps to take (default: {STEPS})")
    add("--quick", action="store_true", help="four gradients only")
    add("--out", type=Path, metavar="PATH", help="draw the plot there; needs matplotlib")
    given = parser.parse_args(arguments)
    names = list(STYLES) if given.peers == ["all"] else given.peers
    if unknown := [name for name in names if name not in STYLES]:
        parser.error(f"there is no peer {unknown[0]!r}; there are {', '.join(STYLES)}")
    levels = QUICK if given.quick else LEVELS
    found: dict[str, list[float]] = {}
    left_out = []
    for name in names:
        try:
            found[name] = measure(name, levels, given.noise, given.steps)
        except (ImportError, TypeError, BrokenProcessPool) as error:
            left_out.append(f"left out: {name}: {error}")
    print(f"{given.steps} steps, relative noise {given.noise:g}, largest relative error of {ELEMENTS} parameters; ", end="")
    print(f"puzzlelib_rmsprop {peers.version('here')}, NumPy {np.__version__}, {machine()}\n")
    print("\n".join([table(levels, found), "", *left_out]))
    if given.out:
        draw(levels, found, given.steps, given.out)
        print(f"written: {given.out}, {os.path.getsize(given.out):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
