"""8-bit state on the CPU: codes and scales are those of tests/reference_int8.py, and have the promised properties."""

import itertools

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Hyper, StepOptions, cpu, int8_state, layout, reference
from tests import reference_int8
from tests.kernels.kernel_modules import STATE, Buffers, compiled
from tests.kernels.test_kernel_extended import OPS, SEEDS, numbers_of, run, start, to_operations
from tests.reference_extended import Extended
from tests.reference_int8 import BLOCK, FORMS, LEAST_SCALE, MOST_SCALE, NAN_SCALE

pytest.importorskip("ml_dtypes")

KINDS = [kind for kind in layout.KINDS if kind[1] == "int8"]
SCALES = [0, *range(LEAST_SCALE, MOST_SCALE + 1), NAN_SCALE]  # all valid scales
entities = pytest.mark.parametrize("entity", STATE)
KEEP = Hyper(0.0, 1.0, 1.0, 1.0)  # a step with a gradient of 0 does not change the state


def codes_of(entity):
    """Returns every valid code."""
    last, signed = FORMS[entity][2:]
    codes = np.arange(last + 1)
    return np.concatenate([codes, codes + 128]) if signed else codes


def highest(entity):
    """Returns the codes of numbers between 1 and 2 times the scale."""
    codes = np.arange(FORMS[entity][2] + 1)
    return codes[reference_int8.units(codes, entity) >= reference_int8.units_of(entity)]


def blocks_of_every_code(entity):
    """Returns blocks of codes: each code together with each one between 1 and 2 times the scale."""
    rows = []
    for anchor, codes in itertools.product(highest(entity), np.array_split(codes_of(entity), 5)):
        rows.append(np.full(BLOCK, anchor))
        rows[-1][1 : 1 + codes.size] = codes
    return np.array(rows, np.uint8)


# ------------------------------------------------------------------------------------------------- codes


@entities
def test_every_code_of_every_scale_is_the_descriptions(entity):
    codes = np.tile(np.resize(codes_of(entity), 4 * BLOCK).astype(np.uint8), len(SCALES))
    scales = np.repeat(SCALES, 4).astype(np.uint8)
    codes[np.repeat(scales, BLOCK) == NAN_SCALE] = 0
    found, expected = int8_state.decoded(codes, scales, entity), reference_int8.values(codes, scales, entity)
    assert np.array_equal(found, expected, equal_nan=True)
    kept = np.repeat(scales, BLOCK) != NAN_SCALE
    assert np.array_equal(np.signbit(found[kept]), np.signbit(expected[kept]))


@entities
def test_what_was_decoded_is_encoded_as_it_was(entity):
    rows = blocks_of_every_code(entity)
    for scale in range(LEAST_SCALE, MOST_SCALE + 1):
        scales = np.full(len(rows), scale, np.uint8)
        decoded = int8_state.decoded(rows.ravel(), scales, entity)
        for random in (None, *(np.full(rows.size, r, np.uint32) for r in (0, 2 ** (23 - FORMS[entity][1]) - 1))):
            codes, again = int8_state.encoded(decoded, entity, random)
            if random is None:  # to nearest
                assert np.array_equal(codes, rows.ravel()), scale
            assert np.array_equal(again, scales), scale


