"""What the tools need to know of nvcc: where it is, its release, and the options the library compiles with."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "puzzlelib_rmsprop" / "kernels"


def release() -> str:
    """The release of the nvcc on the PATH, as ``13.0.88``. Ends the program where there is none, or only a stand-in."""
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"nvcc does not run here ({error}): nothing was checked") from error
    found = re.search(r"^Cuda compilation tools, release .*, V([\d.]+)$", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"the nvcc on the PATH is not NVIDIA's, nothing was checked: {' '.join(text.split())}")
    return found[1]


def options(arch: str) -> list[str]:
    """How the library compiles its kernels: kernels/cuda.py's nvcc_options(arch).

    That file cannot be imported without PyCUDA and a driver, so the function is taken out of it. It has to stand alone.
    """
    tree = ast.parse((KERNELS / "cuda.py").read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "nvcc_options"]
    if len(found) != 1:
        raise SystemExit(f"kernels/cuda.py has {len(found)} functions nvcc_options, not one")
    names: dict = {}
    exec(compile(ast.Module(found, []), "kernels/cuda.py", "exec"), names)
    return names["nvcc_options"](arch)
