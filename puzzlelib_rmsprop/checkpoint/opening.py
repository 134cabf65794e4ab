"""Opens a path, or uses an open file, for reading or writing; removes new groups if writing fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Error
from .atomic import atomicFile
from .disk import open_hdf5, plain, text_of
from .integrity import check

if TYPE_CHECKING:
    import h5py

__all__ = ["PathOrGroup", "new_groups", "opened"]

PathOrGroup = Any  # str, bytes, os.PathLike or an open h5py.Group


@contextlib.contextmanager
def opened(hdf: PathOrGroup, mode: str) -> Iterator[h5py.Group]:
    """Yields the file at a path, open during the block (``mode`` "r" or "w"), or the given group, which is left open.

    Raises:
        CheckpointError: the file cannot be read or written; errors of HDF5 in the block are converted to this too.
    """
    import h5py

    if isinstance(hdf, h5py.Group):
        if not hdf:
            raise CheckpointError(
                "the given HDF5 file is closed (PuzzleLib's net.save and net.load close theirs: save or load the optimizer "
                "first, or pass them isRoot=False)"
            )
        with _hdf5_errors(hdf.file.filename, mode):
            yield hdf
    elif not isinstance(hdf, str | bytes | os.PathLike):
        raise CheckpointError(f"hdf must be a path or an open h5py file or group; got {type(hdf).__name__}")
    elif mode == "w":
        with atomicFile(hdf) as file, _hdf5_errors(text_of(hdf), mode):
            yield file
    else:
        path = text_of(hdf)
        with _hdf5_errors(path, mode):
            check(path)
            with open_hdf5(path) as file:
                yield file


@contextlib.contextmanager
def _hdf5_errors(path: str, mode: str) -> Iterator[None]:
    try:
        yield
    except (Error, Warning):
        raise
    except Exception as error:  # h5py raises errors of nearly any type, depending on where a file is damaged
        if mode == "w" and isinstance(error, MemoryError):
            raise
        why = str(plain(error)) or type(error).__name__
        raise CheckpointError(f"cannot {'read' if mode == 'r' else 'write'} {path}: {why}") from error


@contextlib.contextmanager
def new_groups(parent: h5py.Group, names: Sequence[str]) -> Iterator[list[h5py.Group]]:
    """Creates groups, and removes them again if the block fails."""
    for name in names:
        if name in parent:
            raise CheckpointError(f"{parent.file.filename} already has a group {name!r}; save under another name")
    made = []
    try:
        for name in names:
            made.append(parent.create_group(name))
        yield made
    except BaseException:
        for name in names[: len(made)]:
            with contextlib.suppress(Exception):  # a full disk can prevent even this; the first error is the one to report
                del parent[name]
        raise
