"""What the CUDA kernels do besides the rule, bit for bit beside tests/reference_extras.py; on a GPU or on the simulator."""

import struct

import numpy as np
import pytest

from puzzlelib_rmsprop.errors import DeviceError, SetupError
from puzzlelib_rmsprop.kernels import (
    CLIP,
    DECAY,
    LASSO,
    PLAIN,
    SCALE,
    Hyper,
    Operation,
    ScalingPolicy,
    StepOptions,
    cpu,
    layout,
    real_dtype,
)
from tests import reference_extras
from tests.cuda.test_kernels import HYPER, Buffers, chunk, fails_with, size_of
from tests.reference_extras import Extended, Statistics, applied, numbers

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ["float16", "bfloat16", "float32", "float64"]
COMBINATIONS = layout.KINDS
each_combination = pytest.mark.parametrize(
    ("dtype", "state", "master"), COMBINATIONS, ids=lambda part: {True: "master", False: "alone"}.get(part, part)
)
OPS = {
    "scale": [Operation(SCALE, 0.37)],
    "clip": [Operation(CLIP, -0.5, 0.25)],
    "decay": [Operation(DECAY, 0.3)],
    "lasso": [Operation(LASSO, -0.2)],
    "all": [Operation(SCALE, 1.7), Operation(DECAY, -0.11), Operation(CLIP, -0.9, 1.1), Operation(LASSO, 0.05)],
    "eight": [
        Operation(CLIP, -2, 2),
        Operation(DECAY, 0.1),
        Operation(SCALE, 3),
        Operation(DECAY, -0.2),
        Operation(CLIP, -1, 1.5),
        *[Operation(SCALE, 0.9)] * 3,
    ],
}


@pytest.fixture
def kernels(cuda):
    from puzzlelib_rmsprop.kernels import cuda as module

    module.function("layout")  # loads them, which takes a launch of its own
    return module


class Device:
    """A few numbers on the device."""

    def __init__(self, content):
        from pycuda import gpuarray as device

        self.array = device.to_gpu(np.atleast_1d(content))
        self.address = int(self.array.gpudata)

    def get(self):
        return self.array.get()


def plain(ops, contents=None):
    """Operations as the reference takes them; ``contents`` by address."""
    return [(op.kind, op.value, op.other, (contents or {}).get(op.address)) for op in ops]


def same(found, expected, what=""):
    """Bit for bit but for the payload of a NaN and the sign of a zero; ``expected`` is of the arithmetic's dtype."""
    found = np.asarray(found).astype(expected.dtype)
    differ = ~((found == expected) | (np.isnan(found) & np.isnan(expected)))
    assert not differ.any(), f"{what}: {differ.sum()} of {differ.size} differ, first at {np.argwhere(differ)[0]}"


class Variable:
    """One on the device and in the reference."""

    def __init__(self, size, dtype, state, master=False, offsets=(0,) * 5, seed=0, **more):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.state = dtype, state
        param = self.rng.standard_normal(size).astype(dtype)
        self.buffers = Buffers(param, state, offsets, master)
        self.expected = Extended(param, dtype, state, master, **more)
        self.named = {name: more[name] for name in ("first", "key") if name in more}

    def segment(self):
        return self.buffers.segment(**self.named)

    def new_grad(self):
        self.grad = self.rng.standard_normal(self.buffers.size).astype(self.dtype)
        self.buffers.set_grad(self.grad)

    def step(self, ops=(), **more):
        self.expected.step(self.grad, **HYPER, ops=plain(ops), **more)

    def check(self, zeroed=False):
        found = self.buffers.get()
        for name, content in self.expected.buffers().items():
            same(found[name], content, name)
        assert np.array_equal(found["grad"], np.zeros_like(self.grad) if zeroed else self.grad), "grad"


def table_of(kernels, *variables, rates=True):
    table = kernels.Table([v.segment() for v in variables])
    if rates:
        table.set_rates([(*v.expected.rates, v.expected.wc) for v in variables])
    return table


# ---------------------------------------------------------------------------------------------- the update


@each_combination
@pytest.mark.parametrize("size", [0, 1, 7, 257, 1025, "chunk-1", "chunk", "chunk+1", "3chunk+5"])
def test_every_combination(kernels, dtype, state, master, size):
    variable = Variable(size_of(size), dtype, state, master, wc=0.3, key=0xDEADBEEF, rates=(0.5, 0.75))
    table = table_of(kernels, variable)
    ops = tuple(OPS["all"])
    for t in range(3):
        seed = (17 * t, 2**32 - 1 - t)
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(operations=ops, zeroGrad=t % 2 == 1, seed=seed))
        variable.step(ops, seed=seed)
        variable.check(zeroed=t % 2 == 1)


@each_combination
def test_every_alignment(kernels, dtype, state, master):
    arrays = 6 if master else 5
    together = [(k,) * arrays for k in (1, 3, 4, 8)]
    apart = [tuple(k if i == j else 0 for j in range(arrays)) for i in range(arrays) for k in (1, 4)]
    for seed, offsets in enumerate(together + apart):
        variable = Variable(517, dtype, state, master, offsets, seed, wc=1.0)
        table = table_of(kernels, variable)
        for zero in (False, True):
            variable.new_grad()
            table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(DECAY, -0.1),), zeroGrad=zero))
            variable.step([Operation(DECAY, -0.1)])
            variable.check(zero)


