"""Measures the update and other implementations of it: python -m benchmarks [--device cpu|cuda] [--quick] [--json PATH]

All contenders get the same hyper-parameters, and each is first checked against its formula. Then they are timed in turns,
in several rounds, so that noise of the machine affects all of them. The results are medians.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import cases as the_cases
from . import tables
from .contenders import CONTENDERS, OURS
from .timing import LIMITS, ROOT, Refused, Worker, fresh, measure

PACKAGES = "puzzlelib_rmsprop numpy h5py pycuda torch tensorflow-cpu tensorflow jax optax paddlepaddle"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    """Returns the first line of the output of a command, run in this repository."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "")


def machine(device: str) -> dict[str, Any]:
    """Returns a description of the machine and the software."""
    installed = {each.name.lower(): each.version for each in metadata.distributions()}
    versions = {"python": platform.python_version()}
    versions |= {name: installed[name] for name in PACKAGES.split() if name in installed}
    versions["cc"] = output_of(os.environ.get("CC", "cc"), "--version") or "none"
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "commit": (output_of("git", "rev-parse", "--short", "HEAD") or "unknown")
        + (", changed" if output_of("git", "status", "--porcelain") else ""),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "versions": versions,
    }
    if device == "cuda":
        worker = Worker(OURS)
        try:
            found |= worker.ask("gpu")
        except Refused as reason:
            raise SystemExit(f"there is no GPU to measure on: {reason}") from None
        finally:
            worker.end()
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"
        found["driver"] = f"{driver}, CUDA {found.pop('cuda')}"
    return found


def chosen(words: Sequence[str] | None, device: str) -> list[str]:
    """Returns this library, the limits, and the peers whose names contain one of the words.

    Raises:
        ValueError: if a word is in no name.
    """
    here = [name for name, contender in CONTENDERS.items() if device in contender.devices]
    if words is None:
        return here
    others = [name for name in here if CONTENDERS[name].kind not in ("ours", "limit")]
    for word in words:
        if not any(word.lower() in name.lower() for name in others):
            raise ValueError(f"no peer has {word!r} in its name; the peers are {'; '.join(others)}")
    return [name for name in here if name not in others or any(word.lower() in name.lower() for word in words)]


def checked(
    names: Sequence[str], device: str, cores: int, dtypes: Sequence[str]
) -> tuple[dict[str, Worker], dict[str, str], bool]:
    """Returns the contenders that compute their formula, why others are left out, and whether ours is among these."""
    workers = {name: Worker(name) for name in names}
    left_out: dict[str, str] = {}
    wrong = False
    for dtype in dtypes:
        able = [name for name in workers if dtype in CONTENDERS[name].dtypes]
        # in parallel, because imports take seconds and nothing is timed
        for name in able:
            workers[name].send("check", dtype=dtype, device=device, threads=cores)
        for name in able:
            try:
                error = workers[name].receive(LIMITS["check"])
                print(f"checked: {name}, {dtype}: largest error {error:.0e}", flush=True)
            except Refused as reason:
                print(f"left out: {name}: {reason}", flush=True)
                left_out[name] = str(reason)
                wrong |= CONTENDERS[name].kind in ("ours", "limit") and not reason.missing
                workers.pop(name).end()
    return workers, left_out, wrong


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    add = made.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="device (default: cpu)")
    add("--peers", nargs="*", metavar="NAME", help="words of names: the peers to measure (default: all)")
    suites, help_of = [*the_cases.SUITES, "all"], f"what to measure: {', '.join(the_cases.SUITES)} or all (default)"
    add("--suite", nargs="+", choices=suites, default=["all"], metavar="SUITE", help=f"{help_of}; see docs/benchmarks.md")
    add("--quick", action="store_true", help="small sizes and few rounds, only to show that it runs")
    add("--json", type=Path, metavar="PATH", help="write all figures to this file")
    add("--markdown", type=Path, metavar="PATH", help="write the tables to this file")
    add("--plots", type=Path, metavar="FOLDER", help="draw plots into this folder (needs matplotlib)")
    add("--plot-only", type=Path, metavar="PATH.json", help="measure nothing, only draw plots of this file")
    return made


def run(given: argparse.Namespace, names: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Checks the contenders and measures; returns the figures, and whether this library is wrong."""
    suites = the_cases.SUITES if "all" in given.suite else tuple(given.suite)
    about = machine(given.device) | {"arguments": {"suites": list(suites), "peers": given.peers, "quick": given.quick}}
    print(tables.about_line(about), flush=True)
    planned = the_cases.cases(given.device, suites, given.quick, names)
    dtypes = dict.fromkeys(case.dtype for case in sorted(planned, key=lambda case: case.dtype != "float32"))
    taking_part = [name for name in names if any(name in case.names for case in planned)]
    workers, left_out, wrong = checked(taking_part, given.device, about["cores"], list(dtypes))
    found: dict[str, Any] = {"about": about, "left_out": left_out, "results": []}
    try:
        for case in planned:
            found["results"].append(measure(case, workers, given.device, about["cores"], given.quick))
            keep(found, given)
    finally:
        for worker in workers.values():
            worker.end()
    try:
        if "first" in suites:
            # the first process fills the caches of Python and of the disk, and does not count
            found["first"] = [fresh("first", given.device, given.quick) for _ in range(3 if given.quick else 12)][1:]
        if "memory" in suites:
            found["memory"] = fresh("memory", given.device, given.quick)
    except RuntimeError as reason:  # keep the figures so far
        left_out["first use and memory"] = str(reason)
    keep(found, given)
    return found, wrong


def keep(found: dict[str, Any], given: argparse.Namespace) -> None:
    """Writes the figures so far, because a time limit may end the run."""
    for path, content in ((given.json, json.dumps(found, indent=1) + "\n"), (given.markdown, tables.report(found))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_text(content)
            part.replace(path)


def draw(found: dict[str, Any], folder: Path) -> None:
    from . import plots

    for path in plots.draw(found, folder):
        print(f"written: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser()
    given = options.parse_args(arguments)
    if given.plot_only:
        draw(json.loads(given.plot_only.read_text()), given.plots or given.plot_only.parent)
        return 0
    try:
        names = chosen(given.peers, given.device)
    except ValueError as error:
        options.error(str(error))
    found, wrong = run(given, names)
    print(f"\n{tables.report(found)}", end="")
    if given.plots:
        draw(found, given.plots)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
