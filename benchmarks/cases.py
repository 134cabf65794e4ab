"""The cases that are timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from . import contenders as who

TIMED = ("main", "size", "dead", "dtype", "call", "look", "torch")
SUITES = (*TIMED, "first", "memory")
SIZES = [1_000, 3_000, 10_000, 30_000, 65_536, 100_000, 262_144, 1_000_000, 4_194_304, 10_000_000, 50_000_000]
NET = [64 * 100, 100, 100 * 30, 30, 15 * 30, 30]  # 10,010 parameters
SMALL_NET = [300, 50, 1200, 20, 200, 25]  # 1,795
MLP = [4 * 96, 96, 96 * 96, 96, 96 * 2, 2]  # a small DQN's


def resnet18() -> list[int]:
    """Returns the sizes of ResNet-18's parameters: 62 tensors with 11,689,512 elements."""
    sizes = [64 * 3 * 49, 64, 64]
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            sizes += [width * (before if block == 0 else width) * 9, width, width, width * width * 9, width, width]
            if block == 0 and before != width:
                sizes += [width * before, width, width]
        before = width
    return [*sizes, 1000 * 512, 1000]


class Case(NamedTuple):
    """Variables of one dtype, and the contenders that are timed on them.

    ``zero``: time zeroGradParams() and update(), not only update(). ``beside``: the contender to compare the others with.
    """

    suite: str
    title: str
    sizes: list[int]
    names: tuple[str, ...]
    dtype: str = "float32"
    zero: bool = False
    beside: str = who.OURS
    rounds: int = 11

    def about(self) -> dict[str, Any]:
        """Returns the case without its contenders, for JSON."""
        fields = self._asdict() | {"elements": sum(self.sizes), "variables": len(self.sizes)}
        return {key: value for key, value in fields.items() if key not in ("sizes", "names")}


def cases(device: str, suites: Iterable[str], quick: bool, names: Iterable[str]) -> list[Case]:
    """Returns the cases of the suites, each with the named contenders that support it."""
    sizes, large, many = SIZES, 1 << 26 if device == "cuda" else 50_000_000, 1000
    if quick:  # large arrays take seconds on a simulated GPU
        sizes, large, many = [1_000, 10_000], 1 << 15, 20
    million = min(large, 1_000_000)
    peers = (who.C_LOOP, who.FOREACH, who.COMPILE, who.TENSORFLOW, who.OPTAX, who.PADDLE)
    modes, foreign = (who.OURS, who.LOCAL), (who.FOREIGN, who.FOREIGN_LOCAL)
    one = (*modes, who.ONE_THREAD, *peers, who.ADAM, who.COPY)
    net = (*modes, who.ONE_THREAD, *foreign, who.CALL, *peers)
    # PyTorch takes minutes to compile a step for 1,000 variables; on a GPU the copy is a single one
    of_many = {*modes, *foreign, *peers, who.COPY} - ({who.COPY} if device == "cuda" else set()) - {who.COMPILE}
    types = (who.OURS, who.BFLOAT16, who.INT8, who.MASTER, *peers, who.COPY)
    single = "one variable of"
    found = [
        *(Case("main", f"{single} {n:,}", [n], one) for n in dict.fromkeys((large, million))),
        Case("main", f"{single} {million:,}, gradient zeroed first", [million], (who.OURS, who.FUSED, *peers), zero=True),
        Case("main", "a net of 6 variables, 10,010 parameters", NET, net),
        Case("main", f"{many:,} variables of 1,000", [1_000] * many, tuple(of_many)),
        *(Case("size", f"{single} {n:,}", [n], one, rounds=7) for n in sizes),
        *(Case("dtype", f"{single} {large:,}, {each}", [large], types, each, rounds=7) for each in who.ALL),
    ]
    torch = (who.TORCH, who.OURS, who.LOOP, who.FOREACH, who.COMPILE, who.ADAM, who.COPY)
    found += [
        Case("torch", "a small DQN: 6 tensors, 9,986 parameters", MLP, torch, beside=who.TORCH, rounds=31),
        Case("torch", "ResNet-18: 62 tensors", MLP * 10 if quick else resnet18(), torch, beside=who.TORCH),
    ]
    if device == "cpu":
        found += [
            Case("dead", f"{single} {million:,}", [million], (*who.DEAD, *who.DEAD.values())),
            Case("call", f"{single} 1", [1], (*modes, *foreign, who.CALL, who.C_LOOP, who.FOREACH, who.ADAM)),
            Case("look", f"{many:,} variables of 1", [1] * many, (*foreign, who.LOOK), beside=who.LOOK),
            Case("look", "6 variables, 1,795 elements together", SMALL_NET, (*foreign, who.LOOK), beside=who.LOOK),
        ]
    only = set(names)

    def able(case: Case) -> tuple[str, ...]:
        here = ((name, each) for name, each in who.CONTENDERS.items() if name in only and name in case.names)
        return tuple(name for name, each in here if device in each.devices and case.dtype in each.dtypes)

    return [case._replace(names=able(case), rounds=3 if quick else case.rounds) for case in found if case.suite in suites]
