"""Statistics of gradients: the norm, bit-identical to the CPU's, bad gradients, clipping and loss scaling."""

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import SCALE, Operation, ScalingPolicy, cpu, layout
from tests.cuda.extended import OPS, Measured, check_record
from tests.cuda.variables import DTYPES, chunk
from tests.reference_extended import Statistics


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
            # parameters rounded from the master weights, and some changed by the user
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


def test_subnormal_gradients_count_as_zero(kernels):
    measured = Measured(kernels, [("float32", [chunk() + 3])])
    (variable,) = measured.parts[0]
    variable.buffers.set("grad", np.full(chunk() + 3, 1e-39, np.float32))
    measured.run()
    assert measured.get()["norm"] == 0.0


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
                assert measured.get()["bad"] == expected.bad > 0
                measured.set(variable, at, kept)
        measured.run(policy=ScalingPolicy(limit=1.0))
        assert measured.get()["bad"] == 0
        expected.run(measured.gradients(), limit=1.0)


def test_a_square_that_overflows_is_a_bad_gradient(kernels):
    # in the dtype of the arithmetic, in which squares enter the variance
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
    """Returns the record of the CPU for the same gradients."""
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
