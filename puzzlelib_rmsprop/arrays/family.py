"""What the optimizer asks of an array, whatever memory it holds. One subclass, in one file, per family of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..kernels import Operation, Segment, real_dtype

__all__ = ["FLOATS", "Family", "HostFamily", "other_memory", "same_memory"]

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Family:
    """Operations on the arrays of one family. Two families are equal when one net may hold arrays of both.

    Attributes:
        name: what error messages call it.
        dtypes: names of the dtypes that parameters may have.
        device: ``"cpu"`` or ``"cuda"``.
        cast: how a user converts an array, with the name of a dtype in its place; None where that is not told.
        as_real: how a user makes of complex numbers two real ones each; likewise.
        keeps_arrays: whether the net keeps its arrays in global mode, as :meth:`rebind` gives them other memory.
        alignment: bytes to which each variable is aligned in a flat buffer; 1 packs them without gaps.
    """

    name: str
    dtypes: tuple[str, ...]
    device: str
    alignment: int
    cast: str | None = None
    as_real: str | None = None
    keeps_arrays = False

    def stream(self) -> Any:
        """A new queue of device work, ordered with the default one; None where there are none: all is done at once."""
        return None

    def synchronize(self) -> None:
        """Waits for everything queued on the device."""

    def joined(self, arrays: Iterable[Any], stream: Any = None) -> AbstractContextManager[Any]:
        """A stream in the order of those on which users work on ``arrays``: after what was queued, before what will be.

        ``stream``, where it is given, is the one to put in that order.
        """
        return nullcontext(stream)

    def in_order(self, stream: Any, *arrays: Any) -> AbstractContextManager[Any]:
        """What a call that works on ``arrays`` is queued on: the stream that it got, or one in the order of the users'."""
        return self.joined(arrays) if stream is None else nullcontext(stream)

    def table(self, segments: Sequence[Segment], arrays: Sequence[Any]) -> Any:
        """The kernels' table of segments of ``arrays``."""
        return self.kernels().Table(segments)

    def statistics(self, segments: Sequence[Segment], record: int, arrays: Sequence[Any]) -> Any:
        """The kernels' statistics of the gradients of segments, which are those in ``arrays``."""
        return self.kernels().GradientStatistics(segments, record)

    def check_stream(self, stream: Any) -> None:
        """Raises HyperParameterError for what is no stream here. The CPU has none, and takes whatever comes."""

    def kernels(self) -> Any:
        """The module of :mod:`puzzlelib_rmsprop.kernels` that runs the rule on this memory; loads its compiler."""
        raise NotImplementedError

    @classmethod
    def of(cls, array: Any) -> Family | None:
        """The family that ``array`` belongs to, or None where it is not of this kind."""
        raise NotImplementedError

    def takes(self, other: Family) -> bool:
        """Whether a net of this family may hold arrays of the other as well."""
        return self == other

    def dtype(self, array: Any) -> np.dtype:
        """NumPy's dtype for the elements. ArrayError where it has none."""
        return np.dtype(array.dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        """The shape."""
        return tuple(array.shape)

    def size(self, array: Any) -> int:
        """The number of elements."""
        return int(array.size)

    def nbytes(self, array: Any) -> int:
        """The number of bytes."""
        return int(array.nbytes)

    def memory(self, array: Any) -> Any:
        """What stands for the memory of an array that may get other memory; None for one that keeps what it has.

        An object that is the memory, or a tuple that describes it: see :func:`other_memory`.
        """
        return None

    def held(self, array: Any) -> Any:
        """What :meth:`memory` gives, or the array itself: the same again where the memory is the same."""
        memory = self.memory(array)
        return array if memory is None else memory

    def rebind(self, array: Any, view: Any) -> None:
        """Gives ``array`` the memory of ``view``, where the family :attr:`keeps_arrays`."""
        raise NotImplementedError

    def fault(self, array: Any) -> str | None:
        """Why the kernels cannot work on ``array`` in place, or None where they can."""
        raise NotImplementedError

    def address(self, array: Any) -> int:
        """Address of the first element, in bytes."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array with whatever content its memory happens to have."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array of zeros."""
        raise NotImplementedError

    def fill_zero(self, array: Any, stream: Any = None) -> None:
        """Sets every element to zero; on a GPU in the order of ``stream``, without waiting."""
        raise NotImplementedError

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        """The elements of a 1-d ``flat`` from ``offset`` on, as an array of ``shape`` that shares their memory."""
        raise NotImplementedError

    def copy(self, target: Any, source: Any) -> None:
        """Copies ``source`` into ``target``, both of this family and of one shape and dtype."""
        raise NotImplementedError

    def operate(self, grad: Any, param: Any, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
        """Does operations to a gradient in place; 16-bit ones are computed in float32 and rounded once, at the end.

        Raises:
            ArrayError: gradient and parameter differ in shape or dtype, or cannot be worked on in place.
        """
        for array in (grad, param):
            fault = self.fault(array)
            if fault is not None:
                raise ArrayError(f"gradient operations: the array {fault}")
        shapes, dtypes = [self.shape(array) for array in (grad, param)], [self.dtype(array) for array in (grad, param)]
        if shapes[0] != shapes[1] or dtypes[0] != dtypes[1]:
            raise ArrayError(
                f"gradient operations need a gradient and a parameter of one shape and dtype; got {shapes[0]}, "
                f"{dtypes[0]} and {shapes[1]}, {dtypes[1]}"
            )
        self.kernels().operate(self.gradient_segment(param, grad), wc, operations, stream)

    def gradient_segment(self, param: Any, grad: Any) -> Segment:
        """A variable without its state, for what reads or changes gradients alone."""
        dtype = self.dtype(grad)
        return Segment(dtype.name, real_dtype(dtype).name, self.address(param), self.address(grad), self.size(grad))

    def buffer(self, array: Any) -> Any:
        """What a nodeinfo's ``broadcastBuffer`` gets: the array itself, where PuzzleLib has nothing else for it."""
        return array

    def get(self, array: Any) -> np.ndarray:
        """The content, in a new NumPy array."""
        raise NotImplementedError

    def set(self, array: Any, content: np.ndarray) -> None:
        """Copies a NumPy array of the same shape into ``array``, converting to its dtype."""
        raise NotImplementedError


def other_memory(now: Any, before: Any) -> bool:
    """Whether what :meth:`Family.memory` gave twice is not of the same memory: not one object, nor tuples that are equal."""
    if type(now) is tuple and type(before) is tuple:
        return now != before
    return now is not before


def same_memory(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether what :meth:`Family.held` gave of many arrays twice is of the same memory."""
    return len(now) == len(before) and not any(map(other_memory, now, before))


class HostFamily(Family):
    """Arrays around a NumPy array. A subclass says how to get at it (:meth:`host`) and how to wrap one (:meth:`wrap`)."""

    dtypes: tuple[str, ...] = FLOATS
    device = "cpu"
    alignment = 1

    def kernels(self) -> Any:
        from ..kernels import cpu

        return cpu.chosen()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.name == getattr(other, "name", None)

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def host(self, array: Any) -> np.ndarray:
        """The NumPy array inside, not a copy."""
        raise NotImplementedError

    def wrap(self, content: np.ndarray) -> Any:
        """An array of this family around ``content``, not around a copy."""
        raise NotImplementedError

    def fault(self, array: Any) -> str | None:
        host = self.host(array)
        if not host.flags.c_contiguous:
            return (
                f"must be C-contiguous; its strides are {host.strides} for shape {host.shape}: "
                f"use numpy.ascontiguousarray(array)"
            )
        if not host.flags.writeable:
            return "must be writeable; it is read-only: use array.copy()"
        if not host.flags.aligned:
            return f"must be aligned to its dtype {host.dtype}; it starts at an odd address: use array.copy()"
        if not host.dtype.isnative:
            return (
                f"must be in the machine's byte order; its dtype is {host.dtype.str}: use array.astype({host.dtype.name!r})"
            )
        return None

    def address(self, array: Any) -> int:
        return self.host(array).ctypes.data

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return self.wrap(np.empty(shape, dtype))

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return self.wrap(np.zeros(shape, dtype))

    def fill_zero(self, array: Any, stream: Any = None) -> None:
        self.host(array).fill(0)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape, dtype=np.int64))
        return self.wrap(self.host(flat)[offset : offset + size].reshape(shape))

    def copy(self, target: Any, source: Any) -> None:
        np.copyto(self.host(target), self.host(source))

    def get(self, array: Any) -> np.ndarray:
        return np.array(self.host(array), copy=True, subok=False)

    def set(self, array: Any, content: np.ndarray) -> None:
        host = self.host(array)
        if content.shape != host.shape:
            raise ArrayError(f"cannot copy an array of shape {content.shape} into one of shape {host.shape}")
        # NumPy takes bfloat16 for a kind of its own
        np.copyto(host, content, casting="unsafe" if host.dtype.name == "bfloat16" else "same_kind")