@each_combination
def test_as_the_plain_kernels_where_there_is_nothing_else(kernels, dtype, state, master):
    # what the rule gives, from another entry point; where there is no plain one, from the reference alone
    variables = [Variable(1234, dtype, state, master) for _ in range(2)]
    for variable, options in zip(
        variables, (StepOptions(), StepOptions(seed=(0, 1)) if state != "bfloat16" else StepOptions()), strict=True
    ):
        table = table_of(kernels, variable)
        for _ in range(3):
            variable.new_grad()
            table.update(Hyper(**HYPER), options=options)
            variable.step()
        variable.check()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("wc", [0.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_in_the_update(kernels, name, wc, dtype):
    variable = Variable(300, dtype, "float64" if dtype == "float64" else "float32", wc=wc)
    table = table_of(kernels, variable)
    for _ in range(2):
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(operations=tuple(OPS[name])))
        variable.step(OPS[name])
        variable.check()


@pytest.mark.parametrize("entry", ["alone", "fused"])
def test_a_factor_in_device_memory(kernels, entry):
    # read when the kernel runs; multiplied in double and rounded once
    content = Device(np.float64(1 / 3))
    ops = (Operation(SCALE, 1e-3, address=content.address), Operation(SCALE, 2.0))
    variable = Variable(300, "float32", "float32")
    table = table_of(kernels, variable)
    for value in (1 / 3, 0.7, np.nan):
        content.array.set(np.array([value]))
        variable.new_grad()
        expected = plain(ops, {content.address: value})
        if entry == "fused":
            table.update(Hyper(**HYPER), options=StepOptions(operations=ops))
            variable.expected.step(variable.grad, **HYPER, ops=expected)
            variable.check()
        else:
            kernels.operate(variable.segment(), 0.0, ops)
            same(variable.buffers.get()["grad"], applied(expected, variable.grad, variable.grad, 0.0))


def test_new_operations_are_packed_and_old_ones_forgotten(kernels):
    variable = Variable(100, "float32", "float32", wc=1.0)
    table = table_of(kernels, variable)
    for ops in (OPS["all"], OPS["scale"], [], OPS["eight"], OPS["clip"]):
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(operations=tuple(ops), zeroGrad=True))
        variable.step(ops)
        variable.check(zeroed=True)
    variable.new_grad()
    table.update(Hyper(**HYPER))
    variable.step()
    variable.check()


def test_many_rows_each_with_its_own(kernels, monkeypatch):
    # one block goes from row to row, so that nothing of the last one may stay with it
    for blocks in (1, 1000):
        monkeypatch.setattr(kernels, "_most_blocks", lambda blocks=blocks: blocks)
        for dtype, state, master in (("float32", "float32", False), ("bfloat16", "bfloat16", True)):
            rng = np.random.default_rng(3)
            variables = [
                Variable(
                    size, dtype, state, master, (i % 3,) * 5, i,
                    wc=[0.0, 0.5, 1.0, -1.0][i % 4], key=i * 0x1234567, first=i * 1000, rates=tuple(rng.random(2)),
                )
                for i, size in enumerate([5, 0, 300, chunk() + 3, 1, 40, 2 * chunk(), 9])
            ]  # fmt: skip
            table = table_of(kernels, *variables)
            for _ in range(2):
                for variable in variables:
                    variable.new_grad()
                    variable.step(OPS["all"], seed=(3, 4))
                table.update(Hyper(**HYPER), options=StepOptions(operations=tuple(OPS["all"]), seed=(3, 4)))
            for variable in variables:
                variable.check()


def test_changed_rates_and_decays(kernels, request):
    variables = [Variable(n, "float32", "float32", seed=n) for n in (30, 50)]
    table = table_of(kernels, *variables, rates=False)
    for rates, wc in (((1.0, 1.0), 0.0), ((0.5, 1.0), 0.0), ((0.5, 1.0), 2.0), ((0.5, 1.0), 0.0), ((2.0, 0.5), 1.0)):
        table.set_rates([(*rates, wc)] * 2)
        for options in (StepOptions(operations=(Operation(DECAY, 0.1),)), PLAIN):
            for variable in variables:
                variable.expected.rates, variable.expected.wc = rates, wc
                variable.new_grad()
                variable.step(options.operations)
            table.update(Hyper(**HYPER), options=options)
            for variable in variables:
                variable.check()


def test_a_step_repacks_nothing(kernels, simulator):
    variables = [Variable(n, "bfloat16", "bfloat16", True, seed=n) for n in (30, 50)]
    table = table_of(kernels, *variables)
    table.update(Hyper(**HYPER), options=StepOptions(seed=(1, 2)))
    simulator.reset()
    for t in range(4):
        table.update(
            Hyper(**HYPER), options=StepOptions(operations=(Operation(SCALE, 0.5 + t),), zeroGrad=t > 1, seed=(t, t))
        )
    counts = simulator.counters()
    assert (counts["copies"], counts["allocations"], simulator.blocking()) == (0, 0, [])
    assert [launch["name"] for launch in simulator.launches()] == ["graves_extras_bfloat16_bfloat16_master"] * 4
    simulator.reset()
    table.set_rates([(1.0, 0.5, 1.0)] * 2)
    table.update(Hyper(**HYPER))
    assert simulator.counters()["copies"] == 1, "the rows, not the chunks"


