"""What a checkpoint holds, whatever its form: an optimizer's attributes, options, hooks and state, in NumPy arrays."""

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
    """A variable that an optimizer trains: what it looks like, and of what its state is made.

    Attributes:
        names: every name of the variable, the first as in ``optimizer.states``.
        shape, dtype: the parameter's.
        offset: of its first element in the flat arrays of its dtype, in elements; 0 in local mode.
        state: entity -> (shape, dtype) of the variable's own state array.
        forms: what a file may hold in place of an entity, and holds beside it.
        kept: what hooks keep in the state besides: entity -> (shape, dtype).
        span: which elements of the state are on this process; None: all.
        rates: learnRate, momRate and wc of the variable itself; None where they are not known.
        saved_names: the names to look for in what was saved, where they are others than ``names``.
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
        """The names to look for in what was saved."""
        return self.names if self.saved_names is None else self.saved_names


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What an optimizer is made of, in NumPy arrays.

    Attributes:
        attrs: the registered attributes, ``t`` among them.
        variables: each variable's names, shape and dtype, and the shape and dtype of every array of its state.
        arrays: as ``optimizer.states`` has them: a variable's first name, or in global mode the dtype, -> entity -> array;
            what hooks keep is under the variable's name in both modes.
        states: in place of ``arrays``: for each of the ``variables`` its state, entity -> array; None where there is none.
        flat: whether ``arrays`` are those of global mode.
        factors: name of a dtype -> learnRate, momRate and wc of its ``globalVar``; a dtype that is missing has 1, 1, 1.
        extra: options and hooks, as plain data.
        complete: whether everything of the hooks is in there too: then what is not there was not kept.
        digest: of the file that it was read from: in a group, it has to be the same on all processes.
        known: the names of variables in that file.
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
        """The state of one of the ``variables``, from ``arrays``.

        Raises:
            CheckpointError: there is none, or it is too short.
        """
        key = variable.dtype if self.flat else variable.name
        if key not in self.arrays:
            raise CheckpointError(f"variable {variable.name!r}: the state has no arrays for it")
        if not self.flat:
            return dict(self.arrays[key])
        size = int(np.prod(variable.shape, dtype=np.int64))
        found = {}
        for entity, array in self.arrays[key].items():
            # one that is not as long as all variables together is one for all of them
            part = array.ndim == 1 and array.size >= self._sizes[variable.dtype]
            found[entity] = array[variable.offset : variable.offset + size].reshape(variable.shape) if part else array
        return found | dict(self.arrays.get(variable.name, {}))

    @functools.cached_property
    def _sizes(self) -> dict[np.dtype, int]:
        """dtype -> what the flat arrays have at least: all variables."""
        found: dict[np.dtype, int] = {}
        for v in self.variables:
            found[v.dtype] = max(found.get(v.dtype, 0), v.offset + int(np.prod(v.shape, dtype=np.int64)))
        return found
