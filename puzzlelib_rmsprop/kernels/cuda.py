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
from typing import Any, NamedTuple

import numpy as np

from ..errors import DependencyError, DeviceError, SetupError
from . import MAX_OPS, PLAIN, Extras, Judge, Op, Row, state_dtype
from .context import default_stream_ended

try:
    import pycuda.driver as driver
    from pycuda.tools import context_dependent_memoize
except ImportError as error:
    raise DependencyError(
        f"arrays on a GPU need PyCUDA and an NVIDIA driver: {error}. pip install 'puzzlelib_rmsprop[cuda]'"
    ) from error

__all__ = ["Row", "Survey", "Table", "applyOps", "nvcc_options", "source"]

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
JUDGES = constant("JUDGES")
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
    ptx, why = _shipped_ptx(file), "none of this source is shipped"
    if ptx is not None:
        try:
            return driver.module_from_buffer(ptx)
        except driver.Error as error:
            why = f"the driver says: {error}"  # an old driver, or what an earlier kernel has left behind
    major, minor = driver.Context.get_device().compute_capability()
    try:
        compiled = _compiled_by_nvcc(file, f"sm_{major}{minor}")
    except DependencyError as error:
        raise DependencyError(f"{error}. The PTX: {why}") from error
    return driver.module_from_buffer(compiled)


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


_ROW = np.dtype(
    [(name, np.uint64) for name in Row._fields[:6]]
    + [(name, np.float64) for name in ("learnRate", "momRate", "wc")]
    + [(name, np.uint64) for name in Row._fields[6:]]
)
_CHUNK = np.dtype([("row", np.uint32), ("index", np.uint32)])
_HYPER = struct.Struct("=4d")  # as struct Hyper
_STEP = struct.Struct("=4dQ2IQ")  # as struct Hyper and struct Extras up to its operations
_OP = struct.Struct("=Q2dQ")  # as struct Op
_OPS_SIZE = 8 + MAX_OPS * _OP.size
_PARTIAL_SIZE = 16
_BLOCK = (THREADS, 1, 1)
_LENIENT = Judge()  # no limit, and the scale stays


def _packed_rows(rows: Sequence[Row]) -> np.ndarray:
    packed = np.zeros(len(rows), _ROW)
    for name in Row._fields:
        packed[name] = [getattr(row, name) for row in rows]
    packed["learnRate"] = packed["momRate"] = 1.0
    return packed


