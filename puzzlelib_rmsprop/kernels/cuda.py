"""The update rule on a GPU: loads ``rmsprop_graves.cu`` through PyCUDA and launches it; and the kernels of ``nets``.

No toolkit is needed at run time: the package ships the kernels as PTX (a ``.ptx`` beside each ``.cu``, made by
``tools/make_ptx.py``), which the driver compiles for its GPU and caches. Where the driver does not take it (a GPU older
than Turing, the simulator of the tests), ``nvcc`` compiles the source, and the result is kept on disk.

Everything works in the context that is current, on the stream given; nothing waits for the device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DependencyError, DeviceError
from . import Row, state_dtype

try:
    import pycuda.driver as driver
    from pycuda.tools import context_dependent_memoize
except ImportError as error:
    raise DependencyError(
        f"arrays on a GPU need PyCUDA and an NVIDIA driver: {error}. pip install 'puzzlelib_rmsprop[cuda]'"
    ) from error

__all__ = ["Row", "Table", "addScaled", "nvcc_options", "source"]

_FOLDER = resources.files(__package__)


def source(file: str = "rmsprop_graves") -> str:
    """The text of one file of kernels."""
    return (_FOLDER / f"{file}.cu").read_text()


def nvcc_options(arch: str) -> list[str]:
    """How the kernels are compiled: every operation rounded once, divisions and roots as IEEE says."""
    return [f"-arch={arch}", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"]


def constant(name: str, file: str = "rmsprop_graves") -> int:
    """A number that the kernels and their launches share; read from the source, so that it stands in one place."""
    found = re.search(rf"constexpr int {name} = (\d+);", source(file))
    if found is None:
        raise DeviceError(f"{file}.cu has no constant {name}")
    return int(found[1])


THREADS = constant("THREADS")
CHUNK = constant("CHUNK")


# ------------------------------------------------------------------------------------------- compiling


def source_hash(file: str = "rmsprop_graves") -> str:
    """Names the source that a compiled file was made from."""
    return hashlib.sha256(source(file).encode()).hexdigest()


def _shipped_ptx(file: str) -> bytes | None:
    shipped = _FOLDER / f"{file}.ptx"
    if not shipped.is_file():
        return None
    text = shipped.read_text()
    if source_hash(file) not in text.partition("\n")[0]:
        return None  # of another version of the source
    return text.encode() + b"\0"


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("PUZZLELIB_RMSPROP_CACHE_DIR") or os.path.join(root, "puzzlelib_rmsprop"))


def _compiled_by_nvcc(file: str, arch: str) -> bytes:
    """A cubin of one file for one architecture, from the cache or from nvcc."""
    try:
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DependencyError(
            f"this GPU ({arch}) needs {file}.cu compiled from its source, and nvcc does not run here ({error}): install "
            f"the CUDA toolkit and put its bin folder on the PATH"
        ) from error
    options = nvcc_options(arch)
    key = hashlib.sha256("\0".join([source_hash(file), version, *options]).encode()).hexdigest()
    kept = _cache_folder() / f"{file}-{arch}-{key[:32]}.cubin"
    with contextlib.suppress(OSError):
        content = kept.read_bytes()
        # a hash in front of the content shows a file that was cut off
        if content[:32] == hashlib.sha256(content[32:]).digest():
            return content[32:]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{file}.cu").write_text(source(file))
        command = ["nvcc", "-cubin", *options, "-o", f"{file}.cubin", f"{file}.cu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise DeviceError(f"nvcc could not compile {file}.cu for {arch}:\n{done.stdout}{done.stderr}")
        content = Path(folder, f"{file}.cubin").read_bytes()
    # written beside and renamed, so that no other process sees half of it; a folder that cannot be written costs only time
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as temporary:
            temporary.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary.name, kept)
    return content


@context_dependent_memoize
def _module(file: str) -> Any:
    """One file's kernels, loaded into the current context."""
    ptx = _shipped_ptx(file)
    if ptx is not None:
        with contextlib.suppress(driver.Error):
            return driver.module_from_buffer(ptx)
    major, minor = driver.Context.get_device().compute_capability()
    return driver.module_from_buffer(_compiled_by_nvcc(file, f"sm_{major}{minor}"))


@context_dependent_memoize
def function(name: str, file: str = "rmsprop_graves") -> Any:
    """A kernel of one file by name, in the current context."""
    return _module(file).get_function(name)


@context_dependent_memoize
def _most_blocks() -> int:
    # enough for every multiprocessor to be full, whatever the kernel's registers allow; the rest is the grid's stride
    device = driver.Context.get_device()
    per_multiprocessor = device.get_attribute(driver.device_attribute.MAX_THREADS_PER_MULTIPROCESSOR) // THREADS
    return device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT) * per_multiprocessor * 4


# ------------------------------------------------------------------------------------------- launching


