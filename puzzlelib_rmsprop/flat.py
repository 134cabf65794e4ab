"""Global mode: moves all parameters of a dtype into one buffer, and all gradients into another; the net gets views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import Family, SharedArray, family_of, shape_of
from .arrays.flat import ByDtype
from .errors import ArrayError, SetupError, VariableError
from .net import TrackedVariable
from .variable import Variable

__all__ = ["FlatBuffers", "check_buffers", "check_moved", "check_views", "flatten", "part_of", "share_states"]


class FlatBuffers(NamedTuple):
    """The result of :func:`flatten`.

    Attributes:
        params, grads: dtype -> the buffer of the parameters, and of the gradients.
        variables: dtype -> a Variable of both buffers. Its rates are factors on the rates of all variables of the dtype.
    """

    params: dict[np.dtype, SharedArray]
    grads: dict[np.dtype, SharedArray]
    variables: dict[np.dtype, Variable]


def flatten(
    net: Any, variables: Sequence[TrackedVariable], family: Family, parts: int = 1, multiple: int = 1
) -> FlatBuffers:
    """Moves the variables into flat buffers, one at a time, and points the net at views of them.

    Every buffer has ``parts`` parts of equal size. Every variable begins at a multiple of ``multiple`` elements.
    """
    params: dict[np.dtype, SharedArray] = ByDtype()
    grads: dict[np.dtype, SharedArray] = ByDtype()
    for variable in variables:
        for buffers in (params, grads):
            buffer = buffers.setdefault(variable.dtype, SharedArray(variable.dtype, family))
            buffer.register(variable.shape, variable.dtype, variable.name)
    for buffer in (*params.values(), *grads.values()):
        buffer.build(parts, multiple)
    for variable in variables:
        name, var = variable.name, variable.var
        data, grad = params[variable.dtype][name], grads[variable.dtype][name]
        family.copy(data, variable.data)
        family.copy(grad, variable.grad)
        if not family.keeps_arrays:
            var.data, var.grad = data, grad
        try:
            for each in variable.names:
                net.setVar(each, var)
        except BaseException:
            # the variables moved before are complete in the buffers; only this one is restored
            var.data, var.grad = variable.data, variable.grad
            raise
        if family.keeps_arrays:
            for own, buffers in ((variable.data, params), (variable.grad, grads)):
                family.rebind(own, buffers[variable.dtype][name])
                buffers[variable.dtype].blocks[name] = own
        variable.data, variable.grad, variable.offset = var.data, var.grad, params[variable.dtype].offsets[name]
    flat = ByDtype({dtype: Variable(params[dtype].ary, name=str(dtype), grad=grads[dtype].ary) for dtype in params})
    for var in flat.values():
        var.wc = 1.0  # a factor, like its other rates
    return FlatBuffers(params, grads, flat)


def check_moved(variables: Sequence[TrackedVariable], params: Mapping[np.dtype, SharedArray], owner: str) -> None:
    """Raises SetupError if ``setupGlobalState`` of the class ``owner`` did not move one of the variables."""
    for variable in variables:
        buffer = params.get(variable.dtype)
        if buffer is None or buffer.blocks.get(variable.name) is not variable.data:
            raise SetupError(
                f"variable {variable.name!r}: {owner}.setupGlobalState() did not move it into a flat buffer; call "
                f"super().setupGlobalState(vartable) in it"
            )


def check_buffers(flat: FlatBuffers) -> None:
    """Raises VariableError if a flat array was replaced."""
    for dtype, var in flat.variables.items():
        for what, array, own in (("data", var.data, flat.params), ("gradient", var.grad, flat.grads)):
            if array is not own[dtype].ary:
                raise VariableError(
                    f"globalVar[{dtype}]: its {what}, of which the net's variables are views, was replaced after setupOn; "
                    f"write into the array in place, or call setupOn again"
                )


def share_states(
    variables: Sequence[TrackedVariable], states: Any, globalVar: Mapping[np.dtype, Any], is_whole: bool
) -> None:
    """Gives each variable its state; in global mode views of the flat state, unless it is sharded (not ``is_whole``).

    Raises:
        VariableError: a variable has no state, or a state is not a dict.
    """
    if not isinstance(states, Mapping):
        raise VariableError(f"states must be a dict of the variables' states; got {states!r}")
    found = [states.get(variable.dtype if globalVar else variable.name) for variable in variables]
    for variable, state in zip(variables, found, strict=True):
        if not isinstance(state, dict):
            raise VariableError(f"variable {variable.name!r}: its state must be a dict of arrays; got {state!r}")
    for key, state in states.items():
        if not isinstance(state, dict):
            raise VariableError(f"states must hold a dict of arrays for each variable; {key!r} has {state!r}")
    for variable, state in zip(variables, found, strict=True):
        if not globalVar:
            variable.state = state  # type: ignore[assignment]
        elif is_whole:
            _share(variable, state, shape_of(globalVar[variable.dtype].data)[0])  # type: ignore[arg-type]


def _share(variable: TrackedVariable, state: dict[str, Any], total: int) -> None:
    """Gives a variable its views of the flat state of ``total`` elements; keeps the entries that hooks added."""
    views = variable.views
    if views.keys() == state.keys() and all(views[entity][0] is array for entity, array in state.items()):
        return
    variable.views = {
        entity: (array, part_of(array, variable.offset, variable.shape, total)) for entity, array in state.items()
    }
    kept = {entity: array for entity, array in variable.state.items() if entity not in views}
    variable.state = type(state)(kept | {entity: view for entity, (_, view) in variable.views.items()})


def check_views(variables: Sequence[TrackedVariable]) -> None:
    """Raises VariableError if a hook replaced a view of the flat state: the step would not use the new array."""
    for variable in variables:
        for entity, (_, view) in variable.views.items():
            if variable.state.get(entity) is not view:
                raise VariableError(
                    f"variable {variable.name!r}: a hook replaced its {entity!r}, in global mode a view of the flat state; "
                    f"write into the view instead: state[{entity!r}][...] = values"
                )


def part_of(array: Any, offset: int, shape: tuple[int, ...], total: int) -> Any:
    """Returns a variable's part of a flat array of ``total`` elements; any other array, shared by all, as it is."""
    try:
        shape_of_array = shape_of(array)
    except ArrayError:
        return array
    if shape_of_array != (total,):
        return array
    return family_of(array).view(array, offset, shape)
