"""Low-level access to files: paths, reads and writes at an offset, and workarounds for limited file systems."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    import h5py

__all__ = ["BLOCK", "is_hdf5", "open_hdf5", "plain", "read_at", "regular_file", "sync", "text_of", "write_at"]

BLOCK = 1 << 20  # bytes that are read at a time; also the limit for a write to be kept in memory

# errors of file systems that cannot sync a file or folder; 524 is Linux's ENOTSUPP, which some network file systems return
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF, 524}


def text_of(path: Any) -> str:
    """Returns a path as str. Raises CheckpointError if it is not a path, or contains a NUL."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise CheckpointError(f"a path must be text, bytes or an os.PathLike; got {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise CheckpointError(f"a path must not contain NUL; got {text!r}")
    return text


def regular_file(path: str) -> os.stat_result:
    """Returns the status of a regular file. Raises OSError for other files: opening a pipe would wait for its other end."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return found


def is_hdf5(path: str) -> bool:
    """Returns whether HDF5's signature is at byte 0, 512, 1024, 2048 and so on. Raises OSError if it cannot be read."""
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while block := read_at(file.fileno(), 8, offset):
            if block == b"\x89HDF\r\n\x1a\n":
                return True
            offset = 2 * offset or 512
    return False


def open_hdf5(path: str) -> h5py.File:
    """Opens a file for reading, without a lock: many network file systems lack them, and files are only replaced whole."""
    import h5py

    for locking in (False, None, True):  # HDF5 opens a file again only with the same locking
        try:
            return h5py.File(path, "r", locking=locking)
        except (OSError, ValueError) as error:  # ValueError: HDF5 is too old for the option
            if locking or "file locking" not in str(error):
                raise
    raise AssertionError("not reached")


def plain(error: BaseException) -> BaseException:
    """Returns the system error that an error of HDF5 reports in its text, if any; otherwise the error itself."""
    found = re.search(r"\berrno = ([1-9]\d*)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else error


def sync(descriptor: int) -> None:
    """Waits until a file or folder is on disk, if its file system supports that. Raises OSError if it fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def write_at(descriptor: int, content: Any, offset: int) -> None:
    """Writes all of ``content``, starting at byte ``offset``."""
    left = memoryview(content).cast("B")
    os.lseek(descriptor, offset, os.SEEK_SET)  # pwrite and pread are not available everywhere
    while left:
        left = left[os.write(descriptor, left) :]


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Returns ``size`` bytes, starting at byte ``offset``; fewer at the end of the file."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    found = os.read(descriptor, size)
    while len(found) < size and (more := os.read(descriptor, size - len(found))):  # a read may be short
        found += more
    return found
