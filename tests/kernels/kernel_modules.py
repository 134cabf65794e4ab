"""Helpers of the tests of the CPU kernels: fixtures for NumPy and for each instruction set, and variables in memory."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Hyper, Segment, cpu, real_dtype, reference

SOURCES = Path(cpu.__file__).parent
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", '-DSOURCES=""']
HYPER = Hyper(1e-2, 0.95, 0.9, 1e-4)
GUARD = 64  # elements on either side of an array
STATE = ("mg", "variance", "delta")


@pytest.fixture(params=cpu.instruction_sets())
def kernels(request):
    """A module with Table, GradientStatistics and operate."""
    if request.param == "numpy":
        yield reference
        return
    before = cpu.library.in_use()
    cpu.library.use(request.param)
    yield cpu
    cpu.library.use(before)


@pytest.fixture
def threads(monkeypatch):
    """``threads(n)`` makes large updates run in n threads from now on, even if there are fewer cores."""

    def use(count):
        monkeypatch.setattr(cpu._Args, "update_threads", lambda args, most=None: args.set(threads=count))

    return use


def compiled(test):
    """Skips a test if there is no compiled library."""
    return pytest.mark.skipif(cpu.library is None, reason="the compiled CPU kernels are missing")(test)


def compiled_anew(folder, replacements=(), flags=(), kind=None):
    """Compiles the library with replacements (file, old text, new text); with ``kind``, only this kind of segment."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    if not (SOURCES / "cpu.cpp").exists():
        pytest.skip("the sources of the library are missing")
    for path in (SOURCES / "cpu.cpp", SOURCES / "look.cpp", SOURCES / "cpu_loops.cpp", *SOURCES.glob("*.h")):
        text = path.read_text()
        for file, old, new in replacements:
            if file == path.name:
                assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
                text = text.replace(old, new)
        if kind and path.name == "cpu_loops.cpp":  # faster to compile
            text = re.sub(r"FUNCTION<Kind<.*?>>", f"FUNCTION<Kind<{kind}>>", text)
        (folder / path.name).write_text(text)
    output = folder / "_cpu.so"
    command = ["g++", *FLAGS, *flags, f"-I{sysconfig.get_path('include')}", "-DKERNEL_NAMESPACE=baseline"]
    subprocess.run([*command, "cpu.cpp", "look.cpp", "cpu_loops.cpp", "-o", str(output)], cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("faulty._cpu", output)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Buffers:
    """The arrays of a variable, each between guards of NaN, and ``offset`` elements off alignment."""

    def __init__(self, param, state=None, master=False, offset=0, first=0, key=0):
        state = str(np.dtype(real_dtype(param.dtype) if state is None else state))
        kept = np.dtype("uint8" if state == "int8" else state)
        contents = {"param": param, "grad": np.frombuffer(b"\xff" * param.nbytes, param.dtype)}
        contents |= {name: np.zeros(param.size, kept) for name in STATE}
        contents |= {"scales": np.zeros(-(-param.size // 64) * 3, np.uint8)} if state == "int8" else {}
        contents |= {"master": param.astype(np.float32)} if master else {}
        self.guarded, self.views, self.offset = {}, {}, offset
        for name, content in contents.items():
            # all bits set, which is NaN for floats
            room = np.full((content.size + 2 * GUARD + offset) * content.itemsize, 0xFF, np.uint8).view(content.dtype)
            self.guarded[name] = room
            self.views[name] = room[GUARD + offset : GUARD + offset + content.size]
            self.views[name][:] = content
        addresses = {name: view.ctypes.data for name, view in self.views.items()}
        self.segment = Segment(str(param.dtype), state, size=param.size, first=first, key=key, **addresses)

    def check_guards(self):
        for name, room in self.guarded.items():
            begin, end = GUARD + self.offset, GUARD + self.offset + self.views[name].size
            assert (room[:begin].view(np.uint8) == 0xFF).all(), f"{name}: written in front of it"
            assert (room[end:].view(np.uint8) == 0xFF).all(), f"{name}: written past its end"


def run(kernels, param, grads, hyper=HYPER, offset=0):
    """Runs steps on one variable, whose state has the dtype of the arithmetic. Returns its arrays by name."""
    buffers = Buffers(param, offset=offset)
    table = kernels.Table([buffers.segment])
    for grad in grads:
        buffers.views["grad"][:] = grad
        table.update(hyper)
    buffers.check_guards()
    return buffers.views


def as_bits(array):
    """Returns an array as integers, to compare NaNs and signed zeros exactly."""
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def address_of(number):
    """Returns a float64 in memory and its address."""
    held = ctypes.c_double(number)
    return held, ctypes.addressof(held)
