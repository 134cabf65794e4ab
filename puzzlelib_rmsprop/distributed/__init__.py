"""Groups of processes that train one net together: the protocol, and the same over MPI and over NCCL.

Neither mpi4py nor nccl4py is imported before a nodeinfo of that kind is made.
"""

from .mpi import MPINodeInfo
from .nccl import NCCLNodeInfo
from .nodeinfo import NodeInfo

__all__ = ["MPINodeInfo", "NCCLNodeInfo", "NodeInfo"]
