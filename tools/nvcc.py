"""nvcc for the tools: its release, and the options that the library compiles with."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

KERNELS = Path(__file__).resolve().parent.parent / "puzzlelib_rmsprop" / "kernels"


def release() -> str:
    """Returns the release of the nvcc on the PATH, such as ``13.0.88``; ends the program if there is no real nvcc."""
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"nvcc does not run here ({error}): nothing was checked") from error
    found = re.search(r"^Cuda compilation tools, release .*, V([\d.]+)$", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"the nvcc on the PATH is not NVIDIA's, nothing was checked: {' '.join(text.split())}")
    return found[1]


def _library() -> ModuleType:
    """Imports kernels/cuda_source.py by its path, because importing the package needs NumPy and h5py."""
    spec = importlib.util.spec_from_file_location("cuda_source", KERNELS / "cuda_source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_source = _library()
options = _source.nvcc_options
source_hash = _source.source_hash
