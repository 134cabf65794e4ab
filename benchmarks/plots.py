"""The figures as pictures. Colours are Okabe and Ito's, which most people with colour blindness tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .contenders import (
    ADAGRAD,
    ADAM,
    BFLOAT16,
    C_LOOP,
    CALL,
    COMPILE,
    CONTENDERS,
    COPY,
    COPY_THREADS,
    CUPY,
    DEAD,
    FOREACH,
    FOREIGN,
    FOREIGN_LOCAL,
    FUSED,
    LOCAL,
    MASTER,
    ONE_THREAD,
    OURS,
    SGD,
)
from .tables import quartiles
from .targets import Results, bandwidth, median

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY, YELLOW = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#808080", "#c8b900"),
)  # fmt: skip
# colour, marker: the same in every picture
STYLES = {
    OURS: (BLUE, "o"),
    LOCAL: (SKY, "o"),
    ONE_THREAD: (SKY, "s"),
    FOREIGN: (BLUE, ">"),
    FOREIGN_LOCAL: (SKY, ">"),
    CALL: (SKY, "."),
    BFLOAT16: (BLUE, "D"),
    MASTER: (BLUE, "P"),
    FUSED: (BLUE, "X"),
    "NumPy": (GREY, "x"),
    C_LOOP: (BLACK, "v"),
    "PyTorch loop": (VERMILION, "<"),
    FOREACH: (VERMILION, "^"),
    COMPILE: (VERMILION, "*"),
    "TensorFlow": (ORANGE, "D"),
    "Optax, jit": (GREEN, "s"),
    "Paddle": (PURPLE, "p"),
    CUPY: (GREEN, "h"),
    ADAM: (YELLOW, "D"),
    SGD: (YELLOW, "s"),
    ADAGRAD: (YELLOW, "^"),
    COPY: (GREY, None),
    COPY_THREADS: (GREY, None),
}
STYLES |= {dead: STYLES[name] for name, dead in DEAD.items()}
# those of a colour
DASHES = {
    ADAM: ":",
    SGD: ":",
    ADAGRAD: ":",
    COPY: "--",
    COPY_THREADS: ":",
    ONE_THREAD: "--",
    "PyTorch loop": "--",
    COMPILE: "-.",
}
PLAIN = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 130}


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what there are figures of; the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with pyplot.rc_context(PLAIN):
        for name, figure in _figures(pyplot, found):
            figure.text(0.995, 0.005, _where(found["about"]), ha="right", va="bottom", fontsize=7, color="#606060")
            path = folder / f"{(found['about'].get('device_name') and 'gpu-') or 'cpu-'}{name}.png"
            figure.savefig(path)
            pyplot.close(figure)
            written.append(path)
    return written


def _where(about: dict[str, Any]) -> str:
    place = about.get("device_name") or f"{about['cpu']}, {about['cores']} cores"
    return f"{place}; {about['date']}, commit {about['commit']}; medians, bars from quartile to quartile"


def _figures(pyplot: Any, found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    by_suite: dict[str, Results] = {}
    for case in found["results"]:
        by_suite.setdefault(case["suite"], []).append(case)
    if "size" in by_suite:
        yield "bandwidth", _bandwidth(pyplot, by_suite["size"])
    if "count" in by_suite:
        yield "variables", _variables(pyplot, by_suite["count"])
    for suite in ("main", "dead"):
        if suite in by_suite:
            yield suite, _bars(pyplot, by_suite[suite])


def _names(cases: Results) -> list[str]:
    return [name for name in CONTENDERS if any(name in case["seconds"] for case in cases)]


def _lines(axes: Any, cases: Results, key: str, value: Any) -> None:
    """A line for each contender; ``value(case, name, seconds)`` is what it goes through."""
    for name in _names(cases):
        colour, marker = STYLES[name]
        limit = CONTENDERS[name].kind == "limit"
        points = [case for case in cases if name in case["seconds"]]
        x = [case[key] for case in points]
        spread = [[value(case, name, each) for each in quartiles(case["seconds"][name])] for case in points]
        y = [row[1] for row in spread]
        errors = [[abs(y - min(row)) for y, row in zip(y, spread, strict=True)]]
        errors.append([abs(max(row) - y) for y, row in zip(y, spread, strict=True)])
        axes.errorbar(
            x,
            y,
            errors,
            label=f"{name}" + (", the limit" if limit else ""),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=DASHES.get(name, "-"),
            linewidth=2.6 if name == OURS else 2 if limit else 1.3,
            elinewidth=0.8,
            zorder=4 if name == OURS else 3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Any) -> None:
    """Beside the lines, in the order of their ends."""
    handles, labels = axes.get_legend_handles_labels()
    ends = [handle[0].get_ydata()[-1] for handle in handles]
    order = sorted(range(len(ends)), key=lambda number: -ends[number])
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
    )


def _bandwidth(pyplot: Any, cases: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(11, 5.6), layout="constrained")
    _lines(axes, cases, "elements", lambda case, name, each: bandwidth({**case, "seconds": {name: [each]}}, name) / 1e9)
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("elements in one variable, float32")
    axes.set_ylabel("bytes that the step has to move, a second: GB/s")
    axes.set_title("Bandwidth of an update: up is better", loc="left")
    _legend(axes)
    _room(figure)
    return figure


def _variables(pyplot: Any, cases: Results) -> Any:
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(11, 5.6), layout="constrained")
    _lines(axes, cases, "variables", lambda case, name, each: each * 1e3)
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.set_xlabel(f"variables, of {cases[0]['elements']:,} elements together")
    axes.set_ylabel("milliseconds an update")
    axes.set_title("Time of an update by the number of variables: down is better", loc="left")
    _legend(axes)
    _room(figure)
    return figure


def _room(figure: Any) -> None:
    """For the line at the foot."""
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))


def _bars(pyplot: Any, cases: Results) -> Any:
    columns = 2
    rows = -(-len(cases) // columns)
    most = max(len(case["seconds"]) for case in cases)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(13, max(3, rows * (0.27 * most + 0.9))), layout="constrained", squeeze=False
    )
    for axes, case in zip(grid.flat, cases, strict=False):
        names = sorted(case["seconds"], key=lambda name: median(case, name), reverse=True)
        values = [median(case, name) * 1e6 for name in names]
        spread = [[each * 1e6 for each in quartiles(case["seconds"][name])] for name in names]
        errors = [[row[1] - row[0] for row in spread], [row[2] - row[1] for row in spread]]
        colours = [STYLES[name][0] for name in names]
        hatches = ["//" if CONTENDERS[name].kind == "limit" else "" for name in names]
        axes.barh(
            names, values, xerr=errors, color=colours, hatch=hatches, height=0.72,
            edgecolor="white", error_kw={"elinewidth": 1, "ecolor": "#404040"},
        )  # fmt: skip
        ours = median(case, OURS) * 1e6 if OURS in case["seconds"] else None
        for number, (value, row) in enumerate(zip(values, spread, strict=True)):
            told = f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
            told += f"  ({value / ours:.2g} times ours)" if ours and names[number] != OURS and value / ours < 100 else ""
            axes.text(row[2] * 1.08, number, told, va="center", fontsize=8)
        axes.set_xscale("log")
        # room for the words behind the longest bar
        low, high = min(values) / 2, max(row[2] for row in spread)
        axes.set_xlim(low, high * (high / low) ** 0.6)
        axes.set_title(case["title"], loc="left", fontsize=10)
        axes.set_xlabel("microseconds, log scale", fontsize=8)
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().startswith(OURS.partition(",")[0]) else "normal")
            label.set_fontsize(8)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    figure.suptitle(f"Time of a step: shorter is better (ours: {OURS})", x=0.01, ha="left")
    _room(figure)
    return figure
