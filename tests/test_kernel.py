"""The CPU kernel against the reference: every buffer, several steps, every dtype and size."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.kernels import DECAY, Op, cpu, state_dtype
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

DTYPES = ["float16", "float32", "float64"]
BLOCK = 16  # float32 elements in the widest vector register there is
SIZES = [0, 1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 7, 1000, 4097]
STEPS = 10
HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    param = rng.standard_normal(size).astype(dtype)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return param, grads


def poisoned(size, dtype):
    """Room for an array between two guard zones of NaN."""
    guarded = np.full(size + 64, np.nan, dtype)
    return guarded, guarded[32 : 32 + size]


def run(param, grads, offset=0, **hyper):
    """Steps of the kernel on arrays that start ``offset`` elements past an aligned address."""
    size, dtype = param.size, param.dtype
    compute = state_dtype(dtype)
    guards, buffers = [], {}
    for name in ("param", "grad", "mg", "ms", "delta"):
        guarded, view = poisoned(size + offset, dtype if name in ("param", "grad") else compute)
        guards.append(guarded)
        buffers[name] = view[offset:]
    buffers["param"][:] = param
    for name in ("mg", "ms", "delta"):
        buffers[name][:] = 0
    table = cpu.Table(dtype, [cpu.Row(*(buffer.ctypes.data for buffer in buffers.values()), size)])
    for grad in grads:
        buffers["grad"][:] = grad
        table.update(hyper["learnRate"], hyper["alpha"], hyper["momRate"], hyper["epsilon"])
    for guarded in guards:
        assert np.isnan(guarded[: 32 + offset]).all(), "the kernel wrote in front of an array"
        assert np.isnan(guarded[32 + offset + size :]).all(), "the kernel wrote past an array's end"
    return buffers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_matches_float64(size, dtype):
    param, grads = start(size, dtype)
    buffers = run(param, grads, **HYPER)
    expected = Reference(param, stored="float16" if dtype == "float16" else None)
    for grad in grads:
        expected.step(grad, **HYPER)
    for name, content in expected.buffers().items():
        assert_close(buffers[name], content, TOLERANCE[dtype][name], name)
    assert np.array_equal(buffers["grad"], grads[-1]), "the gradient must not change"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_every_rounding_is_the_formulas(dtype, offset):
    # computed in the kernel's own precision and order by NumPy, the result is the same to the last bit
    param, grads = start(1037, dtype, seed=1)
    buffers = run(param, grads, offset=offset, **HYPER)
    expected = Reference(param, dtype=state_dtype(np.dtype(dtype)), stored=dtype)
    for grad in grads:
        expected.step(grad, **HYPER)
    for name, content in expected.buffers().items():
        assert np.array_equal(buffers[name], content.astype(buffers[name].dtype)), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_change_nothing(dtype):
    # one part a thread, with an odd end; every part's borders lie inside the array
    size = 5 * cpu.BLOCK + 13
    param, grads = start(size, dtype, seed=2)
    results = []
    for threads in (1, 2, 5):
        Config.numThreads = threads
        results.append(run(param, grads[:2], **HYPER))
    for other in results[1:]:
        for name in results[0]:
            assert np.array_equal(results[0][name], other[name]), name


def test_indices_have_64_bits():
    # the end of a variable of 2**33 + 500 elements, of which only that has memory
    far, size = 1 << 33, 500
    param, grads = start(size, "float32")
    buffers = [param.copy(), grads[0].copy(), *(np.zeros(size, np.float32) for _ in range(3))]
    table = cpu.Table(param.dtype, [cpu.Row(*(buffer.ctypes.data - 4 * far for buffer in buffers), far + size)])
    table._rates[:], table._shared[:] = (HYPER["learnRate"], HYPER["momRate"]), (HYPER["alpha"], HYPER["epsilon"])
    table._part(far, far + size)
    expected = Reference(param, dtype=np.float32)
    expected.step(grads[0], **HYPER)
    assert np.array_equal(buffers[0], expected.param)


def test_many_variables_across_thread_borders():
    rng = np.random.default_rng(3)
    sizes = [int(s) for s in rng.integers(0, 2 * cpu.BLOCK, 9)]
    assert sum(sizes) > 4 * cpu.BLOCK
    variables, expected, grads = {}, {}, {}
    for i, size in enumerate(sizes):
        param, grads[i] = rng.standard_normal((2, size)).astype(np.float32)
        variables[f"v{i}"] = Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grads[i]))
        expected[i] = Reference(param, dtype=np.float32)
        expected[i].step(grads[i])
    Config.numThreads = 4
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(variables))
    optimizer.update()
    for i in range(len(sizes)):
        assert np.array_equal(variables[f"v{i}"].data, expected[i].param), sizes[i]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("momRate", [0.0, 0.99])
@pytest.mark.parametrize("epsilon", [1e-8, 1.0])
def test_hyper_parameters(alpha, momRate, epsilon):
    param, grads = start(257, "float64", seed=4)
    hyper = {"learnRate": 0.1, "alpha": alpha, "momRate": momRate, "epsilon": epsilon}
    buffers = run(param, grads, **hyper)
    expected = Reference(param)
    for grad in grads:
        expected.step(grad, **hyper)
    for name, content in expected.buffers().items():
        # alpha = 0 makes the variance pure rounding error in any precision: then delta is bounded, not equal
        if alpha == 0.0 and epsilon == 1e-8 and name in ("param", "delta"):
            continue
        assert_close(buffers[name], content, 1e-9, name)


def goes_nan_without_the_clamp(grads):
    mg = ms = np.zeros(grads.shape[1], np.float32)
    alpha, beta, epsilon = np.float32(0.95), np.float32(1) - np.float32(0.95), np.float32(1e-4)
    with np.errstate(invalid="ignore"):
        for g in grads:
            mg = alpha * mg + beta * g
            ms = alpha * ms + beta * g * g
            if np.isnan(np.sqrt(ms - mg * mg + epsilon)).any():
                return True
    return False


@pytest.mark.parametrize("size", [10.0, 100.0, 1e4, 1e8])
def test_no_nan_where_the_variance_rounds_below_zero(size):
    # gradients that sink to a constant: the averages then stick a few units above it, mg*mg twice as far as ms
    rng = np.random.default_rng(5)
    sinking = 1 + np.exp(-np.arange(600) / 30.0)[:, None]
    grads = (size * (sinking + 1e-6 * rng.standard_normal((600, 64)))).astype(np.float32)
    buffers = run(np.zeros(64, np.float32), grads, **(HYPER | {"learnRate": 1e-4}))
    assert goes_nan_without_the_clamp(grads), "the case must go wrong without the clamp, or it shows nothing"
    for name in ("param", "mg", "ms", "delta"):
        assert np.isfinite(buffers[name]).all(), name


def test_nan_and_infinity_are_not_hidden():
    grads = np.array([[1.0, np.nan, np.inf, -np.inf]], np.float32)
    buffers = run(np.zeros(4, np.float32), grads, **HYPER)
    assert np.isfinite(buffers["param"]).tolist() == [True, False, False, False]


def test_float16_conversions_are_exact():
    # every float16, as a parameter that a step of zero leaves alone
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    buffers = run(every, np.zeros((1, every.size), np.float16), **HYPER)
    nan = np.isnan(every)
    assert np.isnan(buffers["param"][nan]).all()
    # -0 + 0 is +0; everything else keeps its bits
    assert np.array_equal(buffers["param"][~nan].view(np.uint16), (every[~nan] + np.float16(0)).view(np.uint16))


def test_float16_rounds_to_nearest_even():
    # y += 1 * x with y between two float16 values and on ties, over the whole range and past its end
    rng = np.random.default_rng(6)
    y = np.concatenate([(rng.standard_normal(5000) * 10.0 ** rng.uniform(-8, 4, 5000)), [65504, 6e-8, 65504, -65504, 0]])
    x = np.concatenate([(rng.standard_normal(5000) * 10.0 ** rng.uniform(-8, 4, 5000)), [15, 3e-8, 16, -16, 0]])
    y, x = y.astype(np.float16), x.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (y.astype(np.float32) + x.astype(np.float32)).astype(np.float16)
    assert np.isinf(expected).any()
    cpu.applyOps(y.ctypes.data, x.ctypes.data, y.size, 1.0, [Op(DECAY, 1.0)], y.dtype)
    assert np.array_equal(y.view(np.uint16), expected.view(np.uint16))


def test_float16_keeps_learning_where_float16_state_would_stop():
    # the square of 300 is past float16's range: state of that type is infinite at once
    param = np.zeros(8, np.float16)
    grads = np.full((20, 8), 300.0, np.float16) * (1 + np.arange(20)[:, None] % 3).astype(np.float16)
    buffers = run(param, grads, **HYPER)
    assert buffers["ms"].dtype == np.float32
    assert np.isfinite(buffers["ms"]).all()
    assert (np.abs(buffers["delta"]) > 0).all()
    assert (np.abs(buffers["param"]) > 0.1).all()


def test_vectorised_with_one_thread():
    # LLVM vectorises the loop only where it knows that the buffers do not overlap: whole registers, and no scalar root
    run(*start(8, "float32"), **HYPER)
    text = "\n".join(cpu._graves_kernel.inspect_asm().values()) if not cpu._graves_kernel.stats.cache_hits else None
    if text is None:
        # compiled code from the cache cannot be read back: compile it afresh
        fresh = cpu.njit(nogil=True, error_model="numpy")(cpu._graves)
        like, rates = np.zeros(1, np.float32), np.zeros((0, 2), np.float32)
        fresh(np.zeros((0, 6), np.int64), rates, np.zeros(2, np.float32), like, like, 0, 0)
        text = "\n".join(fresh.inspect_asm().values())
    assert any(wide in text for wide in ("sqrtps", "fsqrt\tv", "fsqrt\tz", "xvsqrtsp")), "no vector square root"
