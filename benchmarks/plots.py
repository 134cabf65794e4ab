"""Plots of the results. The colours are Okabe and Ito's, which most colour-blind people can distinguish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contenders import CONTENDERS, OURS
from .tables import Case, Results, median, names_in, quartiles, rate

# by the beginning of the name; contenders of one colour differ in marker and line
COLOURS = {
    "puzzlelib": "#0072b2", "PuzzleLib": "#000000", "PyTorch": "#d55e00", "TensorFlow": "#e69f00", "Optax": "#009e73",
    "Paddle": "#cc79a7", "copy": "#808080", "bare": "#f0e442",
}  # fmt: skip
MARKERS, LINES = "osD^vP*X<>ph", ("-", "--", ":", "-.")


def style(name: str) -> tuple[str, str, str]:
    """Returns colour, marker and line style of a contender, the same in all plots."""
    start = next(start for start in COLOURS if name.startswith(start))
    number = [each for each in CONTENDERS if each.startswith(start)].index(name)
    return COLOURS[start], MARKERS[number % len(MARKERS)], LINES[number % len(LINES)]


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draws all plots that there are figures for; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    about, written = found["about"], []
    place = about.get("device_name") or f"{about['cpu']}, {about['cores']} cores"
    where = f"{place}; {about['date']}, commit {about['commit']}; medians, bars from quartile to quartile"
    plain = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 130}
    with pyplot.rc_context(plain):
        for suite, name, drawn in (
            ("size", "bandwidth", bandwidth),
            *((each, each, bars) for each in ("main", "dead", "look")),
        ):
            cases = [case for case in found["results"] if case["suite"] == suite]
            if not cases:
                continue
            figure = drawn(pyplot, cases)
            figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))  # room for the line at the foot
            figure.text(0.995, 0.005, where, ha="right", va="bottom", fontsize=7, color="#606060")
            written.append(folder / f"{'gpu' if 'device_name' in about else 'cpu'}-{name}.png")
            figure.savefig(written[-1])
            pyplot.close(figure)
    return written


def bandwidth(pyplot: Any, cases: Results) -> Any:
    """Lines over the number of elements; large letters, for narrow screens."""
    pyplot.rcParams["font.size"] = 15  # draw() restores it
    figure, axes = pyplot.subplots(figsize=(8, 7.6), layout="constrained")
    ends = {}
    for name in names_in(cases):
        colour, marker, line = style(name)
        points = [case for case in cases if name in case["seconds"]]
        spread = [quartiles(case["seconds"][name]) for case in points]
        low, y, high = zip(
            *([rate(case, name, each) for each in reversed(row)] for case, row in zip(points, spread, strict=True)),
            strict=True,
        )
        errors = [[b - a for a, b in zip(*pair, strict=True)] for pair in ((low, y), (y, high))]
        ends[name] = y[-1], axes.errorbar(
            [case["elements"] for case in points], y, errors, label=name, color=colour, marker=marker, linestyle=line,
            markersize=7, linewidth=3.5 if name == OURS else 1.6, elinewidth=0.8,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="elements in one variable, float32")
    axes.set_ylabel("memory traffic of a step, GB/s (more is better)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.minorticks_off()
    # in the order of the lines' ends
    handles = [handle for _, handle in sorted(ends.values(), key=lambda end: -end[0])]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=13)
    return figure


def bars(pyplot: Any, cases: Results) -> Any:
    """Draws one panel of bars for each case."""
    rows = -(-len(cases) // 2)
    height = max(3, rows * (0.27 * max(len(case["seconds"]) for case in cases) + 0.9))
    figure, grid = pyplot.subplots(rows, 2, figsize=(13, height), layout="constrained", squeeze=False)
    for axes, case in zip(grid.flat, cases, strict=False):
        panel(axes, case)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    figure.suptitle(f"Time of a step (shorter is better); multiples of {cases[0].get('beside', OURS)}", x=0.01, ha="left")
    return figure


def panel(axes: Any, case: Case) -> None:
    beside = case.get("beside", OURS)
    names = sorted(names_in([case]), key=lambda name: median(case, name), reverse=True)
    spread = [[each * 1e6 for each in quartiles(case["seconds"][name])] for name in names]
    values = [row[1] for row in spread]
    errors = [[row[1] - row[0] for row in spread], [row[2] - row[1] for row in spread]]
    ends = {"elinewidth": 1, "ecolor": "#404040"}
    axes.barh(names, values, xerr=errors, color=[style(name)[0] for name in names], height=0.72, error_kw=ends)
    for number, (name, row) in enumerate(zip(names, spread, strict=True)):
        told = f"{row[1]:,.0f}" if row[1] >= 100 else f"{row[1]:,.1f}"
        if beside in names and name != beside:
            told += f"  ({median(case, name) / median(case, beside):.2g} times)"
        axes.text(row[2] * 1.08, number, told, va="center", fontsize=8)
    # space for the text after the longest bar
    low, high = min(values) / 2, max(row[2] for row in spread)
    axes.set(xscale="log", xlim=(low, high * (high / low) ** 0.6))
    axes.set_title(case["title"], loc="left", fontsize=10)
    axes.set_xlabel("microseconds, log scale", fontsize=8)
    axes.xaxis.set_minor_formatter("")  # labels between powers of ten overlap
    axes.tick_params(labelsize=8)
