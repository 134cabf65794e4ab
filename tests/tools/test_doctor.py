"""``python -m puzzlelib_rmsprop doctor``: what it says and the status it ends with, on machines of every kind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cpu
from puzzlelib_rmsprop.tools import doctor, selftest
from tests.conftest import ARRAYS
from tests.reference import Reference
from tests.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from puzzlelib_rmsprop.__main__ import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""
NO_PYCUDA = "import sys; sys.modules['pycuda'] = None\n"


def run(*options, before="", code=0, env=None):
    done = subprocess.run(
        [sys.executable, "-c", before + COMMAND, *options],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    assert done.returncode == code, output
    return done.stdout


def examined(*options, **kwargs):
    return json.loads(run("--json", *options, **kwargs))


def texts(entries):
    return "\n".join(f"{entry['what']} | {entry['remedy']}" for entry in entries)


def stub(folder, name, content):
    """A package that stands in front of the installed one."""
    (folder / name).mkdir(parents=True)
    for file, text in {"__init__.py": "", **content}.items():
        (folder / name / file).write_text(text)
    return f"import sys; sys.path.insert(0, {str(folder)!r})\n"


# ------------------------------------------------------------------------------------------- on any machine


def test_the_command_itself():
    # what is printed, by the command as the README has it; NO_PYCUDA is not in force here
    command = [sys.executable, "-m", "puzzlelib_rmsprop", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("Training runs on: CPU")
    for name in (
        "Python",
        "platform",
        "NumPy",
        "h5py",
        "CPU kernel",
        "PUZZLELIB_RMSPROP_CPU",
        "threads",
        "PyCUDA",
        "nvcc",
        "scikit-cuda",
    ):
        assert any(line.startswith(name + " ") for line in lines), name
    assert np.__version__ in done.stdout
    assert "of the copy's rate" in done.stdout


def test_a_command_has_to_be_named():
    done = subprocess.run([sys.executable, "-m", "puzzlelib_rmsprop"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def test_without_pycuda():
    found = examined(before=NO_PYCUDA)
    assert found["training_runs"] is True
    assert found["runs_on"] == ["CPU"]
    assert found["problems"] == []
    assert "pip install 'puzzlelib_rmsprop[cuda]'" in texts(found["notes"])
    dtypes = [*(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else []), "float16", "float32", "float64"]
    assert [(check["dtype"], check["ok"]) for check in found["checks"]] == [(dtype, True) for dtype in dtypes]
    assert found["speed"]["CPU"]["update"] > 1e6
    assert found["speed"]["CPU"]["copy"] > 1e6


def test_a_gpu_that_is_required_and_missing():
    found = examined("--require-gpu", before=NO_PYCUDA, code=1)
    assert found["training_runs"] is False
    assert found["runs_on"] == ["CPU"]
    assert "PyCUDA is not installed" in texts(found["problems"])


def test_no_driver_library(tmp_path):
    missing = "libcuda.so.1: cannot open shared object file: No such file or directory"
    before = stub(tmp_path, "pycuda", {"driver.py": f"raise ImportError({missing!r})"})
    found = examined(before=before)
    assert "install the NVIDIA driver" in texts(found["notes"])
    assert "libcuda.so.1" in texts(found["notes"])
    assert "install the NVIDIA driver" in texts(examined("--require-gpu", before=before, code=1)["problems"])


def test_pycuda_of_another_toolkit(tmp_path):
    missing = "libcurand.so.10: cannot open shared object file: No such file or directory"
    before = stub(tmp_path, "pycuda", {"driver.py": f"raise ImportError({missing!r})"})
    assert "--force-reinstall" in texts(examined(before=before)["notes"])


DRIVER = """
class Error(Exception): pass
def get_version(): return (13, 0, 0)
def get_driver_version(): return 12040
def init(): {init}
class Device:
    def __init__(self, index): raise Error("the device fell off the bus")
    @staticmethod
    def count(): return {count}
