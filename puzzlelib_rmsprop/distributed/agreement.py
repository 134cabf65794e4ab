"""Checks that all processes of a group train the same net, with the result known to each of them."""

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
    """Returns what must be equal in all processes of a group, as a list of [name, value] in a fixed order."""
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
    """Returns the arguments of one of the library's hooks. A user's hook may have any attributes."""
    return {
        name: value
        for name, value in vars(hook).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }


def agree(nodeinfo: Any, facts: list[list[str]], error: Exception | None = None) -> None:
    """Compares the ``facts`` of all processes, a list of [name, value] each. ``error`` is an error of this process.

    Does nothing for a nodeinfo without its own ``allgatherObject``, such as PuzzleLib's.

    Raises:
        SetupError: if the facts differ, or another process has an error. All processes without an error raise the same.
        VariableError: if they differ in a variable.
    """
    if not _can_gather(nodeinfo) or nodeinfo.gridsize == 1:
        return
    failure = None if error is None else f"{type(error).__name__}: {error}"
    # digests first: a group may be large, and its facts are usually equal
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
    """Waits until every process has done its part of ``what``, and checks that all have the same ``found``.

    Without a group, or if the nodeinfo cannot compare, only this process's failure counts.

    Raises:
        Exception: ``failure``, if this process has one.
        CheckpointError: if another process failed, or has another ``found``; the same on every process.
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
    """Reports an error to the other processes, if the nodeinfo can, so that they do not wait for this one."""
    getattr(nodeinfo, "fail", lambda error: None)(error)


def _can_gather(nodeinfo: Any) -> bool:
    from .nodeinfo import NodeInfo

    base = getattr(type(nodeinfo), "allgatherObject", None) is NodeInfo.allgatherObject
    return not base and callable(getattr(nodeinfo, "allgatherObject", None))


def _difference(first: list[list[str]], own: list[list[str]]) -> list[str] | None:
    """Returns the first difference as [name, value in ``first``, value in ``own``], or None."""
    for theirs, ours in zip(first, own, strict=False):
        if theirs[0] != ours[0]:
            return ["variable in its place", theirs[0].partition(":")[0], ours[0].partition(":")[0]]
        if theirs[1] != ours[1]:
            return [ours[0], theirs[1], ours[1]]
    return None
