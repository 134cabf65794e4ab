"""Shared by the conversions: variables by name, transposed arrays, signs, and importing a state."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..checkpoint import MeanSquare, OptimizerState, VariableLayout, fitted
from ..errors import CheckpointError, Error, SetupError
from ..kernels import STATE
from ..optimizer import Optimizer

__all__ = [
    "as_numpy",
    "known",
    "mean_squares",
    "reading",
    "restore",
    "sign_of",
    "texts",
    "turned",
    "variables_of",
    "whole_steps",
]

_SQUARES = MeanSquare()


def variables_of(optimizer: Optimizer) -> dict[str, VariableLayout]:
    """Returns an optimizer's variables by first name. Raises SetupError if it is not set up, or its state does not fit."""
    if not isinstance(optimizer, Optimizer):
        raise SetupError(f"optimizer must be an Optimizer of this library; got {optimizer!r}")
    variables = {variable.name: variable for variable in optimizer.stateLayout()}
    for name, variable in variables.items():
        missing = set(STATE) - set(variable.state)
        if missing:
            raise SetupError(f"variable {name!r}: its state has no {min(missing)!r} to convert")
    return variables


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Converts any exception from reading foreign data into a CheckpointError."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise CheckpointError(f"{where} cannot be used: {type(error).__name__}: {error}") from error


def texts(what: str, given: Any) -> list[str]:
    """Returns a list of names. Raises CheckpointError if ``given`` is not one."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CheckpointError(f"{what} must be a list of variable names; got {given!r}")
    found = list(given)
    for each in found:
        if not isinstance(each, str):
            raise CheckpointError(f"{what} must be a list of variable names; it contains {each!r}")
    return found


def known(transposed: Any, variables: Mapping[str, VariableLayout]) -> list[str]:
    """Returns the names in ``transposed``. Raises CheckpointError if one is unknown."""
    names = texts("transposed", transposed)
    unknown = set(names) - set(variables)
    if unknown:
        raise CheckpointError(
            f"transposed has an unknown variable, {min(unknown)!r}; the net has {', '.join(map(repr, variables))}"
        )
    return names


def whole_steps(given: Any) -> int:
    """Returns a number of updates as an int. Raises ValueError if it is not an integer."""
    number = as_numpy(given).item()
    if int(number) != number:
        raise ValueError(f"the number of steps must be an integer; got {number!r}")
    return int(number)


def sign_of(optimizer: Optimizer) -> int:
    """Returns the sign of ``mg`` in the other libraries, whose gradients are of the loss."""
    return 1 if getattr(optimizer, "gradOfLoss", False) else -1


def turned(name: str, array: np.ndarray, transposed: Collection[str]) -> np.ndarray:
    """Returns a variable's array, transposed if ``transposed`` lists it."""
    return array.T if name in transposed else array


def as_numpy(value: Any) -> np.ndarray:
    """Returns an array or tensor of another library as a NumPy array."""
    if hasattr(value, "detach"):  # a tensor on any device; NumPy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def mean_squares(state: OptimizerState, variable: VariableLayout) -> dict[str, np.ndarray]:
    """Returns a variable's ``mg``, ``ms`` and ``delta`` as float32 or float64."""
    found = {entity: array for entity, array in state.of(variable).items() if entity in STATE}
    found["ms"] = _SQUARES.of(found)
    variance = found.pop("variance")
    if (np.isinf(found["ms"]) & np.isfinite(found["mg"]) & np.isfinite(variance)).any():
        raise CheckpointError(f"variable {variable.name!r}: its mean square overflows {found['ms'].dtype}")
    return {e: array if array.dtype == np.float64 else array.astype(np.float32) for e, array in found.items()}


def restore(
    optimizer: Optimizer,
    found: Mapping[str, Mapping[str, np.ndarray]],
    attrs: dict[str, Any],
    transposed: Collection[str],
    where: str,
) -> None:
    """Imports state and attributes. Raises CheckpointError, and changes nothing, if something does not fit."""
    states, variables = [], optimizer.stateLayout()
    for variable in variables:
        state = {e: turned(variable.name, array, transposed) for e, array in found[variable.name].items()}
        whole = {e: np.ascontiguousarray(array) for e, array in fitted(variable, state, where).items()}
        if variable.span is not None:  # sharded: only the part of this process, flat
            whole = {e: array.reshape(-1)[variable.span] for e, array in whole.items()}
        states.append(whole)
    optimizer.importState(OptimizerState(attrs, variables, states=states))
