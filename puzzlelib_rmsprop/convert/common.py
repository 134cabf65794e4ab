"""What conversions of every library share: variables by name, arrays turned and signed, and taking the state over."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..arrays import family_of
from ..checkpoint import MeanSquare, fitted
from ..errors import CheckpointError, Error, SetupError
from ..kernels import STATE
from ..optimizer import Optimizer, Slot

__all__ = [
    "as_numpy",
    "known",
    "mean_squares",
    "reading",
    "restore",
    "sign_of",
    "slots_of",
    "state_dtypes",
    "texts",
    "turned",
    "whole_steps",
]

_SQUARES = MeanSquare()


def slots_of(optimizer: Optimizer) -> dict[str, Slot]:
    """The variables of an optimizer by first name. SetupError where it is not set up, or has another kind of state."""
    if not isinstance(optimizer, Optimizer):
        raise SetupError(f"the optimizer must be one of this library; got {optimizer!r}")
    optimizer._refresh()
    for slot in optimizer._slots:
        missing = set(STATE) - set(slot.state if optimizer._shards is None else optimizer.states[slot.dtype])
        if missing:
            raise SetupError(f"variable {slot.names[0]!r}: its state here has no {min(missing)!r}")
    return {slot.names[0]: slot for slot in optimizer._slots}


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


def known(transposed: Any, slots: Mapping[str, Slot]) -> list[str]:
    """The names of variables whose arrays lie transposed; CheckpointError where one is unknown."""
    names = texts("transposed", transposed)
    unknown = set(names) - set(slots)
    if unknown:
        raise CheckpointError(f"there is no variable {min(unknown)!r} to transpose; there are {', '.join(map(repr, slots))}")
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


def state_dtypes(optimizer: Optimizer) -> dict[str, dict[str, np.dtype]]:
    """Of each variable's state: first name -> entity -> dtype."""
    return {place.names[0]: {e: dtype for e, (_, dtype) in place.state.items()} for place in optimizer._places()}


def mean_squares(optimizer: Optimizer, slot: Slot) -> dict[str, np.ndarray]:
    """A variable's ``mg``, ``ms`` and ``delta`` as float32 or float64."""
    if optimizer._shards is not None:
        raise SetupError("the state is in parts: save() it, load() it into an optimizer of one process, and convert that")
    state = {entity: np.array(family_of(slot.state[entity]).get(slot.state[entity])) for entity in STATE}
    state["ms"] = _SQUARES.of(state)
    variance = state.pop("variance")
    if (np.isinf(state["ms"]) & np.isfinite(state["mg"]) & np.isfinite(variance)).any():
        raise CheckpointError(f"variable {slot.names[0]!r}: its mean square goes beyond what {state['ms'].dtype} holds")
    return {e: array if array.dtype == np.float64 else array.astype(np.float32) for e, array in state.items()}


def restore(
    optimizer: Optimizer,
    found: Mapping[str, Mapping[str, np.ndarray]],
    attrs: dict[str, Any],
    transposed: Collection[str],
    where: str,
) -> None:
    """Puts state and attributes into an optimizer, where all of it fits; else CheckpointError, with nothing changed."""
    states = []
    for slot, place in zip(optimizer._slots, optimizer._places(), strict=True):
        state = {e: turned(slot.names[0], array, transposed) for e, array in found[slot.names[0]].items()}
        whole = {e: np.ascontiguousarray(array) for e, array in fitted(place, state, where).items()}
        if optimizer._shards is not None:  # its part alone, flat
            whole = {e: array.reshape(-1)[optimizer._span(slot)] for e, array in whole.items()}
        states.append(whole)
    optimizer._restore(attrs, optimizer._fitting(states, {}), {})
