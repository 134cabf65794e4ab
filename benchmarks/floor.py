"""What holds one thread: the loop as it is, and without what is costly to compute: python -m benchmarks.floor [SIZE...]

PuzzleLib's C loop; the same without its division, without its root, without both (a multiplication in their place, so that
the same bytes are read and written, and the results are of no use); and an update of this library. Rounds in turns,
medians. Where the loop without root and division is no faster, the way to memory holds the others, and no faster root
would help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from .contenders import C_LOOP, Where, c_loop, ours

TERM, VARIANCE = "lr * g[k] / sqrtf(ms[k] - mg[k] * mg[k] + eps)", "(ms[k] - mg[k] * mg[k] + eps)"
LOOPS = {
    "C loop": TERM,
    "no division": f"lr * g[k] * sqrtf{VARIANCE}",
    "no root": f"lr * g[k] / {VARIANCE}",
    "neither": f"lr * g[k] * {VARIANCE}",
}
ROUNDS, TURN = 25, 0.02


def measure(size: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of a step, medians over rounds in turns. Float32, one thread."""
    assert C_LOOP.count(TERM) == 1
    rng = np.random.default_rng(0)
    arrays = [[(1 + 0.1 * rng.standard_normal(size)).astype(np.float32)] for _ in range(2)]
    where = Where("cpu", 1)
    works = {name: c_loop(*arrays, where, C_LOOP.replace(TERM, term)) for name, term in LOOPS.items()}
    works["here"] = ours(one_thread=True)(*arrays, where)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (step, *_) in works.items():
            began = time.perf_counter()
            step()
            count = max(1, int(TURN / (time.perf_counter() - began)))
            began = time.perf_counter()
            for _ in range(count):
                step()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    return {name: median(each) for name, each in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    sizes = [int(each) for each in (sys.argv[1:] if arguments is None else arguments)] or [100_000, 1_000_000, 10_000_000]
    print("microseconds a step, one thread, medians")
    print("| elements | " + " | ".join([*LOOPS, "here"]) + " |\n" + "| ---: " * (len(LOOPS) + 2) + "|")
    for size in sizes:
        found = measure(size, 3 if size < 10_000 else ROUNDS)
        print(f"| {size:,} | " + " | ".join(f"{each:,.1f}" for each in found.values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
