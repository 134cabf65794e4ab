"""Calls that modules and costs refuse."""

import numpy as np
import pytest

from puzzlelib_rmsprop import gpuarray
from puzzlelib_rmsprop.errors import CostError, ModuleError
from puzzlelib_rmsprop.nets import MSE, Activation, CrossEntropy, Linear, Sequential

# every test runs on each available backend
pytestmark = pytest.mark.usefixtures("backend")


def data3(dtype=np.float32):
    return gpuarray.zeros((2, 3), dtype)


def backward_first():
    Linear(3, 2).backward(gpuarray.zeros((2, 2)))


def chain_backward_first():
    Sequential().append(Linear(3, 2)).backward(gpuarray.zeros((2, 2)))


def wrong_grad():
    linear = Linear(3, 2)
    linear(data3())
    linear.backward(gpuarray.zeros((2, 3)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0, 2), ModuleError, "insize must be an int of at least 1; got 0"),
        (lambda: Linear(2, 2.0), ModuleError, "outsize must be an int"),
        (lambda: Linear(2, True), ModuleError, "outsize must be an int"),
        (lambda: Linear(2, 2, initscheme="best"), ModuleError, "initscheme must be one of none.*got 'best'"),
        (lambda: Linear(2, 2, empty=True)(data3()), ModuleError, "was made with empty=True"),
        (lambda: Linear(4, 2)(data3()), ModuleError, r"data must be of shape \(n, 4\); got \(2, 3\)"),
        (lambda: Linear(3, 2)(data3().ravel()), ModuleError, "data must be of shape"),
        (lambda: Linear(3, 2)(data3(np.float64)), ModuleError, "data must be of dtype float32; got float64"),
        (lambda: Linear(3, 2, name="fc")(np.zeros((2, 3), np.float32)), ModuleError, "Linear 'fc': data must be made with"),
        (lambda: Linear(3, 2).calcMode(np.int32), ModuleError, "calcMode needs one of numpy.float16"),
        (lambda: Linear(3, 2).getVar("X"), ModuleError, "has no variable 'X'; it has W, b"),
        (backward_first, ModuleError, "needs a forward run first"),
        (chain_backward_first, ModuleError, "needs a forward run first"),
        (wrong_grad, ModuleError, r"grad must be of the output's shape \(2, 2\); got \(2, 3\)"),
        (lambda: Activation("swish"), ModuleError, "Activation must be one of sigmoid.*got 'swish'"),
        (lambda: Sequential().append(3), ModuleError, "append.. needs a module; got int"),
        (lambda: Sequential().append(Linear(1, 1, name="a.b")), ModuleError, "must not contain a dot"),
        (
            lambda: Sequential().append(Linear(1, 1, name="a")).append(Linear(1, 1, name="a"), acquire=False),
            ModuleError,
            "already has a module 'a'",
        ),
        (lambda: Sequential().getVar("a.W"), ModuleError, "has no module 'a'; it has none"),
        (lambda: Sequential().append(Linear(1, 1, name="a"))["b"], ModuleError, "has no module 'b'; it has a"),
        (lambda: MSE()(data3(), gpuarray.zeros((2, 4))), CostError, r"the same shape and dtype; got \(2, 3\), float32"),
        (lambda: MSE()(data3(), gpuarray.zeros((2, 3), np.float64)), CostError, "the same shape and dtype"),
        (lambda: MSE()(data3(), np.zeros((2, 3), np.float32)), CostError, "target must be made with gpuarray.to_gpu"),
        (lambda: MSE()(data3()[:0], data3()[:0]), CostError, "must have at least one sample"),
        (
            lambda: CrossEntropy()(data3(), gpuarray.zeros(2, np.int64)),
            CostError,
            "labels must be of dtype int32; got int64",
        ),
        (lambda: CrossEntropy()(data3(), gpuarray.zeros(3, np.int32)), CostError, r"scores \(n, classes\) and labels"),
        (lambda: CrossEntropy(4)(data3(), gpuarray.zeros(2, np.int32)), CostError, "maxlabels = 4 columns; got 3"),
        (
            lambda: CrossEntropy()(data3(), gpuarray.to_gpu(np.array([0, 3], np.int32))),
            CostError,
            "labels must be from 0 to 2; got 3",
        ),
        (
            lambda: CrossEntropy().validate(data3(), gpuarray.to_gpu(np.array([0, -1], np.int32))),
            CostError,
            "labels must be from 0 to 2; got -1",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
