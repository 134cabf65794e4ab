"""What the CPU kernels do besides the rule, to the bit as in tests/reference_extras.py, and nothing past an end."""

import itertools

import numpy as np
import pytest

from puzzlelib_rmsprop import Config
from puzzlelib_rmsprop.kernels import RECORD, Extras, Judge, Op, Row, cpu, state_dtype
from tests.reference_extras import CLIP, DECAY, LASSO, SCALE, Extended, Judged, applied

ml_dtypes = pytest.importorskip("ml_dtypes")

HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
COMBINATIONS = [  # parameter, state, master copy
    *((dtype, state, False) for dtype in ("float16", "bfloat16", "float32") for state in ("float32", "bfloat16")),
    ("float64", "float64", False),
    ("float16", "float16", False),
    *((dtype, state, True) for dtype in ("float16", "bfloat16") for state in ("float32", "bfloat16")),
]
SIZES = [0, 1, 2, 15, 16, 17, cpu.TILE - 1, cpu.TILE, cpu.TILE + 1, 3 * cpu.TILE + 13]
GUARD = 64
STEPS = 4
SEEDS = [(0x12345678 * t % 2**32, 0x9ABCDEF1 * t % 2**32) for t in range(1, STEPS + 1)]


class Buffers:
    """The arrays of a variable, each between guards of NaN, off alignment by ``offset`` elements."""

    def __init__(self, param, state, master, offset=0):
        contents = {"param": param, "grad": np.full_like(param, np.nan)}
        contents |= {name: np.zeros(param.size, state) for name in ("mg", "ms", "delta")}
        contents |= {"master": param.astype(np.float32)} if master else {}
        self.guarded, self.views = {}, {}
        for name, content in contents.items():
            room = np.full(content.size + 2 * GUARD + offset, np.nan, content.dtype)
            self.guarded[name] = room
            self.views[name] = room[GUARD + offset : GUARD + offset + content.size]
            self.views[name][:] = content
        self.offset = offset

    def row(self, first=0, key=0):
        address = {name: view.ctypes.data for name, view in self.views.items()}
        five = (address[name] for name in ("param", "grad", "mg", "ms", "delta"))
        return Row(*five, self.views["param"].size, address.get("master", 0), first, key)

    def check_guards(self):
        for name, room in self.guarded.items():
            begin, end = GUARD + self.offset, GUARD + self.offset + self.views[name].size
            assert np.isnan(room[:begin].astype(np.float64)).all(), f"{name}: written in front of it"
            assert np.isnan(room[end:].astype(np.float64)).all(), f"{name}: written past its end"


def to_ops(ops):
    return tuple(
        Op(kind, value, other, 0 if content is None else content.ctypes.data) for kind, value, other, content in ops
    )


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size).astype(dtype), rng.standard_normal((STEPS, size)).astype(dtype)


def run(param, grads, dtype, state, master, ops=(), wc=0.0, first=0, key=0, offset=0, **extras):
    buffers = Buffers(param, state, master, offset)
    table = cpu.Table(param.dtype, [buffers.row(first, key)], np.dtype(state))
    table.setRates([(0.5, 0.75)], [wc])
    expected = Extended(param, dtype, state, master, wc, first, key, rates=(0.5, 0.75))
    for grad, seed in zip(grads, SEEDS, strict=True):
        buffers.views["grad"][:] = grad
        table.update(**HYPER, extras=Extras(to_ops(ops), seed=seed, **extras))
        numbers = [(kind, value, other, None if content is None else content[0]) for kind, value, other, content in ops]
        expected.step(grad, **HYPER, ops=numbers, seed=seed)
    buffers.check_guards()
    for name, content in expected.buffers().items():
        assert np.array_equal(buffers.views[name].astype(content.dtype), content), name
    return buffers


