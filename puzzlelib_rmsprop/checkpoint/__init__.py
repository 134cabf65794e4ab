"""HDF5 files: what an optimizer saves, and reading it back, from PuzzleLib's files too."""

from .atomic import atomicFile, new_groups, opened
from .reader import Place, encodable, fitted, read, write

__all__ = ["Place", "atomicFile", "encodable", "fitted", "new_groups", "opened", "read", "write"]
