"""An optimizer's attributes in a file, read as the types that they have in the optimizer."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError, CheckpointWarning
from .source import Source

__all__ = ["read_attributes"]


def read_attributes(source: Source, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in a file that are in ``attrs`` too, each converted to the type that it has there."""
    found: dict[str, Any] = {}
    if source.attrs is None:
        if source.sums is not None:
            raise CheckpointError(f"{source.file} has no group '{source.name}.attrs'")
        return found
    saved = {key.partition("/")[2] for key in source.sums or () if key.startswith("attrs/")}
    lost = saved - set(source.attrs)
    if lost:
        raise CheckpointError(f"{source.file}: attribute {min(lost)!r} is damaged: it is missing")
    for key in source.attrs:
        content = source.verified("attrs", key)
        if key not in attrs:
            warnings.warn(f"attribute {key!r} in the file is unknown to this optimizer; ignored", CheckpointWarning, 4)
            continue
        found[key] = _converted(key, content, attrs[key])
    return found


def _converted(key: str, content: np.ndarray, current: Any) -> Any:
    value = content.item() if content.dtype.hasobject and content.ndim == 0 else content[()]
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(current, np.ndarray):
        return np.array(value, current.dtype)
    if current is None:
        return value
    try:
        if isinstance(value, str) != isinstance(current, str):
            raise TypeError("text and numbers do not convert")
        if np.ndim(value) > 0:
            raise TypeError("it is an array")
        if np.iscomplexobj(value) and not np.iscomplexobj(current):
            raise TypeError("what is imaginary would be lost")
        converted = type(current)(value)
        if isinstance(current, numbers.Integral) and converted != value:
            raise ValueError("it is not whole")
        return converted
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(current).__name__
        raise CheckpointError(f"attribute {key!r} must be of type {kind}; the file has {value!r}") from error
