"""What a checkpoint holds, whatever its form: an optimizer's attributes, options, hooks and state, in NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .mean_square import MeanSquare

__all__ = ["OptimizerState", "VariableLayout"]


@dataclass(frozen=True)
class VariableLayout:
    """A variable that an optimizer trains: what it looks like, and of what its state is made.

    Attributes:
        names: every name of the variable, the first as in ``optimizer.states``.
        shape, dtype: the parameter's.
        offset: of its first element in the flat arrays of its dtype, in elements; 0 in local mode.
        state: entity -> (shape, dtype) of the variable's own state array.
        forms: what a file may hold in place of an entity, and holds beside it.
        kept: what hooks keep of the variable: entities that a file may lack, or have besides.
        span: which elements of the state are on this process; None: all.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    state: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    forms: Sequence[MeanSquare] = ()
    kept: Sequence[str] = ()
    span: slice | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer is made of, in NumPy arrays.

    Attributes:
        attrs: the registered attributes, ``t`` among them.
        variables: each variable's names, shape and dtype, and the shape and dtype of every array of its state.
        arrays: of a state that is exported, as ``optimizer.states`` has it: a variable's first name, or in global mode the
            dtype, -> entity -> array.
        states: of a state to be imported: one dict, entity -> array, for each of the variables.
        flat: whether ``arrays`` are those of global mode.
        extra: options and hooks, as plain data.
        digest: of the file that it was read from: in a group, it has to be the same on all processes.
    """

    attrs: dict[str, Any]
    variables: Sequence[VariableLayout]
    arrays: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    states: Sequence[Mapping[str, np.ndarray]] = ()
    flat: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def of(self, variable: VariableLayout) -> dict[str, np.ndarray]:
        """The state of one of the ``variables``, from ``arrays``."""
        if not self.flat:
            return dict(self.arrays[variable.name])
        size = int(np.prod(variable.shape, dtype=np.int64))
        found = dict(self.arrays.get(variable.name, {}))  # what hooks keep
        for entity, array in self.arrays[variable.dtype].items():
            mine = variable.state.get(entity, (variable.shape,))[0] == variable.shape and array.ndim == 1
            found[entity] = array[variable.offset : variable.offset + size].reshape(variable.shape) if mine else array
        return found
