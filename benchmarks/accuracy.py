"""Compares training results with optimizer state in fewer bits: python -m benchmarks.accuracy TRAINING [--seeds 5]

Runs an example with each data type of the state and several seeds. The net, the data and the batches depend only on the
seed. Prints a table of the results, their means with standard errors, and the differences from float32 state.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# script, and the number of decimals to print
TRAININGS = {
    "digits": ("train_digits.py", 4),
    "torch-digits": ("torch_digits.py", 4),
    "dqn": ("torch_dqn.py", 1),
    "characters": ("torch_characters.py", 4),
}
STATES = ("float32", "bfloat16", "int8")


def outcome(script: str, state: str, seed: int, options: Sequence[str]) -> float:
    """Returns the number in the last line of an example's output."""
    chosen = [] if state == "float32" else ["--state-dtype", state]
    command = [sys.executable, str(EXAMPLES / script), "--seed", str(seed), *chosen, *options]
    # several run in parallel, so each gets one core
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    last = done.stdout.splitlines()[-1]
    found = re.search(r": (\S+)", last)
    if not found:
        raise SystemExit(f"{' '.join(command)} printed no number in its last line: {last}")
    return float(found[1])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard error, NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("training", metavar="TRAINING", choices=list(TRAININGS), help=", ".join(TRAININGS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on (default: 5)")
    parser.add_argument(
        "--states", nargs="+", choices=STATES, default=STATES, metavar="STATE", help=f"default: {' '.join(STATES)}"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of parallel runs (default: one per core)"
    )
    args, options = parser.parse_known_args()  # other options are passed to the example
    script, digits = TRAININGS[args.training]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [[pool.submit(outcome, script, state, seed, options) for state in args.states] for seed in range(args.seeds)]
        print(f"{' '.join([script, *options])}\n\n| seed | {' | '.join(f'{state} state' for state in args.states)} |")
        print("| --- |" + " ---: |" * len(args.states), flush=True)
        found: list[list[float]] = []
        for seed, row in enumerate(jobs):
            found.append([job.result() for job in row])
            print(f"| {seed} | {' | '.join(f'{value:.{digits}f}' for value in found[-1])} |", flush=True)
    columns = list(zip(*found, strict=True))
    print(f"| mean | {' | '.join('{:.{}f} ± {:.{}f}'.format(m, digits, e, digits) for m, e in map(spread, columns))} |\n")
    for state, column in zip(args.states[1:], columns[1:], strict=True):
        mean, error = spread([b - a for a, b in zip(columns[0], column, strict=True)])
        print(f"{state} less {args.states[0]}: {mean:+.{digits}f} ± {error:.{digits}f}")


if __name__ == "__main__":
    main()