@each_combination
@pytest.mark.parametrize("zero", [False, True])
def test_a_skipped_step(kernels, dtype, state, master, zero):
    flag = Device(np.zeros(1, np.uint32))
    variable = Variable(chunk() + 77, dtype, state, master, (1,) * 5, wc=1.0)
    table = table_of(kernels, variable)
    for skip in (0, 1, 0x80000000, 0):
        flag.array.set(np.array([skip], np.uint32))
        variable.new_grad()
        before = {name: content.tobytes() for name, content in variable.buffers.get().items() if name != "grad"}
        table.update(
            Hyper(**HYPER),
            options=StepOptions(operations=(Operation(DECAY, 1.0),), zeroGrad=zero, skip=flag.address, seed=(5, 6)),
        )
        variable.step([Operation(DECAY, 1.0)], skip=skip, seed=(5, 6))
        variable.check(zeroed=zero)
        after = {name: content.tobytes() for name, content in variable.buffers.get().items() if name != "grad"}
        assert (before == after) == bool(skip)


def test_nan_and_infinity_stay(kernels):
    for state in ("float32", "bfloat16"):
        variable = Variable(6, "float32", state)
        table = table_of(kernels, variable)
        variable.grad = np.array([1.0, np.nan, np.inf, -np.inf, 3e38, -np.nan], np.float32)
        variable.buffers.set_grad(variable.grad)
        seed = (7, 8)
        table.update(Hyper(**HYPER), options=StepOptions(seed=seed, operations=(Operation(SCALE, 1.0),)))
        variable.step([Operation(SCALE, 1.0)], seed=seed)
        found = variable.buffers.get()
        for name, content in variable.expected.buffers().items():
            same(found[name], content, name)
        # 3e38 overflows in its square
        assert np.isfinite(found["mg"].astype(np.float32)).tolist() == [True, False, False, False, True, False]
        assert np.isinf(found["mg"].astype(np.float32)).tolist() == [False, False, True, True, False, False]


# -------------------------------------------------------------------------------------------- master copies


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_steps_add_up_in_a_master_copy(kernels, dtype):
    variables = [Variable(64, dtype, "float32", master) for master in (False, True)]
    for variable in variables:
        variable.buffers.set("param", 1.0)
        table = table_of(kernels, variable)
        variable.buffers.set_grad(1.0)
        for _ in range(50):
            table.update(Hyper(1e-5, 0.95, 0.0, 1e-4), options=StepOptions(seed=(1, 1)))
    alone, kept = (variable.buffers.get() for variable in variables)
    assert (alone["param"] == 1).all(), "each step is less than half a unit"
    assert (kept["master"] > 1.001).all()
    assert np.array_equal(kept["param"], kept["master"].astype(dtype))


@pytest.mark.parametrize(("dtype", "state"), [(dtype, state) for dtype, state, master in COMBINATIONS if master])
def test_a_parameter_that_the_user_wrote(kernels, dtype, state):
    variable = Variable(700, dtype, state, True, wc=1.0)
    table = table_of(kernels, variable)
    for t in range(4):
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(DECAY, -0.5),), seed=(t, 0)))
        variable.step([Operation(DECAY, -0.5)], seed=(t, 0))
        variable.check()
        # some of them; one NaN, one as it is, one zero of the other sign
        written = variable.buffers.get()["param"]
        written[t:600:7] = np.linspace(-3, 3, written[t:600:7].size)
        written[650 + t] = np.nan
        variable.buffers.set("param", written)
        variable.expected.param = written.astype(np.float32)


# ------------------------------------------------------------------------------------------ random rounding


@pytest.mark.parametrize("first", [2**32 - 3000, 2**32 - 1, 2**32, 2**33 - 5, 2**40 + 12345])
def test_indices_of_64_bits_name_random_numbers(kernels, first):
    variable = Variable(chunk() + 500, "float32", "bfloat16", first=first, key=77)
    table = table_of(kernels, variable)
    for t in range(2):
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(seed=(t, 9)))
        variable.step(seed=(t, 9))
        variable.check()


def test_a_variable_of_more_than_2_33_elements(kernels):
    # its last chunk, of which alone there is memory
    from pycuda import driver

    far = 1 << 33
    variable = Variable(500, "float32", "bfloat16", first=far + 3, key=5, wc=1.0)
    segments = layout.pack_segments([variable.segment()])
    for i, name in enumerate(("param", "grad", "mg", "variance", "delta")):
        segments[name] -= np.uint64(far * variable.buffers.guarded[i].dtype.itemsize)
    segments["size"], segments["wc"], segments["first"] = far + 500, 1.0, 3
    chunks = np.zeros(1, layout.CHUNKS)
    chunks["index"] = far // layout.CHUNK
    held = [driver.to_device(segments), driver.to_device(chunks)]
    variable.new_grad()
    hyper = layout.pack_hyper(Hyper(**HYPER), np.dtype(np.float32))
    arguments = struct.pack("=6d4Q", *hyper, 0, int(held[0]), int(held[1]), 1)
    arguments += layout.pack_options(StepOptions(tuple(OPS["all"]), zeroGrad=True, seed=(21, 22)))
    function = kernels.function("graves_extras_float32_bfloat16")
    function._launch_kernel((1, 1), (kernels.THREADS, 1, 1), arguments, 0, None)
    variable.step(OPS["all"], seed=(21, 22))
    variable.check(zeroed=True)


