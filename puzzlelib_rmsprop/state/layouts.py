"""Describes an optimizer's state, and makes sure that it is valid and up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import dtype_of, family_of, shape_of
from ..arrays.flat import layout
from ..checkpoint import VariableLayout
from ..distributed.shards import Shards
from ..errors import ArrayError, VariableError
from ..net import TrackedVariable, numbers_of, warn_of_new

if TYPE_CHECKING:
    from ..optimizer import Optimizer

__all__ = ["layouts", "make_ready", "sizes_of", "span_of"]


def sizes_of(optimizer: Optimizer, dtype: np.dtype, shards: Shards) -> tuple[int, int]:
    """Returns the size of this process's part of a flat state array, and of the whole array without padding."""
    low, high = shards.bounds(dtype)
    shapes = {variable.name: variable.shape for variable in optimizer._variables if variable.dtype == dtype}
    return high - low, layout(shapes, dtype, optimizer.shParams[dtype].alignment)[1]


def layouts(optimizer: Optimizer) -> list[VariableLayout]:
    """Returns each variable with the shapes and dtypes of its state arrays, sharded or not."""
    found = []
    for variable in optimizer._variables:
        state: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        of_hooks: dict[str, Any] = {}
        if optimizer._shards is None:
            of_hooks = variable.kept()
            for entity, array in variable.state.items():
                if entity not in of_hooks:
                    state[entity] = shape_of(array), dtype_of(array)
        else:
            for entity, array in optimizer.states[variable.dtype].items():
                state[entity] = variable.shape, dtype_of(array)
        forms = [form for form in optimizer._forms if form.applies(state)]
        kept = {entity: (shape_of(array), dtype_of(array)) for entity, array in of_hooks.items()}
        span = None if optimizer._shards is None else span_of(optimizer._shards, variable)
        found.append(
            VariableLayout(
                variable.names,
                variable.shape,
                variable.dtype,
                variable.offset,
                state,
                forms,
                kept,
                span,
                numbers_of(variable.var),
            )
        )
    return found


def make_ready(optimizer: Optimizer) -> None:
    """Makes sure that the state is valid and up to date before it is read."""
    optimizer._follow()
    warn_of_new(optimizer)
    for key, state in optimizer.states.items():
        if not isinstance(key, np.dtype if optimizer.globalState else str):
            raise VariableError(f"states must hold a dict of arrays for each variable; {key!r} has {state!r}")
    of_hooks = optimizer._variables if optimizer.globalState and optimizer._shards is None else ()
    for key, state in {**optimizer.states, **{v.name: v.kept() for v in of_hooks}}.items():
        for entity, array in state.items():
            try:
                family_of(array)
            except ArrayError as error:
                raise ArrayError(f"variable {str(key)!r}: its {entity!r}: {error}") from None
    for key, state in optimizer.states.items():
        for form in optimizer._forms:
            if form.applies(state) and shape_of(state[form.beside]) != shape_of(state[form.entity]):
                raise ArrayError(
                    f"variable {str(key)!r}: its {form.beside!r} and {form.entity!r} must have the same shape; got "
                    f"{shape_of(state[form.beside])} and {shape_of(state[form.entity])}"
                )
    # an update may be queued on a stream that is not ordered with the default stream, which copies states
    if optimizer.family is not None:
        optimizer.family.synchronize()


def span_of(shards: Shards, variable: TrackedVariable) -> slice:
    """Returns the elements of a variable's state that this process holds."""
    return shards.span(variable.dtype, variable.offset, variable.size)
