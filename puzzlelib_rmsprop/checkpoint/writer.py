"""Writes an optimizer to a file: its attributes, its state and the layout."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import CheckpointError
from ..validation import shown
from .atomic import signals_later
from .attributes import prepared
from .contents import OptimizerState
from .format import FORMAT, check_name, content_of, digest_of, is_key, put, spellings, stem_of
from .opening import PathOrGroup, new_groups, opened

__all__ = ["write"]


def write(hdf: PathOrGroup, name: str, state: OptimizerState) -> None:
    """Writes everything in ``state``, including the other forms of an entity.

    Raises:
        CheckpointError: the file cannot be written, or already has groups of this name.
    """
    with signals_later():
        _write(hdf, name, state)


def _write(hdf: PathOrGroup, name: str, state: OptimizerState) -> None:
    check_name(name)
    plain, contents = prepared(state.attrs)
    described = {
        "format": FORMAT,
        "library": __version__,
        "mode": "global" if state.flat else "local",
        "attrs": plain,
        "extra": state.extra,
        "factors": {dtype: list(rates) for dtype, rates in state.factors.items()},
        "variables": [
            {
                "names": list(v.names),
                "shape": list(v.shape),
                "dtype": v.dtype.name,
                "offset": v.offset,
                **({} if v.rates is None else {"rates": list(v.rates)}),
                **({"hooks": {entity: dtype.name for entity, (_, dtype) in v.kept.items()}} if v.kept else {}),
            }
            for v in state.variables
        ],
    }
    try:
        json.dumps(described)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{_culprit(state.extra)} must be plain data to be saved (JSON): {error}") from error
    with opened(hdf, "w") as parent, new_groups(parent, [f"{name}.attrs", f"{name}.states"]) as (attr_group, state_group):
        sums: dict[str, str] = {}
        for key, value in contents.items():
            attr_group.create_dataset(key, data=value)
            sums[f"attrs/{key}"] = content_of(attr_group[key])[1]
        for key, arrays in state.arrays.items():
            first, *others = spellings(key.name) if isinstance(key, np.dtype) else (stem_of(key),)
            for entity, content in arrays.items():
                try:
                    if not is_key(f"{first}.{entity}"):
                        raise ValueError("that is not a valid name for a state array")
                    put(state_group, f"{first}.{entity}", content)
                except (TypeError, ValueError) as error:  # or variables "a" and "a.mg/b" collide
                    raise CheckpointError(f"variable {str(key)!r}: its {entity!r} cannot be saved: {error}") from error
                sums[f"states/{first}.{entity}"] = digest_of(content)
                for other in others:
                    # a second name for the same data, so that either backend of PuzzleLib finds it
                    state_group[f"{other}.{entity}"] = state_group[f"{first}.{entity}"]
                del content  # free it before the next one is gathered
        if f"{name}.layout" in parent:
            del parent[f"{name}.layout"]
        text = json.dumps({**described, "sha256": sums}).encode()
        # a string of fixed length: HDF5 can hang on a damaged one of variable length
        parent[f"{name}.layout"] = np.bytes_(text)
        parent[f"{name}.layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())


def _culprit(extra: dict[str, Any]) -> str:
    """Names the part of the options and hooks that JSON cannot encode."""
    for hook in extra.get("hooks", ()):
        try:
            json.dumps(hook)
        except (TypeError, ValueError):
            return f"hook {hook[0]}: the result of its getState(), {shown(hook[1])[:200]},"
    return "options and hooks"
