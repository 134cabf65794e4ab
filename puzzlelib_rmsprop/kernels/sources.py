"""The CUDA kernels as the package ships them: their sources, and the PTX that was made from those. Needs no PyCUDA."""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ["HEADERS", "shipped_ptx", "source", "source_hash"]

FOLDER = resources.files(__package__)
# what each .cu includes, in the order in which they are hashed
HEADERS = {"rmsprop_graves": ("rule.h", "numbers.h", "layout.h"), "nets": ()}


def source(file: str = "rmsprop_graves") -> str:
    """The text of one ``.cu``."""
    return (FOLDER / f"{file}.cu").read_text(encoding="utf-8")


def source_hash(file: str = "rmsprop_graves") -> str:
    """The SHA-256 of one ``.cu`` and then of its ``HEADERS``: names what a PTX was made from."""
    texts = [source(file), *((FOLDER / name).read_text(encoding="utf-8") for name in HEADERS[file])]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def shipped_ptx(file: str = "rmsprop_graves") -> bytes | None:
    """The PTX that the package ships, ended by a NUL; None where there is none, or it was made from another source."""
    shipped = FOLDER / f"{file}.ptx"
    if not shipped.is_file():
        return None
    text = shipped.read_bytes()
    return text + b"\0" if source_hash(file).encode() in text.partition(b"\n")[0] else None
