"""The rule on the CPU, compared with the formula: all buffers, several steps, all dtypes, sizes and instruction sets."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.kernels import DECAY, Hyper, Operation, cpu, layout, real_dtype
from tests.kernels.kernel_modules import HYPER, STATE, Buffers, as_bits, compiled, run
from tests.reference import Reference, coefficients
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

DTYPES = ["float16", "float32", "float64"]
VECTOR = 16  # float32 elements in the widest vector register
SIZES = [0, 1, 2, 3, VECTOR - 1, VECTOR, VECTOR + 1, 4 * VECTOR + 7, 1000, 1024, 1025, 4097]
STEPS = 10


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    param = rng.standard_normal(size).astype(dtype)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return param, grads


def keywords(hyper):
    return {name: value for name, value in hyper._asdict().items() if name != "centered"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_matches_float64(kernels, size, dtype):
    param, grads = start(size, dtype)
    buffers = run(kernels, param, grads)
    expected = Reference(param, stored="float16" if dtype == "float16" else None)
    for grad in grads:
        expected.step(grad, **keywords(HYPER))
    for name, content in expected.buffers().items():
        assert_close(buffers[name], content, TOLERANCE[dtype][name], name)
    assert np.array_equal(buffers["grad"], grads[-1]), "the gradient must not change"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_every_rounding_is_the_formulas(kernels, dtype, offset):
    # NumPy, in the precision and the order of the kernel, gives the same bits
    param, grads = start(1037, dtype, seed=1)
    buffers = run(kernels, param, grads, offset=offset)
    expected = Reference(param, dtype=real_dtype(dtype), stored=dtype)
    for grad in grads:
        expected.step(grad, **keywords(HYPER))
    for name, content in expected.buffers().items():
        assert np.array_equal(buffers[name], content.astype(buffers[name].dtype)), name


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_change_nothing(threads, dtype):
    size = 7 * layout.PARALLEL_FROM + 13
    param, grads = start(size, dtype, seed=2)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(run(cpu, param, grads[:2]))
    for other in results[1:]:
        for name in results[0]:
            assert np.array_equal(results[0][name], other[name]), name


@compiled
def test_indices_have_64_bits():
    # the end of a variable of 2**33 + 500 elements, the only part that is allocated
    far, size = 1 << 33, 500
    param, grads = start(size, "float32")
    buffers = Buffers(param)
    buffers.views["grad"][:] = grads[0]
    moved = {name: (getattr(buffers.segment, name) - 4 * far) % 2**64 for name in ("param", "grad", *STATE)}
    # after another segment, so that the count of elements also exceeds 32 bits
    table = cpu.Table([buffers.segment._replace(size=3 << 32), buffers.segment._replace(**moved, size=far + size)])
    for number, real in enumerate(("float32", "float64")):
        table._hypers[0, number] = layout.pack_hyper(HYPER, np.dtype(real))
    cpu.library.update_part(table._address, (3 << 32) + far, (3 << 32) + far + size)
    expected = Reference(param, dtype=np.float32)
    expected.step(grads[0], **keywords(HYPER))
    assert np.array_equal(buffers.views["param"], expected.param)


@pytest.mark.parametrize("count", [1, 4])
def test_many_variables_across_thread_borders(threads, count):
    rng = np.random.default_rng(3)
    sizes = [0, *(int(s) for s in rng.integers(0, layout.PARALLEL_FROM, 9)), 1, 0]
    threads(count)
    variables, expected, grads = {}, {}, {}
    for i, size in enumerate(sizes):
        param, grads[i] = rng.standard_normal((2, size)).astype(np.float32)
        variables[f"v{i}"] = Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grads[i]))
        expected[i] = Reference(param, dtype=np.float32)
        expected[i].step(grads[i])
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(variables))
    optimizer.update()
    for i in range(len(sizes)):
        assert np.array_equal(variables[f"v{i}"].data, expected[i].param), sizes[i]


def test_variables_of_every_kind_in_one_table(kernels):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    buffers, expected = [], []
    for seed, (dtype, state, master) in enumerate(layout.KINDS):
        if state in ("bfloat16", "int8"):
            continue  # stochastic rounding: test_kernel_extended
        param, grads = start(100 + seed, np.dtype(getattr(ml_dtypes, dtype, dtype)), seed)
        buffers.append(Buffers(param, state, master))
        buffers[-1].views["grad"][:] = grads[0]
        expected.append(Reference(param, dtype=real_dtype(dtype)))
        expected[-1].step(grads[0], **keywords(HYPER._replace(learnRate=HYPER.learnRate * 0.5)))
    table = kernels.Table([each.segment for each in buffers])
    table.set_rates([(0.5, 1.0, 0.0)] * len(buffers))
    table.update(HYPER)
    for each, right in zip(buffers, expected, strict=True):
        each.check_guards()
        for name in STATE:
            assert np.array_equal(each.views[name], getattr(right, name)), (each.segment.dtype, name)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("momRate", [0.0, 0.99])
@pytest.mark.parametrize("epsilon", [1e-8, 1.0])
def test_hyper_parameters(kernels, alpha, momRate, epsilon):
    param, grads = start(257, "float64", seed=4)
    hyper = Hyper(0.1, alpha, momRate, epsilon)
    buffers = run(kernels, param, grads, hyper)
    expected = Reference(param)
    for grad in grads:
        expected.step(grad, **keywords(hyper))
    for name, content in expected.buffers().items():
        assert_close(buffers[name], content, 1e-12, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rmsprop_that_is_not_centered(kernels, dtype):
    # the mean square instead of the variance, and no mean
    param, grads = start(321, dtype, seed=5)
    buffers = run(kernels, param, grads, HYPER._replace(centered=False))
    real = np.dtype(dtype).type
    alpha = real(HYPER.alpha)
    gain = real(1.0 - float(alpha))
    square, delta, learnRate, momRate, epsilon = 0 * param, 0 * param, real(1e-2), real(0.9), real(1e-4)
    for g in grads:
        square = alpha * square + gain * g * g
        delta = momRate * delta + learnRate * g / np.sqrt(square + epsilon)
        param = param + delta
    assert np.array_equal(buffers["variance"], square)
    assert np.array_equal(buffers["param"], param)
    assert not buffers["mg"].any()


def test_beta_and_gain_are_those_of_the_alpha_that_is_used():
    for alpha in (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.9999):
        for real in ("float32", "float64"):
            held, beta, gain = layout.pack_hyper(HYPER._replace(alpha=alpha), np.dtype(real))[1:4]
            assert held == np.dtype(real).type(alpha)
            assert (np.dtype(real).type(beta), np.dtype(real).type(gain)) == coefficients(alpha, real)[1:]
            if alpha >= 0.5:
                assert np.dtype(real).type(held) + np.dtype(real).type(beta) == 1


# ------------------------------------------------------------------------------------------- hard gradients


@pytest.mark.parametrize("size", [10.0, 100.0, 1e4, 1e8])
def test_gradients_that_become_constant(kernels, size):
    rng = np.random.default_rng(5)
    sinking = 1 + np.exp(-np.arange(600) / 30.0)[:, None]
    grads = (size * (sinking + 1e-6 * rng.standard_normal((600, 64)))).astype(np.float32)
    hyper = HYPER._replace(learnRate=1e-4)
    buffers = run(kernels, np.zeros(64, np.float32), grads, hyper)
    for name in ("param", *STATE):
        assert np.isfinite(buffers[name]).all(), name
    assert (buffers["variance"] >= 0).all()
    expected = Reference(np.zeros(64), dtype=np.longdouble)
    for grad in grads:
        expected.step(grad, **keywords(hyper))
    if size <= 100:  # above, float32 does not hold the mean well enough: docs/error-bounds.md
        assert (np.abs(buffers["param"] / expected.param - 1) <= 1e-4).all()


def test_nan_and_infinity_are_not_hidden(kernels):
    grads = np.array([[1.0, np.nan, np.inf, -np.inf]], np.float32)
    buffers = run(kernels, np.zeros(4, np.float32), grads)
    assert np.isfinite(buffers["param"]).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("dtype", "steps"), [("float16", 2500), ("float32", 2500), ("float64", 16000)])
def test_state_of_a_dead_unit_ends_in_zeros(kernels, dtype, steps):
    # one gradient, then zeros: averages that became subnormal would stay so, and make every step slow
    buffers = Buffers(np.zeros(5, dtype))
    table = kernels.Table([buffers.segment])
    buffers.views["grad"][:] = [1, -1, 0.3, 2, 1e-3]
    table.update(HYPER)
    buffers.views["grad"][:] = 0
    tiny = np.finfo(real_dtype(dtype)).tiny
    for _ in range(steps):
        table.update(HYPER)
        for name in STATE:
            small = np.abs(buffers.views[name])
            assert ((small == 0) | (small >= tiny)).all(), name
    for name in STATE:
        assert not buffers.views[name].any(), name
    buffers.check_guards()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_gradients_and_parameters_are_zero(kernels, dtype):
    tiny = np.finfo(dtype).tiny
    param = np.array([tiny / 2, -tiny / 4, 1.0, tiny], dtype)
    buffers = run(kernels, param, np.array([[tiny / 2, tiny / 8, -tiny / 2, 0.0]], dtype), HYPER._replace(learnRate=1e3))
    assert buffers["param"].tolist() == [0.0, 0.0, 1.0, tiny]
    for name in STATE:
        assert not buffers[name].any(), name


# ------------------------------------------------------------------------------------------------ 16 bits


def test_float16_conversions_are_exact(kernels):
    # every float16, as a parameter that a step of zero does not change
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    buffers = run(kernels, every, np.zeros((1, every.size), np.float16))
    nan = np.isnan(every)
    assert (as_bits(buffers["param"][nan]) == 0x7E00).all()
    # -0 + 0 is +0; everything else keeps its bits
    assert np.array_equal(as_bits(buffers["param"][~nan]), as_bits(every[~nan] + np.float16(0)))


def test_float16_rounds_to_nearest_even(kernels):
    # y += 1 * x with y between two float16 values and on ties, over the whole range and past its end
    rng = np.random.default_rng(6)
    y = np.concatenate([(rng.standard_normal(5000) * 10.0 ** rng.uniform(-8, 4, 5000)), [65504, 6e-8, 65504, -65504, 0]])
    x = np.concatenate([(rng.standard_normal(5000) * 10.0 ** rng.uniform(-8, 4, 5000)), [15, 3e-8, 16, -16, 0]])
    y, x = y.astype(np.float16), x.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (y.astype(np.float32) + x.astype(np.float32)).astype(np.float16)
    assert np.isinf(expected).any()
    buffers = Buffers(x)
    buffers.views["grad"][:] = y
    kernels.operate(buffers.segment, 1.0, [Operation(DECAY, 1.0)])
    buffers.check_guards()
    assert np.array_equal(as_bits(buffers.views["grad"]), as_bits(expected))


def test_bfloat16_rounds_to_nearest_even(kernels):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    # 1 + 2**-7 and 1 + 2*2**-7 plus half a unit: two ties, one rounded down and one up; and values between
    y = np.array([1 + 2.0**-7, 1 + 2.0**-6, 1.0, -3.0, 3e38], np.float32).astype(ml_dtypes.bfloat16)
    x = np.array([2.0**-8, 2.0**-8, 2.0**-9, 0.007, 3e38], np.float32).astype(ml_dtypes.bfloat16)
    expected = [1 + 2.0**-6, 1 + 2.0**-6, 1.0, -3.0, np.inf]
    buffers = Buffers(x)
    buffers.views["grad"][:] = y
    kernels.operate(buffers.segment, 1.0, [Operation(DECAY, 1.0)])
    assert buffers.views["grad"].astype(np.float64).tolist() == expected


def test_float16_keeps_learning_where_float16_state_would_stop(kernels):
    # the square of 300 exceeds the range of float16: float16 state would overflow immediately
    param = np.zeros(8, np.float16)
    grads = np.full((20, 8), 300.0, np.float16) * (1 + np.arange(20)[:, None] % 3).astype(np.float16)
    buffers = run(kernels, param, grads)
    assert buffers["variance"].dtype == np.float32
    assert np.isfinite(buffers["variance"]).all()
    assert (np.abs(buffers["delta"]) > 0).all()
    assert (np.abs(buffers["param"]) > 0.1).all()


# --------------------------------------------------------------------------------------------- the library


@compiled
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not here")
def test_roots_are_vectorised():
    # one square root at a time would be several times slower
    text = subprocess.run(["objdump", "-d", cpu.library.__file__], capture_output=True, text=True, check=True).stdout
    wanted = {"avx2": "vsqrtps .*%ymm", "avx512": "vsqrtps .*%zmm|vsqrtps .*%ymm", "baseline": r"\tsqrtps|fsqrt\tv"}
    for name in cpu.library.instruction_sets():
        assert re.search(wanted[name], text), name
