"""An optimizer's attributes in a file: as datasets, which PuzzleLib reads too, and in the layout, which keeps their types.

The layout's ``attrs`` holds plain values as JSON. A value that JSON lacks is a dict with one key: ``{"tuple": [...]}``,
``{"bytes": "6162"}``, ``{"complex": [1.0, 2.0]}``, ``{"scalar": ["<f4", 0.5]}`` for a NumPy scalar in a list. If HDF5 cannot
store a value (None, ``[1, "a"]``, ``[[1], [2, 3]]``), its dataset holds the same JSON as text.
"""

from __future__ import annotations

import itertools
import json
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError, CheckpointWarning, warn
from ..validation import is_masked, shown
from .format import content_of
from .source import Source

__all__ = ["decoded", "encoded", "prepared", "read_attributes", "saved_value"]

_NUMBERS = itertools.count()
DEPTH = 32  # how deeply lists may be nested


# --------------------------------------------------------------------------------------------- writing


def prepared(attrs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prepares attributes for saving: returns their entries in the layout, and the contents of their datasets.

    Raises:
        CheckpointError: an attribute cannot be saved, or would not be loaded with its type.
    """
    import h5py

    described: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    # a trial file in memory finds invalid values before a file is touched; its name is unique, as threads may save at once
    with h5py.File(f"attributes {next(_NUMBERS)}", "w", driver="core", backing_store=False) as trial:
        for key, value in attrs.items():
            try:
                if is_masked(value):
                    raise CheckpointError("has a mask, which would be lost: save array.filled(value)")
                if _in_layout(value):
                    described[key] = encoded(value) if _needs_layout(value) else value
                    json.dumps(described[key])  # an int can have too many digits
                contents[key] = _stored(trial, key, value, described)
            except (TypeError, ValueError, CheckpointError) as error:
                why = {TypeError: "is not a number, text, list, tuple or array", CheckpointError: str(error)}
                said = why.get(type(error), f"is not valid in a file: {error}")  # text with a NUL, or not valid in UTF-8
                raise CheckpointError(f"attribute {key!r} cannot be saved: {shown(value)[:200]} {said}") from error
            if not _comes_back(key, value, described, content_of(trial[key])[0]):
                raise CheckpointError(
                    f"attribute {key!r} cannot be saved: {shown(value)[:200]} would not be loaded as {type(value).__name__}"
                )
    return described, contents


def _in_layout(value: Any) -> bool:
    return _needs_layout(value) or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic))


def _needs_layout(value: Any) -> bool:
    """Returns whether a dataset alone would lose the value's type."""
    return value is None or isinstance(value, list | tuple | bytes) or type(value) is complex


def _comes_back(key: str, value: Any, described: Mapping[str, Any], content: np.ndarray) -> bool:
    """Returns whether an attribute would be read with the type it was saved with."""
    try:
        back = _converted(key, saved_value(described, key, content, value is None), value)
    except (CheckpointError, SystemError):  # SystemError: ml_dtypes' scalars
        return False
    return isinstance(value, np.ndarray) or type(back) is type(value)


def _stored(trial: Any, key: str, value: Any, described: Mapping[str, Any]) -> Any:
    """Creates the dataset of an attribute in ``trial``, and returns its content."""
    try:
        trial.create_dataset(key, data=value)
    except (TypeError, ValueError):
        if not _needs_layout(value):
            raise
        if key in trial:  # h5py creates it before it checks the content
            del trial[key]
        value = np.bytes_(json.dumps(described[key]).encode())
        trial.create_dataset(key, data=value)
    return value


def encoded(value: Any, depth: int = 0) -> Any:
    """Encodes a value as plain data for JSON. Raises CheckpointError if that is not possible."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        if depth == DEPTH:
            raise CheckpointError(f"has lists nested more than {DEPTH} deep")
        items = [encoded(each, depth + 1) for each in value]
        return items if kind is list else {"tuple": items}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return {"scalar": [value.dtype.str, value.item()]}
    where = "holds a value" if depth else "is"
    raise CheckpointError(
        f"{where} of type {kind.__name__}; lists and tuples may hold numbers, text, bytes, None, lists and tuples"
    )


# --------------------------------------------------------------------------------------------- reading


def read_attributes(source: Source, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the attributes that are both in the file and in ``attrs``, each converted to its type in ``attrs``.

    An attribute that is None in either place is returned as it was saved.
    """
    found: dict[str, Any] = {}
    if source.attrs is None:
        if source.sums is not None:
            raise CheckpointError(f"{source.file} has no group '{source.name}.attrs'")
        return found
    saved = {key.partition("/")[2] for key in source.sums or () if key.startswith("attrs/")}
    lost = saved - set(source.attrs)
    if lost:
        raise CheckpointError(f"{source.file}: attribute {min(lost)!r} is damaged: it is missing")
    described = source.layout.get("attrs", {})
    if not isinstance(described, dict):
        raise CheckpointError(f"{source.file}: '{source.name}.layout' is damaged: its attributes are not a dict")
    unknown: list[str] = []
    for key in source.attrs:
        content = source.verified("attrs", key)
        if key not in attrs:
            unknown.append(key)
            continue
        found[key] = _converted(key, saved_value(described, key, content, attrs[key] is None), attrs[key])
    if unknown:
        which = f"attribute{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"
        verb = "are" if len(unknown) > 1 else "is"
        warn(f"{which} in the file {verb} unknown to this optimizer; ignored (setAttr() before load())", CheckpointWarning)
    return found


def saved_value(described: Mapping[str, Any], key: str, content: np.ndarray, exact: bool = False) -> Any:
    """Returns an attribute as saved: from the layout if its dataset lost the type or ``exact``; else from the dataset."""
    if key in described and (exact or described[key] is None or isinstance(described[key], list | dict)):
        return decoded(described[key])
    value = content.item() if content.dtype.hasobject and content.ndim == 0 else content[()]
    return value.decode() if isinstance(value, bytes) else value


def decoded(saved: Any) -> Any:
    """Inverts :func:`encoded`. Raises CheckpointError for data that it does not produce."""
    if isinstance(saved, list):
        return [decoded(each) for each in saved]
    if not isinstance(saved, dict):
        return saved
    try:
        ((kind, held),) = saved.items()
        if kind == "tuple":
            return tuple(decoded(each) for each in held)
        if kind == "bytes":
            return bytes.fromhex(held)
        if kind == "complex":
            real, imag = held
            return complex(real, imag)
        if kind == "scalar" and np.dtype(held[0]).kind in "biuf":
            return np.dtype(held[0]).type(held[1])
    except (TypeError, ValueError, IndexError, OverflowError):
        pass
    raise CheckpointError(f"an attribute in the layout is damaged, or was written by a later version: {shown(saved)[:200]}")


def _converted(key: str, value: Any, current: Any) -> Any:
    if current is None or value is None:
        return value
    try:
        if isinstance(current, np.ndarray):
            return _as_array(value, current.dtype)
        if isinstance(current, list | tuple):
            return _as_sequence(value, type(current))
        if isinstance(value, str | bytes) != isinstance(current, str | bytes):
            raise TypeError("text does not convert to numbers, nor numbers to text")
        if isinstance(value, str) and isinstance(current, bytes):
            value = value.encode()
        if np.ndim(value) > 0:
            raise TypeError("it is an array")
        if np.iscomplexobj(value) and not np.iscomplexobj(current):
            raise TypeError("the imaginary part would be lost")
        converted = type(current)(value)
        if isinstance(current, numbers.Integral) and converted != value:
            raise ValueError("it is not an integer")
        return converted
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(current).__name__
        raise CheckpointError(f"attribute {key!r} must be of type {kind}; the file has {shown(value)}") from error


def _as_array(value: Any, dtype: np.dtype) -> np.ndarray:
    array = np.asarray(value)
    if (array.dtype.kind in "OSU") != (dtype.kind in "OSU"):
        raise TypeError("text does not convert to numbers, nor numbers to text")
    if array.dtype.kind == "c" and dtype.kind != "c":
        raise TypeError("the imaginary part would be lost")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(converted, array):
        raise ValueError("it is not an integer, or too large")
    return converted


def _as_sequence(value: Any, kind: type) -> Any:
    if isinstance(value, np.ndarray):  # a file of PuzzleLib, or of version 0.1.0
        value = np.char.decode(value.astype(bytes)).tolist() if value.dtype.kind in "OS" else value.tolist()
    if not isinstance(value, list | tuple):
        raise TypeError("it is not a list")
    return kind(value)