"""


@pytest.mark.parametrize(
    ("init", "count", "says", "remedy"),
    [
        ("raise Error('cuInit failed: no CUDA-capable device is detected')", 0, "no CUDA-capable device", "nvidia-smi"),
        ("raise Error('cuInit failed: CUDA driver version is insufficient')", 0, "insufficient", "update the NVIDIA driver"),
        ("raise RuntimeError('')", 0, "the driver does not start: RuntimeError", "nvidia-smi"),
        ("pass", 0, "the driver sees no device", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_driver_without_a_device(tmp_path, init, count, says, remedy):
    before = stub(tmp_path, "pycuda", {"driver.py": DRIVER.format(init=init, count=count), "gpuarray.py": ""})
    notes = texts(examined(before=before)["notes"])
    assert says in notes
    assert remedy in notes
    assert says in texts(examined("--require-gpu", before=before, code=1)["problems"])


def test_a_device_that_fails(tmp_path):
    before = stub(tmp_path, "pycuda", {"driver.py": DRIVER.format(init="pass", count=2), "gpuarray.py": ""})
    found = examined(before=before)
    assert found["found"]["driver"] == "for CUDA 12.4"
    # both are looked at, each in a line of its own
    assert [entry["what"] for entry in found["problems"]] == [
        f"GPU {index}: Error: the device fell off the bus" for index in range(2)
    ]
    assert found["training_runs"] is True


needs_library = pytest.mark.skipif(cpu.library is None, reason="the compiled library is not here")
# a package whose library was not built
NO_LIBRARY = "import sys; sys.modules['puzzlelib_rmsprop.kernels._cpu'] = None\n"


@needs_library
def test_the_compiled_kernel():
    sets = cpu.instruction_sets()[1:]
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: ""})
    assert found["found"]["CPU kernel"] == f"compiled, with the instructions of {sets[-1]}; here are {', '.join(sets)}"
    assert found["found"]["PUZZLELIB_RMSPROP_CPU"] == "not set"
    assert "NumPy" not in texts(found["notes"])
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: "baseline"})["found"]
    assert found["CPU kernel"].startswith("compiled, with the instructions of baseline;")
    assert found["PUZZLELIB_RMSPROP_CPU"] == "baseline"


def test_numpy_by_choice():
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: "numpy"})
    assert found["found"]["CPU kernel"].startswith("NumPy")
    assert found["runs_on"] == ["CPU"]
    if cpu.library is not None:
        assert f"unset {cpu.VARIABLE}" in texts(found["notes"])


def test_the_library_is_missing():
    found = examined(before=NO_LIBRARY + NO_PYCUDA, env={cpu.VARIABLE: ""})
    assert found["runs_on"] == ["CPU"]
    assert found["problems"] == []
    assert found["found"]["CPU kernel"].startswith("NumPy: the compiled library is not here (")
    assert f"updates run in NumPy, several times slower | {cpu.REMEDY}" in texts(found["notes"])
    assert all(check["ok"] for check in found["checks"])


@pytest.mark.parametrize("before", ["", NO_LIBRARY], ids=["compiled", "numpy"])
def test_an_instruction_set_that_is_none(before):
    found = examined(before=before + NO_PYCUDA, env={cpu.VARIABLE: "sse9"}, code=1)
    assert found["runs_on"] == []
    assert found["found"]["CPU kernel"] == "cannot be loaded"
    assert "got 'sse9'" in texts(found["problems"])
    assert "unset PUZZLELIB_RMSPROP_CPU" in texts(found["problems"])
    assert "Training does not run here." in run(before=before + NO_PYCUDA, env={cpu.VARIABLE: "sse9"}, code=1)


@needs_library
def test_a_library_of_other_sources():
    before = """
import types, puzzlelib_rmsprop.kernels as kernels
from puzzlelib_rmsprop.kernels import _cpu
other = types.ModuleType("_cpu")
vars(other).update({name: getattr(_cpu, name) for name in dir(_cpu) if name[0] != "_"}, layout=lambda: bytes(800))
sys.modules["puzzlelib_rmsprop.kernels._cpu"] = kernels._cpu = other
"""
    found = examined(before=NO_PYCUDA + before, code=1)
    assert "install the package again" in texts(found["problems"])


def test_no_h5py():
    found = examined(before="import sys; sys.modules['h5py'] = None\n" + NO_PYCUDA)
    assert "nothing can be saved" in texts(found["notes"])
    assert found["training_runs"] is True


@pytest.mark.parametrize(("wrong", "verdict"), [("1.001", "WRONG: error "), ("float('nan')", "FAILED: no result")])
def test_a_wrong_update_is_seen(wrong, verdict):
    before = f"""
