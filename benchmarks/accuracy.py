"""Does bfloat16 state cost accuracy? python -m benchmarks.accuracy [--seeds 10] [--epochs 30]

Trains the net of examples/train_digits.py with float32 and with bfloat16 state, the same seeds, digits and batches, and
prints the test accuracies as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import sys
from pathlib import Path

from puzzlelib_rmsprop import RMSPropGraves

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import train_digits as example

STATES = {"float32": None, "bfloat16": "bfloat16"}


def accuracy(seed: int, epochs: int, state: str | None) -> float:
    digits, net = example.load(seed), example.build(seed)
    optimizer = RMSPropGraves(learnRate=example.LEARN_RATE, stateDtype=state, seed=seed)
    optimizer.setupOn(net, useGlobalState=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        example.train(example.Run(seed, epochs, 32, state), net, optimizer, digits, None)
    return example.measure(net, digits.test)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    print(f"test accuracy after {args.epochs} epochs\n\n| seed | " + " | ".join(f"{s} state" for s in STATES) + " |")
    print("| --- |" + " ---: |" * len(STATES))
    found: list[list[float]] = []
    for seed in range(args.seeds):
        found.append([accuracy(seed, args.epochs, state) for state in STATES.values()])
        print(f"| {seed} | {' | '.join(f'{each:.4f}' for each in found[-1])} |", flush=True)
    means = map(statistics.fmean, zip(*found, strict=True))
    print(f"| mean | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    differences = [b - a for a, b in found]
    spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
    error = spread / math.sqrt(len(differences))
    print(f"\nbfloat16 less float32: {statistics.fmean(differences):+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()
