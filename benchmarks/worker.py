"""One contender in its own process, because thread pools and allocators of frameworks disturb each other."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .check import check
from .contenders import CONTENDERS
from .work import Arrays, LeftOut, Where, Work

DEAD_STEPS = 2100  # with alpha = 0.95 a float32 average reaches the smallest subnormal numbers after about 2,020


def arrays(sizes: list[int], dtype: str) -> tuple[Arrays, Arrays]:
    """Returns random parameters and gradients; a part is repeated, because drawing 50 million numbers takes a second."""
    total = sum(sizes)
    pool = np.random.default_rng(0).standard_normal(min(total, 1 << 20), np.float32).astype(dtype)
    cuts = np.cumsum(sizes)[:-1]
    return np.split(np.resize(pool, total), cuts), np.split(np.resize(pool[::-1], total), cuts)


def timed(work: Work, grads: Arrays | None, seconds: float, most: int) -> float:
    """Returns the mean seconds of a step, over as many steps as fit into the given time, at least one.

    With ``grads``, of zeroing and a step. The gradients are written in between, as backward does, and that is not timed.
    Otherwise the state would decay to subnormal numbers, with which processors are slow.
    """
    clock, step, synchronize = time.perf_counter, work.step, work.synchronize
    count, writing = 0, 0.0
    synchronize()
    start = clock()
    while True:
        # reading the clock takes a noticeable part of the shortest steps
        batch = 1 if grads is not None else max(1, min(count // 4, most - count))
        if grads is not None:
            work.zero()
            synchronize()
            before = clock()
            work.fill(grads)
            synchronize()
            writing += clock() - before
        for _ in itertools.repeat(None, batch):
            step()
        synchronize()
        count += batch
        passed = clock() - start
        if count >= most or passed > seconds:
            return (passed - writing) / count


def called(work: Work) -> float:
    """Returns the seconds of a call on the host while the GPU is idle."""
    seconds = []
    for _ in range(5):
        work.synchronize()
        start = time.perf_counter()
        work.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Orders:
    def __init__(self, name: str) -> None:
        self.contender = CONTENDERS[name]
        self.work: Work | None = None
        self.grads: Arrays | None = None
        self.device = "cpu"

    def check(self, dtype: str, device: str, threads: int) -> float:
        return check(self.contender, dtype, Where(device, threads))

    def make(self, sizes: list[int], dtype: str, zero: bool, device: str, threads: int) -> None:
        """Makes the arrays of a case, and warms up."""
        self.drop()
        self.device = device
        params, grads = arrays(sizes, dtype)
        self.work = self.contender.make(params, grads, Where(device, threads))
        timed(self.work, None, 60, 3)  # compile, and warm up
        if self.contender.dead:
            self.work.fill([np.zeros_like(grad) for grad in grads])
            timed(self.work, None, 60, DEAD_STEPS)
        self.grads = grads if zero else None

    def time(self, seconds: float) -> dict[str, float]:
        """Returns the seconds of a step; on a GPU also of the call on the host."""
        assert self.work is not None
        found = {"seconds": timed(self.work, self.grads, seconds, 10_000)}
        return found | ({"host_seconds": called(self.work)} if self.device == "cuda" else {})

    def drop(self) -> None:
        self.work = self.grads = None
        gc.collect()

    def gpu(self) -> dict[str, Any]:
        """Returns a description of the GPU."""
        import pycuda.autoprimaryctx
        from pycuda import driver

        device = pycuda.autoprimaryctx.device
        capability = ".".join(map(str, device.compute_capability()))
        return {"device_name": device.name(), "compute_capability": capability, "cuda": driver.get_driver_version()}


def serve(connection: Connection, name: str) -> None:
    """Carries out orders until the other end is closed; an answer is a pair of its kind and a result."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # frameworks print
        os.dup2(silence, stream)
    orders = Orders(name)
    while True:
        try:
            do, order = connection.recv()
        except EOFError:
            return
        reply: tuple[str, Any]
        try:
            reply = "answer", getattr(orders, do)(**order)
        except ImportError as error:
            reply = "missing", f"{error.name or error} is not installed"
        except LeftOut as error:
            reply = "missing", str(error)
        except Exception as error:
            orders.drop()
            reply = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        connection.send(reply)
