"""Paths and open files of the system: what is there, and reading and writing at an offset."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from ..errors import CheckpointError

__all__ = ["BLOCK", "read_at", "regular_file", "text_of", "write_at"]

BLOCK = 1 << 20  # bytes that are read at a time, and that are kept in memory at most


def text_of(path: Any) -> str:
    """A path as text. Raises CheckpointError for what is no path, or one that no file can have."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise CheckpointError(f"a path must be text or an os.PathLike; got {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise CheckpointError(f"a path must be without NUL; got {text!r}")
    return text


def regular_file(path: str) -> os.stat_result:
    """What is known of a regular file. Raises OSError for anything else: opening a pipe would wait for its other end."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found


def write_at(descriptor: int, content: Any, offset: int) -> None:
    """Writes all of ``content`` from byte ``offset`` on."""
    left = memoryview(content).cast("B")
    os.lseek(descriptor, offset, os.SEEK_SET)  # pwrite and pread are not everywhere
    while left:
        left = left[os.write(descriptor, left) :]


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """At most ``size`` bytes from byte ``offset`` on; none at the end of the file."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)
