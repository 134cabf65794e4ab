"""Reads an optimizer's attributes, state and settings from a file of this library or of PuzzleLib."""

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
    """Reads and checks a file of :func:`write` or PuzzleLib, for an optimizer with these ``attrs`` and ``variables``.

    For a variable with a ``span``, only these elements are kept, and only one array of each dtype is in memory at a time.

    Args:
        strict: whether a variable that the file lacks, or has in another shape, is an error. Otherwise its state is None.

    Returns:
        The attributes found, each converted to its type in ``attrs``; for each variable entity -> content, in its shape and
        dtype (flat if it has a span), where entities of ``OPTIONAL`` may be missing; the rates in the file; ``extra``, empty
        for other writers; and the SHA-256 of everything that was read, kept or not.

    Raises:
        CheckpointError: the file does not match; the message names the variable and the reason.
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
