"""Reads an optimizer from a file, of this library or PuzzleLib: its attributes, its state and what else it saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .attributes import read_attributes
from .contents import OptimizerState, VariableLayout
from .format import FORMAT, check_name
from .opening import PathOrGroup, opened
from .source import Source
from .states import States

__all__ = ["read"]


def read(
    hdf: PathOrGroup, name: str, attrs: Mapping[str, Any], variables: Sequence[VariableLayout], strict: bool = True
) -> OptimizerState:
    """Reads and checks what :func:`write` or PuzzleLib wrote, for an optimizer that has ``attrs`` and ``variables``.

    Of a variable with a ``span`` these elements are kept; one array of a dtype is in memory at a time, whatever its size.

    Args:
        strict: whether a variable that the file does not have, or has in another shape, is an error. Otherwise its state is
            None.

    Returns:
        The attributes found, each converted to the type it has in ``attrs``; for each variable entity -> content, of its
        shape and dtype (flat, where it has a span), where an entity of ``OPTIONAL`` may be missing; the rates in the file;
        ``extra``, empty for other writers; and the SHA-256 of all that was read, kept or not.

    Raises:
        CheckpointError: the file does not fit; says which variable and why.
    """
    check_name(name)
    with opened(hdf, "r") as parent:
        source = Source(parent, name)
        found, states = read_attributes(source, attrs), States(source, variables, strict)
        contents, rates, factors = states.read_all(), states.rates(), states.factors()
        seen = repr((sorted(source.seen.items()), source.extra, source.layout.get("attrs"), rates, factors))
        digest = hashlib.sha256(seen.encode()).hexdigest()
        complete = source.layout.get("format", 0) >= FORMAT and "factors" in source.layout
        variables = [replace(variable, rates=own) for variable, own in zip(variables, rates, strict=True)]
        return OptimizerState(
            found,
            variables,
            states=contents,
            factors=factors,
            extra=source.extra,
            complete=complete,
            digest=digest,
            known=states.names(),
        )
