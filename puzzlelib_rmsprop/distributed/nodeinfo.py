"""The interface of a process group that trains one net together, like PuzzleLib's ``Grid.NodeInfo``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import SetupError
from ..kernels.context import default_stream_ended

__all__ = ["NodeInfo", "on_stream"]


class NodeInfo:
    """A process group, and this process's place in it. The base class is a group of one process.

    Subclasses override these methods for a transport such as MPI. Every process calls them in the same order:

    - :meth:`meanValue`, :meth:`broadcastBuffer`, :meth:`sumTensor` and :meth:`close` are PuzzleLib's, and enough to train.
    - :meth:`allgatherObject` lets the optimizer compare the nets of the processes in ``setupOn``.
    - :meth:`reduceScatter` and :meth:`allGather` are needed for ``shardState=True``.
    - :meth:`fail` tells the other processes about an exception, so that they do not wait.

    Tensors are flat arrays of the net's family. If ``sumTensor`` has no argument ``stream``, as in PuzzleLib, it is called
    after the stream's work is complete.

    As a context manager, a nodeinfo is closed at the end of the block. If the block raises, :meth:`fail` is called first.

    Attributes:
        index: rank of this process, from 0.
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
        """Returns the mean of ``value`` over all processes."""
        return value

    def broadcastBuffer(self, name: str, buffer: Any) -> None:
        """Copies ``buffer`` of process 0 into ``buffer`` of every other process."""

    def sumTensor(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Replaces ``tensor`` by its mean over all processes, in place. (The name is PuzzleLib's.)"""

    def close(self) -> None:
        """Ends this process's part in the group."""

    def reduceScatter(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Replaces this process's part of ``tensor`` by its mean over all processes. The other parts are then undefined.

        The size of ``tensor`` must be a multiple of ``gridsize``. Part ``i`` of its ``gridsize`` equal parts belongs to
        process ``i``.
        """
        self._lacks("reduceScatter")

    def allGather(self, name: str, tensor: Any, stream: Any = None) -> None:
        """Copies each part of ``tensor`` from the process it belongs to. Parts are those of :meth:`reduceScatter`."""
        self._lacks("allGather")

    def allgatherObject(self, value: Any) -> list[Any]:
        """Returns the ``value`` of every process, in the order of ``index``: strings, numbers, or lists or dicts of them."""
        self._lacks("allgatherObject")
        return [value]

    def barrier(self) -> None:
        """Waits until every process has called it."""
        self.allgatherObject(None)

    def fail(self, error: BaseException) -> None:
        """Tells the other processes that this one has failed, and why. The group cannot be used afterwards."""

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
    """Calls a nodeinfo's method on ``stream``, or, if it takes no stream, after waiting for the stream."""
    if stream is None:
        method(name, tensor)
    elif "stream" in inspect.signature(method).parameters:
        method(name, tensor, stream=stream)
    else:
        stream.synchronize()
        method(name, tensor)
        default_stream_ended()  # on which the method may have queued work