@entities
def test_of_the_least_scale_blocks_without_a_large_number_too(entity):
    codes = np.resize(codes_of(entity), 5 * BLOCK).astype(np.uint8)
    low = codes[codes % 128 < 40] if FORMS[entity][3] else codes[codes < 40]
    scales = np.full(-(-low.size // BLOCK), LEAST_SCALE, np.uint8)
    found, again = int8_state.encoded(int8_state.decoded(low, scales, entity), entity)
    assert np.array_equal(found, low)
    assert np.array_equal(again, scales)
    # no number is subnormal, which would be flushed to 0
    decoded = np.abs(reference_int8.values(codes_of(entity), [LEAST_SCALE] * 4, entity))
    assert np.min(decoded[decoded > 0]) >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("scales", [range(LEAST_SCALE, 90), range(90, 180), range(180, MOST_SCALE + 1)])
def test_the_kernels_keep_a_state_that_does_not_change(kernels, scales):
    # all codes of all scales are read and written
    rows = {entity: blocks_of_every_code(entity) for entity in STATE}
    count = max(map(len, rows.values()))
    for scale in scales:
        buffers = Buffers(np.zeros(count * BLOCK, np.float32), "int8")
        for entity in STATE:
            codes = np.resize(rows[entity], (count, BLOCK)).ravel()
            buffers.views[entity][:] = np.where(FORMS[entity][3] & (codes == 128), 0, codes)  # a zero loses its sign
        buffers.views["scales"][:], buffers.views["grad"][:] = scale, 0
        before = {name: view.tobytes() for name, view in buffers.views.items() if name in STATE or name == "scales"}
        delta = reference_int8.values(buffers.views["delta"], [scale] * count, "delta")
        kernels.Table([buffers.segment]).update(KEEP, options=StepOptions(seed=SEEDS[0]))
        for name, content in before.items():
            assert buffers.views[name].tobytes() == content, (name, scale)
        assert np.array_equal(buffers.views["param"], delta), scale


# ---------------------------------------------------------------------------------------------- rounding


@entities
def test_rounding_at_random_is_right_on_average(entity):
    # over every value of the random bits
    cut = 23 - FORMS[entity][1]
    random = np.arange(2**cut, dtype=np.uint32)
    rng = np.random.default_rng(1)
    last = reference_int8.units(FORMS[entity][2], entity) / reference_int8.units_of(entity)
    for fraction in (*np.exp2(-rng.uniform(0, 12, 8)), 1.0, rng.uniform(1, last), last):
        number, scale = np.float32(fraction * 2.0**-20), 127 - 20
        x = np.full(2**cut, number, np.float32)
        x[::BLOCK] = 2.0**-20  # this one sets the scale
        codes, scales = int8_state.encoded(x, entity, random)
        assert (scales == scale).all()
        # the largest number of a block takes the place of one in 64 values of the bits: encode these separately
        again, _ = int8_state.encoded(np.roll(x, 1), entity, random)
        codes = np.where(np.arange(codes.size) % BLOCK, codes, again)
        mean = reference_int8.units(codes, entity).mean()
        exact = float(number) * 2.0**20 * reference_int8.units_of(entity)
        assert abs(mean - exact) <= 2.0**-23 * (exact + 2), fraction


@entities
def test_rounding_to_nearest_is_to_nearest(entity):
    codes = np.arange(FORMS[entity][2])
    low, high = (reference_int8.units(codes + up, entity) for up in (0, 1))
    for part, up in ((0.49, 0), (0.51, 1), (-0.49, 0), (-0.51, -1)):
        x = (low + part * (high - low)) / reference_int8.units_of(entity)
        if part < 0:
            x = (low + part * (low - np.concatenate([[0], low[:-1]]))) / reference_int8.units_of(entity)
        for code in codes[max(0, -up) :: 3]:
            block = np.array([1.0, max(x[code], 0.0)], np.float32)
            if block[1] < 2:
                assert int8_state.encoded(block, entity)[0][1] == max(code + up, block[1] > 0 and entity == "variance")


@entities
def test_the_random_bits_of_every_element_are_uniform(entity):
    cut, shift = 23 - FORMS[entity][1], dict(zip(STATE, (0, 13, 7), strict=True))[entity]
    numbers = np.arange(2**cut, dtype=np.uint32)
    seen = np.zeros((BLOCK, 2**cut), bool)
    for part in np.split(numbers, 16):
        bits = int8_state.random_bits(part << np.uint32(shift), entity).reshape(-1, BLOCK)
        for element in range(BLOCK):
            seen[element, bits[:, element]] = True
    assert seen.all()  # each value once, because there are as many numbers as values


@entities
def test_a_block_is_rounded_evenly(entity):
    # of 64 equal numbers at a fraction above a code, about that fraction is rounded up, whatever the random number
    cut = 23 - FORMS[entity][1]
    numbers = np.random.default_rng(2).integers(0, 2**32, 3000, dtype=np.uint32)
    bits = int8_state.random_bits(numbers, entity).reshape(-1, BLOCK)
    for fraction in (0.03, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.95):
        up = (bits >= (1 - fraction) * 2**cut).sum(axis=1)
        assert np.abs(up - BLOCK * fraction).max() <= 3, fraction


@entities
def test_the_largest_number_stays_with_its_scale(entity):
    cut = 23 - FORMS[entity][1]
    for scale in (LEAST_SCALE, 100, 127, MOST_SCALE):
        one = np.float32(2.0 ** (scale - 127))
        numbers = [one, np.nextafter(one, np.float32(np.inf)), 1.5 * one, np.nextafter(2 * one, np.float32(0))]
        for number, random in itertools.product(numbers, (0, 1, 2 ** (cut - 1), 2**cut - 1)):
            codes, scales = int8_state.encoded(np.array([number], np.float32), entity, np.full(BLOCK, random, np.uint32))
            assert scales[0] == scale
            assert one <= int8_state.decoded(codes, scales, entity)[0] < 2 * one


def test_a_variance_above_0_is_never_0():
    tiny = np.finfo(np.float32).tiny
    for largest in (tiny, 1e-30, 1.0, 3e38, np.inf):
        x = np.array([largest, tiny, 1e-45, 0.0, -0.0, 1e-20], np.float32)
        found = int8_state.decoded(*int8_state.encoded(x, "variance", np.zeros(BLOCK, np.uint32)), "variance")
        assert (found > 0).tolist() == [True, True, True, False, False, True]
    for entity in ("mg", "delta"):
        assert int8_state.encoded(np.array([1, tiny], np.float32), entity, np.zeros(BLOCK, np.uint32))[0][1] == 0


# ----------------------------------------------------------------------------------------- the whole step


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 255, 256, 257, 320, 1023, 1025, 1088, 3 * 1024 + 300])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_blocks_and_their_ends(kernels, size, offset, decay):
    param, grads = start(size, "float32", seed=size)
    grads *= np.exp(np.random.default_rng(size).normal(0, 4, size)).astype(np.float32)
    ops = [OPS["decay"], OPS["lasso"]]
    run(kernels, param, grads, "float32", "int8", False, ops, wc=0.5, key=7, offset=offset, decay=decay)


