"""Saving an optimizer to HDF5, and loading it from the files of this library and of PuzzleLib."""

from .atomic import atomicFile, signals_later
from .contents import OptimizerState, VariableLayout
from .fitting import fitted
from .format import encodable
from .mean_square import MeanSquare
from .opening import new_groups, opened
from .reader import read
from .renaming import check_names, renamed
from .writer import write

__all__ = [
    "MeanSquare",
    "OptimizerState",
    "VariableLayout",
    "atomicFile",
    "check_names",
    "encodable",
    "fitted",
    "new_groups",
    "opened",
    "read",
    "renamed",
    "signals_later",
    "write",
]
