"""``python -m puzzlelib_rmsprop inspect FILE``: what is in a checkpoint, ours or PuzzleLib's, and whether it is whole."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.family import FLOATS
from ..checkpoint import atomic as files
from ..checkpoint.reader import Source, content_of, stem_of
from ..errors import CheckpointError, Error

if TYPE_CHECKING:
    import h5py

__all__ = ["inspect", "survey"]

STATUS = "Exit status: 0 the file is whole, as far as it has checksums; 1 it is damaged; 2 it cannot be read at all."


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a file; read by a process of its own, since HDF5 can hang or crash on a damaged one.

    Returns:
        ``path``, ``bytes``, ``seal`` ("ok", "damaged" or "none": the checksum of the whole file), ``damaged`` (a list of
        sentences) and ``parts``, each an optimizer or a net: ``kind``, ``name``, ``writer``, ``format``, ``mode``, ``t``,
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
    import h5py

    path = files.text_of(path)
    try:
        seal = {True: "ok", False: "damaged", None: "none"}[files.sealed(path)]
        size = os.path.getsize(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if seal != "damaged" and not h5py.is_hdf5(path):
        raise CheckpointError(f"cannot read {path}: it is no HDF5 file")
    found = files.probe(path)
    if not found:
        raise CheckpointError(f"cannot read {path}: no process can be started to read it")
    wrong = found.get("error")
    if wrong and seal != "damaged":
        raise CheckpointError(f"cannot read {path}: {wrong}")
    parts = found.get("parts", [])
    damaged = []
    if seal == "damaged":
        damaged.append("the SHA-256 of the file is not the one that it was saved with" + (f"; {wrong}" if wrong else ""))
    for part in parts:
        damaged += [f"dataset {each['name']!r}: {each['why']}" for each in part["datasets"] if each["checksum"] == "damaged"]
    return {"path": path, "bytes": size, "seal": seal, "damaged": damaged, "parts": parts}


def report(path: str) -> None:
    """Prints :func:`survey` as JSON: what the process that reads the file runs."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = survey(file)
    except Exception as error:
        found = {"error": f"HDF5 cannot read it: {error}"}
    print(json.dumps(found))


def survey(file: h5py.File) -> dict[str, Any]:
    """Reads everything in a file: ``{"parts": [...]}``."""
    import h5py

    groups: list[str] = []
    datasets: list[str] = []
    file.visititems(lambda key, item: (groups if isinstance(item, h5py.Group) else datasets).append(key))
    names = {key.rpartition(".")[0] for key in groups if key.endswith((".attrs", ".states"))}
    names |= {key.removesuffix(".layout") for key in datasets if key.endswith(".layout") and key.count(".layout") == 1}
    parts = [_optimizer(file, name, datasets) for name in sorted(names)]
    nets = [key.removesuffix("params") for key in groups if (key == "params" or key.endswith("/params"))]
    parts += [_net(file, where, datasets) for where in nets if f"{where}links" in file]
    taken = {each["name"] for part in parts for each in part["datasets"]}
    left = [_look(file[key], None) for key in datasets if f"/{key}" not in taken]
    if left:
        parts.append({"kind": "other", "name": "", "writer": "unknown", "datasets": left, "variables": []})
    return {"parts": parts}


def _look(dataset: Any, sums: Any) -> dict[str, Any]:
    """One dataset: its checksum compared, its numbers counted. ``sums``: what it should be; None where there are none."""
    found: dict[str, Any] = {"name": getattr(dataset, "name", "?"), "checksum": "none"}
    try:
        content, digest = content_of(dataset)
        found |= {"shape": list(content.shape), "dtype": str(content.dtype), **_numbers(content)}
    except Exception as error:
        return {**found, "checksum": "damaged", "why": f"it cannot be read: {error}"}
    if sums is not None:
        found |= {"checksum": "ok"} if sums == digest else {"checksum": "damaged", "why": "its checksum does not match"}
    return found


def _numbers(content: np.ndarray) -> dict[str, Any]:
    if content.dtype.kind not in "fiu" or not content.size:
        return {}
    good = content[np.isfinite(content)].astype(np.float64)
    found: dict[str, Any] = {"nonfinite": int(content.size - good.size)}
    if good.size:
        found |= {"min": float(good.min()), "max": float(good.max()), "mean": float(good.mean())}
    return found


def _net(file: h5py.File, where: str, datasets: list[str]) -> dict[str, Any]:
    mine = [key for key in datasets if key.startswith((f"{where}params/", f"{where}links/"))]
    return {
        "kind": "net",
        "name": where,
        "writer": "PuzzleLib's module format",
        "datasets": [_look(file[key], None) for key in mine],
        "variables": [],
    }


