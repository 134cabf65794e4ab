"""A CUDA driver on the CPU, on which PyCUDA itself runs; README.md says what it proves."""

import ctypes
import os
import sys
from pathlib import Path

_loaded = []  # the libraries, kept for the life of the process


def activate(out: str | os.PathLike) -> None:
    """Make PyCUDA and scikit-cuda of this process find the simulator that build.sh put into `out`.

    Call it before PyCUDA is imported: which libcuda a process uses is settled by then.
    """
    out = Path(out).resolve()
    driver = out / "libcuda.so.1"
    if not driver.is_file():
        raise FileNotFoundError(f"no simulator in {out}: build it with tests/cudasim/build.sh {out} PYTHON")
    if _loaded:
        return
    if "pycuda._driver" in sys.modules and not hasattr(ctypes.CDLL("libcuda.so.1"), "cusim_seed"):
        raise RuntimeError("PyCUDA has been imported with another libcuda: call activate() before")
    # The dynamic linker looks for a loaded library of the same soname before it searches any folder.
    for name in ("libcuda.so.1", "libcuda.so", "libcudart.so", "libcublas.so"):
        if (out / name).is_file():
            _loaded.append(ctypes.CDLL(str(out / name), mode=ctypes.RTLD_GLOBAL))
    # for nvcc, and for the libraries of child processes, which need no activate()
    for variable, folder in (("PATH", out / "bin"), ("LD_LIBRARY_PATH", out)):
        others = os.environ.get(variable)
        os.environ[variable] = f"{folder}{os.pathsep}{others}" if others else str(folder)
    # PyCUDA's cache has `nvcc --version` in its keys, but its files are not for the user's folder.
    cache = out / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["PYCUDA_CACHE_DIR"] = str(cache)
