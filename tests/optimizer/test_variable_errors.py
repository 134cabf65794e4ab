"""Variable refuses invalid arguments."""

import numpy as np

from puzzlelib_rmsprop import Variable, gpuarray
from puzzlelib_rmsprop.errors import ArrayError, SetupError, VariableError
from tests.refused import each, locked, refuse, rows, var, watch, with_grad
from tests.standins import Net


def copied(target, source):
    watch(Net(v=target))
    target.set(source)


class Matrix(np.ndarray):
    """A user's subclass."""


TABLE = [
    *rows(
        SetupError,
        (lambda: var().update(0.1), "has no updater"),
        (lambda: var().postUpdate(), "has no postUpdater"),
    ),
    *rows(
        VariableError,
        (lambda: Variable(gpuarray.zeros(3), "b", updater=3), "'b': its updater must be callable; got 3"),
        (lambda: Variable(gpuarray.zeros(3), "b", postUpdater="x"), "'b': its postUpdater must be callable; got 'x'"),
        (lambda: copied(var(), var((4,))), r"set\(\): its data must be of shape \(3,\); got \(4,\)"),
        (
            lambda: copied(var(), with_grad(gpuarray.zeros(3), gpuarray.zeros(4))),
            r"set\(\): its gradient must be of shape \(3,\); got \(4,\)",
        ),
        (lambda: copied(var(), 3), r"set\(\) takes a Variable; got 3"),
        (
            lambda: copied(var(), Variable(np.zeros(3, np.complex64))),
            r"set\(\): its data must be floating-point; got complex64",
        ),
    ),
    *rows(
        ArrayError,
        (
            lambda: copied(with_grad(np.ones(3), locked(np.ones(3))), var(dtype="float64")),
            r"set\(\): its gradient must be writeable",
        ),
        (lambda: copied(var(), with_grad(gpuarray.zeros(3), 3)), r"set\(\): its gradient: arrays must come from.*int"),
        *[
            (lambda given=given: Variable(given), "arrays must come from .*; got")
            for given in (
                None,
                3,
                "x",
                np.float32(1),
                np.zeros(3).data,
                bytearray(4),
                np.zeros(3).view(Matrix),
                np.ma.zeros(3),
            )
        ],
        (
            lambda: Variable([1.0]),
            r"arrays must come from puzzlelib_rmsprop, NumPy, .*__dlpack__ on the CPU; got builtins.list",
        ),
    ),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)
