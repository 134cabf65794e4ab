"""Modules: gradients compared with finite differences, modes, names, initial values."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Variable, gpuarray
from puzzlelib_rmsprop.nets import MSE, Activation, Linear, Module, Sequential, leakyRelu, relu, sigmoid, tanh
from tests.nets.numbers import differences, net64, random, random32

# every test runs on each available backend
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("activation", [relu, leakyRelu, tanh, sigmoid])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("useBias", [False, True])
def test_gradients_of_a_net(activation, transpose, useBias):
    np.random.seed(0)
    net = net64(
        Linear(4, 5, transpose=transpose, useBias=useBias), Activation(activation), Linear(5, 3, transpose=transpose)
    )
    data, target, cost = random(6, 4), random(6, 3, seed=1), MSE()
    _, grad = cost(net(data), target)
    net.backward(grad)
    ingrad = net.grad.get()
    expected = differences(lambda: cost(net(data), target)[0], data)
    # PuzzleLib's sign: the gradient of minus the cost
    assert np.allclose(ingrad, -expected, atol=1e-8)
    for var, names in net.getVarTable().items():
        expected = differences(lambda: cost(net(data), target)[0], var.data)
        assert np.abs(expected).max() > 1e-4
        assert np.allclose(var.grad.get(), -expected, atol=1e-8), names


@pytest.mark.parametrize("kind", [relu, leakyRelu, tanh, sigmoid])
def test_activations_forward(kind):
    data = np.array([-1000, -2, -0.5, 0, 0.5, 2, 1000], np.float32)
    expected = {
        relu: np.maximum(data, 0),
        leakyRelu: np.where(data > 0, data, 0.01 * data),
        tanh: np.tanh(data),
        sigmoid: [0, 0.11920292, 0.37754067, 0.5, 0.62245933, 0.88079708, 1],
    }[kind]
    out = Activation(kind)(gpuarray.to_gpu(data))
    assert isinstance(out, gpuarray.GPUArray)
    assert out.dtype == np.float32
    assert np.allclose(out.get(), expected, rtol=1e-6, atol=1e-9)
    assert Activation(kind.value).activation is kind


def test_leaky_slope():
    module = Activation(leakyRelu, args=(0.5,))
    assert module(gpuarray.to_gpu(np.array([-2, 2], np.float32))).get().tolist() == [-1, 2]
    module.backward(gpuarray.to_gpu(np.array([1, 1], np.float32)))
    assert module.grad.get().tolist() == [0.5, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_calc_mode(dtype):
    net = Sequential().append(Linear(3, 4)).append(Activation(tanh)).append(Linear(4, 2))
    table = net.getVarTable()
    net.calcMode(dtype)
    assert list(net.getVarTable()) == list(table), "the same variables"
    out = net(gpuarray.zeros((5, 3), dtype))
    net.backward(out)
    assert out.dtype == net.grad.dtype == dtype
    for var in table:
        assert var.data.dtype == var.grad.dtype == dtype


def test_calc_mode_of_shared_variables():
    first, second = Linear(3, 3, useBias=False), Linear(3, 3, useBias=False, empty=True)
    second.setVar("W", first.getVar("W"))
    net = Sequential().append(first).append(second)
    net.calcMode(np.float64)
    assert first.W is second.W is net.getVar("1.W").data
    assert net.getVarTable() == {first.getVar("W"): ["0.W", "1.W"]}


def test_backward_accumulates_in_a_chain_only():
    data, grad = random32(2, 3), random32(2, 2, seed=1)
    linear = Linear(3, 2)
    chain = Sequential().append(linear)
    linear(data)
    linear.backward(grad)
    once = linear.getVar("W").grad.get()
    linear.backward(grad)
    assert np.array_equal(linear.getVar("W").grad.get(), once), "a module replaces"
    chain(data)
    chain.backward(grad)
    assert np.allclose(linear.getVar("W").grad.get(), 2 * once), "a chain adds"
    chain.zeroGradParams()
    chain.backward(grad, scale=3.0)
    assert np.allclose(linear.getVar("W").grad.get(), 3 * once)
    chain.backward(grad, momentum=0.0)
    assert np.allclose(linear.getVar("W").grad.get(), once)


def test_momentum_zero_forgets_a_nan():
    linear = Linear(3, 2)
    linear(gpuarray.zeros((1, 3)))
    for name in "Wb":
        grad = linear.getVar(name).grad
        grad.set(np.full(grad.shape, np.nan, grad.dtype))
    linear.backward(gpuarray.zeros((1, 2)))
    assert not linear.getVar("W").grad.get().any()
    assert not linear.getVar("b").grad.get().any()


def test_modes_and_flags():
    linear = Linear(3, 2)
    data, grad = gpuarray.to_gpu(np.ones((1, 3), np.float32)), gpuarray.to_gpu(np.ones((1, 2), np.float32))
    chain = Sequential().append(linear)
    chain.evalMode()
    chain(data)
    chain.backward(grad)
    assert not linear.getVar("W").grad.get().any()
    assert chain.grad is not None
    chain.trainMode()
    chain(data)
    chain.backward(grad, updGrad=False)
    assert chain.grad is None
    assert linear.getVar("W").grad.get().any()
    chain.reset()
    assert chain.data is None
    assert linear.data is None


def test_names():
    inner = Sequential("inner").append(Linear(2, 2, name="fc"))
    net = Sequential("ignored").append(Linear(2, 2)).append(inner).append(Linear(2, 2, name="inner"))
    assert list(net.getVarTable().values()) == [[name] for name in ("0.W", "0.b", "inner.fc.W", "inner.fc.b", "2.W", "2.b")]
    assert list(Linear(2, 1, name="x").getVarTable().values()) == [["W"], ["b"]]
    assert net["inner"] is inner is net[1]
    assert len(net) == 3
    assert net.numOfParams() == 18
    var = Variable(gpuarray.zeros((2, 2)))
    net.setVar("inner.fc.W", var)
    assert net.getVar("inner.fc.W") is var
    assert inner[0].W is var.data


def test_init_schemes():
    np.random.seed(0)
    spreads = {
        "xavier_uniform": 0.1,
        "xavier": 0.1,
        "xavier_normal": 0.1,
        "he": 2**0.5 / 10,
        "gaussian": 3,
        "uniform": 3 / 3**0.5,
    }
    for scheme, expected in spreads.items():
        W = Linear(100, 300, wscale=3.0, initscheme=scheme).W.get()
        assert W.std() == pytest.approx(expected, rel=0.02), scheme
        assert abs(W.mean()) < 0.02 * expected, scheme
    assert Linear(100, 300, transpose=True).W.get().std() == pytest.approx(0.1, rel=0.02)
    assert Linear(2, 2, initscheme="none").W.shape == (2, 2)
    assert not Linear(3, 2).b.get().any()


def test_repeatable_by_numpys_seed():
    weights = []
    for _ in range(2):
        np.random.seed(5)
        weights.append(Linear(3, 4).W.get())
    assert np.array_equal(*weights)


def test_a_module_of_ones_own():
    class Double(Module):
        def updateData(self, data):
            self.data = data * 2

        def updateGrad(self, grad):
            self.grad = grad * 2

    net = Sequential().append(Double()).append(Double())
    assert net(gpuarray.to_gpu(np.ones(2, np.float32))).get().tolist() == [4, 4]
    net.backward(gpuarray.to_gpu(np.ones(2, np.float32)))
    assert net.grad.get().tolist() == [4, 4]
