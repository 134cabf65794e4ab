"""What a second thread gives and costs inside a training loop: python -m benchmarks.threads [--quick] [--net NAME...]

A helper thread waits for work by spinning for some microseconds after an update, and so takes a core from what comes
next. Here an iteration is a net's forward and backward pass and an update, with ``Config.numThreads`` 1 and 2 in turns;
"rest" is the iteration without its update. The net computes with as many threads as it chooses: OPENBLAS_NUM_THREADS and
OMP_NUM_THREADS say.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from puzzlelib_rmsprop import Config, RMSPropGraves, gpuarray
from puzzlelib_rmsprop.nets import Activation, CrossEntropy, Linear, Sequential, relu

from .ours import ForeignNet, ForeignVariable

SIZES = (65_536, 262_144, 1_000_000)  # parameters, about
BATCH, ROUNDS, SECONDS = 32, 15, 0.2
THREADS = (1, 2)

# what makes the gradients, and the optimizer of their parameters
Training = tuple[Callable[[], Any], RMSPropGraves]


def layers(parameters: int) -> tuple[int, int, int, int]:
    """The widths of a net for digits with two hidden layers and about so many parameters: h*h + 76*h + 10."""
    hidden = round(math.sqrt(38 * 38 + parameters - 10) - 38)
    return 64, hidden, hidden, 10


def digits() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, 64), np.float32), rng.integers(0, 10, BATCH)


def in_numpy(widths: Sequence[int]) -> Training:
    net, cost = Sequential(), CrossEntropy()
    for number, (insize, outsize) in enumerate(itertools.pairwise(widths)):
        if number:
            net.append(Activation(relu))
        net.append(Linear(insize, outsize, name=f"fc{number}"))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, useGlobalState=True)
    data, labels = digits()
    images, targets = gpuarray.to_gpu(data), gpuarray.to_gpu(labels.astype(np.int32))

    def gradients() -> None:
        _, grad = cost(net(images), targets)
        optimizer.zeroGradParams()
        net.backward(grad)

    return gradients, optimizer


def in_torch(widths: Sequence[int]) -> Training:
    import torch

    parts: list[Any] = []
    for insize, outsize in itertools.pairwise(widths):
        parts += [torch.nn.Linear(insize, outsize), torch.nn.ReLU()]
    model, net = torch.nn.Sequential(*parts[:-1]), ForeignNet()
    for name, param in model.named_parameters():
        param.grad = torch.zeros_like(param)
        net.setVar(name, ForeignVariable(param.detach().numpy(), param.grad.numpy()))
    optimizer = RMSPropGraves(gradOfLoss=True)
    optimizer.setupOn(net)
    data, labels = map(torch.from_numpy, digits())

    def gradients() -> None:
        model.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(data), labels).backward()

    return gradients, optimizer


NETS = {"NumPy": in_numpy, "PyTorch": in_torch}


def measure(training: Training, rounds: int, seconds: float) -> dict[int, tuple[float, float]]:
    """Threads -> microseconds of an iteration and of its update, medians over rounds in turns."""
    gradients, optimizer = training
    clock = time.perf_counter
    found: dict[int, list[tuple[float, float]]] = {threads: [] for threads in THREADS}
    for _ in range(rounds + 1):
        for threads in THREADS:
            Config.numThreads = threads
            time.sleep(0.25)  # until no thread of the turn before waits by spinning
            gradients()
            optimizer.update()
            updating, count, start = 0.0, 0, clock()
            while clock() - start < seconds or not count:
                gradients()
                before = clock()
                optimizer.update()
                updating += clock() - before
                count += 1
            found[threads].append(((clock() - start) / count * 1e6, updating / count * 1e6))
    # the first round warms up
    return {threads: tuple(map(median, zip(*turns[1:], strict=True))) for threads, turns in found.items()}  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS), help="what computes the gradients")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    given = parser.parse_args(arguments)
    names = [name for name in given.net if name != "PyTorch" or importlib.util.find_spec("torch")]
    rounds, seconds, sizes = (1, 0.01, SIZES[:1]) if given.quick else (ROUNDS, SECONDS, SIZES)
    before, Config.backend = (Config.backend, Config.numThreads), Config.Backend.cpu
    print("microseconds with 1 thread and with 2, medians; a ratio above 1: two threads are faster\n")
    print("| parameters | net | iteration, 1 | 2 | ratio | update, 1 | 2 | rest, 1 | 2 |\n| ---: | --- |" + " ---: |" * 7)
    try:
        for size, name in itertools.product(sizes, names):
            widths = layers(size)
            found = measure(NETS[name](widths), rounds, seconds)
            whole, update = ([found[threads][number] for threads in THREADS] for number in (0, 1))
            rest = [a - b for a, b in zip(whole, update, strict=True)]
            cells = [*(f"{each:,.1f}" for each in whole), f"{whole[0] / whole[1]:.2f}"]
            cells += [f"{each:,.1f}" for each in (*update, *rest)]
            count = sum((a + 1) * b for a, b in itertools.pairwise(widths))
            print(f"| {count:,} | {name} | {' | '.join(cells)} |", flush=True)
    finally:
        Config.backend, Config.numThreads = before
    return 0


if __name__ == "__main__":
    sys.exit(main())
