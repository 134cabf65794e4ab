"""Times contenders in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .contenders import CONTENDERS

ROOT = Path(__file__).resolve().parent.parent
# seconds that an order may take: a framework's import and its compiler; a step on 100,000,000 elements
LIMITS = {"check": 300.0, "make": 90.0, "time": 90.0}


def child(*command: str, **options: Any) -> subprocess.Popen:
    """A Python process that finds this folder and the package beside it."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=env, **options)


class Refused(Exception):
    """An order that was not carried out, with the reason. ``missing``: the contender is not here at all."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class Worker:
    """A contender's process; started when it is first asked, and again when it had to be ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen | None = None

    def send(self, do: str, **order: Any) -> None:
        if self._process is None:
            self._process = child("-m", "benchmarks.worker", self.name, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps({"do": do} | order) + "\n")
            self._process.stdin.flush()

    def receive(self, limit: float) -> Any:
        """The answer. Raises Refused where there is none."""
        process = self._process
        # each answer is one line, so nothing of a next one waits in the file's own buffer
        if not select.select([process.stdout], [], [], limit)[0]:
            self.kill()
            raise Refused(f"it took more than {limit:.0f} s")
        line = process.stdout.readline()
        if not line:
            self.kill()
            raise Refused(f"its process ended with status {process.returncode}")
        reply = json.loads(line)
        if "left_out" in reply:
            raise Refused(reply["left_out"], missing=True)
        if "failed" in reply:
            raise Refused(reply["failed"])
        return reply["answer"]

    def ask(self, do: str, **order: Any) -> Any:
        self.send(do, **order)
        return self.receive(LIMITS.get(do, 60.0))

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            else:
                self._process.stdout.close()
                self._process = None


class Progress:
    """A bar on stderr, or, where that is no terminal, a line for each thing begun."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self._last = ""

    def show(self, what: str, detail: str = "") -> None:
        share = min(1.0, self.done / max(1, self.total))
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        if sys.stderr.isatty():
            bar = f"[{'#' * int(20 * share):20}] {share:4.0%} {minutes}:{seconds:02} {what}{detail and ', ' + detail}"
            print(f"\r\033[K{bar[:100]}", end="", file=sys.stderr, flush=True)
        elif what != self._last:
            print(f"{share:4.0%} {minutes}:{seconds:02} {what}", file=sys.stderr, flush=True)
        self._last = what

    def advance(self, count: int = 1) -> None:
        self.done += count

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def fits(case: Case, device: str) -> bool:
    """Whether all contenders' arrays fit into memory at once: param, grad and state of each, and about one more."""
    if device == "cuda":
        return True  # each has a few GB at most, and such a GPU dozens
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:
            pages = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (ValueError, OSError):
        return sum(case.sizes) <= 50_000_000
    arrays = sum(3 + CONTENDERS[name].states for name in case.names)
    return arrays * sum(case.sizes) * np.dtype(case.dtype).itemsize < 0.8 * pages


def measure(
    case: Case, workers: dict[str, Worker], device: str, cores: int, quick: bool, progress: Progress
) -> dict[str, Any]:
    """A case's figures: contender -> seconds of a step, one figure a round, taken in turns."""
    left_out = {
        name: f"setting it up for more than {CONTENDERS[name].most_variables:,} variables takes minutes"
        for name in case.names
        if name in workers and len(case.sizes) > (CONTENDERS[name].most_variables or len(case.sizes))
    }
    names = [name for name in case.names if name in workers and name not in left_out]
    together = fits(case, device)
    large = sum(case.sizes) > 1e7
    order = {"sizes": case.sizes, "dtype": case.dtype, "zero": case.zero, "device": device, "threads": case.threads or cores}
    # where the arrays come and go with each turn, one step has to warm them up
    order |= {"warm": 3 if together else 1}
    effort = (0.005 if quick else 0.02, 50) if device == "cuda" else (0.2, 2) if large else (0.02 if quick else 0.05, 10_000)
    found: dict[str, Any] = {**case.about(), "device": device, "seconds": {}, "left_out": left_out}
    title = f"{case.suite}: {case.title}"

    def give_up(name: str, reason: Refused) -> None:
        names.remove(name)
        for key in ("seconds", "host_seconds", "launches"):
            found.get(key, {}).pop(name, None)
        found["left_out"][name] = str(reason)

    def make(name: str) -> None:
        launches = workers[name].ask("make", **order)
        if launches is not None:
            found.setdefault("launches", {})[name] = launches

    for name in list(names) if together else []:
        progress.show(title, f"setting up {name}")
        try:
            make(name)
        except Refused as reason:
            give_up(name, reason)
    spinning = True
    for number in range(case.rounds):
        for name in list(names):
            progress.show(title, f"round {number + 1} of {case.rounds}, {name}")
            progress.advance()
            try:
                if not together:
                    make(name)
                if spinning and device == "cpu":
                    # the one before may have threads that wait for work by spinning, OpenMP's for 0.2 seconds
                    time.sleep(0.25)
                for key, value in workers[name].ask("time", seconds=effort[0], most=effort[1]).items():
                    found.setdefault(key, {}).setdefault(name, []).append(value)
                if not together:
                    workers[name].ask("drop")
            except Refused as reason:
                give_up(name, reason)
            spinning = CONTENDERS[name].spins
    for name in list(names):
        with contextlib.suppress(Refused):  # its process has ended: nothing is left to drop
            workers[name].ask("drop")
    return found
