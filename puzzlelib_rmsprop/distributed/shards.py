"""Sharded state: each process of a group holds and updates an equal part of the flat buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Family, dtype_of, family_of, shape_of
from ..checkpoint.mean_square import PIECE, MeanSquare
from ..errors import SetupError
from ..kernels.layout import BLOCK
from ..variable import Variable
from .agreement import tell
from .nodeinfo import NodeInfo, on_stream

__all__ = ["GatheredState", "Shards", "check_nodeinfo"]

GATHERED = 1 << 25  # bytes gathered at a time


def check_nodeinfo(nodeinfo: Any, globalState: bool, shardState: bool) -> None:
    """Raises SetupError if a nodeinfo lacks a method that an optimizer with these modes needs."""
    if nodeinfo is not None:
        for method in ("broadcastBuffer", "sumTensor"):
            if not callable(getattr(nodeinfo, method, None)):
                raise SetupError(f"nodeinfo must have a method {method}(), like a NodeInfo; got {nodeinfo!r}")
        if not globalState:
            raise SetupError("an optimizer with a nodeinfo needs global state: setupOn(net, useGlobalState=True)")
    if shardState:
        Shards.check(nodeinfo)


class Shards:
    """This process's part of the flat buffers, and the operations that put the parts together.

    Args:
        nodeinfo: the group, with ``reduceScatter``, ``allGather`` and ``allgatherObject``.
        family: array family of the flat arrays.
        flat: maps dtypes to flat parameters and gradients, whose size is a multiple of the number of processes.
    """

    def __init__(self, nodeinfo: Any, family: Family, flat: dict[np.dtype, Variable]) -> None:
        self.nodeinfo, self._family, self._flat = nodeinfo, family, flat

    @staticmethod
    def check(nodeinfo: Any) -> None:
        """Raises SetupError if the group does not support sharded state."""
        if nodeinfo is None:
            raise SetupError("shardState=True needs a nodeinfo: the group whose processes hold the parts")
        for method in ("reduceScatter", "allGather", "allgatherObject"):
            # NodeInfo's own methods work for a group of one only
            base = nodeinfo.gridsize > 1 and getattr(type(nodeinfo), method, None) is getattr(NodeInfo, method)
            if base or not callable(getattr(nodeinfo, method, None)):
                raise SetupError(f"shardState=True needs a nodeinfo with a method {method}(); got {type(nodeinfo).__name__}")

    @staticmethod
    def check_state(state: Mapping[str, Any], own: Variable) -> None:
        """Raises SetupError if state does not have one element per parameter, and cannot be sharded."""
        for entity, array in state.items():
            if shape_of(array) != shape_of(own.data):
                raise SetupError(
                    f"shardState=True needs state with an element for each parameter; {entity!r} has shape "
                    f"{shape_of(array)} for {shape_of(own.data)[0]} parameters"
                )

    def bounds(self, dtype: np.dtype) -> tuple[int, int]:
        """Returns where this process's part begins and ends, in elements."""
        part = shape_of(self._flat[dtype].data)[0] // self.nodeinfo.gridsize
        return self.nodeinfo.index * part, (self.nodeinfo.index + 1) * part

    def variable(self, dtype: np.dtype, begin: int, end: int, name: str) -> Variable:
        """Returns a variable of the elements from ``begin`` to ``end`` of the flat parameters and gradients."""
        data, grad = (
            self._family.view(array, begin, (end - begin,)) for array in (self._flat[dtype].data, self._flat[dtype].grad)
        )
        return Variable(data, name=name, grad=grad)

    def own(self, dtype: np.dtype) -> Variable:
        """Returns this process's part as a variable."""
        return self.variable(dtype, *self.bounds(dtype), str(dtype))

    def cut(self, dtype: np.dtype, offset: int, size: int) -> tuple[int, int] | None:
        """Returns which of the ``size`` elements from ``offset`` on are in this process's part, or None if none are."""
        low, high = self.bounds(dtype)
        begin, end = max(offset, low), min(offset + size, high)
        return (begin, end) if begin < end else None

    def reduce(self, stream: Any) -> None:
        """Averages the gradients; each process gets its part."""
        for var in self._flat.values():
            with self._family.in_order(stream, var.grad) as own:
                on_stream(self.nodeinfo.reduceScatter, "grad", var.grad, own)

    def gather(self, stream: Any) -> None:
        """Gathers the parameters from the processes that updated them."""
        for var in self._flat.values():
            with self._family.in_order(stream, var.data) as own:
                on_stream(self.nodeinfo.allGather, "data", var.data, own)

    def room(self, size: int, dtype: np.dtype) -> np.ndarray | None:
        """Returns an array for the gathered parts of ``size`` elements on process 0, and None on the others."""
        return np.empty((self.nodeinfo.gridsize, size), dtype) if self.nodeinfo.index == 0 else None

    def whole(self, size: int, dtype: np.dtype, fill: Callable[[Any, int], None], found: np.ndarray | None) -> None:
        """Gathers parts of ``size`` elements into ``found``, if it is not None. All processes must call this.

        ``fill(array, begin)`` copies this process's part, from element ``begin`` on, into an array.
        """
        nodes = self.nodeinfo.gridsize
        most = max(BLOCK, GATHERED // (nodes * dtype.itemsize) // BLOCK * BLOCK)
        scratch = self._family.zeros((nodes * min(most, size),), dtype)
        for begin in range(0, size, most):
            count = min(most, size - begin)
            piece = self._family.view(scratch, 0, (nodes * count,))
            fill(self._family.view(piece, self.nodeinfo.index * count, (count,)), begin)
            self.nodeinfo.allGather("state", piece)
            if found is not None:
                found[:, begin : begin + count] = self._family.get(piece).reshape(nodes, count)

    def span(self, dtype: np.dtype, offset: int, size: int) -> slice:
        """Returns :meth:`cut` as a slice of a variable that begins at ``offset``."""
        begin, end = self.cut(dtype, offset, size) or (offset, offset)
        return slice(begin - offset, end - offset)

    def put(self, array: Any, dtype: np.dtype, begin: int, content: np.ndarray) -> None:
        """Copies state, which must be in this process's part, to element ``begin`` of the flat buffer and on."""
        if content.size:
            family = family_of(array)
            family.set(family.view(array, begin - self.bounds(dtype)[0], (content.size,)), content)


class GatheredState(Mapping):
    """The complete state of a dtype for a checkpoint, as a mapping of entity to array. Each entity is gathered when read.

    Every process must go through the entities in order, once: process 0 by reading them, the others in :meth:`finish`. The
    derived ``forms`` of entities come last; each process computes its part of them.
    """

    def __init__(
        self, state: Mapping[str, Any], sizes: tuple[int, int], shards: Shards, forms: Sequence[MeanSquare] = ()
    ) -> None:
        self._state, self._shards = state, shards
        self._part, self._used = sizes
        self._forms = {form.name: form for form in forms if form.applies(state)}
        self._left = [*state, *self._forms]

    def __getitem__(self, entity: str) -> Any:
        assert self._left[0] == entity
        # allocated first: if memory is short, finish() still gathers this entity
        found = self._shards.room(self._part, self._dtype(entity))
        self._gather(found)
        return None if found is None else found.reshape(-1)[: self._used]

    def _dtype(self, entity: str) -> np.dtype:
        form = self._forms.get(entity)
        return dtype_of(self._state[entity]) if form is None else form.dtype(self._state)

    def _gather(self, found: np.ndarray | None) -> None:
        entity = self._left.pop(0)
        try:
            fill = self._compute if entity in self._forms else self._copy
            self._shards.whole(self._part, self._dtype(entity), functools.partial(fill, entity), found)
        except BaseException as error:
            # the processes cannot be brought back into step
            tell(self._shards.nodeinfo, error)
            raise

    def _copy(self, entity: str, into: Any, begin: int) -> None:
        family, of_state = family_of(into), family_of(self._state[entity])
        piece = of_state.view(self._state[entity], begin, family.shape(into))
        if of_state == family:
            family.copy(into, piece)
        else:  # 8-bit state
            family.set(into, of_state.get(piece))

    def _compute(self, entity: str, into: Any, begin: int) -> None:
        form, family = self._forms[entity], family_of(into)
        size = family.size(into)
        for first in range(0, size, PIECE):
            shape = (min(PIECE, size - first),)
            pieces = {}
            for each in (form.beside, form.entity):
                of_state = family_of(self._state[each])
                pieces[each] = of_state.get(of_state.view(self._state[each], begin + first, shape))
            family.set(family.view(into, first, shape), form.of(pieces))

    def __iter__(self) -> Iterator[str]:
        return iter([*self._state, *self._forms])

    def __len__(self) -> int:
        return len(self._state) + len(self._forms)

    def finish(self) -> None:
        """Goes through the remaining entities."""
        while self._left:
            self._gather(None)
