"""Whether a file is whole: its seal, and a process of its own that reads what has none, before HDF5 sees it here.

A file that :func:`~puzzlelib_rmsprop.checkpoint.atomicFile` wrote begins with 512 bytes that HDF5 leaves to the user (its
"userblock"). There stands the SHA-256 of all the rest (``tail -c +513 FILE | sha256sum``), the "seal". It is checked before
HDF5 sees the file, because HDF5 can hang on a damaged one. SHA-256, because processors have instructions for it and Python
always has it. A file without a seal, as PuzzleLib writes them, is read by a process of its own first.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

from ..errors import CheckpointError
from .disk import BLOCK, read_at, regular_file

__all__ = ["USERBLOCK", "check", "probe", "seal", "sealed"]

USERBLOCK = 512
_MAGIC = b"puzzlelib_rmsprop: HDF5 from byte 512 on\n"

SECONDS, BYTES_PER_SECOND = 20.0, 20e6  # what a process gets to read a file: many times what it takes

_PROBE = "import sys; from puzzlelib_rmsprop.checkpoint.listing import report; report(sys.argv[1])"


def seal(descriptor: int) -> bytes:
    """What the first 512 bytes of a file must be, given the rest."""
    digest, offset = hashlib.sha256(), USERBLOCK
    while block := read_at(descriptor, BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return (_MAGIC + f"bytes {offset}\nsha256 {digest.hexdigest()}\n".encode()).ljust(USERBLOCK, b"\0")


def sealed(path: str) -> bool | None:
    """Whether a file is as it was written: True or False; None where it has no seal."""
    regular_file(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = read_at(descriptor, USERBLOCK, 0)
        return head == seal(descriptor) if head.startswith(_MAGIC) else None
    finally:
        os.close(descriptor)


def check(path: str) -> None:
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


def probe(path: str) -> dict[str, Any]:
    """What :func:`puzzlelib_rmsprop.checkpoint.listing.contents_of_file` finds in a file, in a process of its own.

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