_ROW = np.dtype([(name, np.uint64) for name in Row._fields[:6]] + [("learnRate", np.float64), ("momRate", np.float64)])
_CHUNK = np.dtype([("row", np.uint32), ("index", np.uint32)])
_HYPER = struct.Struct("=4d")  # as struct Hyper


class LiveHyper:
    """The optimizer's hyper-parameters in device memory, where a captured launch reads them at each replay."""

    def __init__(self) -> None:
        self._memory = driver.mem_alloc(_HYPER.size)
        self.address = int(self._memory)

    def write(self, learnRate: float, alpha: float, momRate: float, epsilon: float) -> None:
        """Copies the values there, after what the default stream and those ordered with it were given before."""
        driver.memcpy_htod(self._memory, _HYPER.pack(learnRate, alpha, momRate, epsilon))


class Table:
    """Variables of one dtype, packed once, updated by one launch.

    Made and used in one context. One row whose rates are the optimizer's own is the flat kernel; anything else is the
    kernel for many, whose table lies in device memory.

    Args:
        dtype: of param and grad.
        rows: the variables. Their arrays must stay alive and in place, be contiguous and not overlap.
        state: of mg, ms and delta; the dtype of the arithmetic by default.
    """

    def __init__(self, dtype: np.dtype, rows: Sequence[Row], state: np.dtype | None = None) -> None:
        self._rows = np.zeros(len(rows), _ROW)
        for name in Row._fields[:6]:
            self._rows[name] = [getattr(row, name) for row in rows]
        self._suffix = f"{dtype.name}_{(state or state_dtype(dtype)).name}"
        self._arguments = bytearray()
        self._hyper_at = 0
        self._function: Any = None
        self._grid = (0, 1)
        self._held: list[Any] = []  # device memory that the arguments point to
        self._live: LiveHyper | None = None
        self._context = driver.Context.get_current()

    def setRates(self, rates: Sequence[tuple[float, float]]) -> None:
        """Sets each row's factors on the optimizer's learnRate and momRate, and packs the launch for them."""
        sizes = self._rows["size"].astype(np.int64)
        if int(sizes.sum()) == 0:
            self._function = None
        elif len(self._rows) == 1 and tuple(rates[0]) == (1.0, 1.0):
            self._pack_flat(int(sizes[0]))
        else:
            self._pack_many(rates, sizes)

    def _pack_flat(self, size: int) -> None:
        self._function = function(f"graves_flat_{self._suffix}")
        head = struct.pack("=6Q", *(int(value) for value in self._rows[0].tolist()[:6]))
        self._finish(head, -(-size // THREADS))

    def _pack_many(self, rates: Sequence[tuple[float, float]], sizes: np.ndarray) -> None:
        self._function = function(f"graves_many_{self._suffix}")
        self._rows["learnRate"], self._rows["momRate"] = zip(*rates, strict=True)
        counts = -(-sizes // CHUNK)
        chunks = np.zeros(int(counts.sum()), _CHUNK)
        chunks["row"] = np.repeat(np.arange(len(sizes)), counts)
        chunks["index"] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
        tables = [driver.to_device(self._rows), driver.to_device(chunks)]
        # a captured launch may be replayed on the old tables: then they live as long as this does
        self._held = tables + (self._held if self._live is not None else [])
        head = struct.pack("=3Q", int(self._held[0]), int(self._held[1]), len(chunks))
        self._finish(head, len(chunks))

    def _finish(self, head: bytes, blocks: int) -> None:
        live = 0 if self._live is None else self._live.address
        self._arguments = bytearray(head + bytes(_HYPER.size) + struct.pack("=Q", live))
        self._hyper_at = len(head)
        self._grid = (min(blocks, _most_blocks()), 1)

    def follow(self, live: LiveHyper) -> None:
        """Makes launches read the hyper-parameters from device memory. To be called before the first :meth:`setRates`."""
        self._live = live

    def update(self, learnRate: float, alpha: float, momRate: float, epsilon: float, stream: Any = None) -> None:
        """Launches the rule over every row, on ``stream``; does not wait for it."""
        if self._function is None:
            return
        if driver.Context.get_current() != self._context:
            raise DeviceError("the CUDA context that is current is not the one the arrays lie in; push that one first")
        _HYPER.pack_into(self._arguments, self._hyper_at, learnRate, alpha, momRate, epsilon)
        self._function._launch_kernel(self._grid, (THREADS, 1, 1), self._arguments, 0, stream)


def addScaled(y: int, x: int, size: int, factor: float, dtype: np.dtype, stream: Any = None) -> None:
    """``y += factor * x`` over ``size`` elements at two addresses that do not overlap; 16-bit ones are rounded once."""
    if size:
        arguments = struct.pack("=3Qd", y, x, size, factor)
        grid = (min(-(-size // THREADS), _most_blocks()), 1)
        function(f"add_scaled_{dtype.name}")._launch_kernel(grid, (THREADS, 1, 1), arguments, 0, stream)
