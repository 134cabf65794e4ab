"""One contender in a process of its own: reads a line of JSON, does it, answers with one.

Frameworks do not share a process well: their thread pools, allocators and protobuf versions meet.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .check import check
from .contenders import CONTENDERS
from .work import Arrays, LeftOut, Where, Work

DEAD_STEPS = 2100  # with alpha = 0.95 an average gets to the last subnormal numbers of float32 in some 2,020
MLP, DEAD_SHARE = (64, 512, 512, 10), 0.08  # of the hidden units


def _nothing() -> None:
    pass


def arrays(sizes: list[int], dtype: str) -> tuple[Arrays, Arrays]:
    """Parameters and gradients. Random, and not zeros; a part repeated, because drawing 50 million takes a second."""
    total = sum(sizes)
    pool = np.random.default_rng(0).standard_normal(min(total, 1 << 20), np.float32).astype(dtype)
    cuts = np.cumsum(sizes)[:-1]
    return np.split(np.resize(pool, total), cuts), np.split(np.resize(pool[::-1], total), cuts)


def mlp_sizes() -> list[int]:
    """Of the weights and biases of the net of MLP."""
    return [size for a, b in itertools.pairwise(MLP) for size in (a * b, b)]


def dying(grads: Arrays) -> Arrays:
    """The gradients when units have died: 0 where a weight goes into or out of one; in any other net 0 everywhere."""
    if [grad.size for grad in grads] != mlp_sizes():
        return [np.zeros_like(grad) for grad in grads]
    rng = np.random.default_rng(0)
    living = [np.ones(size, bool) for size in MLP]
    for units in living[1:-1]:
        units[rng.permutation(units.size)[: round(DEAD_SHARE * units.size)]] = False
    masks = [mask for a, b in itertools.pairwise(living) for mask in (np.outer(a, b).ravel(), b)]
    return [np.where(mask, grad, np.float32(0)) for mask, grad in zip(masks, grads, strict=True)]


def on_cpu(work: Work, grads: Arrays | None, seconds: float, most: int) -> dict[str, float]:
    """Mean seconds of a step, over as many as fit in the time given, at least one.

    With ``grads``: of zeroing and a step, the gradients being written in between, as a net's backward does, outside of
    the time; or the state would die away, and the processor compute with subnormal numbers.
    """
    clock, step, zero = time.perf_counter, work.step, work.zero or _nothing
    count, spent, start = 0, 0.0, clock()
    while True:
        # looking at the clock takes a part of the shortest step's time
        batch = 1 if grads is not None else max(1, min(count // 4, most - count))
        if grads is None:
            for _ in itertools.repeat(None, batch):
                step()
        else:
            a = clock()
            zero()
            b = clock()
            work.fill(grads)
            c = clock()
            step()
            spent += clock() - c + b - a
        count += batch
        passed = clock() - start
        if count >= most or passed > seconds:
            return {"seconds": (passed if grads is None else spent) / count}


def on_gpu(work: Work, zeroed: bool, seconds: float, most: int) -> dict[str, float]:
    """Seconds of a step on the device, over several in a row; and of the call on the host, the queue being empty before."""
    clock = work.clock
    assert clock is not None
    zero = work.zero if zeroed and work.zero is not None else _nothing

    def both() -> None:
        zero()
        work.step()

    run: Callable[[], Any] = both if zeroed else work.step

    def several(count: int) -> float:
        clock.synchronize()
        first = clock.event()
        for _ in range(count):
            run()
        return clock.seconds(first, clock.event()) / count

    host = []
    for _ in range(5):
        clock.synchronize()
        start = time.perf_counter()
        run()
        host.append(time.perf_counter() - start)
    count = max(1, min(most, int(seconds / max(several(1), 1e-6))))
    return {"seconds": several(count), "host_seconds": statistics.median(host)}


def launches(work: Work) -> int:
    """Kernels that PyCUDA launches in a step."""
    from pycuda import driver

    count = 0
    original = driver.Function._launch_kernel

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *arguments)

    driver.Function._launch_kernel = counted
    try:
        work.step()
    finally:
        driver.Function._launch_kernel = original
    return count


def gpu() -> dict[str, Any]:
    """What the GPU is."""
    import pycuda.autoprimaryctx
    from pycuda import driver

    device = pycuda.autoprimaryctx.device
    return {
        "device": device.name(),
        "compute_capability": ".".join(map(str, device.compute_capability())),
        "memory_bytes": device.total_memory(),
        "driver_cuda": driver.get_driver_version(),
    }


class Contender:
    """Carries out orders."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.work: Work | None = None
        self.grads: Arrays | None = None
        self.device = "cpu"

    def check(self, dtype: str, device: str, threads: int) -> float:
        return check(CONTENDERS[self.name], dtype, Where(device, threads))

    def make(self, sizes: list[int], dtype: str, zero: bool, device: str, threads: int, warm: int) -> int | None:
        """Sets up a case; the number of kernels that a step launches, where that is known."""
        self.drop()
        self.device = device
        params, grads = arrays(sizes, dtype)
        contender = CONTENDERS[self.name]
        self.work = contender.make(params, grads, Where(device, threads))
        for _ in range(warm):  # compile, and warm up
            self.work.step()
        if contender.dead:
            self.work.fill(dying(grads))
            for _ in range(DEAD_STEPS):
                self.work.step()
        self.grads = grads if zero else None
        del params, grads
        if device == "cuda":
            self.work.clock.synchronize()
            if contender.kind == "ours":
                return launches(self.work)
        return None

    def time(self, seconds: float, most: int) -> dict[str, float]:
        if self.device == "cuda":
            return on_gpu(self.work, self.grads is not None, seconds, most)
        return on_cpu(self.work, self.grads, seconds, most)

    def drop(self) -> None:
        self.work = self.grads = None
        gc.collect()

    gpu = staticmethod(gpu)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not an answer
    contender = Contender(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = {"answer": getattr(contender, order.pop("do"))(**order)}
        except ImportError as error:
            reply = {"left_out": f"{error.name or error} is not installed"}
        except LeftOut as error:
            reply = {"left_out": str(error)}
        except Exception as error:
            contender.drop()
            reply = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
