"""The backends "auto" and "cuda" if PyCUDA is missing or broken, or has no driver."""

import os
import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import sys, warnings
import numpy as np
from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import KernelWarning

def made():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = type(gpuarray.zeros(3)).__name__
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    return result, [f"{each.category.__name__}: {each.message} at {each.filename}" for each in caught]
"""

DRIVER = """
class Error(Exception): pass
class Context:
    get_current = staticmethod(lambda: None)
class Device:
    count = staticmethod(lambda: {count})
def init(): {init}
"""

# replacements of PyCUDA: files, and the reason in the warning and the error
BROKEN = {
    "attribute": ({"driver.py": "import numpy; numpy.no_such_name"}, "AttributeError: module 'numpy' has no attribute"),
    "package": ({"__init__.py": "raise RuntimeError('planted')", "driver.py": ""}, "RuntimeError: planted"),
    "system": ({"driver.py": "raise OSError(8, 'Exec format error')"}, "OSError: [Errno 8] Exec format error"),
    "syntax": ({"driver.py": "def f(:"}, "SyntaxError: invalid syntax"),
    "abi": (
        {"driver.py": "raise RuntimeError('module compiled against ABI version 0x1000009')"},
        "RuntimeError: module compiled",
    ),
    "system error": ({"driver.py": "raise SystemError('initialization of _driver failed')"}, "SystemError: initialization"),
    "library": (
        {"driver.py": "raise ImportError('libcurand.so.10: cannot open shared object file')"},
        "ImportError: libcurand.so.10",
    ),
    "dependency": ({"driver.py": "import no_such_pytools"}, "ModuleNotFoundError: No module named 'no_such_pytools'"),
    "leftovers": ({"other.py": ""}, "ModuleNotFoundError: No module named 'pycuda.driver'"),
    "old arrays": (
        {
            "driver.py": DRIVER.format(init="pass", count=1),
            "tools.py": "",
            "gpuarray.py": "import numpy; numpy.no_such_name",
        },
        "AttributeError: module 'numpy' has no attribute",
    ),
    "recursion": ({"driver.py": "def f(): f()\nf()"}, "RecursionError: maximum recursion depth exceeded"),
}
NO_DRIVER = "libcuda.so.1: cannot open shared object file: No such file or directory"
ABSENT = {
    "not installed": {"__init__.py": None},
    "no libcuda": {"driver.py": f"raise ImportError({NO_DRIVER!r})"},
    "no device": {
        "driver.py": DRIVER.format(init="raise Error('cuInit failed: no CUDA-capable device is detected')", count=0)
    },
    "devices hidden": {"driver.py": DRIVER.format(init="pass", count=0)},
    "stub library": {
        "driver.py": DRIVER.format(init="raise Error('cuInit failed: CUDA driver is a stub library')", count=0)
    },
}


def run(code, folder, files):
    package = folder / "pycuda"
    package.mkdir()
    for name, text in {"__init__.py": "", **files}.items():
        if text is not None:
            (package / name).write_text(text)
    if not [*package.iterdir()]:
        package.rmdir()
    # an installed PyCUDA is not found
    first = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    if not package.exists():
        first = "import sys; sys.modules['pycuda'] = None\n"
    command = [sys.executable, "-c", first + PRELUDE + textwrap.dedent(code)]
    env = {name: value for name, value in os.environ.items() if name != "CUSIM_DIR"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


TWICE = """
for _ in range(3):
    print(made())
