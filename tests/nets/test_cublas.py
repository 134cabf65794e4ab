"""Finding scikit-cuda and the CUDA libraries, and the errors if they are missing."""

import sys

import pytest

from puzzlelib_rmsprop import RMSPropGraves, gpuarray
from puzzlelib_rmsprop.errors import DependencyError
from puzzlelib_rmsprop.nets import Linear, cublas
from tests.processes import child


def test_scikit_cuda_is_missing(cuda, monkeypatch):
    monkeypatch.setattr(cublas, "_skcuda", None)
    monkeypatch.setattr(cublas.importlib.util, "find_spec", lambda name: None)
    optimizer, net = RMSPropGraves(), Linear(2, 2)
    optimizer.setupOn(net)
    optimizer.update()
    with pytest.raises(
        DependencyError, match=r"need scikit-cuda for cuBLAS: pip install 'pycuda>=2024\.1' 'scikit-cuda==0\.5\.3'"
    ):
        net(gpuarray.zeros((2, 2)))


def test_importing_scikit_cuda(cuda):
    # without pkg_resources, with warnings as errors, and without a change to the linker's path
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
    """Folders with libraries of two CUDA versions: PyPI packages and a toolkit."""
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
