"""The state of a variable of RMSPropGraves: creates it, checks it, and converts it for the kernels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import kernels
from .arrays import Family, QuantizedArray, check, check_dtype, dtype_of, shape_of
from .errors import VariableError
from .kernels import STATE, int8_state
from .segments import Segment

__all__ = ["GravesState", "arrays_of", "check_segment", "check_state", "kernel_segment", "state_of"]

_UINT8 = np.dtype(np.uint8)


class GravesState(dict):
    """The state of a variable: ``mg``, ``variance``, ``delta``, and with masterWeights also ``master``."""

    def __missing__(self, key: Any) -> Any:
        if key == "ms" and "variance" in self:
            raise KeyError("'ms' was replaced by 'variance': ms equals variance + mg*mg")
        raise KeyError(key)


def state_of(family: Family, shape: tuple[int, ...], dtype: np.dtype) -> GravesState:
    """Returns a state of zeros: ``mg``, ``variance`` and ``delta``."""
    if dtype == np.int8:
        return GravesState(QuantizedArray.zeros(family, shape))
    return GravesState({entity: family.zeros(shape, dtype) for entity in STATE})


def arrays_of(segment: Segment) -> Iterator[tuple[str, Any]]:
    """Yields all arrays that a step works on, with their names in error messages, in the kernels' order."""
    state = segment.state
    yield "data", segment.data
    yield "gradient", segment.grad
    for entity in STATE:
        array = state[entity]
        yield entity, array.codes if isinstance(array, QuantizedArray) else array
    if isinstance(state["mg"], QuantizedArray):
        yield "scales", state["mg"].scales
    if "master" in state:
        yield "master", state["master"]


def kernel_segment(segment: Segment, family: Family) -> kernels.Segment:
    """Returns the segment in the form that the kernels take."""
    addresses = {what: family.address(array) for what, array in arrays_of(segment)}
    return kernels.Segment(
        segment.dtype.name,
        "int8" if "scales" in addresses else dtype_of(segment.state["mg"]).name,
        addresses.pop("data"),
        addresses.pop("gradient"),
        family.size(segment.data),
        first=segment.first,
        key=zlib.crc32(segment.name.encode()),
        **addresses,
    )


def check_state(segment: Segment, dtypes: Mapping[str, np.dtype]) -> None:
    """Raises VariableError if the state of a segment lacks an array, or has one of the wrong kind."""
    state, name = segment.state, segment.name
    if not isinstance(state, Mapping):
        raise VariableError(f"variable {name!r}: its state must be a dict of arrays; got {state!r}")
    missing = dtypes.keys() - state.keys()
    if missing:
        raise VariableError(f"variable {name!r}: its state lacks {', '.join(sorted(missing))}")
    for entity in STATE:
        array, in_8_bits = state[entity], dtypes[entity] == np.int8
        if isinstance(array, QuantizedArray) != in_8_bits:
            wanted = "a QuantizedArray, as made by stateDtype='int8'" if in_8_bits else f"an array of {dtypes[entity]}"
            raise VariableError(f"variable {name!r}: its {entity} must be {wanted}; got {type(array).__name__}")
        if in_8_bits and array.entity != entity:
            raise VariableError(
                f"variable {name!r}: its {entity} must be the array made for {entity!r}; got the one made for "
                f"{array.entity!r}. Write new values with state[{entity!r}].set(array)"
            )


def check_segment(segment: Segment, family: Family, dtypes: Mapping[str, np.dtype]) -> None:
    """Checks every array of a segment: its family, dtype, shape, and that the kernels can work on it in place."""
    name, shape = segment.name, shape_of(segment.data)
    check_dtype(name, family, segment.dtype)
    for what, array in arrays_of(segment):
        dtype = dtypes.get(what, segment.dtype)
        if what == "scales":
            blocks = int8_state.blocks_of(family.size(segment.data))
            check(name, what, array, family, _UINT8, (blocks * len(STATE),))
        else:
            check(name, what, array, family, _UINT8 if dtype == np.int8 else dtype, shape)
    if isinstance(segment.state["mg"], QuantizedArray):
        places = {family.address(segment.state[entity].scales) for entity in STATE}
        if len(places) > 1 and family.size(segment.data):
            raise VariableError(
                f"variable {name!r}: its 8-bit mg, variance and delta must be made together and share one array of scales; "
                f"write new values with state[entity].set(array)"
            )
