"""HDF5 files that appear complete or not at all: written under a temporary name, sealed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError
from .disk import BLOCK, read_at, regular_file, sync, text_of, write_at
from .integrity import USERBLOCK, seal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import h5py

__all__ = ["atomicFile", "signals_later"]

_ACCESS_LIST = "system.posix_acl_access"  # Linux's name for a POSIX access control list
_LONG = 100  # longer names, in bytes, become a digest in the temporary file's name: some file systems allow only 143 bytes
_MOUNTED = "a file that is mounted by itself (as in a container) cannot be replaced: mount its folder, or save elsewhere"
_PROTECTED = "the folder or file is protected (in a sticky folder only owners can replace files): save under another name"
_REMEDIES = {
    **dict.fromkeys((errno.EBUSY, errno.EXDEV), _MOUNTED),
    **dict.fromkeys((errno.EPERM, errno.EACCES), _PROTECTED),
    **dict.fromkeys((errno.ENOSYS, errno.ENOTSUP), "this file system cannot rename files: save elsewhere, and copy it"),
    errno.EEXIST: "this file system cannot replace files: remove the old one, or save under another name",
}


@contextlib.contextmanager
def atomicFile(path: str | bytes | os.PathLike[Any]) -> Iterator[h5py.File]:
    """Opens an HDF5 file for writing that replaces ``path`` only if the block ends without an error.

    Until then, and if the process dies, a file at ``path`` is unchanged. Temporary files that killed processes left behind
    are removed if the folder can be listed and its file system has locks. A signal such as Ctrl-C is handled at the end of
    the block; if its handler raises, nothing is replaced.

    A replaced file keeps its owner, group, permissions and POSIX access list, as far as the system allows. It is
    replaced in any case: if only the owner cannot be kept, the group is. If the group cannot be kept either, the new group
    and all other users get only the permissions that both the old group and all others had. Setuid and similar bits,
    extended attributes, other access lists (NFSv4, Windows) and hard links are not kept.

    Args:
        path: the file to write; its folder must exist. A symbolic link is followed.

    Raises:
        CheckpointError: if the file cannot be written or replaced.

    Example:
        >>> import os, tempfile
        >>> from puzzlelib_rmsprop.checkpoint import atomicFile
        >>> path = os.path.join(tempfile.mkdtemp(), "run.hdf")
        >>> with atomicFile(path) as file:
        ...     file["epoch"] = 3
        >>> os.path.exists(path)
        True
    """
    import h5py

    target = text_of(path)
    try:
        target = os.path.realpath(target)
        access = _Access.of(target)
        _remove_leftovers(target)
        temporary, descriptor = _new_file(target, 0o666 if access is None else access.at_least | 0o600)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    remedies: dict[int, str] = {}
    try:
        sink = _Sink(descriptor, target)
        with signals_later(), h5py.File(sink, "w", userblock_size=USERBLOCK) as file:
            yield file
        if sink.error is not None:
            raise sink.error
        write_at(descriptor, seal(descriptor), 0)
        if access is not None:
            access.give(descriptor)
        sync(descriptor)
        os.close(os.dup(descriptor))  # some file systems report a failed write only on close
        if fcntl is None:  # Windows cannot rename an open file
            os.close(descriptor)
            descriptor = -1
        remedies = _REMEDIES
        os.replace(temporary, target)
    except OSError as error:
        remedy = remedies.get(error.errno or 0)
        raise CheckpointError(f"cannot write {target}: {error}" + (f"; {remedy}" if remedy else "")) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        with contextlib.suppress(OSError):
            if descriptor >= 0:
                os.close(descriptor)
    _sync_folder(os.path.dirname(target))


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Delays signal handlers until the end of the block.

    HDF5 crashes if a handler raises while it writes through Python. If one raises while h5py frees an object, its exception
    is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    came: list[int] = []
    handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, lambda got, frame: came.append(got))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


class _Access(NamedTuple):
    """Owner, group and permissions of a file that is replaced."""

    owner: int
    group: int
    mode: int
    access_list: bytes | None

    @classmethod
    def of(cls, target: str) -> _Access | None:
        try:
            found = regular_file(target)
        except FileNotFoundError:
            return None
        access_list = None
        with contextlib.suppress(OSError, AttributeError):  # no list, or not supported
            access_list = os.getxattr(target, _ACCESS_LIST)
        return cls(found.st_uid, found.st_gid, found.st_mode & 0o777, access_list)

    @property
    def at_least(self) -> int:
        """A mode that grants nobody more than before, whatever the group of the new file."""
        if self.access_list is not None:  # then the group's bits are the mask of the whole list
            return self.mode & 0o700
        both = self.mode >> 3 & self.mode & 0o7
        return self.mode & 0o700 | both << 3 | both

    def give(self, descriptor: int) -> None:
        """Applies owner, group and permissions to a new file, as far as the system allows."""
        if not hasattr(os, "fchmod"):
            return
        for owner in (self.owner, -1):  # users who cannot change the owner may still set a group of theirs
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner, self.group)
                break
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_gid == self.group:
                if self.access_list is None:
                    os.fchmod(descriptor, self.mode)
                else:
                    os.setxattr(descriptor, _ACCESS_LIST, self.access_list)
                return
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, self.at_least)


def _leftover(target: str) -> tuple[str, str]:
    """Returns the folder of a target's temporary files, and the prefix of their names."""
    folder, name = os.path.split(target)
    raw = os.fsencode(name)
    return folder, f".{name if len(raw) <= _LONG else hashlib.sha256(raw).hexdigest()[:32]}."


