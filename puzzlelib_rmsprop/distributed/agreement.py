"""Whether the processes of a group are about to train the same net, told to all of them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import CheckpointError, SetupError, VariableError
from ..hooks import FUSED

if TYPE_CHECKING:
    from ..arrays import Family

__all__ = ["agree", "facts", "tell", "together"]


def facts(optimizer: Any, options: dict[str, Any], variables: Sequence[Any], family: Family | None) -> list[list[str]]:
    """What has to be alike in all processes of a group: [what, value] in an order of their own."""
    settings = {**optimizer.getAttrDict(), **options}
    found = {
        "the version of puzzlelib_rmsprop": __version__,
        "the byte order": sys.byteorder,
        "the optimizer": type(optimizer).__qualname__,
        **{f"its {name}": repr(value) for name, value in settings.items() if name != "t"},
        "its hooks": str([getattr(hook, "__qualname__", type(hook).__qualname__) for hook in optimizer.hooks]),
        "its hooks' arguments": str([_arguments(hook) for hook in optimizer.hooks if type(hook) in FUSED]),
        "the device of the arrays": str(getattr(family, "device", None)),
        "the number of variables": str(len(variables)),
    }
    for variable in sorted(variables, key=lambda variable: variable.name):
        of_var = {"names": variable.names, "shape": variable.shape, "dtype": variable.dtype.name}
        of_var.update({rate: getattr(variable.var, rate) for rate in ("learnRate", "momRate", "wc")})
        found.update({f"variable {variable.name!r}: its {what}": str(value) for what, value in of_var.items()})
    return [[what, value] for what, value in found.items()]


def _arguments(hook: Any) -> dict[str, Any]:
    """Of one of the library's own, that is: a user's may keep what it likes."""
    return {
        name: value
        for name, value in vars(hook).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }


def agree(nodeinfo: Any, facts: list[list[str]], error: Exception | None = None) -> None:
    """Compares every process's ``facts``, each [what, value], in one order; ``error`` is what one has found by itself.

    A nodeinfo without ``allgatherObject`` of its own, as PuzzleLib's, cannot compare.

    Raises:
        SetupError: they differ, or another process has an error; the same on every process but that one.
        VariableError: they differ in a variable.
    """
    if not _can_gather(nodeinfo) or nodeinfo.gridsize == 1:
        return
    failure = None if error is None else f"{type(error).__name__}: {error}"
    # a digest first: a group is large, and its nets are alike
    told = nodeinfo.allgatherObject([failure, hashlib.sha256(repr(facts).encode()).hexdigest()])
    for index, (theirs, _) in enumerate(told):
        if theirs is not None:
            if error is not None:
                return
            raise SetupError(f"process {index} of {nodeinfo.gridsize} cannot be set up: {theirs}")
    if all(digest == told[0][1] for _, digest in told):
        return
    first = nodeinfo.allgatherObject(facts if nodeinfo.index == 0 else None)[0]
    differences = nodeinfo.allgatherObject(_difference(first, facts))
    index, (what, value, other) = next((i, found) for i, found in enumerate(differences) if found is not None)
    kind = VariableError if what.startswith("variable") else SetupError
    raise kind(f"the processes of the group differ: {what} is {value} on process 0, and {other} on process {index}")


def together(nodeinfo: Any, failure: Exception | None, what: str, found: Any = None) -> None:
    """Returns when every process has done its part of ``what`` and has ``found`` the same.

    Without a group, or with one that cannot compare, this process answers for itself.

    Raises:
        Exception: ``failure``, where this process has one.
        CheckpointError: another process has one, or has found something else; the same on every process.
    """
    if not _can_gather(nodeinfo) or nodeinfo.gridsize == 1:
        if failure is not None:
            raise failure
        return
    told = nodeinfo.allgatherObject([None if failure is None else f"{type(failure).__name__}: {failure}", found])
    if failure is not None:
        raise failure
    for index, (theirs, other) in enumerate(told):
        if theirs is not None:
            raise CheckpointError(f"{what} failed on process {index}: {theirs}")
        if other != told[0][1]:
            raise CheckpointError(
                f"{what}: process {index} has found another file than process 0, or was given other arguments"
            )


def tell(nodeinfo: Any, error: BaseException) -> None:
    """Spares the other processes the wait for this one, where the nodeinfo has a way to say so."""
    getattr(nodeinfo, "fail", lambda error: None)(error)


def _can_gather(nodeinfo: Any) -> bool:
    from .nodeinfo import NodeInfo

    base = getattr(type(nodeinfo), "allgatherObject", None) is NodeInfo.allgatherObject
    return not base and callable(getattr(nodeinfo, "allgatherObject", None))


def _difference(first: list[list[str]], own: list[list[str]]) -> list[str] | None:
    """[what, its value in ``first``, its value in ``own``]; both have one number of variables, or that is the difference."""
    for theirs, ours in zip(first, own, strict=False):
        if theirs[0] != ours[0]:
            return ["variable in its place", theirs[0].partition(":")[0], ours[0].partition(":")[0]]
        if theirs[1] != ours[1]:
            return [ours[0], theirs[1], ours[1]]
    return None
