"""Graves' RMSProp as a drop-in optimizer for PyTorch models, PuzzleLib nets and arrays.

The optimizer for PyTorch is :class:`puzzlelib_rmsprop.torch.RMSpropGraves`. Importing this package does not load a
compiler, initialize a GPU or import PyTorch.

Example:
    >>> from puzzlelib_rmsprop import RMSPropGraves
    >>> RMSPropGraves(learnRate=0.001).alpha
    0.95
"""

from . import errors, gpuarray
from . import hooks as Hooks
from ._version import __version__ as __version__
from .config import Config
from .distributed import MPINodeInfo, NCCLNodeInfo, NodeInfo
from .hooks import (
    GradientClipping,
    GradientHardClipping,
    GradientScaling,
    Hook,
    Lasso,
    LossScaling,
    NonFiniteGuard,
    WeightDecay,
)
from .optimizer import Optimizer
from .rmsprop_graves import RMSPropGraves
from .variable import Variable

__all__ = [
    "Config",
    "GradientClipping",
    "GradientHardClipping",
    "GradientScaling",
    "Hook",
    "Hooks",
    "Lasso",
    "LossScaling",
    "MPINodeInfo",
    "NCCLNodeInfo",
    "NodeInfo",
    "NonFiniteGuard",
    "Optimizer",
    "RMSPropGraves",
    "Variable",
    "WeightDecay",
    "errors",
    "gpuarray",
]