def stepped(kernels, param, grads, kind=("float32", "int8", False), ops=(), **more):
    """Returns the arrays after steps, and those of the oracle."""
    buffers, expected = Buffers(param, "int8", kind[2]), Extended(param, *kind, wc=1.0)
    table = kernels.Table([buffers.segment])
    table.set_rates([(1.0, 1.0, 1.0)])
    hyper = Hyper(1e-2, 0.95, 0.9, 1e-4)
    for grad, seed in zip(grads, SEEDS, strict=False):
        buffers.views["grad"][:] = grad
        table.update(hyper, options=StepOptions(to_operations(ops), seed=seed, **more))
        with np.errstate(invalid="ignore"):
            expected.step(grad, 1e-2, 0.95, 0.9, 1e-4, numbers_of(ops), seed=seed)
    buffers.check_guards()
    return buffers.views, expected.buffers()


@pytest.mark.parametrize(("dtype", "state", "master"), KINDS)
@pytest.mark.parametrize("names", [("scale",), ("clip", "decay"), tuple(OPS)])
def test_nan_and_infinity_stay_in_their_block(kernels, dtype, state, master, names):
    param, grads = start(1500, dtype, seed=5)
    grads[1, 70] = np.nan
    grads[2, [200, 1030]] = np.inf, -np.inf
    param[1499] = np.nan  # its state has no NaN, unless an operation reads the parameter
    found, expected = stepped(kernels, param, grads, (dtype, state, master), [OPS[name] for name in names])
    for name, content in expected.items():
        assert np.array_equal(found[name].astype(content.dtype), content, equal_nan=content.dtype.kind == "f"), name
    scales = found["scales"].reshape(-1, 3)
    assert (scales[1] == NAN_SCALE).all()
    assert all((found[name][64:128] == 0).all() for name in STATE)
    assert np.isnan(found["param"][64:128].astype(np.float32)).all()
    assert np.isfinite(found["param"][128:192].astype(np.float32)).all()
    others = np.delete(scales, [1, 3, 1030 // 64, 1499 // 64], axis=0)
    assert (others != NAN_SCALE).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_large_is_the_largest_there_is(kernels, sign):
    # an infinite state would be NaN at the next step
    param, grads = np.zeros(130, np.float32), np.zeros((1, 130), np.float32)
    grads[0, 5], grads[0, 100] = sign * np.inf, sign * 3e38
    found, _ = stepped(kernels, param, grads)
    scales = found["scales"].reshape(-1, 3)
    mg = reference_int8.values(found["mg"], scales[:, 0], "mg")
    largest = reference_int8.largest("mg")
    assert mg[5] == sign * largest
    assert abs(mg[100]) == pytest.approx(0.05 * 3e38, rel=0.07)
    variance = reference_int8.values(found["variance"], scales[:, 1], "variance")
    assert variance[[5, 100]].tolist() == [reference_int8.largest("variance")] * 2
    assert scales[0, 2] == NAN_SCALE  # infinity / infinity: the step is NaN, and so is the momentum of its block
    assert scales[1, 2] != NAN_SCALE


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-39, 1e-38, 1.2e-38, 1e-36, 1e-30, 1e-19, 1e19, 1e30, 3e38])
def test_blocks_of_tiny_and_of_huge_numbers(kernels, largest):
    # compared with NumPy bit for bit, because the oracle does not handle subnormal numbers
    rng = np.random.default_rng(3)
    param = rng.standard_normal(200).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        grads = np.clip(rng.standard_normal((4, 200)) * largest, -3e38, 3e38).astype(np.float32)
    found, expected = (stepped(module, param, grads)[0] for module in (kernels, reference))
    if not 1e-39 < largest < 1e-30:
        for name, content in expected.items():
            assert found[name].tobytes() == content.tobytes(), name
        return
    for n, name in enumerate(STATE):  # NumPy does not flush intermediate results: codes of the least scale may differ
        mine, other = (reference_int8.values(each[name], each["scales"][n::3], name) for each in (found, expected))
        assert np.abs(mine - other).max() <= 1.01 * 2.0**-107 / 14 / 16, name


