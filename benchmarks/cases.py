"""What is timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

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
    MASTER,
    ONE_THREAD,
    OURS,
)
from .worker import mlp_sizes

TIMED = ("main", "size", "count", "dead", "dtype", "call", "threads")
SUITES = (*TIMED, "first", "memory")
SIZES = [1_000, 3_000, 10_000, 30_000, 65_536, 100_000, 262_144, 1_000_000, 4_194_304, 10_000_000, 50_000_000]

# 10,010 parameters
NET = [64 * 100, 100, 100 * 30, 30, 15 * 30, 30]


class Case(NamedTuple):
    """Variables of a dtype, and who is timed on them. ``zero``: zeroGradParams() and update(), not update() alone."""

    suite: str
    title: str
    sizes: list[int]
    names: tuple[str, ...]
    dtype: str = "float32"
    zero: bool = False
    threads: int | None = None
    rounds: int = 5

    def about(self) -> dict[str, Any]:
        """The case without its contenders, for JSON."""
        fields = self._asdict() | {"elements": sum(self.sizes), "variables": len(self.sizes)}
        return {key: value for key, value in fields.items() if key not in ("sizes", "names")}


def _suites(device: str, quick: bool, cores: int) -> dict[str, list[Case]]:
    gpu = device == "cuda"
    peers = (FOREACH, COMPILE, "TensorFlow", "Optax, jit", "Paddle", CUPY)
    slow, limits = ("NumPy", "PyTorch loop"), (COPY, COPY_THREADS)
    foreign = (FOREIGN, FOREIGN_LOCAL)
    one = (OURS, LOCAL, ONE_THREAD, FUSED, *slow, C_LOOP, *peers, *BARS, *limits)
    net = (OURS, LOCAL, ONE_THREAD, *foreign, CALL, FUSED, *slow, C_LOOP, *peers)
    many = (OURS, LOCAL, *foreign, FUSED, *slow, C_LOOP, *peers) + (() if gpu else (COPY,))
    types = (OURS, BFLOAT16, MASTER, C_LOOP, *peers, *limits)
    large = ([1 << 15] if quick else [1 << 26]) if gpu else ([] if quick else [50_000_000])
    variables = 20 if gpu and quick else 1000
    main = [
        *(Case("main", f"one variable of {n:,}", [n], one) for n in large),
        Case("main", "one variable of 1,000,000", [1_000_000], one),
        Case("main", "one variable of 1,000,000, gradient zeroed first", [1_000_000], one, zero=True),
        Case("main", "a net of 6 variables, 10,010 parameters", NET, net),
        Case("main", "a net of 6 variables, gradients zeroed first", NET, net, zero=True),
        Case("main", f"{variables:,} variables of 1,000", [1_000] * variables, many),
    ]
    if gpu and quick:  # the simulator takes seconds for what is large
        main = [case for case in main if sum(case.sizes) <= 1 << 15]
    sizes, counts, total = SIZES, [1, 10, 100, 1_000, 10_000], 1_000_000
    if quick:
        sizes, counts, total = [n for n in SIZES[::2] if n <= (10_000 if gpu else 262_144)], [1, 10], 10_000
    dead = {"one variable of {:,}": [30_000 if quick else 1_000_000], "a net of 6 variables, {:,} parameters": mlp_sizes()}
    width = large[0] if large else 100_000
    up_to = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < cores] + [cores]
    found = {
        "main": main,
        "size": [
            Case("size", f"one variable of {n:,}", [n], (OURS, ONE_THREAD, C_LOOP, *peers, *BARS, *limits)) for n in sizes
        ],
        "count": [Case("count", f"{total:,} elements in {n:,} variables", [total // n] * n, many) for n in counts],
        "dead": [Case("dead", title.format(sum(n)), n, (*DEAD, *DEAD.values())) for title, n in dead.items()],
        "dtype": [
            Case("dtype", f"one variable of {width:,}, {dtype}", [width], types, dtype)
            for dtype in ("float16", "float32", "float64")
        ],
        "call": [Case("call", "one variable of 1", [1], (CALL, OURS, LOCAL, *foreign, C_LOOP, FOREACH, *BARS))],
        "threads": [
            Case("threads", f"one variable of {n:,}, threads: {count}", [n], (OURS, COPY_THREADS), threads=count)
            for n in ([1_000_000] if quick else [1_000_000, 10_000_000, 50_000_000])
            for count in up_to
        ],
    }
    for suite in ("dead", "call", "threads") if gpu else ():
        del found[suite]
    rounds = {suite: 3 if quick else {"main": 11, "dead": 11, "call": 11}.get(suite, 7) for suite in found}
    return {suite: [case._replace(rounds=rounds[suite]) for case in each] for suite, each in found.items()}


def cases(device: str, suites: Iterable[str], quick: bool, cores: int, names: Iterable[str]) -> list[Case]:
    """The cases of those suites, each with those of the named contenders that can take part."""
    found = []
    for suite, of_suite in _suites(device, quick, cores).items():
        for case in of_suite if suite in suites else []:
            able = tuple(
                name
                for name in case.names
                if name in set(names)
                and device in CONTENDERS[name].devices
                and case.dtype in CONTENDERS[name].dtypes
                and case.zero >= CONTENDERS[name].zeroes
                # what has nothing to zero is not the limit of what has
                and not (case.zero and CONTENDERS[name].kind == "limit")
            )
            found.append(case._replace(names=able))
    return found
