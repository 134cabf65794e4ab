"""Restores a state from a file or another optimizer; everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checkpoint
from ..arrays import family_of, shape_of
from ..checkpoint import OptimizerState, VariableLayout
from ..distributed.agreement import together
from ..errors import ArrayError, CheckpointError, CheckpointWarning, warn
from ..net import TrackedVariable
from ..validation import flag, is_masked, shown
from .layouts import layouts, make_ready, span_of
from .settings import SavedHook, changes_of, match_hooks, read_hooks, take_settings, warn_of_hooks

if TYPE_CHECKING:
    from ..arrays import Family
    from ..optimizer import Optimizer

__all__ = ["import_state", "set_state"]


def import_state(
    optimizer: Optimizer,
    read: Callable[[Sequence[VariableLayout]], OptimizerState],
    strict: bool,
    names: Mapping[str, str] | None,
    keepSettings: bool,
) -> None:
    """Restores the state that ``read`` returns for the variables of an optimizer; see :meth:`Optimizer.load`."""
    failure: Exception | None = None
    digest = ""
    try:
        strict, keepSettings = flag("strict", strict), flag("keepSettings", keepSettings)
        make_ready(optimizer)
        variables = checkpoint.renamed(layouts(optimizer), names)
        given = read(variables)
        there = [name for each in given.variables for name in each.names] if given.arrays else given.known
        if there:
            checkpoint.check_names(names, there)
        known = given.variables if given.arrays else ()  # for a file, the reader has warned already
        digest = f"{given.digest} {strict} {keepSettings} {sorted((names or {}).items())}"
        given, saved, hooks = _checked(optimizer, _by_variable(given, variables, strict))
        # last: a warning may be turned into an error
        _warn_of_variables(given, variables, known)
        if given.complete:
            warn_of_hooks(saved, optimizer.hooks, hooks)
        changes = changes_of(optimizer, given, hooks, keepSettings)
    except Exception as error:
        failure = error
    together(optimizer.nodeinfo, failure, "loading", digest)
    with checkpoint.signals_later():  # Ctrl-C must not leave it half restored
        take_settings(changes, hooks)
        for variable, state in zip(optimizer._variables, given.states, strict=True):
            if state is not None:
                set_state(optimizer, variable, state, given.complete)
        optimizer._take_options(given.extra.get("options", {}))


def _by_variable(given: OptimizerState, variables: Sequence[VariableLayout], strict: bool) -> OptimizerState:
    """Returns the state with ``states`` for these variables, found by name, in their shapes and dtypes, with their rates."""
    if given.states and len(given.states) != len(given.variables):
        raise CheckpointError(f"the state has {len(given.variables)} variables and {len(given.states)} states")
    theirs = {name: number for number, variable in enumerate(given.variables) for name in variable.sought}
    states: list[Mapping[str, np.ndarray] | None] = []
    found = []
    for variable in variables:
        number = next((theirs[name] for name in variable.sought if name in theirs), None)
        if strict and number is None:
            raise CheckpointError(f"variable {variable.name!r}: the state has no variable of that name")
        state = None
        if number is not None and (strict or given.variables[number].shape == variable.shape):
            state = _state_of(given, number, variable)
        rates = given.variables[number].rates if number is not None and state is not None else None
        found.append(replace(variable, rates=rates))
        states.append(state)
    if states and all(state is None for state in states):
        names = [variable.name for variable in variables]
        raise CheckpointError(
            f"none of the net's variables was found: {', '.join(map(repr, names[:10]))}{', ...' * (len(names) > 10)}; "
            f"if they were renamed, pass names={{old: new}}"
        )
    return replace(given, variables=found, states=states)


def _warn_of_variables(given: OptimizerState, variables: Sequence[VariableLayout], known: Sequence[VariableLayout]) -> None:
    """Warns of variables that only the net, or only the state, has."""
    missing = [variable.name for variable, state in zip(variables, given.states, strict=True) if state is None]
    if missing:
        warn(f"variables that are missing, or have another shape: {missing}; their state is unchanged", CheckpointWarning)
    sought = {name for variable in variables for name in variable.sought}
    left = [variable.name for variable in known if not sought.intersection(variable.sought)]
    if left:
        warn(f"variables of the state that the net does not have; ignored: {left}", CheckpointWarning)


def _state_of(given: OptimizerState, number: int, variable: VariableLayout) -> Mapping[str, np.ndarray] | None:
    """Returns the state of one variable; None if the file does not have it."""
    found = given.variables[number]
    arrays = given.states[number] if given.states else given.of(found)
    if arrays is None:
        return None
    for entity, array in arrays.items():
        if not isinstance(array, np.ndarray) or is_masked(array):
            raise CheckpointError(
                f"variable {variable.name!r}: its {entity!r} must be a NumPy array without a mask; got {shown(array)[:200]}"
            )
    wanted = variable
    if variable.span is not None and found.span is not None:  # it was cut to its span when read
        size = len(range(*variable.span.indices(int(np.prod(variable.shape, dtype=np.int64)))))
        wanted = replace(variable, state={entity: ((size,), dtype) for entity, (_, dtype) in variable.state.items()})
    state = checkpoint.fitted(wanted, arrays, "the state")
    if variable.span is not None and found.span is None:
        state = {entity: array.reshape(-1)[variable.span] for entity, array in state.items()}
    if variable.span is None:
        converted = {form.name for form in variable.forms if form.entity not in arrays}
        of_hooks = arrays.keys() - variable.state.keys() - converted if given.states else found.kept.keys()
        state |= {entity: arrays[entity] for entity in of_hooks & arrays.keys()}
    return state


def _checked(
    optimizer: Optimizer, given: OptimizerState
) -> tuple[OptimizerState, list[SavedHook], list[tuple[Any, SavedHook]]]:
    """Returns the state converted to this optimizer's options, all saved hooks, and each hook with its saved data."""
    extra = given.extra
    options, saved = (extra.get("options", {}), extra.get("hooks", [])) if isinstance(extra, dict) else (None, None)
    if not isinstance(options, dict):
        raise CheckpointError(f"the file's options and hooks are not as save() writes them: {shown(extra)[:300]}")
    attrs = dict(given.attrs)
    for key in sorted(attrs.keys() - optimizer.attrs):
        warn(f"attribute {key!r} of the state is unknown to this optimizer; ignored", CheckpointWarning)
        del attrs[key]
    of_hooks = read_hooks(saved)
    hooks = match_hooks(of_hooks, optimizer.hooks)
    for variable, state in zip(optimizer._variables, given.states, strict=True):
        for entity in state if state is not None and optimizer._shards is None else ():
            array = variable.state.get(entity)
            fault = None if array is None else family_of(array).fault(array)
            if fault is not None:
                raise ArrayError(f"variable {variable.name!r}: its {entity} {fault}")
    there = [state for state in given.states if state is not None]
    adapted = iter(optimizer._adapt(there, options))
    states = [None if state is None else next(adapted) for state in given.states]
    return replace(given, attrs=attrs, states=states, extra={"options": options}), of_hooks, hooks


def set_state(optimizer: Optimizer, variable: TrackedVariable, state: Mapping[str, np.ndarray], complete: bool) -> None:
    """Copies a variable's state into its arrays; if it is ``complete``, other arrays of hooks are deleted."""
    if optimizer._shards is not None:
        begin = variable.offset + span_of(optimizer._shards, variable).start
        for entity, content in state.items():
            optimizer._shards.put(optimizer.states[variable.dtype][entity], variable.dtype, begin, content)
        return
    for entity, content in state.items():
        array = variable.state.get(entity)
        if array is not None and (entity in variable.made or shape_of(array) == content.shape):
            family_of(array).set(array, content)
        else:  # a hook's array that does not exist here yet
            family: Family = optimizer.family  # type: ignore[assignment]
            variable.state[entity] = family.zeros(content.shape, content.dtype)
            family.set(variable.state[entity], content)
    for entity in variable.kept().keys() - state.keys() if complete else ():
        del variable.state[entity]  # it did not exist when the state was saved
