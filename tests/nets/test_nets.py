"""Modules and costs: gradients against finite differences, PuzzleLib's sign and names, files."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import Variable, gpuarray
from puzzlelib_rmsprop.errors import CheckpointError, CostError, ModuleError
from puzzlelib_rmsprop.nets import (
    MSE,
    Activation,
    CrossEntropy,
    Linear,
    Module,
    Sequential,
    leakyRelu,
    relu,
    sigmoid,
    tanh,
)
from tests.golden import DATA, KINDS, NAMES, Replay


def net64(*modules):
    net = Sequential()
    for module in modules:
        net.append(module)
    net.calcMode(np.float64)
    return net


# every test here runs on each backend there is
pytestmark = pytest.mark.usefixtures("backend")


def random(*shape, seed=0):
    return gpuarray.to_gpu(np.random.default_rng(seed).standard_normal(shape))


def random32(*shape, seed=0):
    return gpuarray.to_gpu(random(*shape, seed=seed).get().astype(np.float32))


def differences(function, array, step=1e-6):
    """d function / d array by central differences; ``function`` reads ``array`` anew each time."""
    content = array.get()
    found = np.zeros(content.shape)

    def at(index, value):
        changed = content.copy()
        changed[index] = value
        array.set(changed)
        return function()

    for index in np.ndindex(*content.shape):
        found[index] = (at(index, content[index] + step) - at(index, content[index] - step)) / (2 * step)
    array.set(content)
    return found


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


def test_gradient_of_cross_entropy():
    scores, labels = random(7, 4), gpuarray.to_gpu(np.array([0, 3, 2, 1, 1, 0, 3], np.int32))
    cost = CrossEntropy()
    error, grad = cost(scores, labels)
    softmax = np.exp(scores.get()) / np.exp(scores.get()).sum(axis=1, keepdims=True)
    assert error == pytest.approx(-np.log(softmax[np.arange(7), labels.get()]).mean(), rel=1e-12)
    assert np.allclose(grad.get(), -differences(lambda: cost(scores, labels)[0], scores), atol=1e-8)


def test_cross_entropy_of_huge_scores():
    scores = gpuarray.to_gpu(np.array([[1e4, 0], [0, 1e4]], np.float32))
    error, grad = CrossEntropy()(scores, gpuarray.to_gpu(np.array([0, 0], np.int32)))
    assert error == 5e3
    assert grad.get().tolist() == [[0, 0], [0.5, -0.5]]


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


# ----------------------------------------------------------------------------------------------- costs


def test_cost_bookkeeping():
    cost = MSE()
    with pytest.raises(CostError, match="no samples"):
        cost.getMeanError()
    ones, zeros = gpuarray.to_gpu(np.ones((2, 1), np.float32)), gpuarray.zeros((2, 1))
    error, grad = cost(ones, zeros)
    assert (error, cost.getError(), cost.error) == (0.5, 0.5, 0.5)
    assert cost.grad is grad
    assert grad.get().tolist() == [[-0.5], [-0.5]]
    only = cost(zeros[:1], zeros[:1], queryError=False)
    assert only.get().tolist() == [[0]]
    assert cost.getMeanError() == pytest.approx(1 / 3)
    assert cost.validate(ones, zeros) == cost.getValError() == 0.5
    cost.resetAccumulator()
    cost(ones, zeros)
    assert cost.getMeanError() == 0.5


def test_accuracy():
    scores = gpuarray.to_gpu(np.array([[1, 2, 0], [5, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32))
    labels = gpuarray.to_gpu(np.array([1, 0, 2, 0], np.int32))
    cost = CrossEntropy(maxlabels=3)
    assert cost.validate(scores, labels) == 0.25, "PuzzleLib's: the share that is wrong"
    assert cost.accuracy(scores, labels) == 0.75
    assert cost.mostProb.get().tolist() == [1, 0, 2, 1]


# ----------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_puzzlelibs_module_files(kind, tmp_path):
    replay = Replay(kind, globalState=False)
    replay.net.load(DATA / f"module_{kind}.hdf")
    for name in NAMES:
        assert np.array_equal(replay.net.getVar(name).data.get(), replay.golden[f"final.{name}"])
    # and what we write is laid out as theirs
    replay.net.save(tmp_path / "ours.hdf")
    with h5py.File(tmp_path / "ours.hdf") as ours, h5py.File(DATA / f"module_{kind}.hdf") as theirs:
        for group in ("params", "links"):
            assert set(ours[group]) == set(theirs[group])
            for key in theirs[group]:
                assert ours[group][key].dtype == theirs[group][key].dtype
                assert np.array_equal(ours[group][key][()], theirs[group][key][()])


def test_files_of_every_kind(tmp_path):
    def make():
        shared = Linear(3, 3)
        tied = Linear(3, 3, empty=True)
        tied.setVar("W", shared.getVar("W"))
        tied.setVar("b", Variable(gpuarray.to_gpu(np.random.rand(3).astype(np.float32))))
        return Sequential("net").append(shared).append(Sequential("in").append(tied))

    net = make()
    blob = net.save()
    assert isinstance(blob, bytes)
    net.save(tmp_path / "net.hdf", compress=None)
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        net.save(file)
        assert len(file["params"]) == 3, "a shared variable is saved once"
        assert set(file["links"]) == {"net.0.W", "net.0.b", "net.in.0.W", "net.in.0.b"}
    with h5py.File(tmp_path / "open.hdf", "r") as file:
        for source in (blob, str(tmp_path / "net.hdf"), tmp_path / "net.hdf", file):
            other = make()
            arrays = [var.data for var in other.getVarTable()]
            other.load(source)
            for var, mine, array in zip(other.getVarTable(), net.getVarTable(), arrays, strict=True):
                assert np.array_equal(var.data.get(), mine.data.get())
                assert var.data is array, "loaded in place"


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    net = Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="b"))
    path = tmp_path / "net.hdf"
    net.save(path)
    wrong = [
        (Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="c")), "no parameter '.c.W'"),
        (Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 5, name="b")), r"'.b.W' must be of shape \(2, 5\)"),
        (Linear(3, 2), "no parameter '.W'"),
    ]
    for other, message in wrong:
        before = [var.data.get() for var in other.getVarTable()]
        with pytest.raises(CheckpointError, match=message):
            other.load(path)
        for var, kept in zip(other.getVarTable(), before, strict=True):
            assert np.array_equal(var.data.get(), kept)
    half = Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="b"))
    half.calcMode(np.float16)
    with pytest.raises(CheckpointError, match="float16.*float32.*without loss"):
        half.load(path)
    with pytest.raises(CheckpointError, match="no HDF5 file"):
        net.load(b"xyz")


# ------------------------------------------------------------------------------------------- bad input


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
        (lambda: Linear(2, 2, empty=True)(data3()), ModuleError, "made empty"),
        (lambda: Linear(4, 2)(data3()), ModuleError, r"data must be of shape \(n, 4\); got \(2, 3\)"),
        (lambda: Linear(3, 2)(data3().ravel()), ModuleError, "data must be of shape"),
        (lambda: Linear(3, 2)(data3(np.float64)), ModuleError, "data must be of dtype float32; got float64"),
        (lambda: Linear(3, 2, name="fc")(np.zeros((2, 3), np.float32)), ModuleError, "Linear 'fc': data must be made with"),
        (lambda: Linear(3, 2).calcMode(np.int32), ModuleError, "calcMode needs one of"),
        (lambda: Linear(3, 2).getVar("X"), ModuleError, "has no variable 'X'; it has W, b"),
        (backward_first, ModuleError, "needs a forward run first"),
        (chain_backward_first, ModuleError, "needs a forward run first"),
        (wrong_grad, ModuleError, r"grad must be of the output's shape \(2, 2\); got \(2, 3\)"),
        (lambda: Activation("swish"), ModuleError, "Activation must be one of sigmoid.*got 'swish'"),
        (lambda: Sequential().append(3), ModuleError, "append.. needs a module; got int"),
        (lambda: Sequential().append(Linear(1, 1, name="a.b")), ModuleError, "must have no dot"),
        (
            lambda: Sequential().append(Linear(1, 1, name="a")).append(Linear(1, 1, name="a"), acquire=False),
            ModuleError,
            "has a module 'a' already",
        ),
        (lambda: Sequential().getVar("a.W"), ModuleError, "has no module 'a'; it has none"),
        (lambda: Sequential().append(Linear(1, 1, name="a"))["b"], ModuleError, "has no module 'b'; it has a"),
        (lambda: MSE()(data3(), gpuarray.zeros((2, 4))), CostError, r"one shape and dtype; got \(2, 3\), float32"),
        (lambda: MSE()(data3(), gpuarray.zeros((2, 3), np.float64)), CostError, "one shape and dtype"),
        (lambda: MSE()(data3(), np.zeros((2, 3), np.float32)), CostError, "target must be made with gpuarray.to_gpu"),
        (lambda: MSE()(data3()[:0], data3()[:0]), CostError, "must have samples"),
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
