"""What is wanted of the figures, and whether it is so. Ratios are of medians of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from .cases import NET, SIZES
from .contenders import (
    BARS,
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
    OURS,
)

Results = list[dict[str, Any]]


class Target(NamedTuple):
    """``met`` is None where there is nothing to decide: not measured, or measured without a limit."""

    target: str
    wanted: str
    measured: str
    met: bool | None


class NotMeasured(Exception):
    """What is missing."""


def find(results: Results, **wanted: Any) -> dict[str, Any]:
    """The first case with these properties."""
    for case in results:
        if all(case[key] == value for key, value in wanted.items()):
            return case
    raise NotMeasured("not timed in this run")


def median(case: dict[str, Any], name: str, what: str = "seconds") -> float:
    try:
        return statistics.median(case[what][name])
    except KeyError:
        raise NotMeasured(f"{name}: {case.get('left_out', {}).get(name, 'not timed in this run')}") from None


def fastest_peer(case: dict[str, Any]) -> tuple[str, float]:
    peers = {name: median(case, name) for name in case["seconds"] if CONTENDERS[name].kind == "peer"}
    if not peers:
        raise NotMeasured("no peer is here")
    name = min(peers, key=peers.__getitem__)
    return name, peers[name]


def bandwidth(case: dict[str, Any], name: str) -> float:
    """Bytes that have to be read and written, a second."""
    return CONTENDERS[name].bytes_moved(case["dtype"]) * case["elements"] / median(case, name)


def _beside_peers(name: str, least: float) -> Callable:
    def look(case: dict[str, Any]) -> tuple[str, bool]:
        peer, seconds = fastest_peer(case)
        ratio = seconds / median(case, name)
        return f"{ratio:.2f} times ({peer})", ratio >= least

    return look


def _beside(other: str, name: str, least: float) -> Callable:
    def look(case: dict[str, Any]) -> tuple[str, bool]:
        ratio = median(case, other) / median(case, name)
        return f"{ratio:.2f} times", ratio >= least

    return look


def _beside_copy(name: str, least: float) -> Callable:
    def look(case: dict[str, Any]) -> tuple[str, bool]:
        median(case, COPY)
        copied = {each: bandwidth(case, each) for each in (COPY, COPY_THREADS) if each in case["seconds"]}
        best = max(copied, key=copied.__getitem__)
        ours = bandwidth(case, name)
        return (
            f"{ours / copied[best]:.2f} ({ours / 1e9:.1f} GB/s; {best}: {copied[best] / 1e9:.1f})",
            ours >= least * copied[best],
        )

    return look


def _host(name: str, most: float) -> Callable:
    def look(case: dict[str, Any]) -> tuple[str, bool]:
        seconds = median(case, name, "host_seconds")
        return f"{seconds * 1e6:.1f} us", seconds <= most * 1e-6

    return look


def _launches(case: dict[str, Any]) -> tuple[str, bool]:
    if "launches" not in case or LOCAL not in case["launches"]:
        raise NotMeasured("not counted in this run")
    count = case["launches"][LOCAL]
    return str(count), count == 1


class _On(NamedTuple):
    """A target on one case."""

    target: str
    wanted: str
    case: dict[str, Any]
    look: Callable[[dict[str, Any]], tuple[str, bool | None]]


def _beside_both(case: dict[str, Any]) -> tuple[str, bool]:
    others = {name: median(case, name) for name in (COMPILE, C_LOOP)}
    fastest = min(others, key=others.__getitem__)
    ratio = others[fastest] / median(case, OURS)
    return f"{ratio:.2f} times ({fastest})", ratio >= 0.9


def _dead(case: dict[str, Any]) -> tuple[str, bool]:
    ratio = median(case, DEAD[OURS]) / median(case, OURS)
    return f"{ratio:.2f} times", ratio <= 1.2


def _call(case: dict[str, Any]) -> tuple[str, bool]:
    micro = median(case, CALL) * 1e6
    return f"{micro:.2f} us", micro <= 0.5


def _besides_loop(name: str) -> Callable:
    def look(case: dict[str, Any]) -> tuple[str, bool]:
        micro = (median(case, name) - median(case, CALL)) * 1e6
        return f"{micro:.1f} us", micro <= 6

    return look


def _beside_bars(case: dict[str, Any]) -> tuple[str, None]:
    return "; ".join(f"{name}: {bandwidth(case, name) / 1e9:.1f}" for name in (OURS, *BARS)), None


def _cpu() -> list[_On]:
    large = {"suite": "main", "elements": 50_000_000}
    zeroed = {"suite": "main", "elements": 1_000_000, "variables": 1, "zero": True}
    net = {"suite": "main", "variables": 6, "elements": sum(NET), "zero": False}
    many = {"suite": "main", "variables": 1000}
    state = {"suite": "dtype", "elements": 50_000_000, "dtype": "float32"}
    call = {"suite": "call", "elements": 1}
    return [
        *(
            _On(
                f"{n:,} elements: the faster of {COMPILE} and the C loop, times ours",
                ">= 0.9 times",
                {"suite": "size", "elements": n},
                _beside_both,
            )
            for n in SIZES
        ),
        _On(
            "1,000,000 elements, all dead, beside the same alive",
            "<= 1.2 times",
            {"suite": "dead", "elements": 1_000_000},
            _dead,
        ),
        _On(
            "an MLP 64-512-512-10, 8% of its units dead, beside the same alive",
            "<= 1.2 times",
            {"suite": "dead", "variables": 6},
            _dead,
        ),
        _On("50,000,000 elements: bfloat16 state beside float32 state", ">= 1.4 times", state, _beside(OURS, BFLOAT16, 1.4)),
        _On("the call into the library, one element", "<= 0.5 us", call, _call),
        *(
            _On(
                f"update() of 6 variables, besides the library's call: {name.partition(', ')[2]}",
                "<= 6 us",
                net,
                _besides_loop(name),
            )
            for name in (OURS, LOCAL, FOREIGN, FOREIGN_LOCAL)
        ),
        _On("50,000,000 elements: GB/s beside PyTorch's fused optimizers", "measured", large, _beside_bars),
        _On("50,000,000 elements: share of the copy's bandwidth", ">= 1", large, _beside_copy(OURS, 1.0)),
        _On(
            "6 variables, zeroGradParams() + update(), beside the fastest peer",
            ">= 3 times",
            net | {"zero": True},
            _beside_peers(OURS, 3.0),
        ),
        _On("1,000 variables of 1,000, local, beside PyTorch's foreach", ">= 10 times", many, _beside(FOREACH, LOCAL, 10.0)),
        _On(
            "1,000,000 elements: zeroed in the pass beside zeroGradParams()", "> 1 times", zeroed, _beside(OURS, FUSED, 1.0)
        ),
    ]


def _cuda() -> list[_On]:
    large = {"suite": "main", "elements": 1 << 26, "dtype": "float32"}
    half = {"suite": "dtype", "elements": 1 << 26, "dtype": "float16"}
    many = {"suite": "main", "variables": 1000}
    state = {"suite": "dtype", "elements": 1 << 26, "dtype": "float32"}
    return [
        _On("64 Mi elements: share of the copy's bandwidth", ">= 0.97", large, _beside_copy(OURS, 0.97)),
        _On("64 Mi elements beside PyTorch's foreach", ">= 3 times", large, _beside(FOREACH, OURS, 3.0)),
        _On(
            "64 Mi float16 elements, float32 state: share of the copy's bandwidth", ">= 0.97", half, _beside_copy(OURS, 0.97)
        ),
        _On("1,000 variables of 1,000, local: launches", "1", many, _launches),
        _On("1,000 variables of 1,000, local: host time of update()", "<= 15 us", many, _host(LOCAL, 15.0)),
        _On("1,000 variables of 1,000, local, beside PyTorch's foreach", ">= 10 times", many, _beside(FOREACH, LOCAL, 10.0)),
        _On("1,000 variables of 1,000, global: host time of update()", "<= 8 us", many, _host(OURS, 8.0)),
        _On("64 Mi elements: bfloat16 state beside float32 state", ">= 1.4 times", state, _beside(OURS, BFLOAT16, 1.4)),
    ]


def _any_size(results: Results) -> tuple[str, bool]:
    """CuPy's time beside ours at the size where it is the least."""
    ratios = {
        case["elements"]: median(case, CUPY) / median(case, OURS)
        for case in results
        if case["suite"] == "size" and CUPY in case["seconds"] and OURS in case["seconds"]
    }
    if not ratios:
        raise NotMeasured("not timed in this run")
    worst = min(ratios, key=ratios.__getitem__)
    return f"{ratios[worst]:.2f} times at {worst:,}", ratios[worst] >= 1.0


