"""Stochastic rounding of the state: the bits of the reference, indices past 32 bits, and no bias."""

import struct

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import Hyper, StepOptions, layout
from tests import reference_extended
from tests.cuda.extended import OPS, Variable, table_of
from tests.cuda.variables import HYPER, chunk
from tests.reference_extended import numbers

FAR = [("bfloat16", first) for first in (2**32 - 3000, 2**32 - 1, 2**32, 2**33 - 5, 2**40 + 12345)]
FAR += [("int8", first) for first in (2**32 - 3008, 2**32 - 64, 2**32, 2**40 + 64 * 12345)]  # starts of blocks


@pytest.mark.parametrize(("state", "first"), FAR)
def test_indices_of_64_bits_name_random_numbers(kernels, state, first):
    variable = Variable(chunk() + 500, "float32", state, first=first, key=77)
    table = table_of(kernels, variable)
    for t in range(2):
        variable.new_grad()
        table.update(Hyper(**HYPER), options=StepOptions(seed=(t, 9)))
        variable.step(seed=(t, 9))
        variable.check()


@pytest.mark.parametrize(("state", "first"), [("bfloat16", 3), ("int8", layout.BLOCK)])
def test_a_variable_of_more_than_2_33_elements(kernels, state, first):
    # the last chunk of a variable, the only part that is allocated
    from pycuda import driver

    far = 1 << 33
    variable = Variable(500, "float32", state, first=far + first, key=5, wc=1.0)
    segments = layout.pack_segments([variable.segment()])
    for name, array in zip(variable.buffers.names, variable.buffers.guarded, strict=True):
        segments[name] -= np.uint64(far // layout.BLOCK * 3 if name == "scales" else far * array.dtype.itemsize)
    segments["size"], segments["wc"], segments["first"] = far + 500, 1.0, first
    chunks = np.zeros(1, layout.CHUNKS)
    chunks["index"] = far // layout.CHUNK
    held = [driver.to_device(segments), driver.to_device(chunks)]
    variable.new_grad()
    hyper = layout.pack_hyper(Hyper(**HYPER), np.dtype(np.float32))
    arguments = struct.pack("=6d4Q", *hyper, 0, int(held[0]), int(held[1]), 1)
    arguments += layout.pack_options(StepOptions(tuple(OPS["all"]), zeroGrad=True, seed=(21, 22)))
    function = kernels.function(f"graves_extended_float32_{state}")
    function._launch_kernel((1, 1), (kernels.THREADS, 1, 1), arguments, 0, None)
    variable.step(OPS["all"], seed=(21, 22))
    variable.check(zeroed=True)


def test_random_rounding_is_fair(kernels):
    # a state between two bfloat16 numbers, stored many times: no bias, and independent for elements, steps and variables
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
    # five standard deviations of independent trials with probability 0.3
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
    # of the reference, to which the kernels are bit-identical
    for seed in ((0, 0), (1, 0), (0, 1), (123, 456)):
        for r in numbers(seed, 42, 2**32 - 50_000, 100_000):
            assert abs(r.mean() - 32767.5) < 5 * 65536 / np.sqrt(12 * r.size)
            counts = np.bincount(r.astype(np.int64) >> 8, minlength=256)
            assert np.abs(counts - r.size / 256).max() < 5 * np.sqrt(r.size / 256)


def test_errors_of_many_steps_do_not_add_up(kernels):
    # rounded to nearest, a decay of mg by less than half a unit per step would stop; with stochastic rounding it continues
    variable = Variable(2000, "float32", "bfloat16")
    table = table_of(kernels, variable)
    variable.buffers.set_grad(0.0)
    variable.buffers.set("mg", 1.0)
    for t in range(40):
        table.update(Hyper(0.0, 0.999, 0.0, 1.0), options=StepOptions(seed=(t, 3)))
    mean = variable.buffers.get()["mg"].astype(np.float64).mean()
    # the error of a step is at most 2**-8, so the mean of 2000 has a deviation below 40**0.5 * 2**-8 / 2000**0.5
    assert abs(mean - 0.999**40) < 5 * np.sqrt(40 / 2000) * 2**-8
    assert reference_extended.bfloat16(np.float32(0.999)) == 1
