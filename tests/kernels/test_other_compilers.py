"""The loops of the CPU library, compiled by all available compilers, also for other processors, give the same bits."""

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

from puzzlelib_rmsprop.kernels import cpu

KERNELS = Path(cpu.__file__).parent
FLAGS = [
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-DKERNEL_NAMESPACE=baseline",
    "-static",
]
# the compiler and its flags, the emulator
COMPILERS = {
    "g++ -O0": (["g++", "-O0"], []),
    "g++ -O3": (["g++", "-O3"], []),
    "g++ -O3, every instruction there is": (["g++", "-O3", "-march=native"], []),
    "clang": (["clang++", "-O3"], []),
    "clang 14": (["clang++-14", "-O3"], []),
    "ARM, by emulation": (["aarch64-linux-gnu-g++", "-O3"], ["qemu-aarch64"]),
}


@functools.cache
def hashes(name, folder, spread):
    """Returns hashes of the buffers of every kind; None if the compiler is missing."""
    compiler, emulator = COMPILERS[name]
    if any(shutil.which(each) is None for each in (compiler[0], *emulator[:1])):
        return None
    program = Path(folder) / name.replace(" ", "_").replace(",", "")
    sources = [str(Path(__file__).with_name("other_compilers.cpp")), str(KERNELS / "cpu_loops.cpp")]
    subprocess.run([*compiler, *FLAGS, f"-I{KERNELS}", *sources, "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program), str(spread)], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not (KERNELS / "cpu_loops.cpp").exists():
        pytest.skip("the sources of the library are missing")
    return str(tmp_path_factory.mktemp("compilers"))


@pytest.mark.parametrize("spread", [10, 60], ids=["ordinary", "from overflow to underflow"])
@pytest.mark.parametrize("name", list(COMPILERS)[1:])
def test_the_same_bits(folder, name, spread):
    expected, found = hashes("g++ -O0", folder, spread), hashes(name, folder, spread)
    if expected is None or found is None:
        pytest.skip("this compiler, or the emulator, is missing")
    assert len(expected) == len(set(expected)) == 16
    assert found == expected
