"""``python -m puzzlelib_rmsprop inspect FILE``: what is in a checkpoint, ours or PuzzleLib's, and whether it is whole."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

from ..checkpoint import integrity
from ..checkpoint.disk import is_hdf5, text_of
from ..checkpoint.listing import found_in
from ..errors import CheckpointError
from ..state import read_hooks

__all__ = ["add_command", "inspect"]

STATUS = (
    "Exit status: 0 the file is whole, as far as it has checksums; 1 it is damaged; 2 it, or some of it, cannot be read; "
    "3 the answer cannot be printed."
)


def inspect(path: str | bytes | os.PathLike[Any]) -> dict[str, Any]:
    """What is in a file; read by a process of its own where one can be started: HDF5 can hang or crash on a damaged one.

    Returns:
        ``path``, ``bytes``, ``seal`` ("ok", "damaged" or "none": the checksum of the whole file), ``damaged`` and
        ``unread`` (lists of sentences; what cannot be read for another reason is not damaged) and
        ``parts``, each an optimizer or a net: ``kind``, ``name``, ``writer``, ``format``, ``mode``, ``t``,
        ``attrs``, ``extra`` (options, hooks), ``variables`` and ``datasets``.

    Raises:
        CheckpointError: it is no HDF5 file, or cannot be read.

    Example:
        >>> import os, tempfile
        >>> from puzzlelib_rmsprop import RMSPropGraves
        >>> from puzzlelib_rmsprop.tools.inspection import inspect
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> optimizer = RMSPropGraves()
        >>> optimizer.setupOn(Linear(2, 1))
        >>> path = os.path.join(tempfile.mkdtemp(), "run.hdf")
        >>> optimizer.save(path)
        >>> found = inspect(path)
        >>> found["seal"], found["parts"][0]["mode"]
        ('ok', 'local')
    """
    path = text_of(path)
    try:
        seal = {True: "ok", False: "damaged", None: "none"}[integrity.sealed(path)]
        size = os.path.getsize(path)
        if seal != "damaged" and not is_hdf5(path):
            raise CheckpointError(f"cannot read {path}: it is no HDF5 file")
        found = integrity.probe(path) or found_in(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    wrong = found.get("error")
    if wrong and seal != "damaged":
        raise CheckpointError(f"cannot read {path}: {wrong}")
    parts = found.get("parts", [])
    damaged = []
    if seal == "damaged":
        damaged.append("the SHA-256 of the file is not the one that it was saved with" + (f"; {wrong}" if wrong else ""))
    told: dict[str, list[str]] = {"damaged": damaged, "unread": []}
    for each in (dataset for part in parts for dataset in part["datasets"]):
        if each["checksum"] in told:
            told[each["checksum"]].append(f"dataset {each['name']!r}: {each['why']}")
    return {"path": path, "bytes": size, "seal": seal, **told, "parts": parts}


# --------------------------------------------------------------------------------------------- the command


def add_command(commands: Any) -> None:
    """Adds ``inspect`` to the package's commands."""
    parser = commands.add_parser("inspect", help="what is in a checkpoint, and whether it is whole", epilog=STATUS)
    parser.add_argument("file", metavar="FILE", help="a file of this library or PuzzleLib")
    parser.add_argument("--json", action="store_true", help="print everything, for a program")
    parser.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    """Prints what is in the file; returns the exit status."""
    try:
        found = inspect(given.file)
    except CheckpointError as error:
        print(json.dumps({"path": given.file, "error": str(error)}) if given.json else error)
        return 2
    print(json.dumps(_strict(found), indent=2) if given.json else "\n".join(_lines(found)))
    return 1 if found["damaged"] else 2 if found["unread"] else 0


def _strict(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _lines(found: dict[str, Any]) -> list[str]:
    seals = {"ok": "whole (SHA-256)", "damaged": "DAMAGED (SHA-256)", "none": "no checksum of the whole"}
    lines = [f"{found['path']}: {found['bytes']:,} bytes, {seals[found['seal']]}"]
    for part in found["parts"]:
        lines += ["", f"{part['kind']} {part['name']!r}, written by {part['writer']}"]
        if "mode" in part:
            written = f"format {part['format']}, " if part["format"] is not None else ""
            lines.append(f"  {written}{part['mode']} mode, t = {part['t']}")
            lines.append("  " + ", ".join(f"{key} = {value}" for key, value in part["attrs"].items() if key != "t"))
            extra = {**part["extra"], "hooks": _hooks(part["extra"].get("hooks"))}
            lines += [f"  {key}: {value}" for key, value in extra.items() if value]
            lines += _table(part)
        else:
            lines += [_row("  " + each["name"], each) for each in part["datasets"]]
    for what in ("damaged", "unread"):
        if found[what]:
            lines += ["", f"{what.upper()}:", *(f"  {each}" for each in found[what])]
    return lines


def _hooks(hooks: Any) -> Any:
    """Each hook with its arguments and its state."""
    try:
        return ", ".join(str(each) + (f" {each.state}" if each.state is not None else "") for each in read_hooks(hooks))
    except CheckpointError:  # not as save() writes them
        return hooks


def _rates(rates: Any) -> str:
    """Rates that are not as they are at first."""
    if not isinstance(rates, list) or len(rates) != 3:
        return ""
    usual = zip(("learnRate", "momRate", "wc"), rates, (1.0, 1.0, 0.0), strict=True)
    return "".join(f", {name} {value}" for name, value, first in usual if value != first)


def _table(part: dict[str, Any]) -> list[str]:
    lines = []
    for variable in part["variables"]:
        shape = f", {variable['dtype']} {tuple(variable['shape'])}" if "shape" in variable else ""
        form = ", ms holds the variance" if variable.get("variance") else ""
        lines.append(f"  {', '.join(variable['names'])}{shape}{form}{_rates(variable.get('rates'))}")
        lines += [_row(f"    {entity}", numbers) for entity, numbers in variable["entities"].items()]
    return lines


def _row(what: str, numbers: dict[str, Any]) -> str:
    text = f"{what:<12} {numbers.get('dtype', '')} {tuple(numbers.get('shape', ()))}"
    if "min" in numbers:
        text += f", {numbers['min']:.4g} to {numbers['max']:.4g}, mean {numbers['mean']:.4g}"
    if numbers.get("nonfinite"):
        text += f", {numbers['nonfinite']} NOT FINITE"
    return text + {"ok": ", ok", "damaged": ", DAMAGED", "unread": ", UNREAD", "none": ""}[numbers["checksum"]]
