"""The rule on CUDA gives the bits of the formula and of the CPU, also at the limits of the dtypes."""

import ctypes

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, RMSPropGraves
from puzzlelib_rmsprop.errors import NonFiniteError
from puzzlelib_rmsprop.kernels import Hyper, StepOptions, cpu, layout, real_dtype
from tests.cuda.variables import HYPER, Buffers, stored
from tests.reference import Reference
from tests.standins import Net

each_kind = pytest.mark.parametrize(
    ("dtype", "state", "master"), layout.KINDS, ids=lambda part: {True: "master", False: "alone"}.get(part, part)
)


class Pair:
    """A variable on the device and the same variable on the CPU."""

    def __init__(self, kernels, param, dtype, state, master=False):
        self.device = Buffers(np.asarray(param).astype(dtype), state, master=master)
        self.host = self.device.get()
        addresses = {name: content.ctypes.data for name, content in self.host.items()}
        self.tables = [
            kernels.Table([self.device.segment(key=77)]),
            cpu.chosen().Table([self.device.segment(key=77)._replace(**addresses)]),
        ]

    def set(self, name, content):
        self.host[name][...] = np.asarray(content).astype(self.host[name].dtype)
        self.device.set(name, self.host[name])

    def step(self, hyper, **options):
        for table in self.tables:
            table.update(hyper, options=StepOptions(**options))

    def check(self, *what):
        """Compares all buffers bit for bit."""
        for name, content in self.device.get().items():
            assert content.tobytes() == self.host[name].tobytes(), (name, content, self.host[name], *what)

    def check_edge(self, *what):
        """As check(), for subnormal results: in float64, CUDA keeps subnormal intermediate results, the CPU flushes them."""
        if self.device.guarded[0].dtype != np.float64:
            self.check(*what)
            return
        tiny = np.finfo(np.float64).tiny
        for name, content in self.device.get().items():
            assert (np.abs(content - self.host[name]) <= 4 * tiny).all(), (name, content, self.host[name], *what)
            assert name == "grad" or not ((content != 0) & (np.abs(content) < tiny)).any(), (name, content, *what)


# ------------------------------------------------------------------------------------------- ordinary numbers


@each_kind
def test_the_bits_of_the_cpu(kernels, dtype, state, master):
    rng = np.random.default_rng(0)
    pair = Pair(kernels, rng.standard_normal(3001), dtype, state, master)
    for t in range(6):
        pair.set("grad", rng.standard_normal(3001) * 10.0 ** rng.integers(-4, 5, 3001))
        pair.step(Hyper(**HYPER), seed=(t, 5 * t))
        pair.check(t)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_bits_of_the_formula(kernels, dtype):
    rng = np.random.default_rng(1)
    param = rng.standard_normal(700).astype(dtype)
    pair = Pair(kernels, param, dtype, real_dtype(dtype).name)
    expected = Reference(param, dtype=real_dtype(dtype), stored=stored(dtype))
    for _ in range(5):
        grad = rng.standard_normal(700).astype(dtype)
        pair.set("grad", grad)
        pair.step(Hyper(**HYPER))
        expected.step(grad, **HYPER)
    found = pair.device.get()
    for name, content in expected.buffers().items():
        assert np.array_equal(found[name].astype(content.dtype), content), name


@each_kind
def test_not_centered(kernels, dtype, state, master):
    rng = np.random.default_rng(2)
    pair = Pair(kernels, rng.standard_normal(400), dtype, state, master)
    for t in range(3):
        pair.set("grad", rng.standard_normal(400))
        pair.step(Hyper(**HYPER, centered=False), seed=(t, 1))
        pair.check(t)
    assert not pair.host["mg"].astype(np.float64).any()
    assert pair.host["variance"].astype(np.float64).all()


# ------------------------------------------------------------------------------------------- subnormal numbers


ALPHA = {"alpha": 0.75, "momRate": 0.75}  # 0.75 of the smallest number rounds back to it


@pytest.mark.parametrize(
    ("dtype", "state", "steps"),
    [("float32", "float32", 320), ("float16", "float32", 320), ("float32", "bfloat16", 320), ("float64", "float64", 2600)],
)
def test_a_decaying_state_has_the_bits_of_the_cpu_and_ends_in_zeros(kernels, dtype, state, steps):
    pair = Pair(kernels, np.zeros(9), dtype, state)
    hyper = Hyper(**(HYPER | ALPHA))
    pair.set("grad", [1.0, -1.0, 0.3, 2.0, -5e-3, 1e-4, 7.0, -0.1, 0.0])
    pair.step(hyper)
    pair.set("grad", 0.0)
    for t in range(steps):
        pair.step(hyper, seed=(t, 3))
        if t > steps - 300:
            pair.check_edge(t)
    for name in ("mg", "variance", "delta"):
        assert not pair.device.get()[name].astype(np.float64).any(), name


