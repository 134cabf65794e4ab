"""``python -m puzzlelib_rmsprop inspect FILE``: checks a checkpoint for damage and lists its contents."""

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
from .findings import wrapped

__all__ = ["add_command", "inspect"]

STATUS = (
    "Exit status: 0 no damage was found; 1 the file is damaged; 2 the file, or a part of it, cannot be read; "
    "3 the output cannot be written."
)


def inspect(path: str | bytes | os.PathLike[Any]) -> dict[str, Any]:
    """Checks a checkpoint of this library or of PuzzleLib, and lists its contents.

    A separate process reads the file if one can be started, because HDF5 can hang or crash on a damaged file.

    Returns:
        A dict with the keys ``path``, ``bytes``, ``seal`` ("ok", "damaged" or "none": the checksum of the whole file),
        ``damaged`` and ``unread`` (lists of messages; a part that could not be read for another reason is not damaged) and
        ``parts``. Each part is a dict that describes an optimizer or a net: ``kind``, ``name``, ``writer``, ``format``,
        ``mode``, ``t``, ``attrs``, ``extra`` (options, hooks), ``variables`` and ``datasets``.

    Raises:
        CheckpointError: if the file is not an HDF5 file, or cannot be read.

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
            raise CheckpointError(f"cannot read {path}: it is not an HDF5 file")
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
    messages: dict[str, list[str]] = {"damaged": damaged, "unread": []}
    for each in (dataset for part in parts for dataset in part["datasets"]):
        if each["checksum"] in messages:
            messages[each["checksum"]].append(f"dataset {each['name']!r}: {each['why']}")
    return {"path": path, "bytes": size, "seal": seal, **messages, "parts": parts}


# --------------------------------------------------------------------------------------------- the command


def add_command(commands: Any) -> None:
    """Adds ``inspect`` to the package's commands."""
    parser = commands.add_parser(
        "inspect",
        help="check a checkpoint for damage and list its contents",
        description="Checks a checkpoint for damage and lists its contents.",
        epilog=STATUS,
    )
    parser.add_argument("file", metavar="FILE", help="a checkpoint of this library or of PuzzleLib")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    """Prints the contents of the file; returns the exit status."""
    try:
        found = inspect(given.file)
    except CheckpointError as error:
        print(json.dumps({"path": given.file, "error": str(error)}) if given.json else "\n".join(wrapped(str(error))))
        return 2
    print(json.dumps(_strict(found), indent=2) if given.json else "\n".join(_lines(found)))
    return 1 if found["damaged"] else 2 if found["unread"] else 0


def _strict(value: Any) -> Any:
    """Replaces infinities and NaN, which JSON does not have, by their names."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [*wrapped(_verdict(found)), f"  {found['path']}", f"  {found['bytes']:,} bytes"]
    for title, messages in (("Damaged", found["damaged"]), ("Could not be read", found["unread"])):
        if messages:
            lines += ["", title, *(line for each in messages for line in wrapped(each, "  - ", "    "))]
    for part in found["parts"]:
        name = f" {part['name']!r}" if part["name"] else ""
        writer = {"net": f", in {part['writer']}", "other": " datasets"}.get(part["kind"], f", written by {part['writer']}")
        lines += ["", *wrapped(f"{part['kind'].capitalize()}{name}{writer}", "", "  ")]
        if "mode" in part:
            written = f"format {part['format']}, " if part["format"] is not None else ""
            facts = [f"{written}{part['mode']} mode, t = {part['t']}", _pairs(part["attrs"])]
            extra = {**part["extra"], "hooks": _hooks(part["extra"].get("hooks"))}
            facts += [f"{key}: {_pairs(value)}" for key, value in extra.items() if value]
            lines += [line for fact in facts for line in wrapped(fact, "  ", "    ")]
            lines += _table(part)
        else:
            width = min(40, max((len(each["name"]) for each in part["datasets"]), default=0))
            lines += [line for each in part["datasets"] for line in _row(f"  {each['name']:{width}}", each)]
    return lines


def _verdict(found: dict[str, Any]) -> str:
    if found["damaged"]:
        return "DAMAGED: the damage is listed below."
    if found["unread"]:
        return "Some of the file could not be read: the parts are listed below."
    if found["seal"] == "ok":
        return "Intact: the SHA-256 of the whole file matches."
    if any(each["checksum"] == "ok" for part in found["parts"] for each in part["datasets"]):
        return "No damage found: the checksums of the datasets match; the whole file has none."
    return "Readable: the file has no checksums."


def _pairs(value: Any) -> str:
    """Returns a dict as ``key=value, ...``, without ``t``, which is shown elsewhere."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}={each}" for key, each in value.items() if key != "t")


def _hooks(hooks: Any) -> Any:
    """Returns the hooks with their arguments and states."""
    try:
        return ", ".join(str(each) + (f" {each.state}" if each.state is not None else "") for each in read_hooks(hooks))
    except CheckpointError:  # not in the form that save() writes
        return hooks


def _rates(rates: Any) -> str:
    """Returns the rates that are not the defaults."""
    if not isinstance(rates, list) or len(rates) != 3:
        return ""
    usual = zip(("learnRate", "momRate", "wc"), rates, (1.0, 1.0, 0.0), strict=True)
    return "".join(f", {name} {value}" for name, value, first in usual if value != first)


def _table(part: dict[str, Any]) -> list[str]:
    lines = []
    for variable in part["variables"]:
        shape = f", {variable['dtype']} {tuple(variable['shape'])}" if "shape" in variable else ""
        form = ", ms holds the variance" if variable.get("variance") else ""
        lines += wrapped(f"{', '.join(variable['names'])}{shape}{form}{_rates(variable.get('rates'))}", "  ", "    ")
        for entity, numbers in variable["entities"].items():
            lines += _row(f"    {entity:8}", numbers, variable.get("shape"))
    return lines


def _row(what: str, numbers: dict[str, Any], usual: Any = None) -> list[str]:
    """Returns the line of one dataset; its shape is left out if it is the ``usual`` one."""
    shape = numbers.get("shape")
    text = str(numbers.get("dtype", "")) + (f" {tuple(shape)}" if shape and shape != usual else "")
    if "min" in numbers:
        single = shape == []
        text += f", {numbers['min']:.4g}" if single else f", {numbers['min']:.4g} to {numbers['max']:.4g}"
        text += "" if single else f", mean {numbers['mean']:.4g}"
    if numbers.get("nonfinite"):
        text += f", {numbers['nonfinite']} NOT FINITE"
    text += {"ok": ", ok", "damaged": ", DAMAGED", "unread": ", UNREAD", "none": ""}[numbers["checksum"]]
    return wrapped(text.removeprefix(", "), f"{what} ", "      ")
