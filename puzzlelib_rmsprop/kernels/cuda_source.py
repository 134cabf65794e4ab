"""The CUDA sources: their text, its hash, the options of nvcc, and the shipped PTX. Imports nothing else of the package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["nvcc_options", "shipped_ptx", "source_hash", "sources"]

_FOLDER = Path(__file__).resolve().parent


def sources(file: str = "rmsprop_graves") -> dict[str, str]:
    """Returns the text of a ``.cu`` file and of the headers in this folder that it includes, by file name."""
    found: dict[str, str] = {}
    waiting = [f"{file}.cu"]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = (_FOLDER / name).read_text(encoding="utf-8")
            waiting += re.findall(r'^#include "(.+)"$', found[name], re.MULTILINE)
    return found


def source_hash(file: str = "rmsprop_graves") -> str:
    """Returns a hash of a ``.cu`` file and its headers, which identifies the source of compiled code."""
    return hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in sources(file).items()).encode()).hexdigest()


def nvcc_options(arch: str, file: str = "rmsprop_graves") -> list[str]:
    """Returns the options of nvcc: no fused multiply-adds, and division and square root rounded as in IEEE 754.

    The update rule flushes subnormal floats to zero, as on the CPU; the kernels of nets keep them, as NumPy does.
    """
    ftz = "true" if file == "rmsprop_graves" else "false"
    return [f"-arch={arch}", "-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", f"-ftz={ftz}"]


def shipped_ptx(file: str = "rmsprop_graves") -> tuple[bytes | None, str]:
    """Returns the shipped PTX, null-terminated for the driver, and ""; or None and the reason why it cannot be used."""
    name = f"{file}.ptx.xz"
    try:
        import lzma  # not at the top: some builds of Python lack it

        text = lzma.decompress((_FOLDER / name).read_bytes())
    except ImportError:
        return None, f"{name} is compressed, and this Python has no module lzma"
    except FileNotFoundError:
        return None, f"the package has no {name}"
    except (OSError, EOFError, lzma.LZMAError) as error:
        return None, f"{name} cannot be read: {error}"
    if source_hash(file).encode() not in text.partition(b"\n")[0]:
        return None, f"{name} was made from another version of {file}.cu or its headers"
    return text + b"\0", ""
