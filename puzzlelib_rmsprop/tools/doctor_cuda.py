"""The part of ``doctor`` about CUDA: driver, devices, kernels and scikit-cuda."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..kernels import cuda_compile, cuda_source
from ..kernels.context import lacks_driver
from .findings import NO_DEVICE, Failed, Findings, line, remedy, version
from .selftest import gpu_case, room

__all__ = ["CUDADoctor"]

_NO_CUBLAS = "install the CUDA toolkit's cuBLAS and add its folder to LD_LIBRARY_PATH"
_ON_CPU = "nets and arrays stay on the CPU"


class CUDADoctor(Findings):
    """Examines the GPUs and the packages that they need."""

    def _examine_source(self) -> None:
        text, why = cuda_source.shipped_ptx()
        self.found["CUDA kernel"] = f"compiled from source by nvcc: {why}" if text is None else "shipped as PTX"

    def _examine_cuda(self) -> None:
        self._examine_nvcc()
        driver = self._import_pycuda()
        try:
            driver.init()
            count = driver.Device.count()
        except Exception as error:
            raise Failed(f"the NVIDIA driver does not start: {line(error)}", remedy(error) or NO_DEVICE) from error
        number = driver.get_driver_version()
        self.found["driver"] = f"supports CUDA {number // 1000}.{number % 1000 // 10}"
        if not count:
            raise Failed("the NVIDIA driver finds no device", NO_DEVICE)
        for index in range(count):
            self._guard(f"GPU {index}", self.problems, self._examine_device, driver, index)

    def _examine_nvcc(self) -> None:
        path = shutil.which("nvcc")
        self.found["nvcc"] = "not on the PATH"
        if path:
            self.paths["nvcc"] = path
            try:
                done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
                lines = [line for line in done.stdout.splitlines() if "release" in line] or ["of unknown version"]
                self.found["nvcc"] = lines[0].strip()
            except (OSError, subprocess.SubprocessError) as error:
                self.found["nvcc"] = f"does not run ({line(error)})"

    def _import_pycuda(self) -> Any:
        self.found["PyCUDA"] = "not installed"
        if importlib.util.find_spec("pycuda") is None:
            raise Failed(
                f"PyCUDA is not installed, so {_ON_CPU}",
                "to train on a GPU, install the CUDA toolkit, which PyCUDA is compiled with, and then "
                "pip install 'pycuda>=2024.1' 'scikit-cuda==0.5.3'",
            )
        self.found["PyCUDA"] = version("pycuda").replace("not installed", "of unknown version")
        try:
            driver = importlib.import_module("pycuda.driver")
            importlib.import_module("pycuda.gpuarray")
        except Exception as error:
            self.found["PyCUDA"] += ", cannot be imported"
            if lacks_driver(error) or "undefined symbol: cu" in str(error):
                raise Failed(
                    f"PyCUDA finds no NVIDIA driver, or one that is too old ({line(error)}), so {_ON_CPU}",
                    "install the NVIDIA driver; start a container with access to the GPU (docker run --gpus all)",
                ) from error
            raise Failed(
                f"PyCUDA cannot be imported ({line(error)}), so {_ON_CPU}",
                "compile it again with the installed CUDA toolkit: pip install --force-reinstall --no-cache-dir pycuda",
            ) from error
        self.found["PyCUDA"] += f", built for CUDA {'.'.join(map(str, driver.get_version()))}"
        return driver

    def _examine_device(self, driver: Any, index: int) -> None:
        device = driver.Device(index)
        major, minor = device.compute_capability()
        place = f"GPU {index}"
        self.found[place] = (
            f"{device.name()}, compute capability {major}.{minor}, {device.total_memory() / 2**30:.1f} GiB of memory"
        )
        with _primary_context(device):
            self._guard(f"{place}: kernel", self.problems, self._examine_kernel, driver, place, f"sm_{major}{minor}")
            gpuarray = importlib.import_module("pycuda.gpuarray")
            synchronize = driver.Context.synchronize
            if self._train(place, gpuarray.to_gpu, lambda array: array.get(), synchronize):
                self._guard(f"speed on {place}", self.notes, self._measure, place, gpu_case, room(driver))
            if "scikit-cuda" not in self.found:
                self.found["scikit-cuda"] = "missing"
                self._guard("scikit-cuda", self.notes, self._examine_skcuda)

    def _examine_kernel(self, driver: Any, place: str, arch: str) -> None:
        """Finds out whether the driver loads the shipped PTX; otherwise nvcc is needed."""
        name = f"kernel on {place}"
        text, why = cuda_source.shipped_ptx()
        if text is not None:
            try:
                driver.module_from_buffer(text)
                self.found[name] = "shipped PTX, compiled by the driver"
                return
            except driver.Error as error:
                why = f"the driver does not load the shipped PTX ({line(error)})"
        kept = cuda_compile.cache_folder()
        where = "not cached: no folder belongs to this user alone" if kept is None else f"cached in {kept}"
        self.found[name] = f"compiled from source by nvcc for {arch} and {where}; {why}"
        if shutil.which("nvcc") is None:
            raise Failed(
                f"{why}, and there is no nvcc to compile the source for {arch}",
                "update the NVIDIA driver, or install the CUDA toolkit and add its bin folder to the PATH",
            )

    def _examine_skcuda(self) -> None:
        lost = "puzzlelib_rmsprop.nets does not work on CUDA (the optimizer does)"
        if importlib.util.find_spec("skcuda") is None:
            raise Failed(f"not installed: {lost}", "pip install 'scikit-cuda==0.5.3'")
        self.found["scikit-cuda"] = found = version("scikit-cuda").replace("not installed", "of unknown version")
        self.found["scikit-cuda"] += ", does not work"
        self._multiply(lost)
        self.found["scikit-cuda"] = found

    def _multiply(self, lost: str) -> None:
        """Multiplies two matrices with the nets' own import of scikit-cuda, which works around its faults."""
        from ..nets import ops

        gpuarray = importlib.import_module("pycuda.gpuarray")
        a, b = (np.arange(6, dtype=np.float32).reshape(shape) for shape in ((2, 3), (3, 2)))
        try:
            product = ops.matmul(gpuarray.to_gpu(a), gpuarray.to_gpu(b)).get()
        except Exception as error:
            raise Failed(f"a matrix product fails ({line(error)}): {lost}", _NO_CUBLAS) from error
        if not np.array_equal(product, a @ b):
            raise Failed(f"cuBLAS gives a wrong matrix product: {lost}", "report this output")


@contextlib.contextmanager
def _primary_context(device: Any) -> Iterator[None]:
    """Makes the device's primary context, which PyTorch, CuPy and Numba share, current inside the block."""
    from pycuda.tools import clear_context_caches

    context = device.retain_primary_context()
    context.push()
    try:
        yield
    finally:
        # PyCUDA caches kernels by context, and the device's next context may get the same address
        clear_context_caches()
        context.pop()
