"""Reads an optimizer from a file, of this library or PuzzleLib: its attributes, its state and what else it saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .attributes import read_attributes
from .format import Place, check_name
from .opening import PathOrGroup, opened
from .source import Source
from .states import States

__all__ = ["read"]


def read(
    hdf: PathOrGroup, name: str, attrs: Mapping[str, Any], places: Sequence[Place], parts: Sequence[slice] | None = None
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]], dict[str, Any], str]:
    """Reads and checks what :func:`write` or PuzzleLib wrote, for an optimizer that has ``attrs`` and ``places``.

    ``parts``: what to keep of each place's elements; then one array of a dtype is in memory at a time, whatever its size.

    Returns:
        The attributes found, each converted to the type it has in ``attrs``; for each place entity -> content, of the shape
        and dtype of the place (flat, where in parts), where an entity of ``OPTIONAL`` may be missing; ``extra``, empty
        for other writers; and the SHA-256 of all that was read, kept or not.

    Raises:
        CheckpointError: the file does not fit; says which variable and why.
    """
    check_name(name)
    with opened(hdf, "r") as parent:
        source = Source(parent, name)
        found = read_attributes(source, attrs), States(source, places).read_all(parts), source.extra
        return *found, hashlib.sha256(
            repr((sorted(source.seen.items()), source.extra, source.layout.get("attrs"))).encode()
        ).hexdigest()
