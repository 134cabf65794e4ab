"""cuBLAS through scikit-cuda, and all that it takes to import ``skcuda.cublas`` 0.5.3 (2019, the last) today.

- It imports ``pkg_resources``, gone from setuptools 81 on: a stand-in answers the one question that it asks.
- It looks for libcuda.so, libcudart.so and libcublas.so without a version or with one up to 10.1. The libraries of
  CUDA 11 and later are found here: by the linker, in PyPI's ``nvidia`` packages, in the toolkit's folder.
- Its import makes a cuBLAS handle, to ask for the version: so a context is made current before.
- It warns of what it does.
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
    """``c = alpha * op(a) @ op(b) + beta * c`` on matrices stored by columns, on the default stream, without waiting.

    Args:
        dtype: of all three, float32 or float64.
        transposed: whether ``op`` transposes ``a``, and ``b``.
        sizes: c's rows and columns, and the length of the sums; below 2**31.
        factors: alpha and beta. Where beta is 0, what is in ``c`` is not read.
        a, b, c: address, and elements from one column to the next.

    Raises:
        DependencyError: scikit-cuda or a library of CUDA is missing.
        ArrayError: a size does not fit 32 bits.
        DeviceError: cuBLAS refuses.
    """
    if max(*sizes, a[1], b[1], c[1]) >= 2**31:
        raise ArrayError(f"cuBLAS needs matrix sizes below 2**31; got {sizes}")
    library = _library()
    product = library.cublasDgemm if dtype == np.float64 else library.cublasSgemm
    operations = ["t" if transpose else "n" for transpose in transposed]
    try:
        product(_handle()(library), *operations, *sizes, factors[0], *a, *b, factors[1], *c)
    except library.cublasError as error:
        raise DeviceError(f"cuBLAS refuses a product of sizes {sizes}: {type(error).__name__}") from error


@functools.cache
def _handle() -> Any:
    """A function that gives the current context's handle; decorated late, because this file imports no PyCUDA."""
    from pycuda.tools import context_dependent_memoize

    @context_dependent_memoize
    def handle(library: Any) -> int:
        try:
            made = library.cublasCreate()
        except library.cublasError as error:
            raise DeviceError(
                f"cuBLAS does not start: {type(error).__name__}; is its CUDA newer than the driver?"
            ) from error
        library.cublasSetStream(made, 0)
        return made

    return handle


# --------------------------------------------------------------------------------------------- the import


def _library() -> Any:
    """``skcuda.cublas``, imported at the first product."""
    global _skcuda
    with _lock:
        if _skcuda is None:
            ensure_context()
            _skcuda = _imported()
        return _skcuda


def _imported() -> Any:
    if importlib.util.find_spec("skcuda") is None:
        raise DependencyError("nets on CUDA need scikit-cuda for cuBLAS: pip install 'puzzlelib_rmsprop[cuda]'")
    with _pkg_resources(), _libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from skcuda import cublas
        except (ImportError, OSError) as error:
            # OSError: 'cublas library not found', 'CUDA runtime library not found'
            raise DependencyError(
                f"nets on CUDA need cuBLAS and the CUDA runtime, but scikit-cuda's import says: {error}. Install the CUDA "
                f"toolkit, or pip install nvidia-cublas-cu12 nvidia-cuda-runtime-cu12 (for CUDA 13: nvidia-cublas "
                f"nvidia-cuda-runtime)"
            ) from error
    return cublas


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Inside, ``import pkg_resources`` gives what scikit-cuda needs of it, whether setuptools still has it or not."""
    modules: dict[str, Any] = sys.modules  # where None says that there is none
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
    """Inside, ``ctypes.cdll.LoadLibrary`` finds CUDA's libraries of any version under the names without one."""
    if not sys.platform.startswith("linux"):
        yield
        return
    load = ctypes.cdll.LoadLibrary

    def find(name: str) -> Any:
        unversioned = re.fullmatch(r"lib(cuda|cudart|cublas)\.so", name)
        for candidate in candidates(unversioned[1]) if unversioned else [name]:
            if "/libcublas." in candidate:
                with suppress(OSError):
                    load(candidate.replace("/libcublas.", "/libcublasLt."))  # which it needs itself
            try:
                return load(candidate)
            except OSError as error:
                failure = error
        raise failure

    loader: Any = ctypes.cdll
    loader.LoadLibrary = find  # hides the method, on this one object
    try:
        yield
    finally:
        del loader.LoadLibrary


def candidates(library: str) -> list[str]:
    """Where a library of CUDA may be, best first: ``"cublas"`` -> names for the linker, then files.

    A toolkit newer than the driver is left out.
    """
    if library == "cuda":
        return ["libcuda.so.1", "libcuda.so"]  # the driver's; the second may be a stub without a driver behind it
    newest = _newest()
    versions = [f"lib{library}.so.{major}" for major in range(newest, 10, -1)]
    # 11.0 is what the runtime of all of CUDA 11 is called
    versions += [f"lib{library}.so.11.0"] if newest >= 11 else []
    names = [f"lib{library}.so", *versions]
    return names + [
        str(folder / name) for folder in _folders() for name in [*versions, names[0]] if (folder / name).is_file()
    ]


def _newest() -> int:
    """The newest CUDA that the driver runs."""
    import pycuda.driver as driver

    return driver.get_driver_version() // 1000


def _folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        # nvidia/cublas/lib and so on up to CUDA 12, nvidia/cu13/lib since
        yield from sorted(Path(root).glob("*/lib"))
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    if nvcc:
        toolkits.insert(2, str(Path(nvcc).resolve().parent.parent))
    for toolkit in filter(None, toolkits):
        for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
            yield Path(toolkit, folder)