def test_a_dead_block_ends_in_zeros(kernels):
    buffers = Buffers(np.ones(100, np.float32), "int8")
    table = kernels.Table([buffers.segment])
    buffers.views["grad"][:] = 1e-3
    table.update(Hyper(1e-4, 0.95, 0.9, 1e-4), options=StepOptions(seed=(1, 1)))
    buffers.views["grad"][:] = 0
    for t in range(1500):
        table.update(Hyper(1e-4, 0.95, 0.9, 1e-4), options=StepOptions(seed=(t, 2)))
    for n, name in enumerate(("mg", "delta")):
        values = reference_int8.values(buffers.views[name], buffers.views["scales"][2 * n :: 3], name)
        assert (values == 0).all(), name
    variance = reference_int8.values(buffers.views["variance"], buffers.views["scales"][1::3], "variance")
    assert (variance < 1e-36).all()


@pytest.mark.parametrize("first", [2**32 - 64, 2**32 - 640, 2**40 + 2**32 - 1088, 64 * 1234567891])
def test_random_numbers_past_32_bits(kernels, first):
    run(kernels, *start(3000, "float32"), "float32", "int8", False, first=first, key=77)


def test_a_part_of_a_variable_rounds_as_the_whole(kernels):
    param, grads = start(3000, "float32")
    whole = run(kernels, param, grads, "float32", "int8", False, key=5)
    cut = slice(17 * 64, 30 * 64 + 5)
    part = run(kernels, param[cut].copy(), grads[:, cut].copy(), "float32", "int8", False, first=cut.start, key=5)
    full = slice(0, 13 * 64)  # the scale of the last block also depends on the elements after the cut
    assert np.array_equal(part.views["mg"][full], whole.views["mg"][cut][full])
    assert np.array_equal(part.views["scales"][: 13 * 3], whole.views["scales"][17 * 3 : 30 * 3])


@compiled
@pytest.mark.parametrize("sizes", [(4 * layout.PARALLEL_FROM + 77,), (1, layout.PARALLEL_FROM, 63, 0, 20_001, 65, 131)])
def test_threads_cut_no_block(threads, sizes):
    def bits(kernels, count=1):
        threads(count)
        every = [Buffers(np.ones(n, np.float32), "int8", key=i) for i, n in enumerate(sizes)]
        table = kernels.Table([each.segment for each in every])
        for seed in SEEDS[:2]:
            for i, each in enumerate(every):
                rng = np.random.default_rng([i, seed[0]])
                each.views["grad"][:] = rng.standard_normal(each.views["grad"].size) * np.exp(rng.normal(0, 3))
            table.update(Hyper(1e-2, 0.95, 0.9, 1e-4), options=StepOptions(seed=seed))
        for each in every:
            each.check_guards()
        return [view.tobytes() for each in every for view in each.views.values()]

    expected = bits(reference)
    for count in (1, 2, 3, 7):
        assert bits(cpu, count) == expected, count


def test_beside_variables_of_other_kinds(kernels):
    every = [
        Buffers(start(100 + i, dtype)[0], state, master, key=i) for i, (dtype, state, master) in enumerate(layout.KINDS)
    ]
    table = kernels.Table([each.segment for each in every])
    for i, each in enumerate(every):
        each.views["grad"][:] = start(100 + i, each.views["grad"].dtype)[1][0]
    table.update(Hyper(1e-2, 0.95, 0.9, 1e-4), options=StepOptions(seed=SEEDS[0]))
    for i, (each, (dtype, state, master)) in enumerate(zip(every, layout.KINDS, strict=True)):
        expected = Extended(start(100 + i, dtype)[0], dtype, state, master, key=i)
        expected.step(start(100 + i, dtype)[1][0], 1e-2, 0.95, 0.9, 1e-4, seed=SEEDS[0])
        for name, content in expected.buffers().items():
            assert np.array_equal(each.views[name].astype(content.dtype), content), (dtype, state, name)
