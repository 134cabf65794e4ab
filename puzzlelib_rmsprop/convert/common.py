"""What conversions of every library share: variables by name, arrays turned and signed, and taking the state over."""

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
    """The variables of an optimizer by first name. SetupError where it is not set up, or has another kind of state."""
    if not isinstance(optimizer, Optimizer):
        raise SetupError(f"the optimizer must be one of this library; got {optimizer!r}")
    variables = {variable.name: variable for variable in optimizer.stateLayout()}
    for name, variable in variables.items():
        missing = set(STATE) - set(variable.state)
        if missing:
            raise SetupError(f"variable {name!r}: its state here has no {min(missing)!r}")
    return variables


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Anything may stand in what others give."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise CheckpointError(f"{where} cannot be used: {type(error).__name__}: {error}") from error


def texts(what: str, given: Any) -> list[str]:
    """A list of names that a user gave; CheckpointError where it is none."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CheckpointError(f"{what} must be a list of variables' names; got {given!r}")
    found = list(given)
    for each in found:
        if not isinstance(each, str):
            raise CheckpointError(f"{what} must be a list of variables' names; it has {each!r}")
    return found


def known(transposed: Any, variables: Mapping[str, VariableLayout]) -> list[str]:
    """The names of variables whose arrays lie transposed; CheckpointError where one is unknown."""
    names = texts("transposed", transposed)
    unknown = set(names) - set(variables)
    if unknown:
        raise CheckpointError(
            f"there is no variable {min(unknown)!r} to transpose; there are {', '.join(map(repr, variables))}"
        )
    return names


def whole_steps(given: Any) -> int:
    """A number of updates as an int; ValueError where it is not whole."""
    number = as_numpy(given).item()
    if int(number) != number:
        raise ValueError(f"steps are whole; got {number!r}")
    return int(number)


def sign_of(optimizer: Optimizer) -> int:
    """The other libraries' gradients are of the loss."""
    return 1 if getattr(optimizer, "gradOfLoss", False) else -1


def turned(name: str, array: np.ndarray, transposed: Collection[str]) -> np.ndarray:
    """A variable's array, transposed where it lies transposed there."""
    return array.T if name in transposed else array


def as_numpy(value: Any) -> np.ndarray:
    """An array or a tensor of another library as a NumPy array."""
    if hasattr(value, "detach"):  # a tensor, wherever it is; NumPy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def mean_squares(state: OptimizerState, variable: VariableLayout) -> dict[str, np.ndarray]:
    """A variable's ``mg``, ``ms`` and ``delta`` as float32 or float64."""
    found = {entity: array for entity, array in state.of(variable).items() if entity in STATE}
    found["ms"] = _SQUARES.of(found)
    variance = found.pop("variance")
    if (np.isinf(found["ms"]) & np.isfinite(found["mg"]) & np.isfinite(variance)).any():
        raise CheckpointError(f"variable {variable.name!r}: its mean square goes beyond what {found['ms'].dtype} holds")
    return {e: array if array.dtype == np.float64 else array.astype(np.float32) for e, array in found.items()}


def restore(
    optimizer: Optimizer,
    found: Mapping[str, Mapping[str, np.ndarray]],
    attrs: dict[str, Any],
    transposed: Collection[str],
    where: str,
) -> None:
    """Puts state and attributes into an optimizer, where all of it fits; else CheckpointError, with nothing changed."""
    states, variables = [], optimizer.stateLayout()
    for variable in variables:
        state = {e: turned(variable.name, array, transposed) for e, array in found[variable.name].items()}
        whole = {e: np.ascontiguousarray(array) for e, array in fitted(variable, state, where).items()}
        if variable.span is not None:  # the part on this process alone, flat
            whole = {e: array.reshape(-1)[variable.span] for e, array in whole.items()}
        states.append(whole)
    optimizer.importState(OptimizerState(attrs, variables, states=states))
