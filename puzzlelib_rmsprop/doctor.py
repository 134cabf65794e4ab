"""What works on this machine, and what to do about what does not: ``python -m puzzlelib_rmsprop doctor``.

It reports what it finds (packages, driver, devices), then trains: a few steps of each dtype on the CPU and on every GPU,
compared with the formula in float64, and the update's bytes a second beside those of a plain copy. Whatever fails
becomes a line with its remedy. The exit status is 0 when training can run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata, resources
from typing import Any

import numpy as np

from .config import Config

__all__ = ["Doctor", "add_command"]

SIZE, STEPS = 1031, 3  # an odd number of elements: whole vectors and a rest
HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}

# How far a buffer may be from the formula in float64, in parts of its largest magnitude: some tens of roundings of the
# arithmetic (float32: 6e-8, float64: 1.1e-16), and for 16-bit parameters two roundings to 11 or 8 bits.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
STATE_TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}

SPEED_SECONDS = 0.25  # of one side of the comparison, about
LARGEST = {"CPU": 1 << 23, "GPU": 1 << 26}  # elements; past every cache, and soon done
READ_AND_WRITTEN = {"update": 36, "copy": 8}  # bytes an element: five float32 read and four written; one and one


class Failed(Exception):
    """Something does not work, and the user can do something about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class Doctor:
    """One examination of this machine: :meth:`examine` fills what the other attributes hold.

    Args:
        require_gpu: a GPU that cannot train is a problem, not a note.

    Attributes:
        found: name -> what was found, in the order of looking.
        checks: one dict for each dtype and place trained on: where, dtype, ok, error, seconds.
        speed: place -> bytes a second of update and copy, and their ratio.
        problems, notes: dicts of what is wrong and its remedy. A problem is in the way of training where it stands; a
            note says what is left out.
        runs_on: the places on which training ran and was right.

    Example:
        >>> from puzzlelib_rmsprop.doctor import Doctor
        >>> doctor = Doctor()
        >>> doctor.examine_packages()
        >>> doctor.found["NumPy"][0].isdigit()
        True
    """

    def __init__(self, require_gpu: bool = False) -> None:
        self.require_gpu = require_gpu
        self.found: dict[str, str] = {}
        self.checks: list[dict[str, Any]] = []
        self.speed: dict[str, dict[str, float]] = {}
        self.problems: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self.runs_on: list[str] = []

    @property
    def healthy(self) -> bool:
        """Whether training can run where it has to."""
        return any(place != "CPU" for place in self.runs_on) if self.require_gpu else bool(self.runs_on)

    def examine(self) -> None:
        """Looks at everything; raises nothing that is an ``Exception``."""
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            self.examine_packages()
            self._guard("CPU", self.problems, self._examine_cpu)
            self._guard("CUDA kernel", self.notes, self._examine_source)
            self._guard("CUDA", self.problems if self.require_gpu else self.notes, self._examine_cuda)
            self.found.setdefault("scikit-cuda", _version("scikit-cuda"))

    def _guard(self, what: str, where: list[dict[str, str]], call: Callable[..., Any], *arguments: Any) -> bool:
        """Calls; what it raises becomes an entry of ``where``. Whether it went well."""
        try:
            call(*arguments)
        except Exception as error:  # whatever it is, the user gets a line
            _tell(where, f"{what}: {_line(error)}", _remedy(error))
            return False
        return True

    # ------------------------------------------------------------------------------------------ packages

    def examine_packages(self) -> None:
        """Python, the platform and the packages needed on every machine."""
        found = self.found
        found["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
        found["platform"] = platform.platform()
        found["puzzlelib_rmsprop"] = f"{_version('puzzlelib_rmsprop')}, in {os.path.dirname(os.path.abspath(__file__))}"
        found["NumPy"] = np.__version__
        found["threads"] = f"{Config.numThreads} (Config.numThreads)"
        self._guard("h5py", self.notes, self._examine_h5py)

    def _examine_h5py(self) -> None:
        try:
            h5py = importlib.import_module("h5py")
        except Exception as error:
            self.found["h5py"] = "cannot be imported"
            raise Failed(
                f"cannot be imported, so nothing can be saved or loaded ({_line(error)})", "pip install 'h5py>=3.8'"
            ) from error
        self.found["h5py"] = h5py.__version__

    # ----------------------------------------------------------------------------------------------- CPU

    def _examine_cpu(self) -> None:
        try:
            numba = importlib.import_module("numba")
        except Exception as error:
            self.found["Numba"] = "cannot be imported"
            fix = "pip install --upgrade 'numba>=0.59' (each release of Numba takes NumPy up to a certain version)"
            raise Failed(f"nothing is updated, because Numba cannot be imported ({_line(error)})", fix) from error
        self.found["Numba"] = numba.__version__
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            raise Failed("nothing is updated, because NUMBA_DISABLE_JIT is set", "unset NUMBA_DISABLE_JIT")
        if self._train("CPU", ("float16", "float32", "float64"), np.array, np.asarray, lambda: None):
            self._guard("Numba's cache", self.notes, self._examine_numba_cache)
            self._guard("speed on the CPU", self.notes, self._measure, "CPU", _cpu_case, LARGEST["CPU"])

    def _examine_numba_cache(self) -> None:
        from .kernels import cpu

        folder = getattr(getattr(cpu._graves_kernel, "stats", None), "cache_path", None)
        self.found["Numba's cache"] = str(folder) if folder else "none"
        if not folder or not os.access(folder, os.W_OK):
            where = f"{folder} cannot" if folder else "no folder that it tries can"
            raise Failed(
                f"{where} be written to, so every process compiles the CPU kernel anew",
                "set NUMBA_CACHE_DIR to a folder that you may write to",
            )

    # ---------------------------------------------------------------------------------------------- CUDA

    def _examine_source(self) -> None:
        shipped = _shipped_ptx() is not None
        self.found["CUDA kernel"] = "shipped as PTX" if shipped else "shipped as source only, for nvcc to compile"

    def _examine_cuda(self) -> None:
        self._examine_nvcc()
        driver = self._import_pycuda()
        try:
            driver.init()
            count = driver.Device.count()
        except Exception as error:
            raise Failed(f"the driver does not start: {_line(error)}", _remedy(error) or _NO_DEVICE) from error
        version = driver.get_driver_version()
        self.found["driver"] = f"for CUDA {version // 1000}.{version % 1000 // 10}"
        if not count:
            raise Failed("the driver sees no device", _NO_DEVICE)
        for index in range(count):
            self._guard(f"GPU {index}", self.problems, self._examine_device, driver, index)

    def _examine_nvcc(self) -> None:
        path = shutil.which("nvcc")
        self.found["nvcc"] = "not on the PATH"
        if path:
            try:
                done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
                lines = [line for line in done.stdout.splitlines() if "release" in line] or ["its version is unknown"]
                self.found["nvcc"] = f"{lines[0].strip()}, {path}"
            except (OSError, subprocess.SubprocessError) as error:
                self.found["nvcc"] = f"does not run ({_line(error)}), {path}"

    def _import_pycuda(self) -> Any:
        self.found["PyCUDA"] = "not installed"
        if importlib.util.find_spec("pycuda") is None:
            raise Failed(
                "PyCUDA is not installed: nets and arrays stay on the CPU",
                "to use a GPU: pip install 'puzzlelib_rmsprop[cuda]' (needs the CUDA toolkit to build)",
            )
        self.found["PyCUDA"] = _version("pycuda").replace("not installed", "of unknown version")
        try:
            driver = importlib.import_module("pycuda.driver")
            importlib.import_module("pycuda.gpuarray")
        except Exception as error:
            self.found["PyCUDA"] += ", cannot be imported"
            text = str(error)
            # a PyCUDA that was linked without libcuda misses the driver's functions in its place
            if "libcuda.so" in text or "nvcuda" in text or "undefined symbol: cu" in text:
                raise Failed(
                    f"PyCUDA finds no NVIDIA driver, or too old a one ({_line(error)}): nets and arrays stay on the CPU",
                    "install the NVIDIA driver; in a container, start it with the GPU (docker run --gpus all)",
                ) from error
            raise Failed(
                f"PyCUDA cannot be imported ({_line(error)}): nets and arrays stay on the CPU",
                "build it anew against what is installed: pip install --force-reinstall --no-cache-dir pycuda",
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
            dtypes = ["float16", "float32", "float64"]
            with contextlib.suppress(ImportError):  # NumPy has no bfloat16 of its own
                importlib.import_module("ml_dtypes")
                dtypes.insert(0, "bfloat16")
            if self._train(place, tuple(dtypes), gpuarray.to_gpu, lambda array: array.get(), synchronize):
                self._guard(f"speed on {place}", self.notes, self._measure, place, _gpu_case, _room(driver))
            if "scikit-cuda" not in self.found:
                self.found["scikit-cuda"] = "missing"
                self._guard("scikit-cuda", self.notes, self._examine_skcuda)

    def _examine_kernel(self, driver: Any, place: str, arch: str) -> None:
        """What the kernel is made from on this device."""
        name = f"kernel on {place}"
        text = _shipped_ptx()
        if text is None:
            why = "the package ships no PTX of this version of the source"
        else:
            try:
                driver.module_from_buffer(text)
                self.found[name] = "the PTX that the package ships, compiled by the driver"
                return
            except driver.Error as error:
                why = f"the driver does not take the shipped PTX ({_line(error)})"
        self.found[name] = f"its source, compiled by nvcc for {arch}: {why}"
        if shutil.which("nvcc") is None:
            raise Failed(
                f"{why}, and there is no nvcc to compile the source for {arch}",
                "update the NVIDIA driver, or install the CUDA toolkit and put its bin folder on the PATH",
            )

    def _examine_skcuda(self) -> None:
        lost = "nets on CUDA are left out (the optimizer works)"
        if importlib.util.find_spec("skcuda") is None:
            raise Failed(f"not installed: {lost}", "pip install scikit-cuda==0.5.3 'setuptools<81'")
        self.found["scikit-cuda"] = version = _version("scikit-cuda").replace("not installed", "of unknown version")
        self.found["scikit-cuda"] += ", does not work"
        if importlib.util.find_spec("puzzlelib_rmsprop.nets.cublas") is not None:
            self._multiply(lost)
        elif importlib.util.find_spec("pkg_resources") is None:
            raise Failed(
                f"it imports pkg_resources, which setuptools has dropped (here: {_version('setuptools')}): {lost}",
                "pip install 'setuptools<81'",
            )
        else:
            self._import_cublas(lost)
        self.found["scikit-cuda"] = version

    def _import_cublas(self, lost: str) -> None:
        try:
            importlib.import_module("skcuda.cublas")
        except Exception as error:
            raise Failed(f"its cuBLAS cannot be imported ({_line(error)}): {lost}", _NO_CUBLAS) from error

    def _multiply(self, lost: str) -> None:
        """A product through the nets' own use of cuBLAS, which brings what scikit-cuda lacks."""
        from .nets import ops

        gpuarray = importlib.import_module("pycuda.gpuarray")
        a, b = (np.arange(6, dtype=np.float32).reshape(shape) for shape in ((2, 3), (3, 2)))
        try:
            product = ops.matmul(gpuarray.to_gpu(a), gpuarray.to_gpu(b)).get()
        except Exception as error:
            raise Failed(f"no matrix product ({_line(error)}): {lost}", _NO_CUBLAS) from error
        if not np.array_equal(product, a @ b):
            raise Failed(f"cuBLAS multiplies wrongly: {lost}", "report this output as an issue")

    # ------------------------------------------------------------------------------------------- working

    def _train(self, place: str, dtypes: tuple[str, ...], make: Any, read: Any, synchronize: Callable[[], Any]) -> bool:
        """A few steps of every dtype beside the formula; whether all were right."""
        right = True
        for dtype in dtypes:
            check: dict[str, Any] = {"where": place, "dtype": dtype, "ok": False, "error": None, "seconds": None}
            self.checks.append(check)
            start = time.perf_counter()
            good = self._guard(f"{place}: {dtype}", self.problems, self._train_one, check, make, read, synchronize)
            check["ok"], check["seconds"] = good, time.perf_counter() - start
            right = right and good
        if right:
            self.runs_on.append(place)
        return right

    def _train_one(self, check: dict[str, Any], make: Any, read: Any, synchronize: Callable[[], Any]) -> None:
        dtype = np.dtype(check["dtype"])
        rng = np.random.default_rng(0)
        param = rng.standard_normal(SIZE).astype(dtype)
        grads = rng.standard_normal((STEPS, SIZE)).astype(dtype)
        optimizer, var = _training(make(param), make(grads[0]))
        for grad in grads:
            var.grad = make(grad)
            optimizer.update()
        synchronize()
        state = optimizer.states["x"]
        actual = {"param": read(var.data), **{name: read(state[name]) for name in ("mg", "ms", "delta")}}
        expected = _formula(param, grads)
        worst, where = 0.0, ""
        for name, right in expected.items():
            tolerance = (TOLERANCE if name == "param" else STATE_TOLERANCE)[dtype.name]
            off = np.max(np.abs(np.asarray(actual[name], np.float64) - right)) / np.max(np.abs(right))
            # NaN is no number below the tolerance
            if not off / tolerance <= worst:
                worst, where = float(off / tolerance), f"{name} is {off:.1e} of its largest value off, {tolerance:g} allowed"
        check["error"] = worst if np.isfinite(worst) else None
        if not worst <= 1:
            raise Failed(
                f"the update is wrong after {STEPS} steps: {where}",
                "do not train on it; report this output, with what the machine is, as an issue",
            )

    def _measure(self, place: str, case: Callable[[int], Any], largest: int) -> None:
        """Bytes a second of the update and of a copy, over as many elements as take a fraction of a second."""
        size, timed = 1 << 14, None
        while timed is None or (size * 8 <= largest and max(timed.values()) * 8 * 2 * 7 < 2 * SPEED_SECONDS):
            if timed is not None:
                size *= 8
            times = case(size)
            next(times)  # warms up
            timed = next(times)
        rounds = [timed]
        start = time.perf_counter()
        while len(rounds) < 9 and (len(rounds) < 3 or time.perf_counter() - start < 2 * SPEED_SECONDS):
            rounds.append(next(times))
        rates = {
            name: moved * size / statistics.median(each[name] for each in rounds) for name, moved in READ_AND_WRITTEN.items()
        }
        self.speed[place] = {
            "elements": size,
            "rounds": len(rounds),
            "update": rates["update"],
            "copy": rates["copy"],
            "ratio": rates["update"] / rates["copy"],
        }

    # ----------------------------------------------------------------------------------------- reporting

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "training_runs": self.healthy,
            "runs_on": self.runs_on,
            "found": self.found,
            "checks": self.checks,
            "speed": self.speed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def text(self) -> str:
        """Everything, for people."""
        width = max(map(len, self.found))
        lines = [f"{name:{width}}  {value}" for name, value in self.found.items()]
        lines += ["", f"{STEPS} steps of {SIZE} elements beside the formula in float64:"]
        for check in self.checks:
            error = f"error {check['error']:.2f} of the tolerance" if check["error"] is not None else "no result"
            verdict = "right" if check["ok"] else "WRONG" if check["error"] is not None else "FAILED"
            bounds = f"{TOLERANCE[check['dtype']]:g} of the parameters, {STATE_TOLERANCE[check['dtype']]:g} of the state"
            lines.append(f"  {check['where']:6} {check['dtype']:8}  {verdict}: {error} ({bounds}), {check['seconds']:.2f} s")
        for place, rates in self.speed.items():
            lines.append(
                f"  {place:6} update {rates['update'] / 1e9:,.2f} GB/s, copy {rates['copy'] / 1e9:,.2f} GB/s: "
                f"{rates['ratio']:.2f} of the copy's rate, over {rates['elements']:,} float32 elements"
            )
        for title, entries in (("Problems", self.problems), ("Notes", self.notes)):
            if entries:
                lines += ["", f"{title}:"]
                for entry in entries:
                    lines.append(f"  - {entry['what']}" + (f"\n    remedy: {entry['remedy']}" if entry["remedy"] else ""))
        if self.healthy:
            last = f"Training runs on: {', '.join(self.runs_on)}."
        elif self.runs_on:
            last = f"Training runs on: {', '.join(self.runs_on)}; it does not run on a GPU, which was required."
        else:
            last = "Training does not run here."
        return "\n".join([*lines, "", last])


# ------------------------------------------------------------------------------------------------ the work


class _Net:
    """One variable, under the name ``x``."""

    def __init__(self, var: Any) -> None:
        self.var = var

    def getVarTable(self) -> dict[Any, list[str]]:
        return {self.var: ["x"]}

    def getVar(self, name: str) -> Any:
        return self.var

    def setVar(self, name: str, var: Any) -> None:
        self.var = var


def _training(data: Any, grad: Any) -> tuple[Any, Any]:
    from .rmsprop_graves import RMSPropGraves
    from .variable import Variable

    hyper: dict[str, Any] = dict(HYPER)
    optimizer, var = RMSPropGraves(**hyper), Variable(data, "x", grad=grad)
    optimizer.setupOn(_Net(var))
    return optimizer, var


def _formula(param: np.ndarray, grads: np.ndarray) -> dict[str, np.ndarray]:
    """What the buffers hold after a step for each gradient, in float64, from the formula alone."""
    learnRate, alpha, momRate, epsilon = HYPER["learnRate"], HYPER["alpha"], HYPER["momRate"], HYPER["epsilon"]
    dtype, p = param.dtype, param.astype(np.float64)
    mg = ms = delta = np.zeros_like(p)
    for grad in grads.astype(np.float64):
        mg = alpha * mg + (1 - alpha) * grad
        ms = alpha * ms + (1 - alpha) * grad * grad
        delta = momRate * delta + learnRate * grad / np.sqrt(np.maximum(ms - mg * mg, 0) + epsilon)
        p = p + delta
        if dtype.itemsize == 2:
            p = p.astype(dtype).astype(np.float64)
    return {"param": p, "mg": mg, "ms": ms, "delta": delta}


def _cpu_case(size: int) -> Iterator[dict[str, float]]:
    """Seconds of an update and of a copy, a round each time; the first one warms up."""
    grad = np.random.default_rng(0).standard_normal(size, np.float32)
    optimizer, _ = _training(np.zeros_like(grad), grad)
    target = np.empty_like(grad)
    while True:
        start = time.perf_counter()
        optimizer.update()
        middle = time.perf_counter()
        np.copyto(target, grad)
        yield {"update": middle - start, "copy": time.perf_counter() - middle}


def _gpu_case(size: int) -> Iterator[dict[str, float]]:
    from pycuda import driver, gpuarray

    # drawn once and repeated: a generator on the host would take longer than everything else
    part = np.random.default_rng(0).standard_normal(min(size, 1 << 20), np.float32)
    grad = gpuarray.empty(size, np.float32)
    for start in range(0, size, part.size):
        driver.memcpy_htod(int(grad.gpudata) + 4 * start, part[: size - start])
    optimizer, _ = _training(gpuarray.to_gpu(np.zeros(size, np.float32)), grad)
    target = gpuarray.empty(size, np.float32)
    marks = [driver.Event() for _ in range(3)]
    while True:
        marks[0].record()
        optimizer.update()
        marks[1].record()
        driver.memcpy_dtod_async(target.gpudata, grad.gpudata, grad.nbytes, None)
        marks[2].record()
        marks[2].synchronize()
        # a clock that has not moved is no division by zero
        update, copy = (marks[i].time_till(marks[i + 1]) / 1e3 for i in range(2))
        yield {"update": max(update, 1e-7), "copy": max(copy, 1e-7)}


def _room(driver: Any) -> int:
    """Elements for which six float32 buffers take at most a third of the free memory."""
    free, _ = driver.mem_get_info()
    return min(LARGEST["GPU"], free // (3 * 6 * 4))


@contextlib.contextmanager
def _primary_context(device: Any) -> Iterator[None]:
    """The context that PyTorch, CuPy and Numba share, current inside the block and left as it was."""
    from pycuda.tools import clear_context_caches

    context = device.retain_primary_context()
    context.push()
    try:
        yield
    finally:
        # kernels are kept by context, and the device's next context may get the same address
        clear_context_caches()
        context.pop()


def _shipped_ptx() -> bytes | None:
    folder = resources.files("puzzlelib_rmsprop.kernels")
    file = folder / "rmsprop_graves.ptx"
    if not file.is_file():
        return None
    text = file.read_bytes()
    digest = hashlib.sha256((folder / "rmsprop_graves.cu").read_bytes()).hexdigest()
    return text + b"\0" if digest.encode() in text.partition(b"\n")[0] else None


# ------------------------------------------------------------------------------------------------- wording

_NO_DEVICE = (
    "see what nvidia-smi says; update the driver where it is older than the toolkit that PyCUDA was built with; "
    "CUDA_VISIBLE_DEVICES must not hide the device"
)

_NO_CUBLAS = "install the CUDA toolkit's cuBLAS and put its folder on LD_LIBRARY_PATH"

# what an error's text holds -> what to do
_REMEDIES = {
    "out of memory": "free the device's memory: nvidia-smi shows which processes hold it",
    "no CUDA-capable device": _NO_DEVICE,
    "driver version is insufficient": "update the NVIDIA driver",
    "nvcc": "install the CUDA toolkit and put its bin folder on the PATH",
    "No space left": "free space on the disk, or set NUMBA_CACHE_DIR and PUZZLELIB_RMSPROP_CACHE_DIR to another one",
    "Permission denied": "set NUMBA_CACHE_DIR and PUZZLELIB_RMSPROP_CACHE_DIR to folders that you may write to",
}


def _remedy(error: Exception) -> str:
    if isinstance(error, Failed):
        return error.remedy
    return next((remedy for part, remedy in _REMEDIES.items() if part in str(error)), "")


def _line(error: Exception) -> str:
    """An exception in one line: its message, with its type where that says more."""
    text = " ".join(str(error).split())
    if isinstance(error, Failed):
        return text
    text = text if len(text) <= 400 else f"{text[:400]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tell(where: list[dict[str, str]], what: str, remedy: str) -> None:
    where.append({"what": what, "remedy": remedy})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What packages print while they are imported is not part of the report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# ------------------------------------------------------------------------------------------------- command


def add_command(commands: Any) -> None:
    """Adds ``doctor`` to the package's commands."""
    parser = commands.add_parser(
        "doctor",
        help="says what works on this machine and what to do about what does not",
        description="Says what works on this machine. Exit status 0: training can run; 1: it cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--require-gpu", action="store_true", help="training must run on a GPU; the CPU does not suffice")
    parser.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    doctor = Doctor(given.require_gpu)
    doctor.examine()
    print(json.dumps(doctor.as_dict(), indent=1) if given.json else doctor.text(), flush=True)
    return 0 if doctor.healthy else 1


if __name__ == "__main__":
    from .__main__ import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
