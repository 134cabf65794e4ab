"""Tables of the results in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .contenders import CONTENDERS, COPY, OURS

Case = dict[str, Any]
Results = list[Case]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    middle = statistics.median(values)
    return min(low, middle), middle, max(high, middle)


def median(case: Case, name: str) -> float:
    return statistics.median(case["seconds"][name])


def rate(case: Case, name: str, seconds: float) -> float:
    """Returns GB/s, from the bytes that a step reads and writes."""
    return CONTENDERS[name].bytes_moved(case["dtype"]) * case["elements"] / seconds / 1e9


def names_in(cases: Results) -> list[str]:
    """Returns the contenders that were timed and that this version has."""
    return [name for name in CONTENDERS if any(name in case["seconds"] for case in cases)]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def micro(values: list[float]) -> list[str]:
    """Returns median and quartiles in microseconds."""
    low, middle, high = (seconds * 1e6 for seconds in quartiles(values))
    digits = 2 if middle < 10 else 1
    return [f"{middle:,.{digits}f}", f"{low:,.{digits}f} - {high:,.{digits}f}"]


def case_table(case: Case) -> list[str]:
    """Returns the table of one case: medians and quartiles, multiples of one contender's median, bandwidth."""
    beside = case.get("beside", OURS)
    ours = beside in CONTENDERS and CONTENDERS[beside].kind == "ours"
    moved, gpu = case["elements"] >= 1000 and not case["zero"] and ours, "host_seconds" in case
    heads = [case["title"], "median, us", "quartiles", "times ours" if ours else f"times the {beside}"]
    heads += ["GB/s", "of the copy's"] if moved else []
    heads += ["host, us: median", "quartiles"] if gpu else []
    base = median(case, beside) if beside in case["seconds"] else None
    copied = rate(case, COPY, median(case, COPY)) if COPY in case["seconds"] else None
    rows = []
    for name in sorted(names_in([case]), key=lambda name: median(case, name)):
        seconds = median(case, name)
        cells = [name, *micro(case["seconds"][name]), f"{seconds / base:.2f}" if base else ""]
        if moved:
            used = rate(case, name, seconds)
            cells += [f"{used:,.1f}", f"{used / copied:.2f}" if copied else ""]
        rows.append(cells + (micro(case["host_seconds"][name]) if gpu else []))
    return table(heads, rows)


def sweep_table(cases: Results, head: str, cell: Callable[[Case, str], str]) -> list[str]:
    """Returns the table of cases with several sizes, with a row for each contender."""
    rows = [[name, *(cell(case, name) if name in case["seconds"] else "" for case in cases)] for name in names_in(cases)]
    return table([head, *(f"{case['elements']:,}" for case in cases)], rows)


def peers_table(results: Results) -> list[str]:
    """Returns a table of this library and the fastest other implementation in each case."""
    rows = []
    for case in results:
        peers = [name for name in names_in([case]) if CONTENDERS[name].kind == "peer" and not CONTENDERS[name].dead]
        if OURS in case["seconds"] and peers:
            best = min(peers, key=lambda name: median(case, name))
            ours, others = median(case, OURS), median(case, best)
            cells = [micro(case["seconds"][OURS])[0], best, micro(case["seconds"][best])[0], f"{others / ours:.2f}"]
            rows.append([f"{case['suite']}: {case['title']}", *cells])
    return table(["ours and the fastest peer", "ours, us", "peer", "us", "times ours"], rows) if rows else []


def first_table(first: list[dict[str, float]]) -> list[str]:
    spread = {what: [f"{1e3 * each:,.1f}" for each in quartiles([use[what] for use in first])] for what in first[0]}
    return table(["first use, ms", "median", "quartiles"], [[k, v[1], f"{v[0]} - {v[2]}"] for k, v in spread.items()])


def memory_table(memory: dict[str, dict[str, int]]) -> list[str]:
    heads = ["memory, bytes", *next(iter(memory.values()))]
    return table(heads, [[name, *(f"{value:,}" for value in row.values())] for name, row in memory.items()])


def report(found: dict[str, Any]) -> str:
    """Returns all tables."""
    about, results = found["about"], found["results"]
    lines = [f"# {about.get('device_name') or about['cpu']}, {about['date']}", "", about_line(about), ""]
    lines += peers_table(results)
    for suite in dict.fromkeys(case["suite"] for case in results):
        cases = [case for case in results if case["suite"] == suite]
        lines += [f"## {suite}", ""]
        if suite == "size":
            lines += sweep_table(cases, "elements: median, us", lambda case, name: micro(case["seconds"][name])[0])
            lines += sweep_table(cases, "elements: GB/s", lambda case, name: f"{rate(case, name, median(case, name)):,.1f}")
        else:
            lines += [line for case in cases for line in case_table(case)]
        gone = [f"- left out of {case['title']}: {name}: {why}" for case in cases for name, why in case["left_out"].items()]
        lines += [*gone, ""] if gone else []
    lines += ["## first", "", *first_table(found["first"])] if found.get("first") else []
    lines += ["## memory", "", *memory_table(found["memory"])] if found.get("memory") else []
    lines += [f"left out: {name}: {reason}" for name, reason in found["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def about_line(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    driver = f"driver {about['driver']}; " if "driver" in about else ""
    return f"{about['cpu']}, {about['cores']} cores; {driver}{versions}; commit {about['commit']}"
