"""HDF5 files on disk: written whole or not at all, sealed with a checksum, and never opened blindly.

A file that :func:`atomicFile` wrote begins with 512 bytes that HDF5 leaves to the user (its "userblock"). There
stands the SHA-256 of all the rest (``tail -c +513 FILE | sha256sum``), the "seal". It is checked before HDF5 sees the file,
because HDF5 can hang on a damaged one. SHA-256, because processors have instructions for it and Python always has it. A file
without a seal, as PuzzleLib writes them, is read by a process of its own first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import h5py

__all__ = ["atomicFile", "new_groups", "opened", "probe", "regular_file", "sealed", "text_of"]

PathOrGroup = Any  # str, os.PathLike or an open h5py.Group

USERBLOCK = 512
_MAGIC = b"puzzlelib_rmsprop: HDF5 from byte 512 on\n"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_BLOCK = 1 << 20


# --------------------------------------------------------------------------------------------- writing


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
        with _signals_later(), h5py.File(sink, "w", userblock_size=USERBLOCK) as file:
            yield file
        if sink.error is not None:
            raise sink.error
        _write_at(descriptor, _seal(descriptor), 0)
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
def _signals_later() -> Iterator[None]:
    """Keeps signal handlers from raising while HDF5 writes through Python: HDF5 would crash."""
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


def text_of(path: Any) -> str:
    """A path as text. Raises CheckpointError for what is no path, or one that no file can have."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise CheckpointError(f"a path must be text or an os.PathLike; got {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise CheckpointError(f"a path must be without NUL; got {text!r}")
    return text


def _what_is_there(target: str) -> os.stat_result | None:
    try:
        return regular_file(target)
    except FileNotFoundError:
        return None


def regular_file(path: str) -> os.stat_result:
    """What is known of a regular file. Raises OSError for anything else: opening a pipe would wait for its other end."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found


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


def _write_at(descriptor: int, content: Any, offset: int) -> None:
    left = memoryview(content).cast("B")
    os.lseek(descriptor, offset, os.SEEK_SET)  # pwrite and pread are not everywhere
    while left:
        left = left[os.write(descriptor, left) :]


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


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
                _write_at(self._descriptor, content, self._position)
            except OSError as error:
                self.error = error
        if self.error is not None and len(content) < _BLOCK:
            self._kept.append((self._position, bytes(content)))
        self._position += len(content)
        self._size = max(self._size, self._position)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        start, end = self._position, self._position + len(into)
        into[:] = _read_at(self._descriptor, len(into), start).ljust(len(into), b"\0")
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


# --------------------------------------------------------------------------------------------- the seal


def _seal(descriptor: int) -> bytes:
    """What the first 512 bytes of a file must be, given the rest."""
    digest, offset = hashlib.sha256(), USERBLOCK
    while block := _read_at(descriptor, _BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return (_MAGIC + f"bytes {offset}\nsha256 {digest.hexdigest()}\n".encode()).ljust(USERBLOCK, b"\0")


def sealed(path: str) -> bool | None:
    """Whether a file is as it was written: True or False; None where it has no seal."""
    regular_file(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = _read_at(descriptor, USERBLOCK, 0)
        return head == _seal(descriptor) if head.startswith(_MAGIC) else None
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def opened(hdf: PathOrGroup, mode: str) -> Iterator[h5py.Group]:
    """A path opened for the block (``mode`` "r" or "w"), or the group given, left open.

    Raises:
        CheckpointError: the file cannot be written, or read; HDF5's errors in the block too.
    """
    import h5py

    if isinstance(hdf, h5py.Group):
        if not hdf:
            raise CheckpointError("the HDF5 file given is closed")
        with _hdf5_errors(hdf.file.filename, mode):
            yield hdf
    elif not isinstance(hdf, str | os.PathLike):
        raise CheckpointError(f"hdf must be a path or an open h5py file or group; got {type(hdf).__name__}")
    elif mode == "w":
        with atomicFile(hdf) as file, _hdf5_errors(text_of(hdf), mode):
            yield file
    else:
        path = text_of(hdf)
        with _hdf5_errors(path, mode):
            _check(path)
            with h5py.File(path, "r") as file:
                yield file


@contextlib.contextmanager
def _hdf5_errors(path: str, mode: str) -> Iterator[None]:
    try:
        yield
    except (Error, Warning):
        raise
    except Exception as error:  # h5py raises nearly every kind, depending on where a file is damaged
        if mode == "w" and isinstance(error, MemoryError):
            raise
        raise CheckpointError(f"cannot {'read' if mode == 'r' else 'write'} {path}: {error}") from error


def _check(path: str) -> None:
    """Refuses what HDF5 must not see: a file whose seal is broken, or one without a seal that HDF5 crashes or hangs on."""
    import h5py

    whole = sealed(path)
    if whole:
        return
    if whole is None and not h5py.is_hdf5(path):
        raise CheckpointError(f"cannot read {path}: it is no HDF5 file")
    found = probe(path)
    if whole is None:
        if "error" in found:
            raise CheckpointError(f"cannot read {path}: it is damaged: {found['error']}")
        return
    damaged = [each["name"] for part in found.get("parts", []) for each in part["datasets"] if each["checksum"] == "damaged"]
    where = ", ".join(map(repr, damaged)) or found.get("error") or ("none of its datasets" if found else "unknown")
    raise CheckpointError(
        f"{path} is damaged: its SHA-256 is not the one that it was saved with; damaged: {where}. (If it was changed on "
        f"purpose, open it with h5py and give the open file)"
    )


SECONDS, BYTES_PER_SECOND = 20.0, 20e6  # what a process gets to read a file: many times what it takes


_PROBE = "import sys; from puzzlelib_rmsprop.tools import inspection; inspection.report(sys.argv[1])"


def probe(path: str) -> dict[str, Any]:
    """What :func:`puzzlelib_rmsprop.tools.inspection.survey` finds in a file, in a process of its own.

    ``{"error": why}`` where that fails, crashes or hangs; ``{}`` where no such process can be started.
    """
    limit = SECONDS + os.path.getsize(path) / BYTES_PER_SECOND
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, path],
            capture_output=True,
            timeout=limit,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"HDF5 does not come to an end with it ({limit:.0f} s)"}
    except OSError:
        return {}
    if done.returncode < 0:
        return {"error": f"HDF5 crashes on it (signal {-done.returncode})"}
    return {} if done.returncode else json.loads(done.stdout)


@contextlib.contextmanager
def new_groups(parent: h5py.Group, names: Sequence[str]) -> Iterator[list[h5py.Group]]:
    """Creates groups, and takes them away again when the block fails."""
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
            with contextlib.suppress(Exception):  # a full disk can refuse even this; the first error is the one to tell
                del parent[name]
        raise
