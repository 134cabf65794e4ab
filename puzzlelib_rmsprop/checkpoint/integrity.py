"""Checks that a file is intact before HDF5 opens it: by its seal, or by reading it in a separate process.

A file written by :func:`~puzzlelib_rmsprop.checkpoint.atomicFile` begins with 512 bytes that HDF5 leaves to the user (its
"userblock"). They hold the "seal": the SHA-256 of the rest of the file (``tail -c +513 FILE | sha256sum``). It is checked
before HDF5 opens the file, because HDF5 can hang on a damaged one. SHA-256 is always available in Python, and fast, since
processors have instructions for it. A file without a seal, such as PuzzleLib's, is first read in a separate process.

That process is started only if ``sys.executable`` is a Python interpreter. In a frozen program (PyInstaller), or one that
embeds Python, it would start the program again. There a file without a seal is read directly, and a damaged one may hang.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import Any

from ..errors import CheckpointError
from .disk import BLOCK, is_hdf5, read_at, regular_file

__all__ = ["USERBLOCK", "check", "probe", "seal", "sealed"]

USERBLOCK = 512
_MAGIC = b"puzzlelib_rmsprop: HDF5 from byte 512 on\n"

# time limits of the reading process, many times what it needs: to start, and then for each object in the file
START, SECONDS, BYTES_PER_SECOND = 120.0, 20.0, 20e6

_PROBE = "import sys; from puzzlelib_rmsprop.checkpoint.listing import report; report(sys.argv[1], int(sys.argv[2]))"
_PYTHON = re.compile(r"(python|pypy|graalpy)[\d.]*[dt]*(-dbg|-intel64)?", re.IGNORECASE)
_CRASHES = [getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL") if hasattr(signal, name)]


def seal(descriptor: int) -> bytes:
    """Returns the first 512 bytes that a file must have, given the rest."""
    digest, offset = hashlib.sha256(), USERBLOCK
    while block := read_at(descriptor, BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return (_MAGIC + f"bytes {offset}\nsha256 {digest.hexdigest()}\n".encode()).ljust(USERBLOCK, b"\0")


def sealed(path: str) -> bool | None:
    """Returns whether a file is as it was written; None if it has no seal."""
    regular_file(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = read_at(descriptor, USERBLOCK, 0)
        return head == seal(descriptor) if head.startswith(_MAGIC) else None
    finally:
        os.close(descriptor)


def check(path: str) -> None:
    """Raises CheckpointError if HDF5 must not open a file: its seal is broken, or HDF5 fails on it in a separate process."""
    whole = sealed(path)
    if whole:
        return
    if whole is None and not is_hdf5(path):
        raise CheckpointError(f"cannot read {path}: it is not an HDF5 file")
    found = probe(path) or {}
    if whole is None:
        if "error" in found:
            raise CheckpointError(f"cannot read {path}: {'it is damaged: ' if found['damaged'] else ''}{found['error']}")
        return
    damaged = [each["name"] for part in found.get("parts", []) for each in part["datasets"] if each["checksum"] == "damaged"]
    where = ", ".join(map(repr, damaged)) or found.get("error") or ("none of its datasets" if found else "unknown")
    raise CheckpointError(
        f"{path} is damaged: its SHA-256 is not the one that it was saved with; damaged: {where}. (If it was changed on "
        f"purpose, open it with h5py and pass the open file)"
    )


def probe(path: str) -> dict[str, Any] | None:
    """Runs :func:`puzzlelib_rmsprop.checkpoint.listing.found_in` on a file in a separate process, and returns its result.

    Returns ``{"error": why, "damaged": whether the file is the cause}`` if the process does not finish, and None if it
    cannot be started.
    """
    if not _is_python():
        return None
    limit = SECONDS + os.path.getsize(path) / BYTES_PER_SECOND
    answer = bytearray()
    try:
        ours, its = socket.socketpair()
        with ours, its, _started(path, its) as process:
            its.close()
            try:
                ours.settimeout(START)
                while not answer.endswith(b"\n") and (block := ours.recv(1 << 16)):
                    answer += block
                    ours.settimeout(limit)
                if not answer.endswith(b"\n"):
                    process.wait(limit)  # it has died
            except (TimeoutError, subprocess.TimeoutExpired):
                pass
            finally:
                status = process.poll()
                process.kill()
    except OSError:
        return None
    if answer.endswith(b"\n"):
        return json.loads(answer)
    if not answer:  # it did not reach the file
        return None
    if status is None:
        why = f"HDF5 hangs on it (no progress in {limit:.0f} s): it is damaged, or its disk does not respond"
        return {"error": why, "damaged": False}
    if -status in _CRASHES:
        return {"error": f"HDF5 crashes on it (signal {-status})", "damaged": True}
    if status < 0:
        why = f"the process that checks it was killed by signal {-status}; if memory was short, free some and try again"
        return {"error": why, "damaged": False}
    return None


def _is_python() -> bool:
    """Returns whether ``sys.executable`` is a Python interpreter, rather than this program."""
    name = os.path.basename(sys.executable or "")
    return os.name == "posix" and not getattr(sys, "frozen", False) and _PYTHON.fullmatch(name) is not None


def _started(path: str, channel: socket.socket) -> subprocess.Popen[bytes]:
    """Starts a process that reads a file and answers on its own channel: startup code may print to stdout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROBE, os.path.abspath(path), str(channel.fileno())],
        pass_fds=[channel.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C reaches only this process, which then ends the other
    )
