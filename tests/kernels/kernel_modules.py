"""The kernels of the CPU that there are on this machine: NumPy's, and each instruction set's; and how tests call them."""

import ctypes

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Hyper, Segment, cpu, real_dtype, reference

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
    """``threads(n)``: large updates run in n threads from now on, also where there are fewer cores."""

    def use(count):
        monkeypatch.setattr(cpu._Args, "update_threads", lambda args, most=None: args.set(threads=count))

    return use


def compiled(test):
    """Leaves a test out where there is no compiled library."""
    return pytest.mark.skipif(cpu.library is None, reason="the compiled CPU kernels are not here")(test)


class Buffers:
    """The arrays of a variable, each between guards of NaN, off alignment by ``offset`` elements."""

    def __init__(self, param, state=None, master=False, offset=0, first=0, key=0):
        state = real_dtype(param.dtype) if state is None else state
        contents = {"param": param, "grad": np.full_like(param, np.nan)}
        contents |= {name: np.zeros(param.size, state) for name in STATE}
        contents |= {"master": param.astype(np.float32)} if master else {}
        self.guarded, self.views, self.offset = {}, {}, offset
        for name, content in contents.items():
            room = np.full(content.size + 2 * GUARD + offset, np.nan, content.dtype)
            self.guarded[name] = room
            self.views[name] = room[GUARD + offset : GUARD + offset + content.size]
            self.views[name][:] = content
        address = {name: view.ctypes.data for name, view in self.views.items()}
        five = {name: address[name] for name in STATE}
        self.segment = Segment(
            str(param.dtype),
            str(np.dtype(state)),
            address["param"],
            address["grad"],
            param.size,
            master=address.get("master", 0),
            first=first,
            key=key,
            **five,
        )

    def check_guards(self):
        for name, room in self.guarded.items():
            begin, end = GUARD + self.offset, GUARD + self.offset + self.views[name].size
            assert np.isnan(room[:begin].astype(np.float64)).all(), f"{name}: written in front of it"
            assert np.isnan(room[end:].astype(np.float64)).all(), f"{name}: written past its end"


def run(kernels, param, grads, hyper=HYPER, offset=0):
    """Steps on one variable with the state of the arithmetic's dtype; returns its arrays by name."""
    buffers = Buffers(param, offset=offset)
    table = kernels.Table([buffers.segment])
    for grad in grads:
        buffers.views["grad"][:] = grad
        table.update(hyper)
    buffers.check_guards()
    return buffers.views


def as_bits(array):
    """Of an array as integers, so that every NaN and both zeros count."""
    return array.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def address_of(number):
    """A float64 in memory, and its address."""
    held = ctypes.c_double(number)
    return held, ctypes.addressof(held)
