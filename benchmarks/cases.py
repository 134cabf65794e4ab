"""What is timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .contenders import (
    BFLOAT16,
    C_LOOP_NAME,
    COMPILE,
    CONTENDERS,
    COPY,
    COPY_THREADS,
    CUPY,
    FOREACH,
    MASTER,
    ONE_THREAD,
    OURS,
)

TIMED = ("main", "size", "count", "dtype", "threads")
SUITES = (*TIMED, "first", "memory")

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
    everyone = tuple(name for name in CONTENDERS if name not in (BFLOAT16, MASTER))
    one = (OURS, ONE_THREAD, C_LOOP_NAME, FOREACH, COMPILE, "TensorFlow", "Optax, jit", "Paddle", CUPY, COPY, COPY_THREADS)
    many = tuple(name for name in everyone if name not in (ONE_THREAD, COPY_THREADS))
    many = many if device == "cpu" else tuple(name for name in many if name != COPY)
    types = (OURS, BFLOAT16, MASTER, C_LOOP_NAME, FOREACH, "TensorFlow", "Optax, jit", "Paddle", CUPY, COPY, COPY_THREADS)
    gpu = device == "cuda"
    rounds = 3 if quick else 11
    large = ([1 << 15] if quick else [1 << 26]) if gpu else ([] if quick else [50_000_000])
    variables = 20 if gpu and quick else 1000
    main = [
        *(Case("main", f"one variable of {n:,}", [n], everyone) for n in large),
        Case("main", "one variable of 1,000,000", [1_000_000], everyone),
        Case("main", "one variable of 1,000,000, gradient zeroed first", [1_000_000], everyone, zero=True),
        Case("main", "one variable of 10,768", [10_768], everyone),
        Case("main", "a net of 6 variables, 10,010 parameters", NET, everyone),
        Case("main", "a net of 6 variables, gradients zeroed first", NET, everyone, zero=True),
        Case("main", f"{variables:,} variables of 1,000", [1_000] * variables, everyone),
    ]
    if gpu and quick:  # the simulator takes seconds for what is large
        main = [case for case in main if sum(case.sizes) <= 1 << 15]
    if quick:
        sizes, counts, total = ([1_000, 10_000] if gpu else [1_000, 30_000, 1_000_000]), [1, 10], 10_000
    else:
        sizes = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000]
        counts, total = [1, 10, 100, 1_000, 10_000], 1_000_000
    width = large[0] if large else 100_000
    dtypes = [Case("dtype", f"one variable of {width:,}, {dtype}", [width], types, dtype) for dtype in
              ("float16", "float32", "float64")]  # fmt: skip
    up_to = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < cores] + [cores]
    threads = [
        Case("threads", f"one variable of {n:,}, threads: {count}", [n], (OURS, COPY_THREADS), threads=count)
        for n in ([1_000_000] if quick else [1_000_000, 10_000_000, 50_000_000])
        for count in up_to
    ]
    return {
        "main": [case._replace(rounds=rounds) for case in main],
        "size": [
            Case("size", f"one variable of {n:,}", [n], one, rounds=3 if n > 50_000_000 or quick else 5) for n in sizes
        ],
        "count": [
            Case("count", f"{total:,} elements in {n:,} variables", [total // n] * n, many, rounds=3 if quick else 5)
            for n in counts
        ],
        "dtype": [case._replace(rounds=3 if quick else 7) for case in dtypes],
        "threads": [] if gpu else [case._replace(rounds=3 if quick else 7) for case in threads],
    }


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
