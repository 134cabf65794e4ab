"""What the optimizer asks of a group of processes that train one net together; PuzzleLib's ``Grid.NodeInfo``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import SetupError
from ..kernels.context import default_stream_ended

__all__ = ["NodeInfo", "on_stream"]


class NodeInfo:
    """This process's place in a group, and what the group does together. The base class is a group of one.

    A transport derives from it and overrides the methods; every process calls them in the same order. The first four are
    PuzzleLib's, and enough to train. :meth:`allgatherObject` lets the optimizer compare the processes' nets at
    ``setupOn``; :meth:`reduceScatter` and :meth:`allGather` serve ``shardState=True``; :meth:`fail` spares the others the
    wait for a process that has raised. Tensors are flat arrays of the net's family. A ``sumTensor`` without the argument
    ``stream``, as PuzzleLib's, is called when the stream's work has ended.

    As a context manager a nodeinfo is closed at the end of the block, or fails with the block's exception.

    Attributes:
        index: this process's number, from 0.
        gridsize: number of processes.
        device: index of the device that this process uses.

    Example:
        >>> from puzzlelib_rmsprop import NodeInfo, RMSPropGraves
        >>> optimizer = RMSPropGraves(nodeinfo=NodeInfo())
        >>> optimizer.nodeinfo.gridsize
        1
    """

    def __init__(self, index: int = 0, gridsize: int = 1, device: int = 0) -> None:
        self.index = index
        self.gridsize = gridsize
        self.device = device

    def meanValue(self, value: float) -> float:
        """The mean of every process's ``value``."""
        return value

    def broadcastBuffer(self, name: str, buffer: Any) -> None:
        """Copies process 0's ``buffer`` into every other process's."""

    def sumTensor(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Replaces ``tensor`` by its mean over all processes, in place. (PuzzleLib's name; it averages.)"""

    def close(self) -> None:
        """Ends this process's part in the group."""

    def reduceScatter(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Replaces this process's part of ``tensor`` by its mean over all processes; the other parts are undefined then.

        The size of ``tensor`` is a multiple of ``gridsize``, and part ``i`` the ``i``-th of ``gridsize`` equal ones.
        """
        self._lacks("reduceScatter")

    def allGather(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Replaces every part of ``tensor`` by that of the process it belongs to; parts as in :meth:`reduceScatter`."""
        self._lacks("allGather")

    def allgatherObject(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of ``index``: text, numbers, lists and dictionaries of them."""
        self._lacks("allgatherObject")
        return [value]

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.allgatherObject(None)

    def fail(self, error: BaseException) -> None:
        """Tells the other processes that this one cannot go on, and why; the group is of no use afterwards."""

    def _lacks(self, method: str) -> None:
        if self.gridsize != 1:
            raise SetupError(f"{type(self).__name__} must define {method}() for a group of {self.gridsize}")

    def __enter__(self) -> NodeInfo:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.close()


def on_stream(method: Callable[..., None], name: str, tensor: Any, stream: Any) -> None:
    """Calls a nodeinfo's method in the order of ``stream``: by handing it over, or by waiting where it takes none."""
    if stream is None:
        method(name, tensor)
    elif "stream" in inspect.signature(method).parameters:
        method(name, tensor, stream=stream)
    else:
        stream.synchronize()
        method(name, tensor)
        default_stream_ended()  # where it may have queued its work
