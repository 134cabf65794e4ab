"""Fixtures: the families of arrays that a net can use, so that one test covers all of them."""

import importlib
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from puzzlelib_rmsprop import Config, Variable, gpuarray
from puzzlelib_rmsprop.kernels import cpu
from tests import cudasim, standins, standins_cuda, standins_dlpack, tensors
from tests.cudasim import control
from tests.kernels.kernel_modules import kernels, threads  # noqa: F401 (fixtures)

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("tests")


@dataclass
class Arrays:
    """A family of arrays: how to create and read an array, and wrap it in a variable."""

    name: str
    make: Any
    variable: Any

    def var(self, content, **kwargs):
        return self.variable(self.make(np.asarray(content)), **kwargs)

    @staticmethod
    def get(array):
        return array.get() if hasattr(array, "get") else np.array(array)

    @staticmethod
    def shape(array):
        return tuple(array.shape)

    @staticmethod
    def dtype(array):
        return np.dtype(array.dtype)

    @staticmethod
    def made(array):
        """Returns the type of the arrays that the library creates for a user's array."""
        return type(array)

    @staticmethod
    def put(array, content):
        host = array.data if isinstance(array, standins.CPUArray) else array
        host[...] = content


class HostArrays(Arrays):
    """Arrays of other libraries in host memory; ``host`` returns a NumPy view."""

    def __init__(self, name, make, host, made=None):
        super().__init__(name, make, Variable)
        self.host, self._made = host, made

    def get(self, array):
        return np.array(array if isinstance(array, np.ndarray) else self.host(array))

    def shape(self, array):
        return self.get(array).shape

    def dtype(self, array):
        return self.get(array).dtype

    def made(self, array):
        return self._made or type(array)

    def put(self, array, content):
        (array if isinstance(array, np.ndarray) else self.host(array))[...] = content


ARRAYS = {
    "own": Arrays("own", gpuarray.to_gpu, Variable),
    "numpy": Arrays("numpy", np.array, Variable),
    "puzzlelib": Arrays("puzzlelib", standins.CPUArray.toDevice, standins.PuzzleVariable),
}
# older versions view what comes through DLPack as read-only, so such arrays are refused
DLPACK = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
if DLPACK:
    ARRAYS["dlpack"] = HostArrays("dlpack", standins_dlpack.Exporter.of, lambda array: array.content, np.ndarray)
# tests of many steps, seconds each, which use nothing of a family that other tests do not: run for a few families only
FEW = ("own", "numpy", "puzzlelib", "pycuda", "puzzlelib-cuda")
ON_FEW = {
    "test_hooks_that_are_replaced_leave_nothing_behind",
    "test_a_guard_that_skips_every_step",
    "test_a_loss_scale_at_its_floor",
    "test_what_is_less_than_the_last_digit_adds_up",
}
tensors.add_to(ARRAYS, HostArrays)


BACKENDS = ["cpu"]
# packages that the PyTorch tests need and that are missing; PyTorch's own test helpers import expecttest
MISSING_FOR_TORCH = [name for name in ("torch", "expecttest") if find_spec(name) is None]
_in_child: list[str] = []


def in_child():
    """Returns code that gives a child process the CUDA of this process, and the default settings."""
    return "; ".join([*_in_child, "from puzzlelib_rmsprop import Config; Config.backend = Config.Backend.auto"])


class CUDAArrays(Arrays):
    """Arrays on a GPU or on the simulator."""

    @staticmethod
    def put(array, content):
        if array.size:
            array.set(np.array(np.broadcast_to(content, array.shape), array.dtype, order="C"))


# ------------------------------------------------------------------------------------------------ CUDA


def pytest_addoption(parser):
    group = parser.getgroup("CUDA")
    group.addoption(
        "--cuda",
        choices=["auto", "off", "sim", "gpu"],
        default="auto",
        help="where CUDA tests run: on a GPU, on the simulator (in CUSIM_DIR), or nowhere; auto: on a GPU if there is one",
    )
    group.addoption("--cuda-only", action="store_true", help="leave out tests that run nothing on CUDA")
    group.addoption("--require-gpu", action="store_true", help="fail if there is no GPU, instead of leaving CUDA out")


