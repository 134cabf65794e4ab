"""The CUDA sources as nvcc takes them: their text, what names it, and the options. Needs nothing else of the package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["nvcc_options", "shipped_ptx", "source_hash", "sources"]

_FOLDER = Path(__file__).resolve().parent


def sources(file: str = "rmsprop_graves") -> dict[str, str]:
    """The text of one file of kernels, the first, and of the headers here that it includes, by name."""
    found: dict[str, str] = {}
    waiting = [f"{file}.cu"]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = (_FOLDER / name).read_text(encoding="utf-8")
            waiting += re.findall(r'^#include "(.+)"$', found[name], re.MULTILINE)
    return found


def source_hash(file: str = "rmsprop_graves") -> str:
    """Names the text that a compiled file was made from, headers included."""
    return hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in sources(file).items()).encode()).hexdigest()


def nvcc_options(arch: str, file: str = "rmsprop_graves") -> list[str]:
    """How the kernels are compiled: every operation rounded once, divisions and roots as IEEE says.

    The rule takes subnormal floats for zero, as on the CPU; nets keep them, as NumPy does.
    """
    ftz = "true" if file == "rmsprop_graves" else "false"
    return [f"-arch={arch}", "-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", f"-ftz={ftz}"]


def shipped_ptx(file: str = "rmsprop_graves") -> tuple[bytes | None, str]:
    """The PTX that the package ships of this source, as the driver takes it; or None, and why."""
    name = f"{file}.ptx.xz"
    try:
        import lzma  # a Python that was built without it has to get by

        text = lzma.decompress((_FOLDER / name).read_bytes())
    except ImportError:
        return None, f"{name} is compressed, and this Python has no module lzma"
    except FileNotFoundError:
        return None, f"the package has no {name}"
    except (OSError, EOFError, lzma.LZMAError) as error:
        return None, f"{name} cannot be read: {error}"
    if source_hash(file).encode() not in text.partition(b"\n")[0]:
        return None, f"{name} is of another source than {file}.cu and its headers here"
    return text + b"\0", ""
