"""Paths and open files of the system: what is there, reading and writing at an offset, and what some file systems lack."""

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

BLOCK = 1 << 20  # bytes that are read at a time, and that are kept in memory at most

# what a file system answers that cannot sync a file or a folder; 524 is Linux's ENOTSUPP, which some network ones let out
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF, 524}


def text_of(path: Any) -> str:
    """A path as text. Raises CheckpointError for what is no path, or one that no file can have."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise CheckpointError(f"a path must be text, bytes or an os.PathLike; got {type(path).__name__}")
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


def is_hdf5(path: str) -> bool:
    """Whether HDF5's signature stands at byte 0, 512, 1024, 2048 and so on. Raises OSError where the file cannot be read."""
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while block := read_at(file.fileno(), 8, offset):
            if block == b"\x89HDF\r\n\x1a\n":
                return True
            offset = 2 * offset or 512
    return False


def open_hdf5(path: str) -> h5py.File:
    """Opens a file for reading, without a lock: many network file systems have none, and files are replaced whole only."""
    import h5py

    for locking in (False, None, True):  # what this process has open already, HDF5 opens in the same way only
        try:
            return h5py.File(path, "r", locking=locking)
        except (OSError, ValueError) as error:  # a ValueError where HDF5 is too old to be told
            if locking or "file locking" not in str(error):
                raise
    raise AssertionError("not reached")


def plain(error: BaseException) -> BaseException:
    """The system's error that HDF5 tells of in an error of its own, of nearly any type; or the error itself."""
    found = re.search(r"\berrno = ([1-9]\d*)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else error


def sync(descriptor: int) -> None:
    """Waits until a file or folder is on the disk, where its file system can do that. Raises OSError where that fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def write_at(descriptor: int, content: Any, offset: int) -> None:
    """Writes all of ``content`` from byte ``offset`` on."""
    left = memoryview(content).cast("B")
    os.lseek(descriptor, offset, os.SEEK_SET)  # pwrite and pread are not everywhere
    while left:
        left = left[os.write(descriptor, left) :]


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """``size`` bytes from byte ``offset`` on, or as many as there are; none at the end of the file."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    found = os.read(descriptor, size)
    while len(found) < size and (more := os.read(descriptor, size - len(found))):  # some give less than is there
        found += more
    return found
