"""The interface of an array family. Each family is a subclass in a file of its own."""

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
    """Operations on the arrays of one family. Two families are equal if one net may hold arrays of both.

    Attributes:
        name: the family's name in error messages.
        dtypes: names of the dtypes that parameters may have.
        device: ``"cpu"`` or ``"cuda"``.
        cast: an expression that converts an array, as a format string for the name of a dtype; error messages suggest it.
            None to suggest nothing.
        as_real: an expression that views complex numbers as pairs of reals; None to suggest nothing.
        keeps_arrays: whether the net keeps its array objects in global mode, because :meth:`rebind` can change their memory.
        alignment: alignment in bytes of each variable in a flat buffer; 1 packs them without gaps.
    """

    name: str
    dtypes: tuple[str, ...]
    device: str
    alignment: int
    cast: str | None = None
    as_real: str | None = None
    keeps_arrays = False

    def stream(self) -> Any:
        """Returns a new stream, ordered with the default stream; None if the device has no streams and runs work at once."""
        return None

    def synchronize(self) -> None:
        """Waits for everything queued on the device."""

    def joined(self, arrays: Iterable[Any], stream: Any = None) -> AbstractContextManager[Any]:
        """Orders a stream with the streams on which users work on ``arrays``; a context manager that gives the stream.

        Work queued on it runs after the users' earlier work and before their later work. If ``stream`` is given, it is used.
        """
        return nullcontext(stream)

    def in_order(self, stream: Any, *arrays: Any) -> AbstractContextManager[Any]:
        """Gives the stream for a call that works on ``arrays``: ``stream``, or if None, one from :meth:`joined`."""
        return self.joined(arrays) if stream is None else nullcontext(stream)

    def table(self, segments: Sequence[Segment], arrays: Sequence[Any]) -> Any:
        """Returns the kernels' table of segments of ``arrays``."""
        return self.kernels().Table(segments)

    def statistics(self, segments: Sequence[Segment], record: int, arrays: Sequence[Any]) -> Any:
        """Returns the kernels' statistics of the segments' gradients, which are in ``arrays``."""
        return self.kernels().GradientStatistics(segments, record)

    def check_stream(self, stream: Any) -> None:
        """Raises HyperParameterError if ``stream`` is not a stream of this device. The CPU ignores any stream."""

    def kernels(self) -> Any:
        """Returns the module of :mod:`puzzlelib_rmsprop.kernels` that works on this memory. Imported on first use."""
        raise NotImplementedError

    @classmethod
    def of(cls, array: Any) -> Family | None:
        """Returns the family of ``array``, or None if the array is not of this kind."""
        raise NotImplementedError

    def takes(self, other: Family) -> bool:
        """Returns whether a net of this family may also hold arrays of the other."""
        return self == other

    def dtype(self, array: Any) -> np.dtype:
        """Returns the NumPy dtype. Raises ArrayError if NumPy has no equivalent."""
        return np.dtype(array.dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        """Returns the shape."""
        return tuple(array.shape)

    def size(self, array: Any) -> int:
        """Returns the number of elements."""
        return int(array.size)

    def nbytes(self, array: Any) -> int:
        """Returns the number of bytes."""
        return int(array.nbytes)

    def memory(self, array: Any) -> Any:
        """Returns a value that identifies the memory of an array, or None if the array cannot be given other memory.

        The value is an object that is the memory, or a tuple that describes it; see :func:`other_memory`.
        """
        return None

    def held(self, array: Any) -> Any:
        """Returns :meth:`memory`, or the array itself if that is None: a value that changes only if the memory changes."""
        memory = self.memory(array)
        return array if memory is None else memory

    def rebind(self, array: Any, view: Any) -> None:
        """Makes ``array`` use the memory of ``view``. Defined if :attr:`keeps_arrays` is true."""
        raise NotImplementedError

    def fault(self, array: Any) -> str | None:
        """Returns why the kernels cannot work on ``array`` in place, or None if they can."""
        raise NotImplementedError

    def address(self, array: Any) -> int:
        """Returns the address of the first element."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Returns a new, uninitialized array."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Returns a new array of zeros."""
        raise NotImplementedError

    def fill_zero(self, array: Any, stream: Any = None) -> None:
        """Sets every element to zero. On a GPU this is queued on ``stream``, without waiting."""
        raise NotImplementedError

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        """Returns a view, of ``shape``, of the elements of the 1-d array ``flat`` from ``offset`` on."""
        raise NotImplementedError

    def copy(self, target: Any, source: Any) -> None:
        """Copies ``source`` into ``target``. Both are of this family and have the same shape and dtype."""
        raise NotImplementedError

    def operate(self, grad: Any, param: Any, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
        """Applies operations to a gradient in place. 16-bit gradients are computed in float32 and rounded once, at the end.

        Raises:
            ArrayError: if gradient and parameter differ in shape or dtype, or cannot be worked on in place.
        """
        for array in (grad, param):
            fault = self.fault(array)
            if fault is not None:
                raise ArrayError(f"gradient operations: the array {fault}")
        shapes, dtypes = [self.shape(array) for array in (grad, param)], [self.dtype(array) for array in (grad, param)]
        if shapes[0] != shapes[1] or dtypes[0] != dtypes[1]:
            raise ArrayError(
                f"gradient operations need a gradient and a parameter of the same shape and dtype; got {shapes[0]}, "
                f"{dtypes[0]} and {shapes[1]}, {dtypes[1]}"
            )
        self.kernels().operate(self.gradient_segment(param, grad), wc, operations, stream)

    def gradient_segment(self, param: Any, grad: Any) -> Segment:
        """Returns a segment without state, for kernels that work on gradients alone."""
        dtype = self.dtype(grad)
        return Segment(dtype.name, real_dtype(dtype).name, self.address(param), self.address(grad), self.size(grad))

    def buffer(self, array: Any) -> Any:
        """Returns the argument for a nodeinfo's ``broadcastBuffer``: the array, unless PuzzleLib expects something else."""
        return array

    def get(self, array: Any) -> np.ndarray:
        """Returns a copy as a NumPy array."""
        raise NotImplementedError

    def set(self, array: Any, content: np.ndarray) -> None:
        """Copies ``content``, a NumPy array of the same shape, into ``array``, converting to its dtype."""
        raise NotImplementedError


def other_memory(now: Any, before: Any) -> bool:
    """Returns whether two results of :meth:`Family.memory` differ: unequal tuples, or two different objects."""
    if type(now) is tuple and type(before) is tuple:
        return now != before
    return now is not before


def same_memory(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Returns whether two lists of :meth:`Family.held` results describe the same memory."""
    return len(now) == len(before) and not any(map(other_memory, now, before))


class HostFamily(Family):
    """Arrays with a NumPy array inside. A subclass defines how to unwrap (:meth:`host`) and wrap (:meth:`wrap`) it."""

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
        """Returns the NumPy array inside, not a copy."""
        raise NotImplementedError

    def wrap(self, content: np.ndarray) -> Any:
        """Returns an array of this family that uses ``content`` without a copy."""
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
            return f"must be aligned to its dtype {host.dtype}; it starts at an unaligned address: use array.copy()"
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
        # to NumPy, bfloat16 is a kind of its own
        np.copyto(host, content, casting="unsafe" if host.dtype.name == "bfloat16" else "same_kind")
