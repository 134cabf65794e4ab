"""Does bfloat16 state cost accuracy? python -m benchmarks.accuracy [--seeds 10] [--epochs 30]

Trains the net of examples/train_digits.py with float32 and with bfloat16 state, the same seeds, digits and batches, and
prints the test accuracies as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import math
import statistics
import sys
from pathlib import Path

from puzzlelib_rmsprop import RMSPropGraves

STATES = {"float32": None, "bfloat16": "bfloat16"}


def load_example():
    path = Path(__file__).resolve().parents[1] / "examples" / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def accuracy(example, seed: int, epochs: int, state: str | None) -> float:
    run = example.Run(seed, epochs, 32, state)
    digits, net = example.load(seed), example.build(seed)
    optimizer = RMSPropGraves(learnRate=example.LEARN_RATE, stateDtype=state, seed=seed)
    optimizer.setupOn(net, useGlobalState=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        example.train(run, net, optimizer, digits, None)
    return example.measure(net, digits.test)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    example = load_example()
    print(f"test accuracy after {args.epochs} epochs\n\n| seed | " + " | ".join(f"{s} state" for s in STATES) + " |")
    print("| --- |" + " ---: |" * len(STATES))
    found: dict[str, list[float]] = {name: [] for name in STATES}
    for seed in range(args.seeds):
        for name, state in STATES.items():
            found[name].append(accuracy(example, seed, args.epochs, state))
        print(f"| {seed} | " + " | ".join(f"{values[-1]:.4f}" for values in found.values()) + " |", flush=True)
    print("| mean | " + " | ".join(f"{statistics.fmean(values):.4f}" for values in found.values()) + " |")
    differences = [b - a for a, b in zip(*found.values(), strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
    error = spread / math.sqrt(len(differences))
    print(f"\nbfloat16 less float32: {statistics.fmean(differences):+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()
