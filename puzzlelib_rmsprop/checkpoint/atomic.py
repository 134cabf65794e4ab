"""HDF5 files that appear whole or not at all: written beside their place, sealed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .disk import BLOCK, read_at, regular_file, text_of, write_at
from .integrity import USERBLOCK, seal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import h5py

__all__ = ["atomicFile", "signals_later"]


@contextlib.contextmanager
def atomicFile(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file to write, which takes the place of ``path`` only when the block has ended without an error.

    Until then, and if the process dies, whatever was at ``path`` stays as it was. A file that is replaced keeps its
    permissions. What killed processes left of earlier attempts is removed. A signal (Ctrl-C) is answered when the block has
    ended; then nothing is replaced.

    Args:
        path: where the file is to be; its folder must exist. A symbolic link is followed.

    Raises:
        CheckpointError: the file cannot be written there.

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
        before = _what_is_there(target)
        _remove_leftovers(target)
        temporary, descriptor = _new_file(target, 0o666 if before is None else stat.S_IMODE(before.st_mode) | 0o600)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    try:
        sink = _Sink(descriptor, target)
        with signals_later(), h5py.File(sink, "w", userblock_size=USERBLOCK) as file:
            yield file
        if sink.error is not None:
            raise sink.error
        write_at(descriptor, seal(descriptor), 0)
        if before is not None:
            _keep_owner_and_mode(descriptor, before)
        os.fsync(descriptor)
        if fcntl is None:  # nothing is replaced there by a file that is open
            os.close(descriptor)
            descriptor = -1
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if descriptor >= 0:
            os.close(descriptor)
    _sync_folder(os.path.dirname(target))


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Keeps signal handlers from raising in the block; they run after it.

    HDF5 crashes where one raises while it writes through Python; what one raises while h5py lets go of an object is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler runs in other threads
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


def _what_is_there(target: str) -> os.stat_result | None:
    try:
        return regular_file(target)
    except FileNotFoundError:
        return None


def _leftover(target: str) -> tuple[str, str]:
    folder, name = os.path.split(target)
    return folder, f".{name}."


def _remove_leftovers(target: str) -> None:
    """Removes the temporary files of killed processes: those of this target that no living process has locked."""
    folder, prefix = _leftover(target)
    if fcntl is None:
        return
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{12}\.tmp")
    with os.scandir(folder) as entries:
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
    """A temporary file beside the target, locked as long as it is open: its path and descriptor."""
    folder, prefix = _leftover(target)
    while True:
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks; there nobody can lock it to remove it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:  # another process took it for a leftover before it was locked
                os.close(descriptor)
                continue
        return path, descriptor


def _keep_owner_and_mode(descriptor: int, before: os.stat_result) -> None:
    if not hasattr(os, "fchmod"):
        return
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # some file systems cannot
            raise CheckpointError(f"written, but {folder} cannot be synced to disk: {error}") from error


class _Sink:
    """A file for HDF5 to write into, which never fails: an HDF5 that is told of a full disk crashes later.

    ``error`` is the first error; from then on small pieces, the ones that HDF5 reads again, are kept in memory.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._name = name
        self._position = 0
        self._size = 0
        self._kept: list[tuple[int, bytes]] = []

    def __repr__(self) -> str:  # what h5py takes for the file's name
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
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                self.error = error
        return self._size

    def read(self, size: int = -1) -> bytes:  # h5py knows a file by this name, and calls readinto
        raise NotImplementedError

    def flush(self) -> None:
        pass
