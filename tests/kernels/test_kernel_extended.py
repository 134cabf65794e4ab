"""Step options on the CPU: bit-identical to tests/reference_extended.py, and nothing is written past an end."""

import itertools

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Operation, ScalingPolicy, Segment, StepOptions, cpu, layout, real_dtype, reference
from tests.kernels.kernel_modules import HYPER, STATE, Buffers, as_bits, compiled
from tests.reference_extended import CLIP, DECAY, LASSO, SCALE, Extended, Statistics, applied

ml_dtypes = pytest.importorskip("ml_dtypes")

STEPS = 4
SEEDS = [(0x12345678 * t % 2**32, 0x9ABCDEF1 * t % 2**32) for t in range(1, STEPS + 1)]
TILE = 1024  # of cpu_loops.cpp
SIZES = [0, 1, 2, 15, 16, 17, TILE - 1, TILE, TILE + 1, 3 * TILE + 13]
KEYWORDS = {name: value for name, value in HYPER._asdict().items() if name != "centered"}


def to_operations(operations):
    return tuple(
        Operation(kind, value, other, 0 if content is None else content.ctypes.data)
        for kind, value, other, content in operations
    )


def numbers_of(operations):
    return [(kind, value, other, None if content is None else content[0]) for kind, value, other, content in operations]


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size).astype(dtype), rng.standard_normal((STEPS, size)).astype(dtype)


def run(kernels, param, grads, dtype, state, master, ops=(), wc=0.0, first=0, key=0, offset=0, decay=0.0, **options):
    buffers = Buffers(param, state, master, offset, first, key)
    table = kernels.Table([buffers.segment])
    table.set_rates([(0.7, 0.123, wc)])
    expected = Extended(param, dtype, state, master, wc, first, key, rates=(0.7, 0.123))
    for grad, seed in zip(grads, SEEDS, strict=True):
        buffers.views["grad"][:] = grad
        table.update(HYPER, options=StepOptions(to_operations(ops), seed=seed, decay=decay, **options))
        expected.step(grad, **KEYWORDS, ops=numbers_of(ops), seed=seed, decay=decay)
    buffers.check_guards()
    for name, content in expected.buffers().items():
        assert np.array_equal(buffers.views[name].astype(content.dtype), content), name
    return buffers


