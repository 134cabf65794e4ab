"""Updates with step options and master weights are bit-identical to tests/reference_extended.py."""

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import DECAY, PLAIN, SCALE, Hyper, Operation, StepOptions
from tests.cuda.extended import COMBINATIONS, OPS, Device, Variable, each_combination, same, table_of
from tests.cuda.variables import HYPER, chunk, size_of


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
    arrays = 5 + master + (state == "int8")
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
@pytest.mark.parametrize("blocks", [1, 1000])
def test_decay_of_the_parameter(kernels, monkeypatch, dtype, state, master, blocks):
    # each segment by its own rates, after the operations and before the step
    monkeypatch.setattr(kernels, "_most_blocks", lambda: blocks)
    rows = (517, 0.5, 1.0), (chunk() + 7, 0.0, 0.5), (33, 1.0, 2.0), (9, -1.0, 1.0), (40, 0.5, 0.25), (300, 1.0, 1.0)
    variables = [Variable(n, dtype, state, master, (n % 3,) * 5, n, wc=wc, key=n, rates=(rate, 0.5)) for n, wc, rate in rows]
    table = table_of(kernels, *variables)
    for t in range(4):
        decay, ops = (0.0, 3.0, 5.0, 5.0)[t], tuple(OPS["all"] if t == 2 else ())
        for variable in variables:
            variable.new_grad()
            variable.step(ops, seed=(t, 1), decay=decay)
        table.update(Hyper(**HYPER), options=StepOptions(operations=ops, seed=(t, 1), decay=decay))
        for variable in variables:
            variable.check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decay_takes_subnormal_numbers_for_zero(kernels, dtype):
    tiny = np.finfo(dtype).tiny
    variable = Variable(5, dtype, dtype, wc=1.0)
    variable.buffers.set("param", np.array([tiny, 20 * tiny, tiny / 2, -0.0, 1.0], dtype))
    variable.buffers.set_grad(0)
    table = table_of(kernels, variable)
    table.update(Hyper(**HYPER), options=StepOptions(decay=0.125 / HYPER["learnRate"]))
    assert variable.buffers.get()["param"].tolist() == [tiny, 17.5 * tiny, 0.0, 0.0, 0.875]


@each_combination
def test_as_the_plain_kernels_where_there_is_nothing_else(kernels, dtype, state, master):
    # the results of the plain kernel, from another kernel; if there is no plain one, only those of the reference
    variables = [Variable(1234, dtype, state, master) for _ in range(2)]
    for variable, options in zip(
        variables,
        (StepOptions(), StepOptions(seed=(0, 1)) if state not in ("bfloat16", "int8") else StepOptions()),
        strict=True,
    ):
        table = table_of(kernels, variable)
        for _ in range(3):
            variable.new_grad()
            table.update(Hyper(**HYPER), options=options)
            variable.step()
        variable.check()


def test_many_rows_each_with_its_own(kernels, monkeypatch):
    # one block processes all segments, so it must not keep anything of the previous one
    for blocks in (1, 1000):
        monkeypatch.setattr(kernels, "_most_blocks", lambda blocks=blocks: blocks)
        for dtype, state, master in (
            ("float32", "float32", False),
            ("bfloat16", "bfloat16", True),
            ("bfloat16", "int8", True),
        ):
            rng = np.random.default_rng(3)
            variables = [
                Variable(
                    size, dtype, state, master, (i % 3,) * 5, i,
                    wc=[0.0, 0.5, 1.0, -1.0][i % 4], key=i * 0x1234567, first=i * 1024, rates=tuple(rng.random(2)),
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
    assert [launch["name"] for launch in simulator.launches()] == ["graves_extended_bfloat16_bfloat16_master"] * 4
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
            options=StepOptions((Operation(DECAY, 1.0),), zeroGrad=zero, skip=flag.address, seed=(5, 6), decay=2.0),
        )
        variable.step([Operation(DECAY, 1.0)], skip=skip, seed=(5, 6), decay=2.0)
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
        # the square of 3e38 overflows
        assert np.isfinite(found["mg"].astype(np.float32)).tolist() == [True, False, False, False, True, False]
        assert np.isinf(found["mg"].astype(np.float32)).tolist() == [False, False, True, True, False, False]


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
        # some elements: NaN, unchanged, and zero with the other sign
        written = variable.buffers.get()["param"]
        written[t:600:7] = np.linspace(-3, 3, written[t:600:7].size)
        written[650 + t] = np.nan
        variable.buffers.set("param", written)
        variable.expected.param = written.astype(np.float32)
