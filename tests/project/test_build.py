"""Building and installing the package: with a compiler and without, with too old a setuptools, from other sources."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from puzzlelib_rmsprop import kernels
from puzzlelib_rmsprop.kernels import cpu

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(kernels.__file__).parent
SETUPTOOLS = "import setuptools; print(setuptools.__version__.partition('.')[0])"


@pytest.fixture
def copy(tmp_path):
    """The sources in a folder of their own, without anything that was built."""
    if not (ROOT / "setup.py").is_file() or not (ROOT / "puzzlelib_rmsprop" / "kernels" / "cpu.cpp").is_file():
        pytest.skip("the sources are not beside the tests")
    found = subprocess.run([sys.executable, "-c", SETUPTOOLS], capture_output=True, text=True, cwd=tmp_path).stdout
    if not found or int(found) < 77:
        pytest.skip(f"building needs setuptools 77; here is {found.strip() or 'none'}")
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.o")
    shutil.copytree(ROOT / "puzzlelib_rmsprop", folder / "puzzlelib_rmsprop", ignore=ignored)
    return folder


def build(folder, **env):
    """The folder that holds the built package."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"]
    env = {**os.environ, **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "built"


def in_package(folder, code, *options, **env):
    """Runs code, or a module with options, where only the package in ``folder`` is found."""
    command = [sys.executable, *(["-c", textwrap.dedent(code)] if not options else ["-m", code, *options])]
    env = {**os.environ, "PYTHONPATH": str(folder), cpu.VARIABLE: "", **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120)


TRAIN = """
    import numpy as np, puzzlelib_rmsprop
    from puzzlelib_rmsprop import RMSPropGraves, Variable
    class Net:
        vars = {"w": Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))}
        def getVarTable(self): return {var: [name] for name, var in self.vars.items()}
        def getVar(self, name): return self.vars[name]
        def setVar(self, name, var): self.vars[name] = var
    net, optimizer = Net(), RMSPropGraves(learnRate=0.5)
    optimizer.setupOn(net)
    for _ in range(3):
        optimizer.update()
    print(puzzlelib_rmsprop.__file__)
    print(net.vars["w"].data.tolist())
"""


def test_without_a_compiler(copy):
    built = build(copy, PATH=str(copy / "nothing"), CC="/nonexistent/cc", CXX="/nonexistent/c++", PYTHONWARNINGS="ignore")
    assert not [path for path in built.rglob("*") if path.suffix in (".so", ".pyd")]
    done = in_package(built, TRAIN)
    assert done.returncode == 0, done.stderr
    where, result = done.stdout.splitlines()
    assert where.startswith(str(built))
    # the compiled library, or reference.py, of the package under test
    assert result == in_package(KERNELS.parent.parent, TRAIN).stdout.splitlines()[1]
    assert done.stderr.count("KernelWarning") == 1, done.stderr
    assert cpu.REMEDY in done.stderr
    # an error where warnings are errors, for a program that wants to be sure
    assert "KernelWarning" in in_package(built, TRAIN, PYTHONWARNINGS="error::RuntimeWarning").stderr.splitlines()[-1]
    # whoever chose NumPy is not told of it
    assert in_package(built, TRAIN, **{cpu.VARIABLE: "numpy"}).stderr == ""
    told = in_package(built, "puzzlelib_rmsprop", "doctor")
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search("^  CPU kernels +NumPy fallback", told.stdout, re.MULTILINE)
    assert " ".join(cpu.REMEDY.split()) in " ".join(told.stdout.split())


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++")
def test_with_a_compiler(copy):
    built = build(copy)
    assert [path.name for path in built.rglob("*.so")] == ["_cpu.abi3.so"]
    # the headers are there for nvcc, the C++ files are not needed any more
    for headers in ("*.h", "*.cuh"):
        assert {path.name for path in built.rglob(headers)} == {path.name for path in copy.rglob(headers)}
    assert not list(built.rglob("*.cpp"))
    done = in_package(built, TRAIN)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith(str(built))


NUMBERS = """
    import hashlib
    import numpy as np
    from puzzlelib_rmsprop import GradientClipping, RMSPropGraves, Variable
    from puzzlelib_rmsprop.kernels import cpu
    def digest():
        rng, found = np.random.default_rng(0), hashlib.sha256()
        for dtype in ("float16", "float32", "float64"):
            for special in ([0.0, -0.0, np.finfo(dtype).tiny / 3], [np.inf, -np.inf, np.nan]):
                param, grad = rng.standard_normal((2, 10007)).astype(dtype)
                param[:99], grad[:99] = -0.0, special * 33
                var, optimizer, clipping = Variable(param, grad=grad), RMSPropGraves(learnRate=0.1), GradientClipping(1.0)
                optimizer.addHook(clipping)
                optimizer.setupOn({"w": var})
                for _ in range(3):
                    optimizer.update()
                for array in (var.data, *optimizer.states["w"].values(), np.array(clipping.norm)):
                    found.update(np.where(np.isnan(array), np.asarray(1.5, array.dtype), array).tobytes())
        return found.hexdigest()
    found = set()
    for name in cpu.instruction_sets()[1:]:
        cpu.library.use(name)
        found.add(digest())
    print(*found)
    # a library linked with -ffast-math makes the whole process flush subnormal numbers
    print(np.float32(1e-40) * np.float32(1) > 0)
"""


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++")
@pytest.mark.skipif(cpu.library is None, reason="the compiled library is not here")
@pytest.mark.parametrize(
    "flags",
    [
        {"CXXFLAGS": "-Ofast", "CFLAGS": "-Ofast"},
        {"CXXFLAGS": "-ffast-math -ffp-contract=fast -march=native", "CFLAGS": "-ffast-math", "LDFLAGS": "-Ofast"},
        {"CPPFLAGS": "-funsafe-math-optimizations -fassociative-math -freciprocal-math -ffinite-math-only"},
    ],
    ids=lambda flags: "-".join(flags),
)
def test_flags_of_the_environment_change_no_number(copy, flags):
    flags = {"CXX": "g++ -DBLANK", "CC": "gcc -DBLANK", **flags}  # commands of several words, as ccache's
    done = in_package(build(copy, **flags), NUMBERS)
    expected = in_package(KERNELS.parent.parent, NUMBERS)
    assert done.stdout == expected.stdout, done.stderr + expected.stderr
    assert done.stdout.count(" ") == 0, "the same for each instruction set"
    assert done.stdout.splitlines()[1] == "True"


COMPILERS = {
    "fails": "echo planted >&2; exit 1",
    "writes nothing": "exit 0",
    "is killed": "kill -9 $$",  # by the kernel, for memory
}


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for a compiler is a script")
@pytest.mark.parametrize("kind", COMPILERS)
def test_a_compiler_that_does_not_work(copy, kind):
    compiler = copy / "compiler"
    compiler.write_text(f"#!/bin/sh\n{COMPILERS[kind]}\n")
    compiler.chmod(0o755)
    built = build(copy, CC=str(compiler), CXX=str(compiler), PYTHONWARNINGS="ignore")
    assert not list(built.rglob("*.so"))
    done = in_package(built, TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("KernelWarning") == 1, done.stderr


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++")
def test_a_folder_with_blanks_and_no_ascii(copy):
    copy = copy.rename(copy.parent / 'a folder of müller\'s "own"')
    built = build(copy)
    done = in_package(built, TRAIN)
    assert (done.stderr, done.stdout.splitlines()[0].startswith(str(built))) == ("", True)


# how pip calls setup.py, and people do
BACKEND = "from setuptools import build_meta as b; b.{call}"
CALLS = {
    "wheel": BACKEND.format(call="get_requires_for_build_wheel()"),
    "metadata": BACKEND.format(call="prepare_metadata_for_build_wheel('.')"),
    "editable": BACKEND.format(call="get_requires_for_build_editable()"),
    "sdist": BACKEND.format(call="build_sdist('.')"),
    "by hand": "import sys; sys.argv[:] = ['setup.py', '--version']; exec(open('setup.py').read())",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("version", ["61.0.0", "66.1.1", "68.2.2.post0", "76.1.0"])
def test_an_old_setuptools_is_named(copy, version, call):
    code = f"import setuptools; setuptools.__version__ = {version!r}; {CALLS[call]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copy, timeout=60)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"puzzlelib_rmsprop is built with setuptools 77 or newer; here is {version}: pip install")
    assert "Traceback" not in done.stderr
    assert "pyproject" not in done.stderr, "before what older ones say of it"


@pytest.mark.parametrize("version", ["77.0.0", "100.1", "77.0.3.post20250101", "unknown", "???"])
def test_a_setuptools_that_is_new_or_unknown_is_taken(copy, version):
    code = f"import setuptools; setuptools.__version__ = {version!r}; {CALLS['by hand']}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copy, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1][0].isdigit()


@pytest.mark.skipif(cpu.library is None, reason="the compiled library is not here")
def test_the_library_was_built_from_these_sources():
    headers = ("cpu_loops.h", "cpu_tiles.h", "int8_state.h", "rule.h", "numbers.h", "layout.h")
    names = ("cpu.cpp", "look.cpp", "cpu_loops.cpp", *headers)  # as in setup.py
    if not (KERNELS / "cpu.cpp").is_file():
        pytest.skip("the sources are not beside the library")
    assert {path.name for end in ("cpp", "h") for path in KERNELS.glob(f"*.{end}")} == set(names)
    # whatever line ends git gives them
    content = b"".join((KERNELS / name).read_bytes().replace(b"\r\n", b"\n") for name in names)
    again = "build it again: python setup.py build_ext --inplace"
    assert cpu.library.sources() == hashlib.sha256(content).hexdigest(), again
