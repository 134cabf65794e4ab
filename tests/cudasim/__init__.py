"""A CUDA driver on the CPU, with which PyCUDA itself runs. README.md describes what it proves."""

import ctypes
import os
import sys
from pathlib import Path

_loaded = []  # the libraries, kept until the process ends


def activate(out: str | os.PathLike) -> None:
    """Make PyCUDA and scikit-cuda of this process find the simulator that build.sh put into `out`.

    Call it before PyCUDA is imported, which loads libcuda.
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
    # the cache has `nvcc --version` in its keys, but its files do not belong in the user's folder
    cache = out / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["PYCUDA_CACHE_DIR"] = str(cache)
