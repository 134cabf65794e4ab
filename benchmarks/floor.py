"""What holds one thread: the loop as it is, and without what is costly to compute: python -m benchmarks.floor [SIZE...]

PuzzleLib's C loop; the same without its division, without its root, without both (a multiplication in their place, so that
the same bytes are read and written, and the results are of no use); and an update of this library. Rounds in turns,
medians. Where the loop without root and division is no faster, the way to memory holds the others, and no faster root
would help.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable
from puzzlelib_rmsprop.nets.module import Module

from .contenders import ALPHA, C_LOOP, EPSILON, LEARN_RATE, MOMENTUM, c_function

TERM, VARIANCE = "lr * g[k] / sqrtf(ms[k] - mg[k] * mg[k] + eps)", "(ms[k] - mg[k] * mg[k] + eps)"
LOOPS = {
    "C loop": TERM,
    "no division": f"lr * g[k] * sqrtf{VARIANCE}",
    "no root": f"lr * g[k] / {VARIANCE}",
    "neither": f"lr * g[k] * {VARIANCE}",
}
ROUNDS, TURN = 25, 0.02


def c_step(code: str, arrays: Sequence[np.ndarray]) -> Callable[[], None]:
    function, size = c_function(code), ctypes.c_ssize_t(arrays[0].size)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    hyper = [ctypes.c_float(value) for value in (LEARN_RATE, ALPHA, MOMENTUM, EPSILON)]
    return lambda: function(*addresses, *hyper, size)


def our_step(arrays: Sequence[np.ndarray]) -> Callable[[], None]:
    net = Module()
    net.setVar("W", Variable(arrays[0], grad=arrays[1]))
    optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON)
    optimizer.setupOn(net)
    return optimizer.update


def measure(size: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of a step, medians over rounds in turns. Float32, one thread."""
    assert C_LOOP.count(TERM) == 1
    rng = np.random.default_rng(0)
    # each has the same arrays: five of them, which is what has to fit into the caches
    arrays = [(1 + 0.1 * rng.standard_normal(size)).astype(np.float32) for _ in range(5)]
    steps = {name: c_step(C_LOOP.replace(TERM, term), arrays) for name, term in LOOPS.items()}
    steps["here"] = our_step([array.copy() for array in arrays[:2]])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            count = max(1, int(TURN / (time.perf_counter() - began)))
            began = time.perf_counter()
            for _ in range(count):
                step()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    return {name: median(each) for name, each in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    Config.numThreads = 1
    sizes = [int(each) for each in (sys.argv[1:] if arguments is None else arguments)] or [100_000, 1_000_000, 10_000_000]
    print("microseconds a step, one thread, medians")
    print("| elements | " + " | ".join([*LOOPS, "here"]) + " |\n" + "| ---: " * (len(LOOPS) + 2) + "|")
    for size in sizes:
        found = measure(size, 3 if size < 10_000 else ROUNDS)
        print(f"| {size:,} | " + " | ".join(f"{each:,.1f}" for each in found.values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
