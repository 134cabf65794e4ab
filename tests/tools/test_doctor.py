"""``python -m puzzlelib_rmsprop doctor``: its report and exit status, on machines of every kind."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cpu
from puzzlelib_rmsprop.tools import doctor
from tests.conftest import ARRAYS
from tests.tools.running import (
    NO_LIBRARY,
    NO_PYCUDA,
    ROOT,
    assert_narrow,
    examined,
    joined,
    needs_library,
    run,
    stub,
    texts,
)


def test_the_command_itself():
    # the command as the README has it; NO_PYCUDA is not in force here
    command = [sys.executable, "-m", "puzzlelib_rmsprop", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"Training runs on: CPU(, GPU \d+)*\.", lines[0])
    # then the notes, the self-test, the speed and the table
    titles = [line for line in lines[1:] if line and not line.startswith(" ")]
    titles = [re.match(r"[\w -]+", title)[0] for title in titles]
    assert titles[-3:] == ["Self-test", "Speed of an update and of a plain copy", "This machine"]
    assert set(titles[:-3]) <= {"Problems", "Notes"}
    table = lines[lines.index("This machine") + 1 :]
    for name in (
        "puzzlelib_rmsprop",
        "Python",
        "platform",
        "NumPy",
        "h5py",
        "ml_dtypes",
        "PyTorch",
        "CPU kernels",
        "instruction sets",
        "PUZZLELIB_RMSPROP_CPU",
        "threads",
        "CUDA kernels",
        "PyCUDA",
        "nvcc",
        "scikit-cuda",
    ):
        assert any(line.startswith(f"  {name} ") for line in table), name
    assert f"    {Path(doctor.__file__).resolve().parents[1]}" in table  # a path has a line of its own
    assert re.search(rf"^  NumPy  +{re.escape(np.__version__)}$", done.stdout, re.MULTILINE)
    assert re.search(r"^  CPU    float32  +OK +error \d+% of the tolerance$", done.stdout, re.MULTILINE)
    assert re.search(r"^  CPU    float32, int8 state  +OK +every bit as in NumPy$", done.stdout, re.MULTILINE)
    assert re.search(r"^  CPU    update [\d.,]+ GB/s, copy [\d.,]+ GB/s \([\d,]+ elements\)$", done.stdout, re.MULTILINE)
    assert_narrow(done.stdout)


def test_without_a_command_it_prints_the_help():
    done = subprocess.run([sys.executable, "-m", "puzzlelib_rmsprop"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    for word in ("usage: python -m puzzlelib_rmsprop", "COMMAND", "\n    doctor ", "\n    inspect "):
        assert word in done.stderr


def test_without_pycuda():
    found = examined(before=NO_PYCUDA)
    assert found["training_runs"] is True
    assert found["runs_on"] == ["CPU"]
    assert found["problems"] == []
    assert "pip install 'pycuda>=2024.1' 'scikit-cuda==0.5.3'" in texts(found["notes"])
    bfloat16 = ["bfloat16"] if importlib.util.find_spec("ml_dtypes") else []
    cases = [(dtype, "float32") for dtype in [*bfloat16, "float16", "float32"]] + [("float64", "float64")]
    cases += [("float32", state) for state in [*bfloat16, "int8"]]
    assert [(check["dtype"], check["state"]) for check in found["checks"]] == cases
    assert {(check["where"], check["result"], check["ok"]) for check in found["checks"]} == {("CPU", "OK", True)}
    assert all(0 <= check["error"] <= 1 for check in found["checks"])
    assert found["verdict"] == "Training runs on: CPU."
    assert found["speed"]["CPU"]["update"] > 1e6
    assert found["speed"]["CPU"]["copy"] > 1e6


def test_a_gpu_that_is_required_and_missing():
    found = examined("--require-gpu", before=NO_PYCUDA, code=1)
    assert found["training_runs"] is False
    assert found["runs_on"] == ["CPU"]
    assert "PyCUDA is not installed" in texts(found["problems"])
    lines = run("--require-gpu", before=NO_PYCUDA, code=1).splitlines()
    assert lines[0] == found["verdict"] == "Training runs on: CPU. It does not run on a GPU, which is required."
    assert lines[2] == "Problems"  # before everything else


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
        ("raise RuntimeError('')", 0, "the NVIDIA driver does not start: RuntimeError", "nvidia-smi"),
        ("pass", 0, "the NVIDIA driver finds no device", "CUDA_VISIBLE_DEVICES"),
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
    assert found["found"]["driver"] == "supports CUDA 12.4"
    # both are examined, and each has an entry
    assert [entry["what"] for entry in found["problems"]] == [
        f"GPU {index}: Error: the device fell off the bus" for index in range(2)
    ]
    assert found["training_runs"] is True


@needs_library
def test_the_compiled_kernel():
    sets = cpu.instruction_sets()[1:]
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: ""})
    assert found["found"]["CPU kernel"] == f"compiled ({sets[-1]})"
    assert found["found"]["instruction sets"] == ", ".join(sets)
    assert found["found"]["PUZZLELIB_RMSPROP_CPU"] == "not set"
    assert "NumPy fallback" not in texts(found["notes"])
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: "baseline"})["found"]
    assert found["CPU kernel"] == "compiled (baseline)"
    assert found["PUZZLELIB_RMSPROP_CPU"] == "baseline"


def test_numpy_by_choice():
    found = examined(before=NO_PYCUDA, env={cpu.VARIABLE: "numpy"})
    assert found["found"]["CPU kernel"].startswith("NumPy fallback")
    assert found["runs_on"] == ["CPU"]
    if cpu.library is not None:
        assert f"unset {cpu.VARIABLE}" in texts(found["notes"])


def test_the_library_is_missing():
    found = examined(before=NO_LIBRARY + NO_PYCUDA, env={cpu.VARIABLE: ""})
    assert found["runs_on"] == ["CPU"]
    assert found["problems"] == []
    assert found["found"]["CPU kernel"].startswith("NumPy fallback; the compiled library was not found (")
    assert f"CPU kernels: NumPy fallback; updates are several times slower | {cpu.REMEDY}" in texts(found["notes"])
    assert all(check["ok"] for check in found["checks"])


@pytest.mark.parametrize("before", ["", NO_LIBRARY], ids=["compiled", "numpy"])
def test_an_instruction_set_that_is_none(before):
    found = examined(before=before + NO_PYCUDA, env={cpu.VARIABLE: "sse9"}, code=1)
    assert found["runs_on"] == []
    assert found["found"]["CPU kernel"] == "cannot be loaded"
    assert "got 'sse9'" in texts(found["problems"])
    assert "unset PUZZLELIB_RMSPROP_CPU" in texts(found["problems"])
    lines = run(before=before + NO_PYCUDA, env={cpu.VARIABLE: "sse9"}, code=1).splitlines()
    assert lines[:3] == ["Training does not run on this machine.", "", "Problems"]
    assert lines[3].startswith("  - CPU: ConfigError: PUZZLELIB_RMSPROP_CPU must be")


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
    assert "checkpoints cannot be saved" in texts(found["notes"])
    assert found["training_runs"] is True


def torch_of(folder, version):
    """A PyTorch with metadata only, which fails if somebody imports it."""
    before = stub(folder, "torch", {"__init__.py": "raise SystemError('doctor must not import torch')"})
    (folder / f"torch-{version}.dist-info").mkdir()
    (folder / f"torch-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    )
    return before + NO_PYCUDA


@pytest.mark.parametrize(("version", "old"), [("2.5.1+cu124", True), ("1.13.1", True), ("2.6.0", False), ("2.14.0", False)])
def test_the_version_of_pytorch(version, old, tmp_path):
    before = torch_of(tmp_path, version)
    found = examined(before=before)
    assert found["found"]["PyTorch"] == version
    expected = f"PyTorch: version {version} is too old: puzzlelib_rmsprop.torch needs 2.6 or newer"
    assert [entry for entry in found["notes"] if entry["what"].startswith("PyTorch")] == (
        [{"what": expected, "remedy": "pip install 'torch>=2.6'"}] if old else []
    )
    text = run(before=before)
    assert re.search(rf"^  PyTorch  +{re.escape(version)}$", text, re.MULTILINE)
    assert (f"- {expected} remedy: pip install 'torch>=2.6'" in joined(text)) == old


def test_without_pytorch():
    before = """
from importlib import metadata
right = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return right(name)
metadata.version = version
"""
    found = examined(before=before + NO_PYCUDA)
    assert found["found"]["PyTorch"] == "not installed; puzzlelib_rmsprop.torch needs 2.6 or newer"
    assert "PyTorch" not in texts(found["notes"])


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