@pytest.mark.parametrize(("dtype", "state", "master"), COMBINATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size(dtype, state, master, size):
    param, grads = start(size, dtype)
    buffers = run(param, grads, dtype, state, master, key=0xDEADBEEF)
    assert np.array_equal(buffers.views["grad"], grads[-1])


@pytest.mark.parametrize(("dtype", "state", "master"), COMBINATIONS)
@pytest.mark.parametrize("offset", [1, 3, 5])
def test_every_alignment(dtype, state, master, offset):
    run(*start(1037, dtype), dtype, state, master, offset=offset)


FACTOR = np.array([0.3])
OPS = {
    "scale": (SCALE, 0.7, 0.0, None),
    "scale by memory": (SCALE, 2.0, 0.0, FACTOR),
    "clip": (CLIP, -0.4, 0.6, None),
    "decay": (DECAY, -0.1, 0.0, None),
    "lasso": (LASSO, 0.05, 0.0, None),
}


@pytest.mark.parametrize(
    "names", [*((name,) for name in OPS), *itertools.permutations(OPS, 2), tuple(OPS), tuple(OPS)[::-1]]
)
@pytest.mark.parametrize(("dtype", "state", "master"), [COMBINATIONS[i] for i in (0, 4, 5, 6, 9)])
def test_every_operation_in_every_order(dtype, state, master, names):
    param, grads = start(1500, dtype)
    param[:3] = 0, -0.0, np.nan
    grads[:, 3] = np.nan
    buffers = Buffers(param, state, master)
    with np.errstate(invalid="ignore"):
        table = cpu.Table(param.dtype, [buffers.row()], np.dtype(state))
        table.setRates([(1.0, 1.0)], [0.5])
        expected = Extended(param, dtype, state, master, wc=0.5)
        for grad, seed in zip(grads, SEEDS, strict=True):
            buffers.views["grad"][:] = grad
            table.update(**HYPER, extras=Extras(to_ops([OPS[name] for name in names]), seed=seed))
            numbers = [(k, v, o, None if c is None else c[0]) for k, v, o, c in (OPS[name] for name in names)]
            expected.step(grad, **HYPER, ops=numbers, seed=seed)
    for name, content in expected.buffers().items():
        found = buffers.views[name].astype(content.dtype)
        assert np.array_equal(found, content, equal_nan=True), name
        assert np.isnan(found[[2, 3]]).any() or names == ("clip",), name


@pytest.mark.parametrize("first", [2**32 - 700, 2**40 + 2**32 - 5, 123456789012])
def test_random_numbers_past_32_bits(first):
    run(*start(3000, "float32"), "float32", "bfloat16", False, first=first, key=77)


def test_a_part_of_a_variable_rounds_as_the_whole():
    param, grads = start(3000, "float32")
    whole = run(param, grads, "float32", "bfloat16", False, key=5)
    part = run(param[1111:2222].copy(), grads[:, 1111:2222].copy(), "float32", "bfloat16", False, first=1111, key=5)
    assert np.array_equal(part.views["mg"], whole.views["mg"][1111:2222])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    Config.numThreads = threads
    run(*start(4 * cpu.BLOCK + 77, "float32"), "float32", "bfloat16", False, [OPS["decay"]], wc=1.0, key=3)


def test_not_a_number_is_kept_and_infinity_too():
    # every payload of a NaN, the all-ones ones too, and both infinities, through the random rounding of each state
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFF812345], np.uint32).view(np.float32)
    for values, kept in ((payloads, np.isnan), (np.array([np.inf, -np.inf], np.float32), np.isinf)):
        for seed in ((0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (12345, 678)):
            buffers = Buffers(np.zeros(values.size, np.float32), "bfloat16", False)
            table = cpu.Table(np.dtype(np.float32), [buffers.row()], np.dtype("bfloat16"))
            table.setRates([(1.0, 1.0)])
            buffers.views["grad"][:] = values
            table.update(**HYPER, extras=Extras(seed=seed))
            assert kept(buffers.views["mg"].astype(np.float32)).all()


@pytest.mark.parametrize(("dtype", "state", "master"), COMBINATIONS)
def test_a_skipped_step_writes_only_zeros_to_the_gradient(dtype, state, master):
    param, grads = start(2 * cpu.TILE + 3, dtype)
    buffers = Buffers(param, state, master)
    table = cpu.Table(param.dtype, [buffers.row()], np.dtype(state))
    table.setRates([(1.0, 1.0)])
    flag = np.array([1, 0], np.uint32)
    buffers.views["grad"][:] = grads[0]
    before = {name: view.tobytes() for name, view in buffers.views.items()}
    table.update(**HYPER, extras=Extras(skip=flag.ctypes.data))
    assert {name: view.tobytes() for name, view in buffers.views.items()} == before
    table.update(**HYPER, extras=Extras(skip=flag.ctypes.data, zeroGrad=True))
    assert buffers.views["grad"].tobytes() == bytes(param.nbytes)
    before["grad"] = bytes(param.nbytes)
    assert {name: view.tobytes() for name, view in buffers.views.items()} == before
    buffers.views["grad"][:] = grads[0]
    flag[0] = 0
    table.update(**HYPER, extras=Extras(skip=flag.ctypes.data, zeroGrad=True))
    assert buffers.views["param"].tobytes() != before["param"]
    assert buffers.views["grad"].tobytes() == bytes(param.nbytes)
    buffers.check_guards()


# --------------------------------------------------------------------------------------------- survey


def surveyed(parts, ops=(), wc=1.0, record=None, **judge):
    """Runs a survey over arrays of (params, grads), by dtype; returns the record."""
    record = np.zeros(1, RECORD) if record is None else record
    record["scale"] = np.where(record["scale"] == 0, 1.0, record["scale"])
    rows = [
        (param.dtype, [Row(p.ctypes.data, g.ctypes.data, 0, 0, 0, p.size) for p, g in alike])
        for alike in parts
        for param in [alike[0][0]]
    ]
    survey = cpu.Survey(rows, record.ctypes.data)
    survey.setRates([[wc] * len(alike) for alike in parts])
    survey.run(to_ops(ops), Judge(**judge))
    return record[0]


def make_parts(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"float32": [0, 5, 3 * cpu.TILE + 1], "float16": [cpu.TILE], "float64": [1, 777], "bfloat16": [33]}
    return [
        [tuple(rng.standard_normal(size).astype(dtype) for _ in range(2)) for size in each] for dtype, each in sizes.items()
    ]


@pytest.mark.parametrize("names", [(), ("decay", "clip"), ("scale by memory", "lasso")])
def test_survey_is_the_sum_over_everything(names):
    parts = make_parts()
    ops = [OPS[name] for name in names]
    numbers = [(k, v, o, None if c is None else c[0]) for k, v, o, c in ops]
    grads = []
    for param, grad in itertools.chain(*parts):
        real = state_dtype(param.dtype)
        grads.append(applied(numbers, grad.astype(real), param.astype(real), 1.0))
    expected = Judged()
    expected.run(grads, limit=3.0)
    found = surveyed(parts, ops, limit=3.0)
    assert found["sumsq"] == pytest.approx(expected.sumsq, rel=1e-13)
    assert found["norm"] == pytest.approx(expected.norm, rel=1e-13)
    assert found["factor"] == pytest.approx(expected.factor, rel=1e-13)
    assert (found["bad"], found["skipped"], found["unscale"]) == (0, 0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_survey_finds_one_bad_element_anywhere(bad):
    for part, alike in enumerate(make_parts()):
        for number, (_, grad) in enumerate(alike):
            for at in {0, grad.size // 2, grad.size - 1} if grad.size else ():
                parts = make_parts()
                parts[part][number][1][at] = bad
                found = surveyed(parts)
                assert (found["bad"], found["skipped"]) == (1, 1), (part, number, at)


def test_large_is_not_bad():
    # the square of a float64 gradient may overflow where the gradient is finite
    assert surveyed([[(np.zeros(1), np.array([1e300]))]])["bad"] == 0
    found = surveyed([[(np.zeros(2, np.float32), np.full(2, 3e38, np.float32))]])
    assert (found["bad"], found["norm"]) == (0, pytest.approx(3e38 * 2**0.5, rel=1e-7))


def test_survey_is_the_same_for_any_number_of_threads():
    rng = np.random.default_rng(1)
    parts = [[(np.zeros(3 * cpu.BLOCK, np.float32), rng.standard_normal(3 * cpu.BLOCK).astype(np.float32))]]
    sums = set()
    for threads in (1, 2, 3):
        Config.numThreads = threads
        sums.add(float(surveyed(parts)["sumsq"]))
    assert len(sums) == 1


def test_the_number_of_skipped_steps_has_64_bits():
    record = np.zeros(1, RECORD)
    record["skipped"] = 2**32 - 1
    surveyed([[(np.zeros(1), np.array([np.nan]))]], record=record)
    assert record["skipped"][0] == 2**32
