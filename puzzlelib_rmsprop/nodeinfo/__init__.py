"""What the optimizer asks of a group of processes that train one net together; PuzzleLib's ``Grid.NodeInfo``."""

from __future__ import annotations

from typing import Any

__all__ = ["NodeInfo"]


class NodeInfo:
    """This process's place in a group, and what the group does together. The base class is a group of one.

    A transport (MPI, say) derives from it and overrides the four methods; every process calls them in the same order.
    An optimizer with a nodeinfo works in global mode only: it calls ``broadcastBuffer`` on the flat parameters at
    ``setupOn`` and ``sumTensor`` on the flat gradients at each ``update``, once per dtype.

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

    def sumTensor(self, name: str, tensor: Any) -> None:
        """Replaces ``tensor`` by its mean over all processes, in place. (PuzzleLib's name; it averages.)"""

    def close(self) -> None:
        """Ends this process's part in the group."""
