"""Segments: pieces of memory that a step updates with one set of rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import dtype_of, shape_of
from .distributed.shards import Shards
from .flat import part_of
from .net import Rates, TrackedVariable
from .variable import Variable

__all__ = ["Segment", "segments_of"]


@dataclass(frozen=True, eq=False)
class Segment:
    """Memory updated with one set of rates: a variable, or a part of a flat buffer whose variables have the same rates.

    Attributes:
        name: the variable's name; for a part of a buffer its dtype and range of elements.
        var: the Variable that ``updateVar`` gets: the net's own, or one made for the part.
        data, grad: the arrays.
        state: the state.
        rates: learnRate, momRate and wc.
        offset: index of the first element in the flat buffer; global mode only.
        first: index of the first element within its variable; above 0 if this process updates only a part of the variable.
    """

    name: str
    var: Any
    data: Any
    grad: Any
    state: dict[str, Any]
    rates: Rates
    offset: int = 0
    first: int = 0

    @property
    def dtype(self) -> np.dtype:
        """The dtype of data and gradient."""
        return dtype_of(self.data)

    @property
    def frozen(self) -> bool:
        """True if a step leaves the segment unchanged."""
        return not self.rates[0] > 0.0


def segments_of(
    variables: Sequence[TrackedVariable],
    globalVar: Mapping[np.dtype, Any],
    states: Mapping[Any, dict[str, Any]],
    shards: Shards | None,
    one_by_one: bool,
) -> list[Segment]:
    """Returns the segments of a net; ``updateVar`` is called once for each.

    In local mode, and in global mode with ``one_by_one``, every variable is a segment. Otherwise the segments are the
    longest parts of the flat buffers whose variables have the same rates: the whole buffer if all rates are equal. With
    shards, each segment is cut to this process's part.
    """
    if globalVar and not one_by_one:
        segments = [
            segment
            for dtype, flat in globalVar.items()
            for segment in _of_buffer([v for v in variables if v.dtype == dtype], flat, dtype, states, shards)
        ]
    else:
        segments = [Segment(v.name, v.var, v.data, v.grad, v.state, v.rates, v.offset) for v in variables]
    if shards is None:
        return segments
    return [own for segment in segments if (own := _own_part(segment, shards, states)) is not None]


def _of_buffer(
    members: Sequence[TrackedVariable],
    flat: Any,
    dtype: np.dtype,
    states: Mapping[Any, dict[str, Any]],
    shards: Shards | None,
) -> Iterator[Segment]:
    size = shape_of(flat.data)[0]
    starts = [i for i, variable in enumerate(members) if i == 0 or variable.rates != members[i - 1].rates]
    for start, end in zip(starts, [*starts[1:], len(members)], strict=True):
        low, rates = members[start].offset, members[start].rates
        high = members[end].offset if end < len(members) else size
        if (low, high) == (0, size):
            name, data, grad, state = flat.name, flat.data, flat.grad, states[dtype]
        else:
            name, shape = f"{dtype}[{low}:{high}]", (high - low,)
            data, grad = part_of(flat.data, low, shape, size), part_of(flat.grad, low, shape, size)
            # with shards, _own_part cuts the state
            state = {} if shards is not None else {e: part_of(a, low, shape, size) for e, a in states[dtype].items()}
        yield Segment(name, _variable(data, grad, name, rates), data, grad, state, rates, low)


def _own_part(segment: Segment, shards: Shards, states: Mapping[Any, dict[str, Any]]) -> Segment | None:
    dtype = segment.dtype
    found = shards.cut(dtype, segment.offset, math.prod(shape_of(segment.data)))
    if found is None:
        return None
    (begin, end), (low, high) = found, shards.bounds(dtype)
    state = {entity: part_of(array, begin - low, (end - begin,), high - low) for entity, array in states[dtype].items()}
    part = shards.variable(dtype, begin, end, segment.name)
    var = _variable(part.data, part.grad, segment.name, segment.rates)
    first = segment.first + begin - segment.offset
    return Segment(segment.name, var, var.data, var.grad, state, segment.rates, begin, first)


def _variable(data: Any, grad: Any, name: str, rates: Rates) -> Variable:
    var = Variable(data, name=name, grad=grad)
    var.learnRate, var.momRate, var.wc = rates
    return var
