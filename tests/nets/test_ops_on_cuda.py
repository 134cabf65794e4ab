"""CUDA compared with the CPU: every operation of nets, whole nets, and files written by either."""

from functools import partial

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, gpuarray
from puzzlelib_rmsprop.errors import ArrayError
from puzzlelib_rmsprop.nets import MSE, Activation, CrossEntropy, Linear, Sequential, ops, relu
from tests.tolerances import assert_close


def on(backend, content):
    Config.backend = Config.Backend[backend]
    return gpuarray.to_gpu(content)


# ---------------------------------------------------------------------------------- every operation of nets

# rounding errors of a few operations, and of sums of some hundred products in another order
ROUNDING = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


def both(operation, *contents):
    """Results of an operation on CUDA and on the CPU, as lists of NumPy arrays and numbers."""
    results = []
    for backend in ("cuda", "cpu"):
        found = operation(*(on(backend, content) for content in contents))
        found = found if isinstance(found, tuple) else (found,)
        results.append([item.get() if hasattr(item, "get") else item for item in found])
    return results


def assert_same_on_both(operation, *contents, what=""):
    dtype = contents[0].dtype
    assert str(dtype) in ROUNDING
    for mine, expected in zip(*both(operation, *contents), strict=True):
        assert type(mine) is type(expected)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == expected.dtype
        assert_close(mine, expected, ROUNDING[str(dtype)], f"{what} {dtype} {[c.shape for c in contents]}")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
class TestOperations:
    @staticmethod
    def random(*shape, dtype, seed=0):
        return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)

    @pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 4), (17, 1, 33), (1, 65, 1), (5, 0, 3), (0, 3, 2), (3, 2, 0)])
    @pytest.mark.parametrize("transpA", [False, True])
    @pytest.mark.parametrize("transpB", [False, True])
    @pytest.mark.parametrize("factors", [None, (1.0, 1.0), (2.0, 0.0), (-1.5, 0.5)])
    def test_matmul(self, sizes, transpA, transpB, factors, dtype):
        rows, inner, columns = sizes
        a = self.random(rows, inner, dtype=dtype)
        b = self.random(inner, columns, dtype=dtype, seed=1)
        c = self.random(rows, columns, dtype=dtype, seed=2)
        alpha, beta = factors or (1.0, 0.0)
        arrays = [np.ascontiguousarray(m.T if transposed else m) for m, transposed in ((a, transpA), (b, transpB))]
        mine, others = both(
            lambda a, b, c: ops.matmul(a, b, transpA, transpB, *([c, alpha, beta] if factors else [])), *arrays, c
        )
        a, b, c = (m.astype(np.float64) for m in (a, b, c))
        expected = alpha * a @ b + beta * c
        # each term is rounded as it is added, and a float16 result once more
        unit = {"float16": 6e-8, "float32": 6e-8, "float64": 1.1e-16}[dtype]
        bound = (inner + 4) * unit * (abs(alpha) * abs(a) @ abs(b) + abs(beta * c))
        if dtype == "float16":
            bound += np.maximum(abs(expected), 6.2e-5) / 2048
        for (found,) in (mine, others) if dtype != "float16" else (mine,):
            assert found.dtype == dtype
            assert found.shape == expected.shape
            assert (abs(found - expected) <= bound).all()

    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (257, 3), (2, 300), (0, 4)])
    def test_rows(self, shape, dtype):
        matrix, row = self.random(*shape, dtype=dtype), self.random(shape[1], dtype=dtype)

        def add(matrix, row):
            ops.add_row(matrix, row)
            return matrix

        assert_same_on_both(add, matrix, row)
        for alpha, beta in ((1.0, 1.0), (2.0, 0.0), (-1.5, 0.5)):
            # half-precision sums on the CPU are rounded after each row
            if dtype != "float16" or shape[0] < 10:
                assert_same_on_both(partial(ops.sum_rows, alpha=alpha, beta=beta), matrix, row)

    @pytest.mark.parametrize("kind", ["sigmoid", "tanh", "relu", "leakyRelu"])
    @pytest.mark.parametrize("size", [0, 1, 255, 257])
    def test_activations(self, kind, size, dtype):
        data, grad = 3 * self.random(size, dtype=dtype), self.random(size, dtype=dtype, seed=1)
        assert_same_on_both(lambda data: ops.activate(kind, data, 0.25), data, what=kind)
        assert_same_on_both(lambda grad, out: ops.activate_backward(kind, grad, out, 0.25), grad, data, what=kind)
        special = np.array([np.nan, np.inf, -np.inf, 0.0, -1000.0, 1000.0], dtype)
        mine, expected = both(lambda data: ops.activate(kind, data, 0.25), special)
        assert np.array_equal(mine[0], expected[0], equal_nan=True)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (255, 1), (257, 3)])
    def test_costs(self, shape, dtype):
        pred, target = self.random(*shape, dtype=dtype), self.random(*shape, dtype=dtype, seed=1)
        assert_same_on_both(ops.mean_squared_error, pred, target)
        labels = np.random.default_rng(0).integers(0, shape[1], shape[0]).astype(np.int32)
        assert_same_on_both(ops.cross_entropy, pred, labels)
        assert_same_on_both(ops.most_probable, np.round(pred), what="with ties")
        assert both(ops.label_range, labels) == [[labels.min(), labels.max()]] * 2

    def test_most_probable_of_nan(self, dtype):
        scores = np.array([[1, np.nan, 5, np.nan], [np.nan, 2, 3, 4], [-np.inf, -np.inf, -3, 0], [-np.inf] * 4], dtype)
        mine, expected = both(ops.most_probable, scores)
        assert mine[0].tolist() == expected[0].tolist() == [1, 0, 3, 0]


