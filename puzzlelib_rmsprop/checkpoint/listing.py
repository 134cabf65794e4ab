"""Lists everything in a file: for users, and for the process that checks a file first."""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.family import FLOATS
from ..errors import CheckpointError, Error
from .attributes import saved_value
from .disk import open_hdf5, plain
from .format import content_of, stem_of
from .source import Source

if TYPE_CHECKING:
    import h5py

__all__ = ["contents_of_file", "found_in", "report"]

# errors of HDF5 that are caused by the system, the installation or another process
_NOT_DAMAGE = re.compile("already open|locking flag|memory allocation|required filter|can't open directory")


def report(path: str, descriptor: int) -> None:
    """Runs in the reading process: writes a space for each step, then the result of :func:`found_in` as a line of JSON."""
    with open(descriptor, "wb", buffering=0) as channel:
        found = found_in(path, lambda: channel.write(b" "))
        answer = memoryview(json.dumps(found).encode() + b"\n")
        while answer:
            answer = answer[channel.write(answer) :]


def found_in(path: str, step: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Returns the contents of a file, ``{"parts": [...]}``, or ``{"error": why, "damaged": whether the file is the cause}``.

    ``step`` is called before the file is opened, and after each object in it.
    """
    import h5py  # noqa: F401  # the import is slow: done before the first step

    step()
    try:
        with open_hdf5(path) as file:
            return contents_of_file(file, step)
    except Exception as error:
        damaged, why = _judged(error)
        return {"error": f"HDF5 cannot read it: {why}", "damaged": damaged}


def _judged(error: Exception) -> tuple[bool, str]:
    """Returns whether the file is the cause of an error, and the error's text."""
    cause = plain(error)
    innocent = isinstance(cause, MemoryError) or getattr(cause, "errno", None) or _NOT_DAMAGE.search(str(cause))
    return not innocent, str(cause) or type(cause).__name__


def contents_of_file(file: h5py.File, step: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Reads everything in a file, and returns ``{"parts": [...]}``."""
    import h5py

    groups: list[str] = []
    datasets: list[str] = []
    most = file.id.get_filesize()  # objects, of more than a byte each: a damaged file may contain a cycle

    def visit(key: str, item: Any) -> None:
        (groups if isinstance(item, h5py.Group) else datasets).append(key)
        if len(groups) + len(datasets) > most:
            raise CheckpointError("it has more objects than a file of its size can hold")
        step()

    def look(dataset: Any, sums: Any) -> dict[str, Any]:
        found = _look(dataset, sums)
        step()
        return found

    file.visititems(visit)
    names = {key.rpartition(".")[0] for key in groups if key.endswith((".attrs", ".states"))}
    names |= {key.removesuffix(".layout") for key in datasets if key.endswith(".layout") and key.count(".layout") == 1}
    parts = [_optimizer(file, name, datasets, look) for name in sorted(names)]
    nets = [key.removesuffix("params") for key in groups if (key == "params" or key.endswith("/params"))]
    parts += [_net(file, where, datasets, look) for where in nets if f"{where}links" in file]
    taken = {each["name"] for part in parts for each in part["datasets"]}
    left = [look(file[key], None) for key in datasets if f"/{key}" not in taken]
    if left:
        parts.append({"kind": "other", "name": "", "writer": "unknown", "datasets": left, "variables": []})
    return {"parts": parts}


def _look(dataset: Any, sums: Any) -> dict[str, Any]:
    """Describes a dataset: checks its checksum, summarizes its values. ``sums``: the expected checksum, or None."""
    found: dict[str, Any] = {"name": getattr(dataset, "name", "?"), "checksum": "none"}
    try:
        content, digest = content_of(dataset)
        found |= {"shape": list(content.shape), "dtype": str(content.dtype), **_numbers(content)}
    except Exception as error:
        damaged, why = _judged(error)
        return {**found, "checksum": "damaged" if damaged else "unread", "why": f"it cannot be read: {why}"}
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


def _net(file: h5py.File, where: str, datasets: list[str], look: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    mine = [key for key in datasets if key.startswith((f"{where}params/", f"{where}links/"))]
    return {
        "kind": "net",
        "name": where,
        "writer": "PuzzleLib's module format",
        "datasets": [look(file[key], None) for key in mine],
        "variables": [],
    }


def _optimizer(file: h5py.File, name: str, datasets: list[str], look: Callable[..., dict[str, Any]]) -> dict[str, Any]:
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
        part["datasets"].append(look(file[f"{name}.layout"], None))
        if source.sums is not None:
            part["datasets"][0]["checksum"] = "ok"  # Source has verified it
    looked: dict[str, dict[str, Any]] = {}
    for group in ("attrs", "states"):
        prefix = f"{name}.{group}/"
        for key in sorted(each.removeprefix(prefix) for each in datasets if each.startswith(prefix)):
            found = look(file[prefix + key], None if source.sums is None else source.sum_of(group, key) or "")
            part["datasets"].append(found)
            if group == "states":
                looked[key] = found
            elif "why" not in found:
                part["attrs"][key] = _plain(
                    saved_value(source.layout.get("attrs", {}), key, np.asarray(file[prefix + key][()]))
                )
    for key in source.sums or ():
        if f"{name}.{key}" not in file:
            part["datasets"].append({"name": f"/{name}.{key}", "checksum": "damaged", "why": "it is missing"})
    part["t"] = part["attrs"].get("t")
    try:
        if not isinstance(source.extra, dict):
            part["extra"] = {}
            raise TypeError("options and hooks are not a dict")
        _variables(part, source, looked)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # the layout is not as save() writes it
        part["variables"] = []
        part["datasets"].append({"name": f"/{name}.layout", "checksum": "damaged", "why": f"it cannot be used: {error}"})
    return part


def _variables(part: dict[str, Any], source: Source, looked: dict[str, dict[str, Any]]) -> None:
    """Fills in ``mode`` and ``variables``: from the layout, or from the names of PuzzleLib's datasets."""
    # a flat dataset has two names, of which h5py visits one
    if source.layout.get("mode") != "local":  # in local mode a variable may have such a name
        looked = {re.sub(r"^<class 'numpy\.(\w+)'>", r"\1", key): numbers for key, numbers in looked.items()}
    flat = {key for key in looked if key.rpartition(".")[0] in FLOATS and source.layout.get("mode") != "local"}
    part["mode"] = source.layout.get("mode") or ("global" if flat else "local")
    entries = source.layout.get("variables")
    if entries is None:
        entries = [{"names": [key]} for key in dict.fromkeys(key.rpartition(".")[0] for key in looked)]
        flat = set()
    by_name: dict[str, list[tuple[str, str, dict[str, Any]]]] = collections.defaultdict(list)
    for key, numbers in looked.items():
        of, _, entity = key.rpartition(".")
        by_name[of].append((key, entity, numbers))
    contents: dict[str, np.ndarray] = {}
    for entry in entries:
        found = {**entry, "entities": {}}
        for stem in dict.fromkeys(stem for name in entry["names"] for stem in (name, stem_of(name))):
            found["entities"] |= {entity: numbers for key, entity, numbers in by_name.get(stem, ()) if key not in flat}
        for key, entity, numbers in by_name.get(entry.get("dtype"), ()):
            if key in flat and "why" not in numbers:
                count = math.prod(entry["shape"])
                if key not in contents:
                    contents[key] = content_of(source.states[key])[0].reshape(-1)
                content = contents[key][entry["offset"] : entry["offset"] + count]
                found["entities"][entity] = {**numbers, "shape": entry["shape"], **_numbers(content)}
        part["variables"].append(found)


def _plain(value: Any) -> Any:
    """Converts a value to plain data for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