def _chunks(rows: np.ndarray) -> np.ndarray:
    sizes = rows["size"].astype(np.int64)
    counts = -(-sizes // CHUNK)
    chunks = np.zeros(int(counts.sum()), _CHUNK)
    chunks["row"] = np.repeat(np.arange(len(sizes)), counts)
    chunks["index"] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
    return chunks


def _packed_ops(ops: Sequence[Op]) -> bytes:
    if len(ops) > MAX_OPS:
        raise SetupError(f"a gradient takes at most {MAX_OPS} operations in one launch; got {len(ops)}")
    packed = b"".join([_OP.pack(op.kind, op.value, op.other, op.address) for op in ops])
    return (struct.pack("=Q", len(ops)) + packed).ljust(_OPS_SIZE, b"\0")


def _grid(blocks: int) -> tuple[int, int]:
    return (min(blocks, _most_blocks()), 1)


class LiveHyper:
    """The optimizer's hyper-parameters in device memory, where a captured launch reads them at each replay."""

    def __init__(self) -> None:
        self._memory = driver.mem_alloc(_HYPER.size)
        self.address = int(self._memory)

    def write(self, learnRate: float, alpha: float, momRate: float, epsilon: float) -> None:
        """Copies the values there, after what the default stream and those ordered with it were given before."""
        driver.memcpy_htod(self._memory, _HYPER.pack(learnRate, alpha, momRate, epsilon))
        default_stream_ended()  # a replay may come on any stream


class _Launch(NamedTuple):
    """A kernel with its packed arguments, of which those from byte ``at`` on are of the step."""

    function: Any
    grid: tuple[int, int]
    arguments: bytearray
    at: int


class Table:
    """Variables of one dtype, packed once, updated by one launch.

    Made and used in one context. One row whose rates are the optimizer's own is the flat kernel; anything else is the
    kernel for many, whose table lies in device memory; and what comes besides the rule, master copies and bfloat16
    state have a kernel that is that of many and all the rest.

    Args:
        dtype: of param and grad.
        rows: the variables. Their arrays must stay alive and in place, be contiguous and not overlap.
        state: of mg, ms and delta; the dtype of the arithmetic by default. Where it is bfloat16, ms holds the variance.
    """

    def __init__(self, dtype: np.dtype, rows: Sequence[Row], state: np.dtype | None = None) -> None:
        state = state_dtype(dtype) if state is None else state
        self._rows = _packed_rows(rows)
        self._size = int(self._rows["size"].sum())
        self._suffix = f"{dtype.name}_{state.name}"
        self._master = bool(self._rows["master"].any())
        self._extended_only = self._master or state.name == "bfloat16"
        # packed at their first use after a change of the rates, because most tables need one of the two
        self._plain: _Launch | None = None
        self._extended: _Launch | None = None
        self._ops: tuple[Op, ...] = ()
        self._chunks: Any = None
        self._device_rows: Any = None
        self._former: list[Any] = []
        self._live: LiveHyper | None = None
        self._context = driver.Context.get_current()

    def setRates(self, factors: Sequence[tuple[float, float]], decays: Sequence[float] | None = None) -> None:
        """Sets each row's factors on the optimizer's learnRate and momRate, and its ``wc``; all 0 by default."""
        self._rows["learnRate"], self._rows["momRate"] = np.array(factors, np.float64).reshape(len(self._rows), 2).T
        self._rows["wc"] = 0.0 if decays is None else decays
        if self._live is not None:
            self._former.append(self._device_rows)  # a captured launch may be replayed on it
        self._plain = self._extended = self._device_rows = None

    def _tables(self) -> tuple[int, int, int]:
        """Addresses of the rows and the chunks in device memory, and how many chunks there are."""
        if self._chunks is None:
            chunks = _chunks(self._rows)
            self._chunks = driver.to_device(chunks), len(chunks)
        if self._device_rows is None:
            self._device_rows = driver.to_device(self._rows)
            default_stream_ended()  # the launch may come on any stream
        return int(self._device_rows), int(self._chunks[0]), self._chunks[1]

    def _pack_plain(self) -> _Launch:
        live = 0 if self._live is None else self._live.address
        if len(self._rows) == 1 and self._rows[0]["learnRate"] == self._rows[0]["momRate"] == 1.0:
            name, blocks = "flat", -(-self._size // THREADS)
            head = struct.pack("=6Q", *self._rows[0].tolist()[:6])
        else:
            tables = self._tables()
            name, blocks = "many", tables[2]
            head = struct.pack("=3Q", *tables)
        arguments = bytearray(head + bytes(_HYPER.size) + struct.pack("=Q", live))
        self._plain = _Launch(function(f"graves_{name}_{self._suffix}"), _grid(blocks), arguments, len(head))
        return self._plain

    def _pack_extended(self) -> _Launch:
        tables = self._tables()
        head = struct.pack("=4Q", *tables, 0 if self._live is None else self._live.address)
        arguments = bytearray(head + bytes(_STEP.size) + _packed_ops(self._ops))
        name = f"graves_extras_{self._suffix}{'_master' if self._master else ''}"
        self._extended = _Launch(function(name), _grid(tables[2]), arguments, len(head))
        return self._extended

    def follow(self, live: LiveHyper) -> None:
        """Makes launches read the hyper-parameters from device memory. To be called before the first :meth:`update`.

        What a captured launch repeats of its extras are the values that it was captured with.
        """
        self._live = live

    def update(
        self,
        learnRate: float,
        alpha: float,
        momRate: float,
        epsilon: float,
        stream: Any = None,
        extras: Extras = PLAIN,
    ) -> None:
        """Launches the rule over every row, on ``stream``; does not wait for it."""
        if not self._size:
            return
        if driver.Context.get_current() != self._context:
            raise DeviceError("the CUDA context that is current is not the one the arrays lie in; push that one first")
        if not self._extended_only and (extras is PLAIN or extras == PLAIN):
            launch = self._plain or self._pack_plain()
            _HYPER.pack_into(launch.arguments, launch.at, learnRate, alpha, momRate, epsilon)
        else:
            launch = self._extended or self._pack_extended()
            ops, zero, skip, (first, second) = extras
            if ops != self._ops:
                launch.arguments[launch.at + _STEP.size :] = _packed_ops(ops)
                self._ops = ops
            _STEP.pack_into(launch.arguments, launch.at, learnRate, alpha, momRate, epsilon, skip, first, second, zero)
        launch.function._launch_kernel(launch.grid, _BLOCK, launch.arguments, 0, stream)


class Survey:
    """What the gradients of many variables are like together: sum of squares, norm, whether all are finite.

    Made and used in one context. A launch a dtype, and one that adds their sums and writes the record.

    Args:
        parts: rows by dtype; of a row, param, grad, size and master are used.
        record: address of a ``RECORD`` in device memory.
    """

    def __init__(self, parts: Sequence[tuple[np.dtype, Sequence[Row]]], record: int) -> None:
        self._parts: list[tuple[Any, np.ndarray, Any, int, int]] = []
        self._context = driver.Context.get_current()
        self._ops: tuple[Op, ...] = ()
        total = 0
        for dtype, rows in parts:
            packed = _packed_rows(rows)
            chunks = _chunks(packed)
            on_device = driver.to_device(chunks) if len(chunks) else None
            self._parts.append((function(f"survey_{dtype.name}"), packed, on_device, len(chunks), total))
            total += len(chunks)
        self._partials = driver.mem_alloc(max(total, 1) * _PARTIAL_SIZE)
        self._judge = function("survey_judge")
        self._head = struct.pack("=3Q", int(self._partials), total, record)
        self.setRates([[0.0] * len(rows) for _, rows in parts])

    def setRates(self, decays: Sequence[Sequence[float]]) -> None:
        """Sets each row's ``wc``; a list a part."""
        held, self._launches = [], []
        for (kernel, rows, chunks, count, begin), wc in zip(self._parts, decays, strict=True):
            rows["wc"] = wc
            if count:
                on_device = driver.to_device(rows)
                held.append(on_device)
                addresses = int(on_device), int(chunks), count, int(self._partials) + begin * _PARTIAL_SIZE
                head = struct.pack("=4Q", *addresses)
                self._launches.append(_Launch(kernel, _grid(count), bytearray(head + _packed_ops(self._ops)), len(head)))
        self._held = held
        default_stream_ended()

    def run(self, ops: tuple[Op, ...] = (), judge: Judge = _LENIENT, stream: Any = None) -> None:
        """Queues it on ``stream``; does not wait for it, and allocates nothing."""
        if driver.Context.get_current() != self._context:
            raise DeviceError("the CUDA context that is current is not the one the arrays lie in; push that one first")
        if ops != self._ops:
            packed = _packed_ops(ops)
            for launch in self._launches:
                launch.arguments[launch.at :] = packed
            self._ops = ops
        for launch in self._launches:
            launch.function._launch_kernel(launch.grid, _BLOCK, launch.arguments, 0, stream)
        how = (judge.limit, judge.growth, judge.backoff, judge.least, judge.most, judge.interval)
        self._judge._launch_kernel((1, 1), (JUDGES, 1, 1), self._head + struct.pack("=5dQ", *how), 0, stream)


def applyOps(y: int, x: int, size: int, wc: float, ops: Sequence[Op], dtype: np.dtype, stream: Any = None) -> None:
    """``ops`` on the gradient at ``y``, in place, ``x`` being its parameter's address; rounded once, at the end."""
    if size:
        arguments = struct.pack("=3Qd", y, x, size, wc) + _packed_ops(ops)
        function(f"apply_ops_{dtype.name}")._launch_kernel(_grid(-(-size // THREADS)), _BLOCK, arguments, 0, stream)