def test_random_rounding_is_fair(kernels):
    # a state between two bfloat16, stored many times: right on average, and neighbours in memory, in time and in name apart
    size, steps = 4096, 24
    exact = np.float32(1 + 0.3 * 2**-7)
    ups = []
    for key in (0, 1):
        variable = Variable(size, "float32", "bfloat16", key=key)
        table = table_of(kernels, variable)
        for t in range(steps):
            for name in ("mg", "variance", "delta"):
                variable.buffers.set(name, 0.0)
            variable.buffers.set_grad(exact)
            # alpha 0 and momRate 0: mg = g, variance = 0, delta = learnRate * g / sqrt(epsilon)
            table.update(Hyper(1.0, 0.0, 0.0, 1.0), options=StepOptions(seed=(1000 + t, 0xABCDEF * t & 0xFFFFFFFF)))
            found = variable.buffers.get()
            for name in ("mg", "delta"):
                up = found[name].astype(np.float32) > 1.004
                assert np.isin(found[name].astype(np.float32), [1.0, 1 + 2**-7]).all()
                ups.append(up)
    up = np.array(ups, np.float64).reshape(2, steps, 2, size)  # key, step, buffer, element
    share = up.mean()
    # five standard deviations of what independent throws with probability 0.3 give
    assert abs(share - 0.3) < 5 * np.sqrt(0.21 / up.size)
    error = (up - 0.3) / np.sqrt(0.21)
    apart = {
        "neighbours": error[..., 1:] * error[..., :-1],
        "every 32nd": error[..., 32:] * error[..., :-32],
        "steps": error[:, 1:] * error[:, :-1],
        "variables": error[0] * error[1],
        "mg and delta": error[:, :, 0] * error[:, :, 1],
    }
    for what, products in apart.items():
        assert abs(products.mean()) < 5 / np.sqrt(products.size), what


def test_random_numbers_are_uniform():
    # of the reference, which the kernels meet bit for bit
    for seed in ((0, 0), (1, 0), (0, 1), (123, 456)):
        for r in numbers(seed, 42, 2**32 - 50_000, 100_000):
            assert abs(r.mean() - 32767.5) < 5 * 65536 / np.sqrt(12 * r.size)
            counts = np.bincount(r.astype(np.int64) >> 8, minlength=256)
            assert np.abs(counts - r.size / 256).max() < 5 * np.sqrt(r.size / 256)


def test_errors_of_many_steps_do_not_add_up(kernels):
    # to nearest, a decay of mg by less than half a unit a step would stop; at random it goes on
    variable = Variable(2000, "float32", "bfloat16")
    table = table_of(kernels, variable)
    variable.buffers.set_grad(0.0)
    variable.buffers.set("mg", 1.0)
    for t in range(40):
        table.update(Hyper(0.0, 0.999, 0.0, 1.0), options=StepOptions(seed=(t, 3)))
    mean = variable.buffers.get()["mg"].astype(np.float64).mean()
    # a step's error is at most a unit of 2**-8, so that the mean of 2000 has a deviation below 40**0.5 * 2**-8 / 2000**0.5
    assert abs(mean - 0.999**40) < 5 * np.sqrt(40 / 2000) * 2**-8
    assert reference_extras.bfloat16(np.float32(0.999)) == 1


# --------------------------------------------------------------------------------------- unfused operations


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, -6e4, 1.0]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offsets", [(0, 0), (3, 3), (1, 0)])
def test_operations_alone(kernels, name, dtype, offsets):
    for size in (0, 1, 77, 3001):
        for wc in (0.0, 0.7, -1.0):
            rng = np.random.default_rng(size)
            y, x = rng.standard_normal((2, size)).astype(dtype)
            if size > 70:
                y[:64], x[:64] = np.repeat(SPECIAL, 8), np.tile(SPECIAL, 8)
            buffers = Buffers(x, real_dtype(dtype), (*offsets, 0, 0, 0))
            buffers.set_grad(y)
            kernels.operate(buffers.segment(), wc, tuple(OPS[name]))
            real = np.dtype(np.float64 if dtype == "float64" else np.float32)
            expected = applied(plain(OPS[name]), y.astype(real), x.astype(real), wc)
            found = buffers.get()
            same(found["grad"], reference_extras.nearest(expected, dtype), name)
            same(found["param"], x.astype(real))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_operations_alone_see_the_master_copy(kernels, dtype):
    variable = Variable(700, dtype, "float32", True)
    fine = variable.expected.param * np.float32(1 + 1e-4)
    variable.buffers.set("master", fine)
    written = np.where(np.arange(700) % 5 == 0, np.float32(0.125), fine.astype(dtype).astype(np.float32))
    variable.buffers.set("param", written)
    variable.new_grad()
    kernels.operate(variable.segment(), 0.5, tuple(OPS["decay"]))
    seen = np.where(np.arange(700) % 5 == 0, np.float32(0.125), fine)
    expected = applied(plain(OPS["decay"]), variable.grad.astype(np.float32), seen, 0.5)
    same(variable.buffers.get()["grad"], reference_extras.nearest(expected, dtype))