"""


@pytest.mark.parametrize("kind", BROKEN)
def test_auto_with_a_broken_pycuda_is_the_cpu_and_warns_once(tmp_path, kind):
    files, reason = BROKEN[kind]
    done = run(TWICE, tmp_path, files)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = map(eval, done.stdout.splitlines())
    assert first[0] == "CPUArray"
    (warning,) = first[1]
    assert warning.startswith("KernelWarning: arrays are made on the CPU, because CUDA does not work here: ")
    assert f"PyCUDA is installed, but its import fails with {reason}" in warning
    assert "pip install --force-reinstall" in warning
    assert warning.endswith("at <string>"), "the line of the user's program"
    assert others == [("CPUArray", [])] * 2


@pytest.mark.parametrize("kind", BROKEN)
def test_cuda_with_a_broken_pycuda_says_why_and_the_same_each_time(tmp_path, kind):
    files, reason = BROKEN[kind]
    done = run("Config.backend = Config.Backend.cuda" + TWICE, tmp_path, files)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = map(eval, done.stdout.splitlines())
    assert first[0].startswith(
        "DependencyError: CUDA needs PyCUDA and an NVIDIA driver: PyCUDA is installed, but its import"
    )
    assert reason in first[0]
    assert first[0].endswith("Config.backend = Config.Backend.cpu works without a GPU")
    assert others == [first, first]
    assert first[1] == []


def test_what_the_first_attempt_leaves_behind_changes_nothing(tmp_path):
    # otherwise the second attempt would get further, because the first one has left a module behind
    files = {
        "driver.py": "import sys\nagain = 'pycuda.part' in sys.modules\nfrom . import part\nassert again, 'planted'",
        "part.py": "",
    }
    done = run("print(made(), made())\nConfig.backend = Config.Backend.cuda\nprint(made())", tmp_path, files)
    assert done.stdout.count("AssertionError: planted") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ABSENT)
def test_auto_without_a_gpu_says_nothing(tmp_path, kind):
    done = run(TWICE, tmp_path, ABSENT[kind])
    assert [*map(eval, done.stdout.splitlines())] == [("CPUArray", [])] * 3, done.stderr


@pytest.mark.parametrize("kind", ABSENT)
def test_cuda_without_a_gpu_says_why(tmp_path, kind):
    done = run("Config.backend = Config.Backend.cuda" + TWICE, tmp_path, ABSENT[kind])
    (found,) = {eval(line)[0] for line in done.stdout.splitlines()}
    assert found.startswith(("DependencyError: CUDA needs", "DeviceError: the NVIDIA driver")), done.stderr
    assert found.endswith("Config.backend = Config.Backend.cpu works without a GPU")


@pytest.mark.parametrize("text", ["unknown error", "CUDA driver version is insufficient", "system not yet initialized"])
def test_auto_with_a_driver_that_does_not_start_warns_once(tmp_path, text):
    done = run(TWICE, tmp_path, {"driver.py": DRIVER.format(init=f"raise Error('cuInit failed: {text}')", count=1)})
    first, *others = map(eval, done.stdout.splitlines())
    assert first[0] == "CPUArray"
    assert f"the NVIDIA driver does not start: cuInit failed: {text}. nvidia-smi shows its state" in first[1][0]
    assert others == [("CPUArray", [])] * 2


def test_warnings_that_are_errors(tmp_path):
    code = """
        warnings.simplefilter("error")
        for _ in range(2):
            try:
                gpuarray.zeros(3)
            except KernelWarning as warning:
                print(warning)
    """
    done = run(code, tmp_path, BROKEN["attribute"][0])
    assert done.stdout.count("CUDA does not work here") == 2, done.stderr


@pytest.mark.parametrize("what", ["KeyboardInterrupt", "SystemExit"])
def test_ctrl_c_during_the_import_is_not_swallowed(tmp_path, what):
    driver = (
        f"import builtins\nif not hasattr(builtins, 'once'):\n    builtins.once = 1\n    raise {what}\n"
        + DRIVER.format(init="pass", count=0)
    )
    code = f"""
        try:
            gpuarray.zeros(3)
        except {what}:
            print("raised")
        print(made())
    """
    done = run(code, tmp_path, {"driver.py": driver})
    assert done.stdout.splitlines() == ["raised", "('CPUArray', [])"], done.stderr


def test_training_goes_on_beside_a_broken_pycuda(tmp_path):
    code = """
        warnings.simplefilter("ignore")
        variables = {"own": Variable(gpuarray.zeros(3)), "numpy": Variable(gpuarray.to_gpu(np.ones(2, np.float32)))}
        optimizer = RMSPropGraves()
        optimizer.setupOn(variables)
        optimizer.zeroGradParams()
        optimizer.update()
        print(optimizer.t, isinstance(variables["own"].data, gpuarray.GPUArray), isinstance(np.zeros(3), gpuarray.GPUArray))
    """
    done = run(code, tmp_path, BROKEN["attribute"][0])
    assert done.stdout == "1 True False\n", done.stderr
