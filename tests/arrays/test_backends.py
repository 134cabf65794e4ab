"""CUDA beside the CPU: gpuarray, every operation of nets, files between them, the context rule, what may be missing."""

import subprocess
import sys
import textwrap
import types
from functools import partial

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.arrays import CPUArray
from puzzlelib_rmsprop.errors import ArrayError, DependencyError, DeviceError, SetupError
from puzzlelib_rmsprop.kernels import context
from puzzlelib_rmsprop.nets import MSE, Activation, CrossEntropy, Linear, Sequential, cublas, ops, relu
from tests import conftest
from tests.tolerances import assert_close


def on(backend, content):
    Config.backend = Config.Backend[backend]
    return gpuarray.to_gpu(content)


def child(code):
    """A process of its own, with the CUDA that this one has."""
    prelude = f"import os, sys\n{conftest.in_child()}\nimport numpy as np\nfrom puzzlelib_rmsprop import Config, gpuarray\n"
    command = [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


# --------------------------------------------------------------------------------------------- gpuarray


def test_arrays_are_made_where_the_backend_says(backend):
    if backend == "cuda":
        from pycuda.gpuarray import GPUArray as Kind
    else:
        Kind = CPUArray
    for array in (gpuarray.to_gpu([1.0, 2.0]), gpuarray.empty(3), gpuarray.zeros((2, 2)), Variable(gpuarray.zeros(2)).grad):
        assert type(array) is Kind
        assert isinstance(array, gpuarray.GPUArray)
    assert not isinstance(np.zeros(3), gpuarray.GPUArray)


def test_content_shape_and_dtype(backend):
    for content in (
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.array(2.5),
        np.zeros((0, 4), np.float32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
    ):
        array = gpuarray.to_gpu(content)
        assert (array.shape, array.dtype) == (content.shape, content.dtype)
        assert array.flags.c_contiguous
        assert np.array_equal(array.get(), content)
    for shape, expected in ((3, (3,)), ((2, 0), (2, 0)), ((), ()), ([2, 3], (2, 3)), (np.int64(2), (2,))):
        assert gpuarray.empty(shape).shape == expected
        zeros = gpuarray.zeros(shape, np.float64)
        assert zeros.dtype == np.float64
        assert not zeros.get().any()
    with pytest.raises(ArrayError, match="needs numbers; got str"):
        gpuarray.to_gpu("abc")


def test_shared_array_follows_the_backend(backend):
    shared = gpuarray.SharedArray(np.float32)
    shared.register((3,), np.float32, "a")
    shared.register((2,), np.float32, "b")
    shared.build()
    assert type(shared["a"]) is type(gpuarray.zeros(1))
    assert shared.offsets == {"a": 0, "b": 4 if backend == "cuda" else 3}
    assert not shared.ary.get().any()


def test_streams(backend):
    manager = gpuarray.StreamManager()
    first, second = manager.borrow(2), manager.borrow(1)
    assert len({id(stream) for stream in first + second}) == 3
    if backend == "cuda":
        from pycuda.driver import Stream

        assert all(type(stream) is Stream for stream in first)
    for stream in first:
        stream.synchronize()
    manager.give(first + second)
    with pytest.raises(SetupError, match="that borrow"):
        manager.give(first)
    assert {id(stream) for stream in manager.borrow(3)} == {id(stream) for stream in first + second}
    # lent by one device, given back while the other is set
    cpu = gpuarray.StreamManager()
    lent = cpu.borrow(1)
    Config.backend = Config.Backend.cpu
    cpu.give(lent)
    assert type(cpu.borrow(1)[0]) is gpuarray.Stream


def test_auto_takes_cuda_where_it_is(monkeypatch):
    Config.backend = Config.Backend.auto
    for there in (True, False):
        made = []
        monkeypatch.setattr(gpuarray, "_cuda_is_there", lambda there=there: there)
        monkeypatch.setattr(context, "ensure_context", lambda made=made: made.append("context"))
        gpuarray._family()
        assert made == ["context"] * there


def test_what_is_missing_is_said(monkeypatch):
    Config.backend = Config.Backend.cuda
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(DependencyError, match=r"needs PyCUDA and an NVIDIA driver.*pip install 'puzzlelib_rmsprop\[cuda\]'"):
        gpuarray.zeros(2)
    assert not context.available()


class Refused(Exception):
    pass


def refuse():
    raise Refused("cuInit failed: no CUDA-capable device is detected")


@pytest.mark.parametrize(
    ("init", "count", "message"),
    [(refuse, 1, "does not start: cuInit failed.*nvidia-smi"), (lambda: None, 0, "finds no device.*CUDA_VISIBLE_DEVICES")],
)
def test_no_device_is_said(init, count, message, monkeypatch):
    driver = types.ModuleType("pycuda.driver")
    driver.Error, driver.init = Refused, init
    driver.Device = types.SimpleNamespace(count=lambda: count)
    driver.Context = types.SimpleNamespace(get_current=lambda: None)
    package = types.ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    Config.backend = Config.Backend.cuda
    with pytest.raises(DeviceError, match=message):
        gpuarray.zeros(2)
    assert not context.available()


# ------------------------------------------------------------------------------------------- the context


@pytest.mark.usefixtures("cuda")
class TestContext:
    def test_the_primary_one_is_made_current_and_popped_at_exit(self):
        out = child("""
            assert "pycuda" not in sys.modules
            array = gpuarray.zeros(3)
            assert type(array).__module__ == "pycuda.gpuarray", "auto"
            import pycuda.driver as driver
            context = driver.Context.get_current()
            gpuarray.zeros(3)
            assert driver.Context.get_current() == context
            assert context.handle == driver.Device(0).retain_primary_context().handle
            print(array.get())
        """)
        assert out == "[0. 0. 0.]\n"

    def test_the_current_one_is_used(self):
        out = child("""
            import pycuda.driver as driver
            driver.init()
            own = driver.Device(0).make_context()
            gpuarray.zeros(3)
            print(driver.Context.get_current() == own)
            own.pop()
        """)
        assert out == "True\n"

    def test_one_that_pycuda_did_not_make(self):
        # as PyTorch and CuPy do it: the primary context, made current behind PyCUDA's back
        out = child("""
            import ctypes
            from puzzlelib_rmsprop.kernels.context import driver_library
            library, context = driver_library(), ctypes.c_void_p()
            library.cuInit(0)
            library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
            library.cuCtxSetCurrent(context)
            Config.deviceIdx = 99
            array = gpuarray.zeros(3)
            import pycuda.driver as driver
            print(driver.Context.get_current().handle == context.value)
        """)
        assert out == "True\n"

    def test_a_foreign_one_that_is_not_primary_is_refused(self):
        out = child("""
            import ctypes
            from puzzlelib_rmsprop.kernels.context import driver_library
            import pycuda.driver as driver
            driver.init()
            library = driver_library()
            context = driver.Device(0).make_context()
            handle = context.handle
            context.pop()
            library.cuCtxSetCurrent(ctypes.c_void_p(handle))
            try:
                Config.backend = Config.Backend.cuda
                gpuarray.zeros(3)
            except Exception as error:
                print(type(error).__name__, "neither PyCUDA's nor the primary one of device 0" in str(error))
        """)
        assert out == "DeviceError True\n"

    def test_a_device_that_is_not_there(self):
        out = child("""
            Config.deviceIdx = 99
            try:
                gpuarray.zeros(3)
            except Exception as error:
                print(type(error).__name__, str(error).startswith("Config.deviceIdx must be below"))
        """)
        assert out == "DeviceError True\n"

    def test_threads(self):
        out = child("""
            import threading
            from puzzlelib_rmsprop.nets import Linear
            def work():
                made.append(Linear(2, 3)(gpuarray.zeros((4, 2))).get().shape)
            made = []
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            work()
            print(made)
        """)
        assert out == "[(4, 3), (4, 3), (4, 3), (4, 3)]\n"


# ---------------------------------------------------------------------------------- every operation of nets

# rounding of a few operations, and of sums of some hundred products that are added in another order
ROUNDING = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


def both(operation, *contents):
    """What an operation gives on CUDA, and on the CPU, as lists of NumPy arrays and numbers."""
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
            # half-precision sums on the CPU are themselves rounded after each row
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
        with pytest.raises(ArrayError, match=r"all on CUDA or all on the CPU; got CPU \(4, 3\) and CUDA \(3, 2\)"):
            net(data)
        Config.backend = Config.Backend.cuda
        with pytest.raises(ArrayError, match="all on CUDA or all on the CPU"):
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

    def test_scikit_cuda_is_missing(self, monkeypatch):
        monkeypatch.setattr(cublas, "_skcuda", None)
        monkeypatch.setattr(cublas.importlib.util, "find_spec", lambda name: None)
        optimizer, net = RMSPropGraves(), Linear(2, 2)
        optimizer.setupOn(net)
        optimizer.update()
        with pytest.raises(DependencyError, match=r"need scikit-cuda for cuBLAS: pip install 'puzzlelib_rmsprop\[cuda\]'"):
            net(gpuarray.zeros((2, 2)))

    def test_importing_scikit_cuda(self):
        # without pkg_resources, with warnings as errors, and with the linker's path as it was
        out = child("""
            import ctypes
            sys.modules.pop("pkg_resources", None)
            class No:
                def find_spec(self, name, *_):
                    assert name != "pkg_resources"
            sys.meta_path.insert(0, No())
            from puzzlelib_rmsprop.nets import Linear
            Linear(2, 2)(gpuarray.zeros((2, 2)))
            print("skcuda.cublas" in sys.modules, "pkg_resources" in sys.modules, "LoadLibrary" in vars(ctypes.cdll))
            print([name for name in sys.modules if name.startswith("skcuda.") and name[7:] in ("misc", "linalg")])
        """)
        assert out == "True False False\n[]\n"


# ---------------------------------------------------------------------------- finding CUDA's libraries


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Folders with libraries of two CUDAs: PyPI's packages, and a toolkit."""
    files = [
        "site/nvidia/cublas/lib/libcublas.so.12",
        "site/nvidia/cuda_runtime/lib/libcudart.so.12",
        "site/nvidia/cu13/lib/libcublas.so.13",
        "kit/lib64/libcublas.so",
        "kit/lib64/libcublas.so.11",
        "kit/lib64/libcudart.so.11.0",
    ]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"no library")
    (tmp_path / "kit/bin").mkdir()
    (tmp_path / "kit/bin/nvcc").write_text("")
    (tmp_path / "kit/bin/nvcc").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia")
    monkeypatch.setenv("PATH", str(tmp_path / "kit/bin"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    return tmp_path


@pytest.mark.parametrize("newest", [11, 12, 13])
def test_where_libraries_are_looked_for(newest, toolkit, monkeypatch):
    monkeypatch.setattr(cublas, "_newest", lambda: newest)
    found = cublas.candidates("cublas")
    assert found[0] == "libcublas.so"
    assert found[1 : newest - 9] == [f"libcublas.so.{major}" for major in range(newest, 10, -1)]
    ours = [file.removeprefix(f"{toolkit}/") for file in found if file.startswith(str(toolkit))]
    assert ours == [
        *(["site/nvidia/cu13/lib/libcublas.so.13"] if newest >= 13 else []),
        *(["site/nvidia/cublas/lib/libcublas.so.12"] if newest >= 12 else []),
        "kit/lib64/libcublas.so.11",
        "kit/lib64/libcublas.so",
    ]
    assert f"{toolkit}/kit/lib64/libcudart.so.11.0" in cublas.candidates("cudart")
    assert cublas.candidates("cuda") == ["libcuda.so.1", "libcuda.so"]


def test_libraries_of_any_version_are_found_under_the_name_without(toolkit, monkeypatch):
    import ctypes

    monkeypatch.setattr(cublas, "_newest", lambda: 13)
    asked = []

    def load(name):
        asked.append(name)
        if not name.endswith("cu13/lib/libcublas.so.13"):
            raise OSError(f"{name}: cannot open shared object file")
        return "the library"

    monkeypatch.setattr(type(ctypes.cdll), "LoadLibrary", lambda self, name: load(name))
    with cublas._libraries():
        assert ctypes.cdll.LoadLibrary("libcublas.so") == "the library"
        assert asked[-2:] == [f"{toolkit}/site/nvidia/cu13/lib/{name}.so.13" for name in ("libcublasLt", "libcublas")]
        with pytest.raises(OSError, match="libcudart"):
            ctypes.cdll.LoadLibrary("libcudart.so")
        asked.clear()
        with pytest.raises(OSError, match="libother"):
            ctypes.cdll.LoadLibrary("libother.so")
        assert asked == ["libother.so"]
    assert "LoadLibrary" not in vars(ctypes.cdll)