def pytest_configure(config):
    # child processes import from here too, whatever their working folder is
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(config.rootpath), os.environ.get("PYTHONPATH")]))
    # if the kernels are not compiled, choose NumPy explicitly, so that no process warns at its first update
    if cpu.library is None and not os.environ.get(cpu.VARIABLE):
        os.environ[cpu.VARIABLE] = "numpy"
    choice = "gpu" if config.getoption("--require-gpu") else config.getoption("--cuda")
    config.cuda, config.simulated = f"left out: --cuda={choice}", choice == "sim"
    if choice == "off":
        return
    if choice == "sim":
        cudasim.activate(os.environ.get("CUSIM_DIR", ""))
        _in_child.append(f"from tests import cudasim; cudasim.activate({os.environ['CUSIM_DIR']!r})")
    try:
        import pycuda.autoprimaryctx
        import pycuda.gpuarray
    except Exception as error:  # PyCUDA is missing, or its driver library, or a device
        if choice != "auto":
            raise pytest.UsageError(f"--cuda={choice}: PyCUDA finds no device: {error}") from error
        config.cuda = f"left out: PyCUDA finds no device here ({error}); tools/test_on_simulator.sh runs it without one"
        return
    config.cuda = f"on {pycuda.autoprimaryctx.device.name()}"
    ARRAYS["pycuda"] = CUDAArrays("pycuda", pycuda.gpuarray.to_gpu, Variable)
    ARRAYS["puzzlelib-cuda"] = CUDAArrays("puzzlelib-cuda", standins.GPUArray.toGpu, standins.PuzzleVariable)
    standins_cuda.add_to(ARRAYS, CUDAArrays, Variable)
    BACKENDS.append("cuda")


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(f"CPU kernels: {os.environ.get(cpu.VARIABLE) or cpu.instruction_sets()[-1]}")
    terminalreporter.write_line(f"CUDA {config.cuda}")
    if not DLPACK:
        terminalreporter.write_line(f"DLPack left out: it needs NumPy 2.1; here is {np.__version__}")
    missing = f"left out: not installed: {', '.join(MISSING_FOR_TORCH)}; pip install -e '.[torch-test]' runs its tests too"
    terminalreporter.write_line(f"PyTorch {missing if MISSING_FOR_TORCH else metadata.version('torch')}")


def pytest_generate_tests(metafunc):
    if "arrays" in metafunc.fixturenames:
        left_out = metafunc.function.__name__ in ON_FEW
        names = [name for name in ARRAYS if name in FEW or not left_out]
        metafunc.parametrize("arrays", names, indirect=True)
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


@pytest.fixture
def arrays(request, monkeypatch):
    found = ARRAYS[request.param]
    for name, module in getattr(found, "modules", {}).items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


# fixtures of tests that use CUDA, in this process or in child processes
CUDA_FIXTURES = {"cuda", "child", "mpirun", "tool"}


def uses_cuda(item):
    """Returns whether a test uses CUDA if it is available: by its folder, its fixtures or a parameter."""
    parameters = item.callspec.id if hasattr(item, "callspec") else ""
    in_folder = Path(__file__).parent / "cuda" in item.path.parents
    return bool(in_folder or CUDA_FIXTURES & {*item.fixturenames} or re.search(r"\b(py)?cuda\b", parameters))


def pytest_collection_modifyitems(config, items):
    def runs(item):
        # tests that need CUDA are deselected like the CUDA variants of other tests; the summary says so
        here = ("cuda" in BACKENDS or "cuda" not in item.fixturenames) and (
            "torch" in ARRAYS or "torch" not in item.fixturenames
        )
        return here and (not config.getoption("--cuda-only") or uses_cuda(item))

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]


@pytest.fixture
def cuda(_settings_as_they_were):
    """Makes ``gpuarray`` create CUDA arrays; returns PyCUDA's family of arrays."""
    Config.backend = Config.Backend.cuda
    return ARRAYS["pycuda"]


@pytest.fixture
def torch():
    """PyTorch; tests that use it are deselected if it is not installed, and the summary says so."""
    return importlib.import_module("torch")


@pytest.fixture
def simulator(request, cuda):
    """The simulator's record of launches, copies and waits since the test began."""
    if not request.config.simulated:
        pytest.skip("needs the simulator's record")
    control.reset()
    return control


@pytest.fixture
def backend(request, _settings_as_they_were):
    """The backend on which ``gpuarray`` creates arrays."""
    Config.backend = Config.Backend[request.param]
    return request.param


@pytest.fixture(params=[False, True], ids=["local", "global"])
def globalState(request):
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _no_files_left_in_the_sources(request):
    before = set(os.listdir(request.config.rootpath))
    yield
    left = {name for name in set(os.listdir(request.config.rootpath)) - before if not name.startswith((".", "__", "build"))}
    assert not left, f"a test has written {left} into {request.config.rootpath}"


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    before = dict(vars(Config))
    yield
    for name, value in before.items():
        setattr(Config, name, value)
