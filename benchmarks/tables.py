"""The figures as tables in Markdown."""

from __future__ import annotations

import math
import statistics
from typing import Any

from .contenders import CONTENDERS, COPY, COPY_THREADS, OURS
from .targets import Results, Target, bandwidth, median


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower one, the median and the upper one."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    middle = statistics.median(values)
    return min(low, middle), middle, max(high, middle)


def _times(values: list[float]) -> tuple[str, str]:
    low, middle, high = (seconds * 1e6 for seconds in quartiles(values))
    digits = 2 if middle < 10 else 1
    return f"{middle:,.{digits}f}", f"{low:,.{digits}f} - {high:,.{digits}f}"


def case_table(case: dict[str, Any]) -> list[str]:
    """One case: each contender's median and quartiles, beside ours, and the bandwidth it uses."""
    names = sorted(case["seconds"], key=lambda name: median(case, name))
    gpu, ours = "host_seconds" in case, median(case, OURS) if OURS in names else math.nan
    limit = max((bandwidth(case, name) for name in names if name in (COPY, COPY_THREADS)), default=math.nan)
    heads = [case["title"], "median, us", "quartiles", "times ours"]
    if not case["zero"]:
        heads += ["GB/s", "of the copy's"]
    if gpu:
        heads += ["host, us: median", "quartiles", "launches"]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name in names:
        cells = [name, *_times(case["seconds"][name]), f"{median(case, name) / ours:.2f}"]
        if not case["zero"]:
            rate = bandwidth(case, name)
            cells += [f"{rate / 1e9:,.1f}", f"{rate / limit:.2f}"]
        if gpu:
            cells += [*_times(case["host_seconds"][name]), str(case.get("launches", {}).get(name, ""))]
        lines.append(f"| {' | '.join(cells).replace('nan', '')} |")
    return lines


def sweep_table(cases: Results, head: str, key: str) -> list[str]:
    """Several cases: each contender's median in each, and times ours."""
    names = [name for name in CONTENDERS if any(name in case["seconds"] for case in cases)]
    lines = [
        f"| {head}: median, us (times ours) | {' | '.join(f'{case[key]:,}' for case in cases)} |",
        f"| --- |{' ---: |' * len(cases)}",
    ]
    for name in names:
        cells = []
        for case in cases:
            if name not in case["seconds"]:
                cells.append("")
                continue
            ratio = f" ({median(case, name) / median(case, OURS):.2f})" if OURS in case["seconds"] else ""
            cells.append(f"{median(case, name) * 1e6:,.1f}{ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def rate_table(cases: Results, head: str, key: str) -> list[str]:
    """Several cases: the bandwidth that each contender uses, by the bytes that its step has to move."""
    names = [name for name in CONTENDERS if any(name in case["seconds"] for case in cases)]
    lines = [
        f"| {head}: GB/s | bytes an element | {' | '.join(f'{case[key]:,}' for case in cases)} |",
        f"| --- |{' ---: |' * (len(cases) + 1)}",
    ]
    for name in names:
        cells = [f"{bandwidth(case, name) / 1e9:,.1f}" if name in case["seconds"] else "" for case in cases]
        lines.append(f"| {name} | {CONTENDERS[name].bytes_moved(cases[0]['dtype'])} | {' | '.join(cells)} |")
    return lines


def first_table(first: list[dict[str, float]]) -> list[str]:
    heads = {
        "since_start": "from the interpreter's start to after the first update",
        "numpy_and_h5py": "import NumPy and h5py",
        "import": "import puzzlelib_rmsprop, on top",
        "setupOn": "setupOn",
        "first_update": "first update",
    }
    lines = ["| first use, ms | median | quartiles |", "| --- | ---: | ---: |"]
    for key, head in heads.items():
        low, middle, high = (f"{1e3 * seconds:,.1f}" for seconds in quartiles([use[key] for use in first]))
        lines.append(f"| {head} | {middle} | {low} - {high} |")
    return lines


def memory_tables(memory: dict[str, Any]) -> list[str]:
    lines = []
    for part, found in memory.items():
        rows = found if isinstance(next(iter(found.values())), dict) else {"bytes": found}
        heads = list(next(iter(rows.values())))
        lines += [f"| {part} | {' | '.join(head.replace('_', ' ') for head in heads)} |", f"| --- |{' ---: |' * len(heads)}"]
        lines += [f"| {name} | {' | '.join(f'{row[head]:,}' for head in heads)} |" for name, row in rows.items()]
        lines.append("")
    return lines[:-1]


def target_table(targets: list[Target]) -> list[str]:
    lines = ["| target | wanted | measured | |", "| --- | --- | --- | --- |"]
    verdicts = {True: "met", False: "**not met**", None: ""}
    return lines + [f"| {each.target} | {each.wanted} | {each.measured} | {verdicts[each.met]} |" for each in targets]


def report(found: dict[str, Any]) -> str:
    """Everything."""
    about, results = found["about"], found["results"]
    lines = [f"# {about.get('device_name') or about['cpu']}, {about['date']}", "", about_line(about), ""]
    sweeps = {"size": ("elements in one variable", "elements"), "count": ("variables", "variables")}
    for suite in dict.fromkeys(case["suite"] for case in results):
        cases = [case for case in results if case["suite"] == suite]
        lines += [f"## {suite}", ""]
        if suite in sweeps:
            head, key = sweeps[suite]
            what = head if suite == "size" else f"{cases[0]['elements']:,} elements in so many {head}"
            lines += [*sweep_table(cases, what, key), ""]
            if suite == "size":
                lines += [*rate_table(cases, what, key), ""]
        else:
            for case in cases:
                lines += [*case_table(case), ""]
        lines += [
            f"- left out of {case['title']}: {name}: {reason}" for case in cases for name, reason in case["left_out"].items()
        ]
        if any(case["left_out"] for case in cases):
            lines.append("")
    if found.get("first"):
        lines += ["## first", "", *first_table(found["first"]), ""]
    if found.get("memory"):
        lines += ["## memory", "", *memory_tables(found["memory"]), ""]
    lines += ["## targets", "", *target_table([Target(**each) for each in found["targets"]]), ""]
    lines += [f"left out: {name}: {reason}" for name, reason in found["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def about_line(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    driver = f"driver {about['driver']}; " if "driver" in about else ""
    return f"{about['cpu']}, {about['cores']} cores; {driver}{versions}; commit {about['commit']}"
