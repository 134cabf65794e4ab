"""Operations on gradients, in the update and alone, compared with tests/reference_extended.py."""

import numpy as np
import pytest

from puzzlelib_rmsprop.errors import SetupError
from puzzlelib_rmsprop.kernels import SCALE, Hyper, Operation, StepOptions, real_dtype
from tests import reference_extended
from tests.cuda.extended import OPS, Device, Variable, plain, same, table_of
from tests.cuda.variables import DTYPES, HYPER, Buffers
from tests.reference_extended import applied


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
    # the number is read when the kernel runs, multiplied in double and rounded once
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
            same(found["grad"], reference_extended.nearest(expected, dtype), name)
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
    same(variable.buffers.get()["grad"], reference_extended.nearest(expected, dtype))


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
