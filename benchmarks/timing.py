"""Times contenders in turns, each in its own process."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .contenders import CONTENDERS
from .worker import serve

ROOT = Path(__file__).resolve().parent.parent
# time limits of orders in seconds: importing and compiling takes long, and so does a step on 100,000,000 elements
LIMITS = {"check": 300.0, "make": 90.0, "time": 90.0}


class Refused(Exception):
    """An order failed, with the reason. ``missing``: the contender is not installed."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class Worker:
    """The process of a contender, started at the first order, and again after it was ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: Any = None

    def send(self, do: str, **order: Any) -> None:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, self.name), daemon=True)
            self._process.start()
            theirs.close()
        with contextlib.suppress(OSError):  # receive() reports it
            self._connection.send((do, order))

    def receive(self, limit: float) -> Any:
        """Returns the answer; raises Refused if there is none."""
        try:
            if not self._connection.poll(limit):
                self.end(wait=0)
                raise Refused(f"it took more than {limit:.0f} s")
            kind, found = self._connection.recv()
        except (EOFError, OSError):
            raise Refused(f"its process ended with status {self.end()}") from None
        if kind != "answer":
            raise Refused(found, missing=kind == "missing")
        return found

    def ask(self, do: str, **order: Any) -> Any:
        self.send(do, **order)
        return self.receive(LIMITS.get(do, 60.0))

    def end(self, wait: float = 10) -> int | None:
        """Ends the process, by force after ``wait`` seconds; returns its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        self._connection.close()
        process.join(wait)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode


def fits(case: Case, device: str) -> bool:
    """Returns whether the arrays of all contenders fit into memory at once: param, grad, state and one more each."""
    arrays = sum(3 + CONTENDERS[name].states for name in case.names)
    needed = arrays * sum(case.sizes) * np.dtype(case.dtype).itemsize
    try:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = 16 << 30
    return device == "cuda" or needed < 0.8 * available  # on a GPU each needs a few GB at most


def measure(case: Case, workers: dict[str, Worker], device: str, cores: int, quick: bool) -> dict[str, Any]:
    """Times the contenders of a case in turns; ``seconds`` has one figure per contender and round."""
    print(f"{case.suite}: {case.title}", file=sys.stderr, flush=True)
    names = [name for name in case.names if name in workers]
    found: dict[str, Any] = {**case.about(), "device": device, "seconds": {}, "left_out": {}}
    order = {"sizes": case.sizes, "dtype": case.dtype, "zero": case.zero, "device": device, "threads": cores}
    seconds = 0.005 if quick else 0.2 if sum(case.sizes) > 1e7 else 0.05
    together = fits(case, device)  # otherwise the arrays are made anew for each turn

    def ask(name: str, do: str, **order: Any) -> dict[str, float]:
        try:
            return (name in names and workers[name].ask(do, **order)) or {}
        except Refused as reason:
            names.remove(name)
            for key in ("seconds", "host_seconds"):
                found.get(key, {}).pop(name, None)
            found["left_out"][name] = str(reason)
            return {}

    for name in case.names if together else ():
        ask(name, "make", **order)
    for _ in range(case.rounds):
        for name in case.names:
            if not together:
                ask(name, "make", **order)
            if device == "cpu" and not quick:
                time.sleep(0.25)  # threads of the previous contender may still spin, OpenMP's for 0.2 s
            for key, value in ask(name, "time", seconds=seconds).items():
                found.setdefault(key, {}).setdefault(name, []).append(value)
            if not together:
                ask(name, "drop")
    for name in case.names:
        ask(name, "drop")
    return found


def fresh(what: str, device: str, quick: bool) -> dict[str, Any]:
    """Returns the figures of fresh.py in a new process; raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "benchmarks.fresh", what, device, *(["quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-300:])
    return json.loads(done.stdout)
