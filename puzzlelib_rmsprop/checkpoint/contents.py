"""The contents of a checkpoint: an optimizer's attributes, options, hooks and state, in NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .mean_square import MeanSquare

__all__ = ["OptimizerState", "VariableLayout"]


@dataclass(frozen=True)
class VariableLayout:
    """The names, shape and dtype of a variable that an optimizer trains, and of the arrays of its state.

    Attributes:
        names: all names of the variable; the first is its key in ``optimizer.states``.
        shape, dtype: shape and dtype of the parameter.
        offset: index of its first element in the flat arrays of its dtype; 0 in local mode.
        state: entity (the name of a state array, such as ``"mg"``) -> (shape, dtype) of this array for the variable.
        forms: other forms of an entity, which a file may contain instead of it, and which are saved beside it.
        kept: arrays that hooks keep in the state: entity -> (shape, dtype).
        span: the elements of the state that this process holds; None means all.
        rates: learnRate, momRate and wc of the variable itself; None if they are not known.
        saved_names: the names to look up in a checkpoint, if they differ from ``names``.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    state: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    forms: Sequence[MeanSquare] = ()
    kept: Mapping[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict)
    span: slice | None = None
    rates: tuple[float, float, float] | None = None
    saved_names: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def sought(self) -> Sequence[str]:
        """The names to look up in a checkpoint."""
        return self.names if self.saved_names is None else self.saved_names


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """The contents of a checkpoint, in NumPy arrays.

    Attributes:
        attrs: the registered attributes, including ``t``.
        variables: a :class:`VariableLayout` for each variable.
        arrays: the state as in ``optimizer.states``: first name of a variable (in global mode: dtype) -> entity -> array.
            Arrays that hooks keep are under the variable's name in both modes.
        states: instead of ``arrays``: the state of each of the ``variables``, entity -> array, or None.
        flat: True if ``arrays`` are the flat arrays of global mode.
        factors: name of a dtype -> learnRate, momRate and wc of its ``globalVar``. Default of a dtype: 1, 1, 1.
        extra: options and hooks, as plain data.
        complete: True if the arrays that hooks keep are all included, so that a missing one did not exist.
        digest: digest of the file that was read; it must be the same on all processes of a group.
        known: the names of the variables in that file.
    """

    attrs: dict[str, Any]
    variables: Sequence[VariableLayout]
    arrays: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    states: Sequence[Mapping[str, np.ndarray] | None] = ()
    flat: bool = False
    factors: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    digest: str = ""
    known: Sequence[str] = ()

    def of(self, variable: VariableLayout) -> dict[str, np.ndarray]:
        """Returns the state of one of the ``variables``, from ``arrays``: entity -> array.

        Raises:
            CheckpointError: if ``arrays`` has no state for it.
        """
        key = variable.dtype if self.flat else variable.name
        if key not in self.arrays:
            raise CheckpointError(f"variable {variable.name!r}: the state has no arrays for it")
        if not self.flat:
            return dict(self.arrays[key])
        size = int(np.prod(variable.shape, dtype=np.int64))
        found = {}
        for entity, array in self.arrays[key].items():
            # an array shorter than all variables together is shared by all of them
            part = array.ndim == 1 and array.size >= self._sizes[variable.dtype]
            found[entity] = array[variable.offset : variable.offset + size].reshape(variable.shape) if part else array
        return found | dict(self.arrays.get(variable.name, {}))

    @functools.cached_property
    def _sizes(self) -> dict[np.dtype, int]:
        """dtype -> the least size of its flat arrays, that of all variables together."""
        found: dict[np.dtype, int] = {}
        for v in self.variables:
            found[v.dtype] = max(found.get(v.dtype, 0), v.offset + int(np.prod(v.shape, dtype=np.int64)))
        return found
