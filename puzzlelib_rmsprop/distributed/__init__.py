"""Data-parallel training: process groups that train one net together, over MPI or NCCL.

mpi4py and nccl4py are imported only when a nodeinfo that needs them is created.
"""

from .mpi import MPINodeInfo
from .nccl import NCCLNodeInfo
from .nodeinfo import NodeInfo

__all__ = ["MPINodeInfo", "NCCLNodeInfo", "NodeInfo"]