def _optimizer(file: h5py.File, name: str, datasets: list[str]) -> dict[str, Any]:
    part: dict[str, Any] = {"kind": "optimizer", "name": name, "datasets": [], "variables": []}
    try:
        source = Source(file, name)
    except Error as error:
        layout = {"name": f"/{name}.layout", "checksum": "damaged", "why": str(error)}
        return {**part, "writer": "unknown", "datasets": [layout]}
    layout = source.layout
    part["writer"] = f"puzzlelib_rmsprop {layout.get('library', '(format 1)')}" if layout else "PuzzleLib"
    part |= {"format": layout.get("format"), "extra": source.extra, "attrs": {}, "t": None}
    if layout:
        part["datasets"].append(_look(file[f"{name}.layout"], None))
        if source.sums is not None:
            part["datasets"][0]["checksum"] = "ok"  # Source compared it
    looked: dict[str, dict[str, Any]] = {}
    for group in ("attrs", "states"):
        prefix = f"{name}.{group}/"
        for key in sorted(each.removeprefix(prefix) for each in datasets if each.startswith(prefix)):
            found = _look(file[prefix + key], None if source.sums is None else source.sum_of(group, key) or "")
            part["datasets"].append(found)
            if group == "states":
                looked[key] = found
            elif found["checksum"] != "damaged":
                part["attrs"][key] = _plain(file[prefix + key][()])
    for key in source.sums or ():
        if f"{name}.{key}" not in file:
            part["datasets"].append({"name": f"/{name}.{key}", "checksum": "damaged", "why": "it is missing"})
    part["t"] = part["attrs"].get("t")
    _variables(part, source, looked)
    return part


def _variables(part: dict[str, Any], source: Source, looked: dict[str, dict[str, Any]]) -> None:
    """Fills in ``mode`` and ``variables``: from the layout, or from the names of PuzzleLib's datasets."""
    # a flat dataset has two names, of which h5py visits one
    if source.layout.get("mode") != "local":  # there a variable may be called so
        looked = {re.sub(r"^<class 'numpy\.(\w+)'>", r"\1", key): numbers for key, numbers in looked.items()}
    flat = {key for key in looked if key.rpartition(".")[0] in FLOATS and source.layout.get("mode") != "local"}
    part["mode"] = source.layout.get("mode") or ("global" if flat else "local")
    entries = source.layout.get("variables")
    if entries is None:
        entries = [{"names": [key]} for key in dict.fromkeys(key.rpartition(".")[0] for key in looked)]
        flat = set()
    contents: dict[str, np.ndarray] = {}
    for entry in entries:
        found = {**entry, "entities": {}}
        stems = {stem for name in entry["names"] for stem in (name, stem_of(name))}
        for key, numbers in looked.items():
            of, _, entity = key.rpartition(".")
            if of in stems and key not in flat:
                found["entities"][entity] = numbers
            elif key in flat and of == entry.get("dtype") and numbers["checksum"] != "damaged":
                count = math.prod(entry["shape"])
                if key not in contents:
                    contents[key] = content_of(source.states[key])[0].reshape(-1)
                content = contents[key][entry["offset"] : entry["offset"] + count]
                found["entities"][entity] = {**numbers, "shape": entry["shape"], **_numbers(content)}
        part["variables"].append(found)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


# --------------------------------------------------------------------------------------------- the command


def add_command(commands: Any) -> None:
    """Adds ``inspect`` to the package's commands."""
    parser = commands.add_parser("inspect", help="what is in a checkpoint, and whether it is whole", epilog=STATUS)
    parser.add_argument("file", metavar="FILE", help="a file of this library or PuzzleLib")
    parser.add_argument("--json", action="store_true", help="print everything, for a program")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Prints what is in the file; returns the exit status."""
    try:
        found = inspect(given.file)
    except CheckpointError as error:
        print(json.dumps({"path": given.file, "error": str(error)}) if given.json else error)
        return 2
    print(json.dumps(_strict(found), indent=2) if given.json else "\n".join(_lines(found)))
    return 1 if found["damaged"] else 0


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
            lines += [f"  {key}: {value}" for key, value in part["extra"].items() if value]
            lines += _table(part)
        else:
            lines += [_row("  " + each["name"], each) for each in part["datasets"]]
    if found["damaged"]:
        lines += ["", "DAMAGED:", *(f"  {each}" for each in found["damaged"])]
    return lines


def _table(part: dict[str, Any]) -> list[str]:
    lines = []
    for variable in part["variables"]:
        shape = f", {variable['dtype']} {tuple(variable['shape'])}" if "shape" in variable else ""
        form = ", ms holds the variance" if variable.get("variance") else ""
        lines.append(f"  {', '.join(variable['names'])}{shape}{form}")
        lines += [_row(f"    {entity}", numbers) for entity, numbers in variable["entities"].items()]
    return lines


def _row(what: str, numbers: dict[str, Any]) -> str:
    text = f"{what:<12} {numbers.get('dtype', '')} {tuple(numbers.get('shape', ()))}"
    if "min" in numbers:
        text += f", {numbers['min']:.4g} to {numbers['max']:.4g}, mean {numbers['mean']:.4g}"
    if numbers.get("nonfinite"):
        text += f", {numbers['nonfinite']} NOT FINITE"
    return text + {"ok": ", ok", "damaged": ", DAMAGED", "none": ""}[numbers["checksum"]]