@pytest.mark.parametrize(("dtype", "state", "master"), layout.KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size(kernels, dtype, state, master, size):
    param, grads = start(size, dtype)
    buffers = run(kernels, param, grads, dtype, state, master, key=0xDEADBEEF)
    assert np.array_equal(buffers.views["grad"], grads[-1])


@pytest.mark.parametrize(("dtype", "state", "master"), layout.KINDS)
@pytest.mark.parametrize("offset", [1, 3, 5])
def test_every_alignment(kernels, dtype, state, master, offset):
    run(kernels, *start(1037, dtype), dtype, state, master, offset=offset)


FACTOR = np.array([0.3])
OPS = {
    "scale": (SCALE, 0.7, 0.0, None),
    "scale by memory": (SCALE, 2.0, 0.0, FACTOR),
    "clip": (CLIP, -0.4, 0.6, None),
    "decay": (DECAY, -0.1, 0.0, None),
    "lasso": (LASSO, 0.05, 0.0, None),
}
KINDS_OF_CODE = [("float32", "float32", False), ("float64", "float64", False), ("bfloat16", "bfloat16", True)]


@pytest.mark.parametrize(
    "names", [*((name,) for name in OPS), *itertools.permutations(OPS, 2), tuple(OPS), tuple(OPS)[::-1]]
)
@pytest.mark.parametrize(("dtype", "state", "master"), KINDS_OF_CODE)
def test_every_operation_in_every_order(kernels, dtype, state, master, names):
    param, grads = start(1500, dtype)
    param[:3] = 0, -0.0, np.nan
    grads[:, 3] = np.nan
    buffers = Buffers(param, state, master)
    table = kernels.Table([buffers.segment])
    table.set_rates([(1.0, 1.0, 0.5)])
    operations = [OPS[name] for name in names]
    with np.errstate(invalid="ignore"):
        expected = Extended(param, dtype, state, master, wc=0.5)
        for grad, seed in zip(grads, SEEDS, strict=True):
            buffers.views["grad"][:] = grad
            table.update(HYPER, options=StepOptions(to_operations(operations), seed=seed))
            expected.step(grad, **KEYWORDS, ops=numbers_of(operations), seed=seed)
    for name, content in expected.buffers().items():
        found = buffers.views[name].astype(content.dtype)
        assert np.array_equal(found, content, equal_nan=True), name
        assert np.isnan(found[[2, 3]]).any() or names == ("clip",), name


@pytest.mark.parametrize(("dtype", "state", "master"), layout.KINDS)
def test_decay_of_the_parameter(kernels, dtype, state, master):
    # the decay comes after the operations and before the step, and does not enter the averages
    param, grads = start(TILE + 13, dtype)
    more = {"dtype": dtype, "state": state, "master": master, "decay": 37.0, "key": 5}
    run(kernels, param, grads, **more, ops=[OPS["decay"], OPS["lasso"]], wc=0.5, offset=1)
    decayed, plain = (run(kernels, param, grads, **more | {"decay": decay}, wc=0.5) for decay in (37.0, 0.0))
    assert (decayed.views["param"] != plain.views["param"]).any()
    for name in STATE:
        assert np.array_equal(as_bits(decayed.views[name]), as_bits(plain.views[name])), name
    for wc in (0.0, -0.5):
        other = run(kernels, param, grads, **more, wc=wc)
        assert np.array_equal(as_bits(other.views["param"]), as_bits(plain.views["param"])), wc


def test_decay_of_every_size(kernels):
    param, grads = start(5000, "float16")
    for rate, decay, wc in ((-1e-2, 100.0, 1.0), (1e-30, 1e30, 0.5), (3e38, 1e-40, 1.0), (1e-2, 0.0, 1.0)):
        buffers = Buffers(param, "float32", True)
        expected, hyper = Extended(param, "float16", "float32", True, wc), HYPER._replace(learnRate=rate)
        table = kernels.Table([buffers.segment])
        table.set_rates([(1.0, 1.0, wc)])
        buffers.views["grad"][:] = grads[0]
        table.update(hyper, options=StepOptions(decay=decay))
        expected.step(grads[0], **KEYWORDS | {"learnRate": rate}, decay=decay)
        assert np.array_equal(buffers.views["master"], expected.master), rate


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decay_takes_subnormal_numbers_for_zero(kernels, dtype):
    tiny = np.finfo(dtype).tiny
    buffers = Buffers(np.array([tiny, 20 * tiny, tiny / 2, -0.0, 1.0], dtype))
    buffers.views["grad"][:] = 0
    table = kernels.Table([buffers.segment])
    table.set_rates([(1.0, 1.0, 1.0)])
    table.update(HYPER, options=StepOptions(decay=12.5))  # an eighth
    assert buffers.views["param"].tolist() == [tiny, 17.5 * tiny, 0.0, 0.0, 0.875]


@pytest.mark.parametrize(("dtype", "state", "master"), KINDS_OF_CODE)
def test_operations_on_a_gradient_alone(kernels, dtype, state, master):
    param, grads = start(2500, dtype)
    buffers = Buffers(param, state, master, offset=1)
    buffers.views["grad"][:] = grads[0]
    operations = [OPS["decay"], OPS["clip"], OPS["scale by memory"]]
    kernels.operate(buffers.segment, 0.5, to_operations(operations))
    real = real_dtype(dtype)
    expected = applied(numbers_of(operations), grads[0].astype(real), param.astype(real), 0.5).astype(param.dtype)
    assert np.array_equal(as_bits(buffers.views["grad"]), as_bits(expected))
    assert np.array_equal(buffers.views["param"], param)
    buffers.check_guards()


@pytest.mark.parametrize("first", [2**32 - 700, 2**40 + 2**32 - 5, 123456789012])
def test_random_numbers_past_32_bits(kernels, first):
    run(kernels, *start(3000, "float32"), "float32", "bfloat16", False, first=first, key=77)


def test_a_part_of_a_variable_rounds_as_the_whole(kernels):
    param, grads = start(3000, "float32")
    whole = run(kernels, param, grads, "float32", "bfloat16", False, key=5)
    part = run(kernels, param[1111:2222].copy(), grads[:, 1111:2222].copy(), "float32", "bfloat16", False, first=1111, key=5)
    assert np.array_equal(part.views["mg"], whole.views["mg"][1111:2222])


@compiled
@pytest.mark.parametrize("count", [1, 3])
def test_threads_change_nothing(threads, count):
    threads(count)
    size = 4 * layout.PARALLEL_FROM + 77
    run(cpu, *start(size, "float32"), "float32", "bfloat16", False, [OPS["decay"]], wc=1.0, key=3)


def test_not_a_number_is_kept_and_infinity_too(kernels):
    # every NaN payload, including all ones, and both infinities, through the stochastic rounding of each state array
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFF812345], np.uint32).view(np.float32)
    for seed in ((0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (12345, 678)):
        for values in (payloads, np.array([np.inf, -np.inf], np.float32)):
            buffers = Buffers(np.zeros(values.size, np.float32), "bfloat16")
            table = kernels.Table([buffers.segment])
            buffers.views["grad"][:] = values
            table.update(HYPER, options=StepOptions(seed=seed))
            mg = buffers.views["mg"]
            if np.isnan(values).all():
                assert (as_bits(mg) == 0x7FC0).all()  # one NaN, whatever the sign and the processor
            else:
                assert np.isinf(mg.astype(np.float32)).all()


@pytest.mark.parametrize(("dtype", "state", "master"), layout.KINDS)
def test_a_skipped_step_writes_only_zeros_to_the_gradient(kernels, dtype, state, master):
    param, grads = start(2 * TILE + 3, dtype)
    buffers = Buffers(param, state, master)
    table = kernels.Table([buffers.segment])
    flag = np.array([1, 0], np.uint32)
    buffers.views["grad"][:] = grads[0]
    before = {name: view.tobytes() for name, view in buffers.views.items()}
    table.set_rates([(1.0, 1.0, 1.0)])
    table.update(HYPER, options=StepOptions(skip=flag.ctypes.data, decay=1.0))
    assert {name: view.tobytes() for name, view in buffers.views.items()} == before
    table.update(HYPER, options=StepOptions(skip=flag.ctypes.data, zeroGrad=True))
    assert buffers.views["grad"].tobytes() == bytes(param.nbytes)
    before["grad"] = bytes(param.nbytes)
    assert {name: view.tobytes() for name, view in buffers.views.items()} == before
    buffers.views["grad"][:] = grads[0]
    flag[0] = 0
    table.update(HYPER, options=StepOptions(skip=flag.ctypes.data, zeroGrad=True))
    assert buffers.views["param"].tobytes() != before["param"]
    assert buffers.views["grad"].tobytes() == bytes(param.nbytes)
    buffers.check_guards()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_zeroing_gradients_touches_nothing_else(kernels, dtype):
    param, grads = start(2 * TILE + 3, dtype)
    buffers = Buffers(param, offset=1)
    table = kernels.Table([buffers.segment])
    before = {name: view.tobytes() for name, view in buffers.views.items()}
    for _ in range(2):
        buffers.views["grad"][:] = grads[0]
        table.zero_gradients()
        before["grad"] = bytes(param.nbytes)
        assert {name: view.tobytes() for name, view in buffers.views.items()} == before
        buffers.check_guards()


# ------------------------------------------------------------------------------------------ statistics


def statistics(kernels, parts, ops=(), wc=1.0, record=None, **policy):
    """Returns the record of the statistics of (parameter, gradient) pairs."""
    record = np.zeros(1, layout.STATISTICS) if record is None else record
    record["scale"] = np.where(record["scale"] == 0, 1.0, record["scale"])
    segments = [Segment(str(p.dtype), real_dtype(p.dtype).name, p.ctypes.data, g.ctypes.data, p.size) for p, g in parts]
    found = kernels.GradientStatistics(segments, record.ctypes.data)
    found.set_decays([wc] * len(segments))
    found.run(to_operations(ops), ScalingPolicy(**policy))
    return record[0]


def make_parts(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"float32": [0, 5, 2 * layout.CHUNK + 1], "float16": [layout.CHUNK], "float64": [1, 777], "bfloat16": [33]}
    return [
        tuple(rng.standard_normal(size).astype(dtype) for _ in range(2)) for dtype, each in sizes.items() for size in each
    ]


@pytest.mark.parametrize("names", [(), ("decay", "clip"), ("scale by memory", "lasso")])
def test_statistics_are_of_everything(kernels, names):
    parts = make_parts()
    ops = [OPS[name] for name in names]
    grads = []
    for param, grad in parts:
        real = real_dtype(param.dtype)
        grads.append(applied(numbers_of(ops), grad.astype(real), param.astype(real), 1.0))
    expected = Statistics()
    expected.run(grads, limit=3.0)
    found = statistics(kernels, parts, ops, limit=3.0)
    # sums of positive numbers in double, with at most 70 consecutive additions
    assert found["norm"] == pytest.approx(expected.norm, rel=1e-14)
    assert found["factor"] == pytest.approx(expected.factor, rel=1e-14)
    assert (found["bad"], found["skipped"], found["unscale"]) == (0, 0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_anywhere_is_found(kernels, bad):
    for number, (_, grad) in enumerate(make_parts()):
        for at in {0, grad.size // 2, grad.size - 1} if grad.size else ():
            parts = make_parts()
            parts[number][1][at] = bad
            found = statistics(kernels, parts)
            assert (found["bad"], found["skipped"]) == (1, 1), (number, at)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [("float32", 1.8e19, 1.9e19), ("bfloat16", 1.8e19, 1.9e19), ("float64", 1.3e154, 1.4e154), ("float16", 65504.0, np.inf)],
)
def test_a_gradient_is_bad_where_its_square_is_not_finite(kernels, dtype, good, bad):
    # the square enters the variance in the dtype of the arithmetic
    for value, expected in ((good, 0), (bad, 1)):
        grad = np.array([1.0, value, 1.0]).astype(dtype)
        assert statistics(kernels, [(np.zeros_like(grad), grad)])["bad"] == expected


@pytest.mark.parametrize("largest", [1e-3, 1e140, 1e145, 1e155, 1e200, 1.7e308 / 64])
def test_a_norm_that_is_finite_does_not_overflow(kernels, largest):
    rng = np.random.default_rng(7)
    grad = largest * rng.uniform(0.5, 1.0, 3000)
    grad[::3] *= 1e-12  # small and large ones
    expected = np.sqrt(np.sum(np.square(grad.astype(np.longdouble))))
    found = statistics(kernels, [(np.zeros_like(grad), grad)], limit=1.0)
    assert found["norm"] == pytest.approx(float(expected), rel=1e-14)
    assert found["factor"] == pytest.approx(min(1.0, float(1 / expected)), rel=1e-14)


def test_a_float32_norm_is_beyond_float32():
    found = statistics(reference, [(np.zeros(2, np.float32), np.full(2, 3e38, np.float32))])
    assert found["norm"] == pytest.approx(3e38 * 2**0.5, rel=1e-7)


@compiled
def test_the_norm_is_the_same_on_every_instruction_set_and_number_of_threads(threads):
    rng = np.random.default_rng(1)
    sizes = {
        "float32": (9 * layout.CHUNK + 77, 1000, 1),
        "float64": (700, 3 * layout.CHUNK),
        "bfloat16": (layout.CHUNK + 1,),
    }
    parts = [(np.zeros(n, dtype), rng.standard_normal(n).astype(dtype)) for dtype, each in sizes.items() for n in each]
    norms = {float(statistics(reference, parts)["norm"])}
    before = cpu.library.in_use()
    for name in cpu.library.instruction_sets():
        cpu.library.use(name)
        for count in (1, 2, 3):
            threads(count)
            norms.add(float(statistics(cpu, parts)["norm"]))
    cpu.library.use(before)
    assert len(norms) == 1


def test_the_number_of_skipped_steps_has_64_bits(kernels):
    record = np.zeros(1, layout.STATISTICS)
    record["skipped"] = 2**32 - 1
    statistics(kernels, [(np.zeros(1), np.array([np.nan]))], record=record)
    assert record["skipped"][0] == 2**32


@pytest.mark.parametrize("policy", [{"growth": 2.0, "backoff": 0.5, "interval": 3, "least": 0.25, "most": 16.0}])
def test_the_loss_scale_moves_by_its_policy(kernels, policy):
    record, expected = np.zeros(1, layout.STATISTICS), Statistics()
    record["scale"] = expected.scale = 4.0
    for bad in [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]:
        grad = np.array([np.inf if bad else 1.0, 2.0], np.float32)
        found = statistics(kernels, [(np.zeros(2, np.float32), grad)], record=record, **policy)
        expected.run([grad], **policy)
        for name in ("scale", "unscale", "good", "bad", "skipped"):
            assert found[name] == getattr(expected, name), name
