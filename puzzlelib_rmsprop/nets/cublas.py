"""cuBLAS through scikit-cuda, with workarounds for importing ``skcuda.cublas`` 0.5.3, the last release, from 2019.

- It imports ``pkg_resources``, which setuptools 81 removed: a stand-in module provides the two functions it calls.
- It looks for libcuda.so, libcudart.so and libcublas.so without a version, or with one up to 10.1. The libraries of
  CUDA 11 and later are found here: through the linker, in PyPI's ``nvidia`` packages or in the toolkit's folder.
- Its import creates a cuBLAS handle, to get the version: a context is made current first.
- Its import warns; these warnings are suppressed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArrayError, DependencyError, DeviceError
from ..kernels.context import ensure_context

__all__ = ["candidates", "gemm"]

_lock = threading.RLock()
_skcuda: Any = None


def gemm(
    dtype: np.dtype,
    transposed: tuple[bool, bool],
    sizes: tuple[int, int, int],
    factors: tuple[float, float],
    a: tuple[int, int],
    b: tuple[int, int],
    c: tuple[int, int],
) -> None:
    """Computes ``c = alpha * op(a) @ op(b) + beta * c`` for column-major matrices, on the default stream, without waiting.

    Args:
        dtype: dtype of the matrices: float32 or float64.
        transposed: whether ``op`` transposes ``a``, and whether it transposes ``b``.
        sizes: the numbers of rows and columns of ``c``, and the inner dimension; below 2**31.
        factors: alpha and beta. If beta is 0, ``c`` is not read.
        a, b, c: address and leading dimension, in elements.

    Raises:
        DependencyError: if scikit-cuda or a CUDA library is missing.
        ArrayError: if a size is 2**31 or more.
        DeviceError: if cuBLAS reports an error.
    """
    if max(*sizes, a[1], b[1], c[1]) >= 2**31:
        raise ArrayError(f"cuBLAS needs matrix sizes below 2**31; got {sizes}")
    library = _library()
    product = library.cublasDgemm if dtype == np.float64 else library.cublasSgemm
    operations = ["t" if transpose else "n" for transpose in transposed]
    try:
        product(_handle()(library), *operations, *sizes, factors[0], *a, *b, factors[1], *c)
    except library.cublasError as error:
        raise DeviceError(f"cuBLAS failed in a matrix product of sizes {sizes}: {type(error).__name__}") from error


@functools.cache
def _handle() -> Any:
    """Returns a function that returns the current context's handle. Made at the first call, to import PyCUDA late."""
    from pycuda.tools import context_dependent_memoize

    @context_dependent_memoize
    def handle(library: Any) -> int:
        try:
            made = library.cublasCreate()
        except library.cublasError as error:
            raise DeviceError(
                f"cuBLAS cannot be initialized: {type(error).__name__}; is its CUDA newer than the driver?"
            ) from error
        library.cublasSetStream(made, 0)
        return made

    return handle


# --------------------------------------------------------------------------------------------- the import


def _library() -> Any:
    """Returns ``skcuda.cublas``, imported at the first product."""
    global _skcuda
    with _lock:
        if _skcuda is None:
            ensure_context()
            _skcuda = _imported()
        return _skcuda


def _imported() -> Any:
    if importlib.util.find_spec("skcuda") is None:
        raise DependencyError("nets on CUDA need scikit-cuda for cuBLAS: pip install 'pycuda>=2024.1' 'scikit-cuda==0.5.3'")
    with _pkg_resources(), _libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from skcuda import cublas
        except (ImportError, OSError) as error:
            # OSError: 'cublas library not found', 'CUDA runtime library not found'
            raise DependencyError(
                f"nets on CUDA need cuBLAS and the CUDA runtime, but importing scikit-cuda fails: {error}. Install the CUDA "
                f"toolkit, or pip install nvidia-cublas-cu12 nvidia-cuda-runtime-cu12 (for CUDA 13: nvidia-cublas "
                f"nvidia-cuda-runtime)"
            ) from error
    return cublas


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Inside, ``import pkg_resources`` provides what scikit-cuda needs, even if setuptools no longer has it."""
    modules: dict[str, Any] = sys.modules  # a value of None marks a module as missing
    there, before = "pkg_resources" in modules, modules.get("pkg_resources")
    if before is not None:
        yield
        return
    standin: Any = types.ModuleType("pkg_resources")
    standin.declare_namespace = lambda name: None
    standin.require = lambda name: [types.SimpleNamespace(version=importlib.metadata.version(name))]
    modules["pkg_resources"] = standin
    try:
        yield
    finally:
        del modules["pkg_resources"]
        if there:
            modules["pkg_resources"] = before


@contextmanager
def _libraries() -> Iterator[None]:
    """Inside, ``ctypes.cdll.LoadLibrary`` finds CUDA libraries of any version by their names without a version."""
    if not sys.platform.startswith("linux"):
        yield
        return
    load = ctypes.cdll.LoadLibrary

    def find(name: str) -> Any:
        unversioned = re.fullmatch(r"lib(cuda|cudart|cublas)\.so", name)
        for candidate in candidates(unversioned[1]) if unversioned else [name]:
            if "/libcublas." in candidate:
                with suppress(OSError):
                    load(candidate.replace("/libcublas.", "/libcublasLt."))  # libcublas depends on it
            try:
                return load(candidate)
            except OSError as error:
                failure = error
        raise failure

    loader: Any = ctypes.cdll
    loader.LoadLibrary = find  # shadows the method of this object
    try:
        yield
    finally:
        del loader.LoadLibrary


def candidates(library: str) -> list[str]:
    """Returns possible locations of a CUDA library such as ``"cublas"``, best first: names for the linker, then paths.

    Versions newer than the driver supports are left out.
    """
    if library == "cuda":
        return ["libcuda.so.1", "libcuda.so"]  # the second may be the toolkit's stub, without a driver
    newest = _newest()
    versions = [f"lib{library}.so.{major}" for major in range(newest, 10, -1)]
    # the runtime of every CUDA 11 release is named 11.0
    versions += [f"lib{library}.so.11.0"] if newest >= 11 else []
    names = [f"lib{library}.so", *versions]
    return names + [
        str(folder / name) for folder in _folders() for name in [*versions, names[0]] if (folder / name).is_file()
    ]


def _newest() -> int:
    """Returns the newest major version of CUDA that the driver supports."""
    import pycuda.driver as driver

    return driver.get_driver_version() // 1000


def _folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        # up to CUDA 12: nvidia/cublas/lib and so on; since CUDA 13: nvidia/cu13/lib
        yield from sorted(Path(root).glob("*/lib"))
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    if nvcc:
        toolkits.insert(2, str(Path(nvcc).resolve().parent.parent))
    for toolkit in filter(None, toolkits):
        for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
            yield Path(toolkit, folder)