@pytest.mark.usefixtures("cuda")
class TestOnCUDA:
    @pytest.mark.parametrize("size", [1, 256, 1000, 1024 * 256 + 3])
    def test_count_different(self, size):
        a = np.random.default_rng(0).integers(0, 3, size).astype(np.int32)
        b = np.random.default_rng(1).integers(0, 3, size).astype(np.int32)
        count = ops.count_different(gpuarray.to_gpu(a), gpuarray.to_gpu(b))
        assert type(count) is int
        assert count == np.count_nonzero(a != b)

    def test_more_elements_than_threads(self):
        data = np.random.default_rng(0).standard_normal(1024 * 256 + 3).astype(np.float32)
        assert_same_on_both(partial(ops.activate, "relu"), data)
        mine, expected = both(ops.mean_squared_error, data, data[::-1].copy())
        assert np.array_equal(mine[0], expected[0])
        assert mine[1] == pytest.approx(np.sum((data - data[::-1]).astype(np.float64) ** 2) / (2 * data.size), rel=1e-12)

    def test_errors_are_the_same_bits_each_time(self):
        pred, target = (gpuarray.to_gpu(np.random.default_rng(seed).standard_normal((5000, 7))) for seed in (0, 1))
        labels = gpuarray.to_gpu(np.arange(5000, dtype=np.int32) % 7)
        assert len({MSE()(pred, target)[0] for _ in range(5)}) == 1
        assert len({CrossEntropy()(pred, labels)[0] for _ in range(5)}) == 1
        assert type(MSE()(pred, target)[0]) is float

    def test_mixed_devices_are_refused(self):
        net = Sequential().append(Linear(3, 2)).append(Activation(relu))
        data = on("cpu", np.zeros((4, 3), np.float32))
        with pytest.raises(ArrayError, match=r"must all be on CUDA or all on the CPU; got CPU \(4, 3\) and CUDA \(3, 2\)"):
            net(data)
        Config.backend = Config.Backend.cuda
        with pytest.raises(ArrayError, match="must all be on CUDA or all on the CPU"):
            MSE()(gpuarray.zeros((4, 3)), data)

    def test_arrays_that_kernels_cannot_use_are_refused(self):
        net = Linear(3, 2)
        with pytest.raises(ArrayError, match=r"shape \(4, 3\) must be C-contiguous"):
            net(gpuarray.zeros((4, 6))[:, ::2])
        freed = gpuarray.zeros((4, 3))
        freed.gpudata.free()
        with pytest.raises(ArrayError, match="was freed"):
            net(freed)

    def test_a_net_stays_where_it_is(self):
        net = Linear(3, 2)
        Config.backend = Config.Backend.cpu
        net.calcMode(np.float64)
        assert type(net.W).__module__ == type(net.getVar("W").grad).__module__ == "pycuda.gpuarray"

    def test_views_that_start_anywhere(self):
        flat = np.random.default_rng(0).standard_normal(50).astype(np.float32)
        view = gpuarray.to_gpu(flat)[3:33].reshape(5, 6)
        net = Linear(6, 2)
        expected = flat[3:33].reshape(5, 6) @ net.W.get()
        assert_close(net(view).get(), expected, 1e-6)

    @pytest.mark.parametrize("way", [("cuda", "cpu"), ("cpu", "cuda")])
    def test_files_travel_between_devices(self, way, tmp_path, globalState):
        def make():
            net = Sequential().append(Linear(5, 4, name="a")).append(Activation(relu)).append(Linear(4, 3, name="b"))
            optimizer = RMSPropGraves(learnRate=0.01)
            optimizer.setupOn(net, useGlobalState=globalState)
            return net, optimizer

        def train(net, optimizer, steps=3):
            data, target = (np.random.default_rng(seed).standard_normal((6, 5 - 2 * seed)) for seed in (0, 1))
            data, target = gpuarray.to_gpu(data.astype(np.float32)), gpuarray.to_gpu(target.astype(np.float32))
            for _ in range(steps):
                _, grad = MSE()(net(data), target)
                optimizer.zeroGradParams()
                net.backward(grad)
                optimizer.update()

        np.random.seed(0)
        Config.backend = Config.Backend[way[0]]
        net, optimizer = make()
        train(net, optimizer)
        net.save(tmp_path / "net.hdf")
        optimizer.save(tmp_path / "optimizer.hdf")
        Config.backend = Config.Backend[way[1]]
        other, its = make()
        other.load(tmp_path / "net.hdf")
        its.load(tmp_path / "optimizer.hdf")
        for name in ("a.W", "a.b", "b.W", "b.b"):
            assert type(other.getVar(name).data) is not type(net.getVar(name).data)
            assert np.array_equal(other.getVar(name).data.get(), net.getVar(name).data.get())
        train(other, its)
        Config.backend = Config.Backend[way[0]]
        train(net, optimizer)
        for name in ("a.W", "a.b", "b.W", "b.b"):
            assert_close(other.getVar(name).data.get(), net.getVar(name).data.get(), 1e-5, name)