from puzzlelib_rmsprop.kernels import cpu
Table = cpu.chosen().Table
right = Table.update
Table.update = lambda self, hyper, *rest: right(self, hyper._replace(learnRate=hyper.learnRate * {wrong}), *rest)
"""
    found = examined(before=before + NO_PYCUDA, code=1)
    assert found["runs_on"] == []
    assert [check["ok"] for check in found["checks"] if check["dtype"] in ("float32", "float64")] == [False, False]
    assert "the update is wrong" in texts(found["problems"])
    assert verdict in run(before=before + NO_PYCUDA, code=1)


@pytest.mark.parametrize(
    "name", [name for name in dir(doctor.Doctor) if name.startswith(("_examine", "_train", "_measure"))]
)
def test_whatever_fails_is_one_line(name, monkeypatch):
    def fail(self, *arguments):
        raise ZeroDivisionError("planted\nin two lines")

    monkeypatch.setattr(doctor.Doctor, name, fail)
    patient = doctor.Doctor()
    patient.examine()
    said = [entry["what"] for entry in patient.problems + patient.notes]
    json.dumps(patient.as_dict())
    assert "Traceback" not in patient.text()
    # what belongs to a GPU is not reached without one
    if "pycuda" in ARRAYS or name not in ("_examine_device", "_examine_kernel", "_examine_skcuda"):
        assert any("ZeroDivisionError: planted in two lines" in what for what in said), said


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_its_formula_is_the_references(dtype):
    rng = np.random.default_rng(1)
    param, grads = rng.standard_normal(50).astype(dtype), rng.standard_normal((4, 50)).astype(dtype)
    expected = Reference(param, stored="float16" if dtype == "float16" else None)
    for grad in grads:
        expected.step(grad, **selftest.HYPER)
    actual = selftest.formula(param, grads)
    for name, content in expected.buffers().items():
        assert_close(actual[name], content, 1e-14, name)


@pytest.mark.parametrize("broken", ["param", "mg", "variance", "delta"])
def test_a_nan_in_any_buffer_is_the_worst(broken, monkeypatch):
    right = selftest.formula
    monkeypatch.setattr(
        selftest, "formula", lambda *given: {n: x * (np.nan if n == broken else 1) for n, x in right(*given).items()}
    )
    worst, where = selftest.deviation(np.dtype(np.float32), np.array, np.asarray, lambda: None)
    assert np.isnan(worst)
    assert where.startswith(f"{broken} ")


# ------------------------------------------------------------------------------------ on a GPU or simulator


@pytest.fixture
def child(request):
    """What makes CUDA work in a process of its own, as in this one."""
    if "pycuda" not in ARRAYS:
        pytest.skip(f"CUDA {request.config.cuda}")
    if request.config.getoption("--cuda") != "sim":
        return ""
    return f"from tests import cudasim; cudasim.activate({os.environ['CUSIM_DIR']!r})\n"


def test_on_a_gpu(child):
    found = examined("--require-gpu", before=child)
    assert found["training_runs"] is True
    assert found["problems"] == []
    assert found["runs_on"][:2] == ["CPU", "GPU 0"]
    tried = {check["dtype"] for check in found["checks"] if check["where"] == "GPU 0" and check["ok"]}
    assert {"float16", "float32", "float64"} <= tried
    assert found["speed"]["GPU 0"]["update"] > 1e6
    assert "compute capability" in found["found"]["GPU 0"]
    assert found["found"]["driver"].startswith("for CUDA ")
    assert "kernel on GPU 0" in found["found"]


def test_a_wrong_kernel_on_a_gpu(child):
    before = f"""{child}
from pycuda import autoprimaryctx
from puzzlelib_rmsprop.kernels import cuda
right = cuda.Table.update
cuda.Table.update = lambda self, hyper, *rest: right(self, hyper._replace(learnRate=hyper.learnRate * 1.01), *rest)
"""
    found = examined(before=before)  # the CPU suffices
    assert found["runs_on"] == ["CPU"]
    assert "GPU 0: float32: the update is wrong" in texts(found["problems"])
    assert examined("--require-gpu", before=before, code=1)["training_runs"] is False


def test_without_scikit_cuda(child):
    found = examined("--require-gpu", before=child + "import sys; sys.modules['skcuda'] = None\n")
    assert "pip install scikit-cuda==0.5.3" in texts(found["notes"])


def test_setuptools_too_new_for_scikit_cuda(child):
    pytest.importorskip("skcuda", reason="scikit-cuda is not installed")
    found = examined("--require-gpu", before=child + "import sys; sys.modules['pkg_resources'] = None\n")
    assert "scikit-cuda" not in texts(found["notes"])  # nets/cublas.py brings what is missing


def test_no_compiler_and_no_ptx(child, tmp_path):
    before = f"""{child}
import os
os.environ["PATH"] = ""
from puzzlelib_rmsprop.kernels import cuda_source
cuda_source.shipped_ptx = lambda file="rmsprop_graves": (None, "it is damaged")
"""
    found = examined(before=before, env={"PUZZLELIB_RMSPROP_CACHE_DIR": str(tmp_path)})
    assert "it is damaged" in texts(found["problems"])
    assert found["found"]["CUDA kernel"] == "its source, for nvcc to compile: it is damaged"
    assert "install the CUDA toolkit" in texts(found["problems"])
    assert found["training_runs"] is True


@pytest.mark.skipif(os.name != "posix", reason="asks for owners and modes")
def test_where_compiled_kernels_are_kept(child, tmp_path):
    before = f"""{child}
from puzzlelib_rmsprop.kernels import cuda_source
cuda_source.shipped_ptx = lambda file="rmsprop_graves": (None, "it is damaged")
"""
    for given, where in (
        (str(tmp_path / "own"), f"kept in {tmp_path / 'own'}"),
        ("", "kept nowhere: no folder is this user's"),
    ):
        env = {"PUZZLELIB_RMSPROP_CACHE_DIR": given, "XDG_CACHE_HOME": "relative", "HOME": "relative"}
        assert where in examined(before=before, env=env)["found"]["kernel on GPU 0"]


def test_out_of_memory(child):
    before = f"""{child}
from pycuda import autoprimaryctx, driver, gpuarray
def full(*arguments, **more): raise driver.MemoryError("cuMemAlloc failed: out of memory")
gpuarray.to_gpu = full
"""
    found = examined("--require-gpu", before=before, code=1)
    assert "nvidia-smi shows which processes hold it" in texts(found["problems"])