def _scaling(results: Results) -> tuple[str, None]:
    said = []
    for elements in sorted({case["elements"] for case in results if case["suite"] == "threads"}):
        cases = [case for case in results if case["suite"] == "threads" and case["elements"] == elements]
        most = max(cases, key=lambda case: case["threads"])
        ratio = median(find(cases, threads=1), OURS) / median(most, OURS)
        said.append(f"{ratio:.2f} times with {most['threads']} threads at {elements:,}")
    if not said:
        raise NotMeasured("not timed in this run")
    return "; ".join(said), None


def _first(first: list[dict[str, float]] | None, key: str, most: float) -> tuple[str, bool]:
    if not first:
        raise NotMeasured("not measured in this run")
    seconds = statistics.median(use[key] for use in first)
    return f"{seconds * 1e3:.1f} ms", seconds <= most


# what Python itself needs to call a function with a few numbers
SMALL = 4096


def _allocates(memory: dict[str, Any] | None, what: str) -> tuple[str, bool]:
    if not memory or "updates" not in memory:
        raise NotMeasured("not measured in this run")
    of = [figures for case, figures in memory["updates"].items() if case.startswith(what)]
    at_once = max(figures["traced_in_one_update"] for figures in of)
    kept = max(max(figures["traced_and_kept"], figures["malloced_and_kept"]) for figures in of)
    grown = max(figures["peak_growth"] for figures in of)
    told = f"{at_once:,} bytes at once, {kept:,} kept after {of[0]['updates']:,}, the process's peak {grown:,} higher"
    return told, at_once <= SMALL and kept <= SMALL and grown <= 16 * SMALL