def _remove_leftovers(target: str) -> None:
    """Removes the temporary files of killed processes: files for this target that no running process has locked."""
    folder, prefix = _leftover(target)
    if fcntl is None:
        return
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{12}\.tmp")
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # a folder may be writable but not readable
        found = [entry.path for entry in entries if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for each in found:
        with contextlib.suppress(OSError):  # it is locked, or gone, or not ours
            descriptor = os.open(each, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(each)
            finally:
                os.close(descriptor)


def _new_file(target: str, mode: int) -> tuple[str, int]:
    """Creates a temporary file beside the target, locked while it is open; returns its path and descriptor."""
    folder, prefix = _leftover(target)
    for _ in range(100):
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}.tmp")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        except FileExistsError:  # a network file system also reports this when it repeats a request
            continue
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks here; then no other process removes leftovers either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # removed as a leftover before it was locked? (Some file systems always report 0 links.)
            if not (os.fstat(descriptor).st_nlink or os.path.lexists(path)):
                os.close(descriptor)
                continue
        return path, descriptor
    raise FileExistsError(errno.EEXIST, "each of 100 temporary files existed already, or was removed again", folder)


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # it may be writable but not readable
        return
    try:
        sync(descriptor)
    except OSError as error:
        raise CheckpointError(f"written, but {folder} cannot be synced to disk: {error}") from error
    finally:
        os.close(descriptor)


class _Sink:
    """A file object for HDF5 whose writes never fail: HDF5 crashes later if it learns that a disk is full.

    ``error`` is the first error. After it, small writes, which HDF5 reads back, are kept in memory.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._name = name
        self._position = 0
        self._size = 0
        self._kept: list[tuple[int, bytes]] = []

    def __repr__(self) -> str:  # h5py uses it as the file's name
        return self._name

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, content: Any) -> int:
        content = memoryview(content).cast("B")
        if self.error is None:
            try:
                write_at(self._descriptor, content, self._position)
            except OSError as error:
                self.error = error
        if self.error is not None and len(content) < BLOCK:
            self._kept.append((self._position, bytes(content)))
        self._position += len(content)
        self._size = max(self._size, self._position)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        start, end = self._position, self._position + len(into)
        into[:] = read_at(self._descriptor, len(into), start).ljust(len(into), b"\0")
        for offset, content in self._kept:
            low, high = max(start, offset), min(end, offset + len(content))
            if low < high:
                into[low - start : high - start] = content[low - offset : high - offset]
        self._position = end
        return len(into)

    def truncate(self, size: int | None = None) -> int:
        before, self._size = self._size, self._position if size is None else size
        if self.error is None:
            try:
                if self._size > before:  # not every file system can extend a file with ftruncate
                    write_at(self._descriptor, b"\0", self._size - 1)
                elif self._size < before:
                    os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                self.error = error
        return self._size

    def read(self, size: int = -1) -> bytes:  # h5py recognizes a file object by this method, but calls readinto
        raise NotImplementedError

    def flush(self) -> None:
        pass
