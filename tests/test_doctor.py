"""``python -m puzzlelib_rmsprop doctor``: what it says and the status it ends with, on machines of every kind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop import doctor
from tests.conftest import ARRAYS
from tests.reference import Reference
from tests.tolerances import assert_close

ROOT = Path(__file__).resolve().parent.parent
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
        "Numba",
        "Numba's cache",
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
    assert [(check["dtype"], check["ok"]) for check in found["checks"]] == [
        ("float16", True),
        ("float32", True),
        ("float64", True),
    ]
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


@pytest.mark.parametrize(
    "before",
    ["import sys; sys.modules['numba'] = None\n", "numba"],
    ids=["missing", "broken"],
)
def test_numba_missing_or_broken(tmp_path, before):
    if before == "numba":
        before = stub(tmp_path, "numba", {"__init__.py": "raise SystemError('initialization of _internal failed')"})
    found = examined(before=before + NO_PYCUDA, code=1)
    assert found["runs_on"] == []
    assert "numba>=0.59" in texts(found["problems"])
    assert "Training does not run here." in run(before=before + NO_PYCUDA, code=1)


def test_numba_switched_off():
    found = examined(before=NO_PYCUDA, env={"NUMBA_DISABLE_JIT": "1"}, code=1)
    assert "unset NUMBA_DISABLE_JIT" in texts(found["problems"])


def test_no_folder_for_numbas_cache():
    before = """
from numba.core import caching
next(item for name, item in vars(caching).items() if name.lstrip("_") == "CacheImpl")._locator_classes = []
"""
    found = examined(before=before + NO_PYCUDA)
    assert found["found"]["Numba's cache"] == "none"
    assert "NUMBA_CACHE_DIR" in texts(found["notes"])
    assert found["training_runs"] is True


def test_no_h5py():
    found = examined(before="import sys; sys.modules['h5py'] = None\n" + NO_PYCUDA)
    assert "nothing can be saved" in texts(found["notes"])
    assert found["training_runs"] is True


@pytest.mark.parametrize(("wrong", "verdict"), [("1.001", "WRONG: error "), ("float('nan')", "FAILED: no result")])
def test_a_wrong_update_is_seen(wrong, verdict):
    before = f"""
from puzzlelib_rmsprop.kernels import cpu
right = cpu.Table.update
cpu.Table.update = lambda self, learnRate, *rest: right(self, learnRate * {wrong}, *rest)
"""
    found = examined(before=before + NO_PYCUDA, code=1)
    assert found["runs_on"] == []
    assert [check["ok"] for check in found["checks"] if check["dtype"] != "float16"] == [False, False]
    assert "the update is wrong" in texts(found["problems"])
    assert verdict in run(before=before + NO_PYCUDA, code=1)


@pytest.mark.parametrize(
    "name", [name for name in vars(doctor.Doctor) if name.startswith(("_examine", "_train", "_measure"))]
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
        expected.step(grad, **doctor.HYPER)
    actual = doctor._formula(param, grads)
    for name, content in expected.buffers().items():
        assert_close(actual[name], content, 1e-14, name)


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
cuda.Table.update = lambda self, learnRate, *rest: right(self, learnRate * 1.01, *rest)
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
    # where nets bring what is missing, there is nothing to say
    works = importlib.util.find_spec("puzzlelib_rmsprop.nets.cublas") is not None
    assert ("setuptools<81" in texts(found["notes"])) is not works


def test_no_compiler_and_no_ptx(child, tmp_path):
    before = f"""{child}
import os
os.environ["PATH"] = ""
from puzzlelib_rmsprop import doctor
doctor._shipped_ptx = lambda: None
"""
    found = examined(before=before, env={"PUZZLELIB_RMSPROP_CACHE_DIR": str(tmp_path)})
    assert "install the CUDA toolkit" in texts(found["problems"])
    assert found["training_runs"] is True


def test_out_of_memory(child):
    before = f"""{child}
from pycuda import autoprimaryctx, driver, gpuarray
def full(*arguments, **more): raise driver.MemoryError("cuMemAlloc failed: out of memory")
gpuarray.to_gpu = full
"""
    found = examined("--require-gpu", before=before, code=1)
    assert "nvidia-smi shows which processes hold it" in texts(found["problems"])