def test_too_many_operations(kernels):
    ops = (Operation(SCALE, 1.0),) * 9
    variable = Variable(5, "float32", "float32")
    table = table_of(kernels, variable)
    for call in (
        lambda: table.update(Hyper(**HYPER), options=StepOptions(operations=ops)),
        lambda: kernels.operate(variable.segment(), 0.0, ops),
    ):
        with pytest.raises(SetupError, match="at most 8 operations in one step; got 9"):
            call()


def test_another_layout_is_refused(kernels, monkeypatch):
    from puzzlelib_rmsprop.errors import DependencyError

    module = kernels._module("rmsprop_graves")
    kernels._check_layout(module)
    right = layout._numbers()
    for wrong in (right[:-1], [*right, 0], [right[0] + 8, *right[1:]]):
        monkeypatch.setattr(layout, "_numbers", lambda wrong=wrong: wrong)
        with pytest.raises(DependencyError, match="the CUDA kernels was compiled from other sources"):
            kernels._check_layout(module)


# ----------------------------------------------------------------------------------------------- statistics


class Measured:
    """Gradients on the device, and their statistics."""

    def __init__(self, kernels, parts, scale=1.0, master=False, offset=None):
        self.parts = [
            [Variable(size, dtype, real_dtype(dtype).name, master and dtype.endswith("16"),
                      (seed % 3 if offset is None else offset,) * 5, seed)
             for seed, size in enumerate(sizes)]
            for dtype, sizes in parts
        ]  # fmt: skip
        self.variables = [variable for part in self.parts for variable in part]
        for variable in self.variables:
            variable.new_grad()
        record = np.zeros(1, layout.STATISTICS)
        record["scale"] = scale
        self.record = Device(record.view(np.uint8))
        self.statistics = kernels.GradientStatistics([v.segment() for v in self.variables], self.record.address)
        self.run = self.statistics.run

    def get(self):
        return self.record.get().view(layout.STATISTICS)[0]

    def set(self, variable, at, value):
        variable.grad[at] = value
        variable.buffers.set_grad(variable.grad)

    def set_decays(self, wc):
        self.statistics.set_decays([wc] * len(self.variables))

    def gradients(self, ops=(), wc=0.0):
        return [applied(plain(ops), v.grad.astype(v.expected.real), v.expected.param, wc) for v in self.variables]


def check_record(found, expected):
    # a sum of n positive numbers in any order of pairs: n * 1e-16 at the very most, here some thousands
    for name in ("norm", "factor"):
        assert np.isclose(found[name], getattr(expected, name), rtol=1e-12, atol=0, equal_nan=True), name
    for name in ("scale", "unscale", "bad", "good", "skipped"):
        assert found[name] == getattr(expected, name), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(kernels, dtype):
    for sizes in ([], [0], [1], [7, 0, 255], [chunk() - 1, chunk(), chunk() + 1], [3 * chunk() + 5, 2]):
        measured = Measured(kernels, [(dtype, sizes)])
        expected = Statistics()
        for limit in (np.inf, 0.5, 1e9):
            measured.run(policy=ScalingPolicy(limit=limit))
            expected.run(measured.gradients(), limit=limit)
            check_record(measured.get(), expected)


def test_statistics_of_several_dtypes(kernels):
    measured = Measured(kernels, [("float32", [50, 9000]), ("bfloat16", [3]), ("float64", []), ("float16", [0, 20000])])
    expected = Statistics()
    measured.run()
    expected.run(measured.gradients())
    check_record(measured.get(), expected)