@each_kind
def test_subnormal_gradients_and_parameters(kernels, dtype, state, master):
    tiny = {"float64": 2.0**-1022, "float16": 2.0**-14}.get(dtype, 2.0**-126)
    edge = np.array([1.0, 0.999, 0.5, 1e-3, 0.0, 1.001, 2.0]) * tiny
    edge = np.concatenate([edge, -edge, [1.0]])
    pair = Pair(kernels, np.tile(edge, edge.size), dtype, state, master)
    pair.set("grad", np.repeat(edge, edge.size))
    for t in range(3):
        pair.step(Hyper(**(HYPER | {"learnRate": 1.0})), seed=(t, 4))
        pair.check_edge(t)


@each_kind
def test_subnormal_state(kernels, dtype, state, master):
    # as loaded from a file
    tiny = 2.0**-1022 if dtype == "float64" else 2.0**-126
    edge = np.array([1.5, 0.75, 0.1, -0.75, -2.0, 0.0]) * tiny
    pair = Pair(kernels, np.ones(edge.size), dtype, state, master)
    for name in ("mg", "variance", "delta"):
        if state == "int8":  # the smallest numbers of the least scale
            pair.set(name, [1, 2, 3, 4, 0, 128])
        else:
            pair.set(name, np.abs(edge) if name == "variance" else edge)
    if state == "int8":
        pair.set("scales", 20)
    pair.set("grad", 0.0)
    pair.step(Hyper(**(HYPER | ALPHA)), seed=(1, 2))
    pair.check_edge()


# ------------------------------------------------------------------------------------- NaN, infinity, overflow


@each_kind
def test_a_nan_is_the_same_on_both(kernels, dtype, state, master):
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0, 3e38 if dtype == "float32" else 1.0])
    pair = Pair(kernels, np.ones(values.size), dtype, state, master)
    pair.set("grad", values)
    pair.step(Hyper(**HYPER), seed=(7, 8))
    for name, content in pair.device.get().items():
        found, expected = content.astype(np.float64), pair.host[name].astype(np.float64)
        assert np.array_equal(found, expected, equal_nan=True), name
        if content.dtype.itemsize == 2 and name != "grad":  # the same NaN, whatever the sign and the device
            for bits in (content.view(np.uint16), pair.host[name].view(np.uint16)):
                nan = 0x7E00 if content.dtype == np.float16 else 0x7FC0
                assert set(bits[np.isnan(found)].tolist()) <= {nan}, name
                assert bits[np.isnan(found)].size >= 2, name


@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e22), ("float32", 1e20), ("bfloat16", 1e20), ("float64", 1e155)])
def test_a_guard_trips_where_the_square_is_not_finite(cuda, globalState, dtype, large):
    net = Net(a=cuda.var(np.ones(5, dtype)), b=cuda.var(np.ones(70, dtype)))
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(NonFiniteGuard("raise"))
    optimizer.setupOn(net, globalState)
    grad = np.ones(70)
    grad[66] = large
    cuda.put(net.getVar("b").grad, grad)
    with pytest.raises(NonFiniteError, match="of 'b'; nothing was updated"):
        optimizer.update()
    for var in net.vars.values():
        assert (var.data.get() == 1).all()


def test_a_gradient_whose_square_overflows_is_clipped(cuda, globalState):
    net = Net(a=cuda.var(np.zeros(3)))
    optimizer = RMSPropGraves(**HYPER)
    clipping = GradientClipping(1.0)
    optimizer.addHook(clipping)
    optimizer.setupOn(net, globalState)
    cuda.put(net.getVar("a").grad, [3e155, 0.0, 4e155])
    optimizer.update()
    assert np.isclose(clipping.norm, 5e155, rtol=1e-15, atol=0)
    expected = Reference(np.zeros(3))
    expected.step(np.array([0.6, 0.0, 0.8]), **HYPER)
    assert np.allclose(net.getVar("a").data.get(), expected.param, rtol=1e-12, atol=0)


def test_gradients_that_are_summed_leave_the_cpus_mode_alone(kernels):
    # the simulator runs kernels in this process, and sets the processor to flush subnormal numbers
    pair = Pair(kernels, np.ones(4), "float32", "float32")
    pair.set("grad", 1.0)
    pair.step(Hyper(**HYPER))
    pair.check()
    tiny = ctypes.c_float(2.0**-140)
    assert float(np.float32(tiny.value) * np.float32(2.0)) == 2.0**-139
