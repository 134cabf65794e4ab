"""The kernels of the rule compared with the formula, bit for bit: all sizes, alignments, counts of variables and indices."""

import struct

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Hyper, layout, real_dtype
from tests.cuda.variables import DTYPES, HYPER, Buffers, check, chunk, size_of, sizes, start, table_of
from tests.reference import Reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", sizes())
@pytest.mark.parametrize("entry", ["one", "many"])
def test_every_size(kernels, dtype, size, entry):
    param, grads = start(size_of(size), dtype)
    buffers = Buffers(param, real_dtype(param.dtype))
    factors = (1.0, 1.0) if entry == "one" else (0.5, 0.25)
    table = table_of(kernels, entry, buffers, factors)
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**HYPER))
    check(buffers.get(), param, grads, dtype, factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", ["one", "many"])
def test_every_alignment(kernels, dtype, entry):
    # all unaligned by the same amount: a head, vectors and a tail; by different amounts: element by element
    together = [(k,) * 5 for k in range(1, 9)]
    apart = [tuple(k if i == j else 0 for j in range(5)) for i in range(5) for k in (1, 2)]
    factors = (2.0, 0.5)
    for seed, offsets in enumerate(together + apart):
        param, grads = start(1037, dtype, seed)
        buffers = Buffers(param, real_dtype(param.dtype), offsets)
        table = table_of(kernels, entry, buffers, factors)
        for grad in grads:
            buffers.set_grad(grad)
            table.update(Hyper(**HYPER))
        check(buffers.get(), param, grads, dtype, factors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_variables_in_one_launch(kernels, dtype, request):
    rng = np.random.default_rng(1)
    lengths = [int(n) for n in rng.integers(0, 60, 996)] + [chunk() + 3, 2 * chunk(), 0, 1]
    variables, segments, factors = [], [], []
    for number, length in enumerate(lengths):
        param, grads = start(length, dtype, number)
        offset = int(rng.integers(0, 5))
        buffers = Buffers(param, real_dtype(param.dtype), (offset,) * 5)
        variables.append((buffers, param, [grads[0], grads[0]]))
        segments.append(buffers.segment())
        factors.append((float(rng.choice([1.0, 0.5])), float(rng.choice([1.0, 0.0])), 0.0))
        buffers.set_grad(grads[0])
    table = kernels.Table(segments)
    table.set_rates(factors)
    if request.config.simulated:
        from tests.cudasim import control

        control.reset()
    table.update(Hyper(**HYPER))
    if request.config.simulated:
        assert [launch["name"] for launch in control.launches()] == [f"graves_many_{dtype}_{real_dtype(np.dtype(dtype))}"]
    table.update(Hyper(**HYPER))
    for (buffers, param, grads), each in zip(variables, factors, strict=True):
        check(buffers.get(), param, grads, dtype, each)


def test_dtypes_side_by_side_are_a_launch_each(kernels, request):
    variables, segments = [], []
    for number, dtype in enumerate(DTYPES * 3):
        param, grads = start(40 + number, dtype, number)
        buffers = Buffers(param, real_dtype(param.dtype))
        variables.append((buffers, param, grads[:2], dtype))
        segments.append(buffers.segment())
    table = kernels.Table(segments)
    table.set_rates([(1.0 + number, 1 / (1 + number), 0.0) for number in range(12)])
    if request.config.simulated:
        from tests.cudasim import control

        control.reset()
    for step in range(2):
        for buffers, _, grads, _ in variables:
            buffers.set_grad(grads[step])
        table.update(Hyper(**HYPER))
    if request.config.simulated:
        names = [f"graves_many_{dtype}_{real_dtype(np.dtype(dtype))}" for dtype in DTYPES]
        assert [launch["name"] for launch in control.launches()] == names * 2
    for number, (buffers, param, grads, dtype) in enumerate(variables):
        check(buffers.get(), param, grads, dtype, (1.0 + number, 1 / (1 + number)))


def test_every_index_has_64_bits(kernels):
    # the last chunk of a variable of 2**33 + 500 elements, the only part that is allocated
    from pycuda import driver

    size, far = 500, 1 << 33
    param, grads = start(size, "float32")
    buffers = Buffers(param, np.float32)
    segments = layout.pack_segments([buffers.segment()])
    for name in ("param", "grad", "mg", "variance", "delta"):
        segments[name] -= np.uint64(far * 4)
    segments["size"] = far + size
    chunks = np.zeros(1, layout.CHUNKS)
    chunks["index"] = far // layout.CHUNK
    held = [driver.to_device(segments), driver.to_device(chunks)]
    function = kernels.function("graves_many_float32_float32")
    for grad in grads:
        buffers.set_grad(grad)
        hyper = layout.pack_hyper(Hyper(**HYPER), np.dtype(np.float32))
        arguments = struct.pack("=6d4Q", *hyper, 0, int(held[0]), int(held[1]), 1)
        function._launch_kernel((1, 1), (kernels.THREADS, 1, 1), arguments, 0, None)
    check(buffers.get(), param, grads, "float32")


def test_more_blocks_than_the_grid_has(kernels, monkeypatch):
    # grid-stride loop: one block does all the work
    monkeypatch.setattr(kernels, "_most_blocks", lambda: 1)
    for entry, factors in (("one", (1.0, 1.0)), ("many", (0.5, 0.5))):
        param, grads = start(3 * chunk() + 5, "float32")
        buffers = Buffers(param, np.float32)
        table = table_of(kernels, entry, buffers, factors)
        for grad in grads:
            buffers.set_grad(grad)
            table.update(Hyper(**HYPER))
        check(buffers.get(), param, grads, "float32", factors)


def test_nan_and_infinity_are_not_hidden(kernels):
    grads = np.array([[1.0, np.nan, np.inf, -np.inf]], np.float32)
    buffers = Buffers(np.zeros(4, np.float32), np.float32)
    buffers.set_grad(grads[0])
    kernels.Table([buffers.segment()]).update(Hyper(**HYPER))
    assert np.isfinite(buffers.get()["param"]).tolist() == [True, False, False, False]


@pytest.mark.parametrize("size", [10.0, 100.0, 1e4, 1e8])
def test_gradients_that_sink_to_a_constant(kernels, size):
    rng = np.random.default_rng(5)
    sinking = 1 + np.exp(-np.arange(600) / 30.0)[:, None]
    grads = (size * (sinking + 1e-6 * rng.standard_normal((600, 16)))).astype(np.float32)
    buffers = Buffers(np.zeros(16, np.float32), np.float32)
    table, expected = kernels.Table([buffers.segment()]), Reference(np.zeros(16), dtype=np.float32)
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**HYPER))
        expected.step(grad, **HYPER)
    found = buffers.get()
    for name, content in expected.buffers().items():
        assert np.isfinite(found[name]).all(), name
        assert np.array_equal(found[name], content), name


def test_gradients_that_hardly_vary(kernels):
    # where ms - mg*mg would lose all digits
    noise = np.random.default_rng(0).standard_normal(300)
    grads = np.array([np.full(300, g) for g in (97.36, 1234.5, 20000.0)] + [100 * (1 + 1e-4 * noise)], np.float32).T
    buffers = Buffers(np.zeros(4, np.float32), np.float32)
    table, oracle = kernels.Table([buffers.segment()]), Reference(np.zeros(4), dtype=np.longdouble)
    default = {"learnRate": 1e-4, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**default))
        oracle.step(grad, **default)
    assert (np.abs(buffers.get()["param"] / oracle.param - 1) < 1e-4).all()