@pytest.mark.parametrize("name", ["all", "clip", "scale"])
@pytest.mark.parametrize("master", [False, True])
def test_statistics_after_operations(kernels, name, master):
    measured = Measured(kernels, [("float32", [50, 9000]), ("float16", [2, 1999])], master=master)
    if master:
        for variable in measured.parts[1]:
            # parameters rounded from what is in the copies, and some that the user wrote
            fine = variable.expected.param * np.float32(1 + 1e-4)
            variable.buffers.set("master", fine)
            written = np.where(np.arange(fine.size) % 5 == 0, np.float32(0.125), fine.astype(np.float16))
            variable.buffers.set("param", written)
            variable.expected.param = np.where(np.arange(fine.size) % 5 == 0, np.float32(0.125), fine)
    expected = Statistics()
    measured.set_decays(0.8)
    measured.run(tuple(OPS[name]))
    expected.run(measured.gradients(OPS[name], 0.8))
    check_record(measured.get(), expected)
    measured.set_decays(0.0)
    measured.run(tuple(OPS[name]))
    expected.run(measured.gradients(OPS[name], 0.0))
    check_record(measured.get(), expected)
    measured.run()
    expected.run(measured.gradients())
    check_record(measured.get(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_finds_every_bad_gradient(kernels, dtype):
    sizes = [3, 2 * chunk() + 13]
    measured = Measured(kernels, [("float32", [40]), (dtype, sizes)])
    expected = Statistics()
    for variable in measured.parts[1]:
        size = variable.buffers.size
        for at in {0, 1, 2, size // 2, size - 14 if size > 14 else 0, size - 2, size - 1}:
            for value in (np.nan, np.inf, -np.inf):
                kept = variable.grad[at]
                measured.set(variable, at, value)
                measured.run(policy=ScalingPolicy(limit=1.0))
                expected.run(measured.gradients(), limit=1.0)
                check_record(measured.get(), expected)
                assert measured.get()["bad"] == 1
                measured.set(variable, at, kept)
        measured.run(policy=ScalingPolicy(limit=1.0))
        assert measured.get()["bad"] == 0
        expected.run(measured.gradients(), limit=1.0)


def test_a_square_that_overflows_is_a_bad_gradient(kernels):
    # in the dtype of the arithmetic: the variance is made of squares
    for dtype, fine, too_large in (("float32", 1e19, 1e20), ("bfloat16", 1e19, 1e20), ("float64", 1e154, 1e155)):
        measured = Measured(kernels, [(dtype, [100])])
        for value, bad in ((fine, 0), (too_large, 1)):
            measured.set(measured.variables[0], 99, value)
            measured.run(policy=ScalingPolicy(limit=2.0))
            found = measured.get()
            assert found["bad"] == bad
            stored = float(measured.variables[0].grad[99])
            assert np.isclose(found["norm"], stored, rtol=1e-15, atol=0)
            assert np.isclose(found["factor"], 2.0 / stored, rtol=1e-15, atol=0)


@pytest.mark.parametrize("large", [1e155, 1e300])
def test_a_norm_is_finite_where_squares_are_not(kernels, large):
    measured = Measured(kernels, [("float64", [3 * chunk() + 5, 7])])
    for variable in measured.variables:
        variable.grad[...] = large
        variable.buffers.set_grad(variable.grad)
    measured.run()
    count = 3 * chunk() + 12
    assert np.isclose(measured.get()["norm"], large * np.sqrt(count), rtol=1e-13, atol=0)


def on_the_cpu(measured, operations, policy, wc):
    """The record that the CPU gives of the same gradients."""
    held, segments = [], []
    for variable in measured.variables:
        found = variable.buffers.get()
        held.append(found)
        addresses = {name: found[name].ctypes.data for name in ("param", "grad", "master") if name in found}
        segments.append(variable.segment()._replace(**addresses))
    record = np.zeros(1, layout.STATISTICS)
    record["scale"] = 1.0
    statistics = cpu.chosen().GradientStatistics(segments, record.ctypes.data)
    statistics.set_decays([wc] * len(segments))
    statistics.run(operations, policy)
    return record[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_the_norm_has_the_bits_of_the_cpu(kernels, dtype, offset):
    policy = ScalingPolicy(limit=0.5)
    many = [int(n) for n in np.random.default_rng(1).integers(0, 600, 530)]
    for sizes in ([], [1], [255, 256, 257], [chunk() - 1, chunk(), chunk() + 1], [3 * chunk() + 1333, 2], many):
        measured = Measured(kernels, [(dtype, sizes)], offset=offset)
        if dtype == "float64" and len(sizes) == 3:
            for variable in measured.variables:
                variable.grad[::7] *= 1e170
                variable.buffers.set_grad(variable.grad)
        for name, wc in (("", 0.0), ("all", 0.7)):
            operations = tuple(OPS[name]) if name else ()
            measured.set_decays(wc)
            measured.run(operations, policy)
            found, expected = measured.get(), on_the_cpu(measured, operations, policy, wc)
            for field in ("norm", "factor", "unscale", "bad"):
                assert found[field].tobytes() == expected[field].tobytes(), (sizes[:4], name, field)


@pytest.mark.parametrize("master", [False, True])
def test_the_norm_of_several_dtypes_has_the_bits_of_the_cpu(kernels, master):
    parts = [("float32", [50, 9000]), ("bfloat16", [3]), ("float64", [77]), ("float16", [0, 20000]), ("float32", [8193])]
    measured = Measured(kernels, parts, master=master)
    measured.set_decays(0.3)
    measured.run(tuple(OPS["decay"]))
    expected = on_the_cpu(measured, tuple(OPS["decay"]), ScalingPolicy(), 0.3)
    assert measured.get()["norm"].tobytes() == expected["norm"].tobytes()


def test_statistics_is_the_same_whatever_the_grid(kernels, monkeypatch):
    found = set()
    for blocks in (1, 3, 1000, 1000):
        monkeypatch.setattr(kernels, "_most_blocks", lambda blocks=blocks: blocks)
        measured = Measured(kernels, [("float32", [5 * chunk() + 9, 100]), ("float16", [3000])])
        measured.run()
        found.add(measured.get().tobytes())
    assert len(found) == 1


def test_statistics_of_more_chunks_than_threads_add(kernels):
    count = 2 * layout.CHUNK_LANES + 3
    measured = Measured(kernels, [("float32", [2] * count)])
    expected = Statistics()
    measured.run()
    expected.run(measured.gradients())
    check_record(measured.get(), expected)
    measured.set(measured.variables[-1], 1, np.nan)
    measured.run()
    assert measured.get()["bad"] == 1


def test_loss_scale(kernels):
    measured = Measured(kernels, [("float32", [10])], scale=8.0)
    (variable,) = measured.parts[0]
    expected = Statistics(8.0)
    rng = np.random.default_rng(4)
    judge = {"growth": 2.0, "backoff": 0.25, "interval": 3, "least": 0.5, "most": 64.0}
    scales = set()
    for t in range(120):
        bad = rng.random() < (0.05 if t < 60 else 0.5)
        measured.set(variable, 9, np.inf if bad else 1.0)
        how = judge | ({"interval": 0} if t % 10 == 9 else {})
        measured.run(policy=ScalingPolicy(**how))
        expected.run(measured.gradients(), **how)
        check_record(measured.get(), expected)
        scales.add(expected.scale)
    assert {0.5, 64.0} <= scales
    assert expected.skipped > 20


def test_statistics_neither_waits_nor_allocates(kernels, simulator):
    measured = Measured(kernels, [("float32", [10, 2 * chunk()])])
    measured.run(tuple(OPS["all"]))
    simulator.reset()
    for t in range(3):
        measured.run((Operation(SCALE, t),), ScalingPolicy(limit=2.0 + t))
    counts = simulator.counters()
    assert (counts["copies"], counts["allocations"], simulator.blocking()) == (0, 0, [])
    assert [launch["name"] for launch in simulator.launches()] == ["statistics_float32", "statistics_conclude"] * 3


def test_another_context_is_refused(kernels):
    import pycuda.autoprimaryctx

    measured = Measured(kernels, [("float32", [10])])
    table = table_of(kernels, measured.variables[0])
    other = pycuda.autoprimaryctx.device.make_context()
    try:
        for call in (measured.run, lambda: table.update(Hyper(**HYPER), options=StepOptions(zeroGrad=True))):
            with pytest.raises(DeviceError, match="context that is current is not the one the arrays lie in"):
                call()
    finally:
        other.pop()
        other.detach()


# ------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("seed", range(4))
def test_clipped_and_skipped_on_a_late_stream(kernels, seed, request):
    # survey, then the update that follows its record, all on one stream and none of it waited for
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(seed)
    measured = Measured(kernels, [("float32", [300, 20])])
    variables = measured.parts[0]
    table = table_of(kernels, *variables)
    at = {name: measured.record.address + layout.STATISTICS.fields[name][1] for name in ("factor", "bad")}
    ops = (Operation(SCALE, 1.0, address=at["factor"]),)
    stream = driver.Stream(1)  # CU_STREAM_NON_BLOCKING
    expected = Statistics()
    for t in range(4):
        for variable in variables:
            variable.new_grad()
        if t == 2:
            measured.set(variables[1], 19, np.nan)
        driver.Context.synchronize()
        measured.run(policy=ScalingPolicy(limit=1.5), stream=stream)
        table.update(Hyper(**HYPER), stream=stream, options=StepOptions(operations=ops, skip=at["bad"], zeroGrad=True))
        stream.synchronize()
        expected.run(measured.gradients(), limit=1.5)
        check_record(measured.get(), expected)
        factor = float(measured.get()["factor"])  # in its last bit the kernel's
        for variable in variables:
            variable.expected.step(variable.grad, **HYPER, ops=plain(ops, {ops[0].address: factor}), skip=expected.bad)
            variable.check(zeroed=True)


def test_live_hyper_parameters(kernels):
    live = kernels.LiveHyper()
    variable = Variable(300, "float16", "float32", True)
    table = table_of(kernels, variable, rates=False)
    table.follow(live)
    table.set_rates([(1.0, 1.0, 0.0)])
    for t in range(3):
        hyper = HYPER | {"learnRate": 0.1 * t}
        live.write(Hyper(**hyper))
        variable.new_grad()
        table.update(Hyper(9.0, 0.1, 0.1, 9.0), options=StepOptions(operations=(Operation(SCALE, 0.5),), zeroGrad=True))
        variable.expected.step(variable.grad, **hyper, ops=plain([Operation(SCALE, 0.5)]))
        variable.check(zeroed=True)


def test_a_captured_launch_keeps_its_rows(kernels):
    # its arguments, launched again after the rates have changed
    live = kernels.LiveHyper()
    live.write(Hyper(**HYPER))
    variable = Variable(300, "float32", "float32", rates=(0.5, 0.5))
    table = table_of(kernels, variable, rates=False)
    table.follow(live)
    table.set_rates([(0.5, 0.5, 0.0)])
    variable.new_grad()
    table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(SCALE, 0.5),)))
    captured = table._groups[0][0]._extras
    table.set_rates([(0.0, 0.0, 0.0)])
    table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(SCALE, 0.5),)))
    captured.function._launch_kernel(captured.grid, (kernels.THREADS, 1, 1), captured.arguments, 0, None)
    for rates in ((0.5, 0.5), (0.0, 0.0), (0.5, 0.5)):
        variable.expected.rates = rates
        variable.step([Operation(SCALE, 0.5)])
    variable.check()


