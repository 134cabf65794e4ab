"""Converts the saved state of a variable to the shapes and dtypes of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import CheckpointError
from .contents import VariableLayout
from .format import OPTIONAL

__all__ = ["fitted"]


def fitted(variable: VariableLayout, state: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Returns a variable's state in the shapes and dtypes of ``variable``; computes a missing entity from its other form.

    Raises:
        CheckpointError: an entity is missing, has another shape, or would lose precision. Only two conversions round:
            float32 to bfloat16 state, to nearest, and the computation from another form, in float64.
    """
    name = variable.names[0]
    forms = {form.entity: form for form in variable.forms}
    for entity, (shape, dtype) in variable.state.items():
        form = forms.get(entity)
        given = form.name if form is not None and entity not in state and form.name in state else entity
        if given not in state:
            if entity in OPTIONAL:
                continue
            raise CheckpointError(f"variable {name!r}: {where} has no {entity!r} for it")
        content = state[given]
        if content.shape != shape:
            raise CheckpointError(f"variable {name!r}: its {given!r} must be of shape {shape}; {where} has {content.shape}")
        rounds = dtype.name == "bfloat16" and content.dtype == np.float32
        if not rounds and not np.can_cast(content.dtype, dtype, "safe"):
            raise CheckpointError(
                f"variable {name!r}: its {given!r} is {dtype} here; {where} has {content.dtype}, which does not fit "
                f"without loss (round the array yourself, and pass it to importState())"
            )
        with np.errstate(invalid="ignore"):  # NaN in bfloat16
            negative = form is not None and given == entity and (content < 0).any()
        if negative:
            raise CheckpointError(f"variable {name!r}: its {entity!r} in {where} is below 0; a variance cannot be")
    made = {entity: form.back(state, variable.state[entity][1]) for entity, form in forms.items() if entity not in state}
    return dict(_cast(variable, {**state, **made}, where))


def _cast(variable: VariableLayout, state: Mapping[str, np.ndarray], where: str) -> Iterator[tuple[str, np.ndarray]]:
    for entity, (_, dtype) in variable.state.items():
        if entity in state:
            content = state[entity]
            if content.dtype == dtype:
                yield entity, content
                continue
            finite = np.isfinite(content)
            with np.errstate(over="ignore", invalid="ignore"):
                content = content.astype(dtype)
            if not np.array_equal(np.isfinite(content), finite):
                raise CheckpointError(
                    f"variable {variable.names[0]!r}: its {entity!r} in {where} exceeds the range of {dtype}, its dtype here"
                )
            yield entity, content