def _set_up(memory: dict[str, Any] | None) -> tuple[str, bool]:
    if not memory or "setup" not in memory:
        raise NotMeasured("not measured in this run")
    figures = memory["setup"]
    whole, one = figures["bytes_of_all_variables"], figures["bytes_of_a_variable"]
    held, beyond = figures["held_after"] / whole, figures["peak"] - 5 * whole
    told = f"{held:.2f} of the parameters held after it, {beyond / one:.2f} of a variable more at its peak"
    return told, abs(held - 5) < 0.05 and figures["arrays_of_the_state"] == 3 and beyond <= 1.05 * one


def _on_gpu(memory: dict[str, Any] | None) -> tuple[str, bool]:
    if not memory or "updates_on_gpu" not in memory:
        raise NotMeasured("not measured in this run")
    cases = memory["updates_on_gpu"].values()
    taken, asked = (max(figures[key] for figures in cases) for key in ("device_bytes_taken", "allocations"))
    return f"{taken:,} bytes of the device's, {asked} allocations", taken <= 0 and asked == 0


def targets(device: str, results: Results, first: Any = None, memory: Any = None) -> list[Target]:
    """Each target of that device with its figure."""
    gpu = device == "cuda"
    looks: list[tuple[str, str, Callable[[], tuple[str, bool | None]]]] = [
        (each.target, each.wanted, lambda each=each: each.look(find(results, **each.case)))  # type: ignore[misc]
        for each in (_cuda() if gpu else _cpu())
    ]
    if gpu:
        looks += [
            ("not slower than CuPy's fused kernel at any size", ">= 1 times", lambda: _any_size(results)),
            ("update() on the device after the first", "no allocation", lambda: _on_gpu(memory)),
        ]
    else:
        looks += [
            ("scaling with cores", "measured", lambda: _scaling(results)),
            ("import, on top of NumPy and h5py", "<= 250 ms", lambda: _first(first, "import", 0.25)),
            ("first update after import", "<= 20 ms", lambda: _first(first, "first_update", 0.02)),
            (
                "update() after the first, one variable: no allocation",
                f"<= {SMALL:,} bytes",
                lambda: _allocates(memory, "one variable"),
            ),
            (
                "update() after the first, 1,000 variables: no allocation",
                f"<= {SMALL:,} bytes",
                lambda: _allocates(memory, "1,000 variables"),
            ),
            ("setupOn, global: five buffers, and one variable's copy at most", "5, <= 1", lambda: _set_up(memory)),
        ]
    found = []
    for target, wanted, look in looks:
        try:
            measured, met = look()
        except NotMeasured as reason:
            measured, met = str(reason), None
        found.append(Target(target, wanted, measured, met))
    return found