def test_the_shipped_ptx_has_every_entry(kernels):
    ptx = kernels.shipped_ptx("rmsprop_graves")
    assert ptx is not None, "run tools/make_ptx.py"
    names = [f"graves_extras_{dtype}_{state}{'_master' * master}" for dtype, state, master in COMBINATIONS]
    names += [f"{kernel}_{dtype}" for kernel in ("statistics", "operate") for dtype in DTYPES]
    for name in [*names, "statistics_conclude", "layout"]:
        assert f".entry {name}(".encode() in ptx


# ------------------------------------------------------------------------------------------- planted faults

RULE, NUMBERS, PYTHON = "kernels/rule.h", "kernels/numbers.h", "kernels/cuda.py"
FAULTS = {
    "operations from the last to the first": (
        "g = operated(by[o].kind, by[o].value, by[o].other, g, p);",
        "g = operated(by[count - 1 - o].kind, by[count - 1 - o].value, by[count - 1 - o].other, g, p);",
    ),
    "decay where wc is not above 0": ("decays && !(wc > 0.0) ?", "decays && wc == 0.0 ?", RULE),
    "decay as if it were lasso": ("return g + value * p;", "return g + value * (p > Real(0) ? Real(1) : Real(-1));", RULE),
    "a clip that swallows NaN": ("g = g < value ? value : g;", "g = g >= value ? g : value;", RULE),
    "a factor rounded before it is multiplied": (
        "Real(operation.value * (decays ? wc : at_address))",
        "Real(operation.value) * Real(decays ? wc : at_address)",
        RULE,
    ),
    "no wait for the last sum": ("    __syncthreads();  // until the last sum", "    // until the last sum"),
    "no wait for the last segment": (
        "        __syncthreads();  // until the last segment",
        "        // until the last segment",
    ),
    "a skip that is not looked at": ("const bool skip = options.skip && *", "const bool skip = false && *"),
    "a skipped step that keeps its gradient": ("if (skip && !options.zeroGrad)", "if (skip)"),
    "a variable's name left out": ("mixed(seeds[0] ^ variable)", "mixed(seeds[0])", NUMBERS),
    "a key that does not follow 2**32": ("element < low ? key_after : key", "key", NUMBERS),
    "state rounded to nearest": (
        "const u32 rounded = (bits + (random & 0xFFFFu)) >> 16;",
        "const u32 rounded = (bits + 0x8000u) >> 16;",
        NUMBERS,
    ),
    "one random number for the whole state": ("store_state(rv, x >> 16, v[k]);", "store_state(rv, x, v[k]);"),
    "parameters of bfloat16 cut off": ("(bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16", "bits >> 16", NUMBERS),
    "a master copy that is not followed": ("== widen(param) ? master :", "!= widen(param) ? master :", RULE),
    "a master copy against the user": (
        "return widen(rounded) == widen(param) ? master : widen(param);",
        "return master;",
        RULE,
    ),
    "no look at the copy's alignment": ("(!Kind::MASTER || skip == ahead<N>(master))", "true"),
    "an infinity that counts as a number": ("return !(g * g - g * g == Real(0));", "return !(g * g == g * g);", RULE),
    "sums in another order": (
        "add(all[threadIdx.x], all[threadIdx.x + half]);",
        "add(all[threadIdx.x], all[2 * half - 1 - threadIdx.x]);",
    ),
    "lanes that are neighbours": (
        "part.begin + threadIdx.x, part.begin + part.size, LANES,",
        "part.begin + 32 * threadIdx.x, part.begin + min(part.size, 32 * threadIdx.x + 32), 1,",
    ),
    "a square that is contracted": ("add(mine, {square(g), ", "add(mine, {fma(double(g), double(g), mine.sum) - mine.sum, "),
    "large squares without their scale": ("root / SHRINK", "root", RULE),
    "a scale without an end": (
        "s.scale * policy.growth > policy.most ? policy.most : s.scale * policy.growth",
        "s.scale * policy.growth",
        RULE,
    ),
    "chunks of every dtype": ("if (!(kinds >> segment.kind & 1))", "if (false)"),
    "operations packed once": (
        "        if operations != self._operations:\n            packed",
        "        if not self._operations:\n            packed",
        PYTHON,
    ),
    "options packed once": ("if options is not self._options:", "if self._options is None:", PYTHON),
    "statistics off their stream": (
        "self._conclude._launch_kernel((1, 1), (layout.CHUNK_LANES, 1, 1), arguments, 0, stream)",
        "self._conclude._launch_kernel((1, 1), (layout.CHUNK_LANES, 1, 1), arguments, 0, None)",
        PYTHON,
    ),
    "segments that a captured launch loses": ("self._former.append(self._on_device)", "pass", PYTHON),
    "another layout that is not refused": (
        '    layout.check_layout(numbers[:count], "the CUDA kernels")\n',
        "    pass\n",
        PYTHON,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, simulator, kernels, tmp_path):
    assert fails_with(FAULTS[fault], tmp_path, "test_extras.py", "not planted and not ptx")
