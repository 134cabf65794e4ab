"""The CPU update beside what else computes it, in one run: python -m benchmarks [--quick] [--json PATH]

Every contender is set to the same hyper-parameters and first checked to compute its own formula's step. Then all are
timed in turns, round after round, and the medians compared, so that a noisy machine is noisy for everybody.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata

from . import contenders

# (what it is called, sizes of the variables)
CASES = {
    "one variable of 50,000,000": [50_000_000],
    "one variable of 1,000,000": [1_000_000],
    "one variable of 10,768": [10_768],
    # 10,010 parameters
    "a net of 6 variables": [64 * 100, 100, 100 * 30, 30, 30 * 15, 30],
    "1,000 variables of 1,000": [1_000] * 1000,
}


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Worker:
    """A contender's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **order) -> object:
        """Has an order carried out. Raises RuntimeError with the reason where it was not."""
        self._process.stdin.write(json.dumps(order | {"name": self.name}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "missing" in reply:
            raise RuntimeError(f"{reply['missing']} is not installed")
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply["answer"]

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(case: str, sizes: list[int], workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Contender -> seconds per step, one figure a round."""
    big = sum(sizes) > 1e7
    for worker in workers:
        worker.ask(do="make", sizes=sizes)
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        print(f"\r  {case}: round {number + 1}/{rounds} ", end="", file=sys.stderr, flush=True)
        for worker in workers:
            # the one before may have threads that wait for work by spinning, OpenMP's for 0.2 seconds
            time.sleep(0.25)
            times[worker.name].append(worker.ask(do="time", seconds=0.2 if big else 0.05, most=2 if big else 10_000))
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return times


def table(case: str, times: dict[str, list[float]], ours: str) -> list[str]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = [f"| {case} | median, us | quartiles | beside {ours} |", "| --- | ---: | ---: | ---: |"]
    for name in sorted(medians, key=medians.__getitem__):
        low, _, high = statistics.quantiles(times[name], n=4)
        ratio = medians[name] / medians[ours]
        lines.append(f"| {name} | {medians[name] * 1e6:,.1f} | {low * 1e6:,.1f} - {high * 1e6:,.1f} | {ratio:.2f} |")
    return lines


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("puzzlelib_rmsprop", "numpy", "numba", "torch", "tensorflow-cpu", "jax", "optax", "paddlepaddle"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no 50,000,000: a minute")
    parser.add_argument("--json", metavar="PATH", help="write every figure there")
    known = list(contenders.CONTENDERS)
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME", help="; ".join(known))
    args = parser.parse_args()
    # the table's ratios are to ours, and the last line's to the copy
    names = [name for name in known if name in {*args.only, contenders.OURS, "copy"}]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
    print(f"{about['cpu']}, {about['cores']} cores; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}")
    workers = []
    for name in names:
        worker = Worker(name)
        try:
            error = worker.ask(do="check")
        except RuntimeError as reason:
            print(f"left out: {name}: {reason}")
            worker.end()
            continue
        if error is not None:
            print(f"checked: {name}: within {error:.1e} of its formula in float64 after five steps")
        workers.append(worker)
    results = {}
    for case, sizes in CASES.items():
        if args.quick and sum(sizes) > 1e7:
            continue
        times = measure(case, sizes, workers, rounds=3 if args.quick else 11)
        results[case] = {"elements": sum(sizes), "variables": len(sizes), "seconds": times}
        print("\n" + "\n".join(table(case, times, contenders.OURS)))
        copied = 8 * sum(sizes) / statistics.median(times["copy"])
        moved = 36 * sum(sizes) / statistics.median(times[contenders.OURS])
        print(f"\nbytes moved a second: {moved / 1e9:.1f} GB/s, {moved / copied:.2f} of the copy's")
    for worker in workers:
        worker.end()
    if args.json:
        os.makedirs(os.path.dirname(args.json) or ".", exist_ok=True)
        with open(args.json, "w") as file:
            json.dump({"about": about, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
