"""``doctor`` on a GPU, or on the simulator."""

import os

import pytest

from tests.conftest import ARRAYS
from tests.tools.running import examined, texts


@pytest.fixture
def child(request):
    """Code that makes CUDA work in another process, as in this one."""
    if "pycuda" not in ARRAYS:
        pytest.skip(f"CUDA {request.config.cuda}")
    if request.config.getoption("--cuda") != "sim":
        return ""
    return f"from tests import cudasim; cudasim.activate({os.environ['CUSIM_DIR']!r})\n"


def test_on_a_gpu(child):
    found = examined("--require-gpu", before=child)
    assert found["training_runs"] is True
    assert found["problems"] == []
    assert found["runs_on"][:2] == ["CPU", "GPU 0"]
    tried = {check["dtype"] for check in found["checks"] if check["where"] == "GPU 0" and check["ok"]}
    assert {"float16", "float32", "float64"} <= tried
    states = {check["state"] for check in found["checks"] if check["where"] == "GPU 0" and check["ok"]}
    assert {"int8", "float32", "float64"} <= states
    assert found["speed"]["GPU 0"]["update"] > 1e6
    assert "compute capability" in found["found"]["GPU 0"]
    assert found["found"]["driver"].startswith("supports CUDA ")
    assert "kernel on GPU 0" in found["found"]


def test_a_wrong_kernel_on_a_gpu(child):
    before = f"""{child}
from pycuda import autoprimaryctx
from puzzlelib_rmsprop.kernels import cuda
right = cuda.Table.update
cuda.Table.update = lambda self, hyper, *rest: right(self, hyper._replace(learnRate=hyper.learnRate * 1.01), *rest)
"""
    found = examined(before=before)  # the CPU suffices
    assert found["runs_on"] == ["CPU"]
    assert "GPU 0: float32: the update is wrong" in texts(found["problems"])
    assert examined("--require-gpu", before=before, code=1)["training_runs"] is False


def test_without_scikit_cuda(child):
    found = examined("--require-gpu", before=child + "import sys; sys.modules['skcuda'] = None\n")
    assert "pip install 'scikit-cuda==0.5.3'" in texts(found["notes"])


def test_setuptools_too_new_for_scikit_cuda(child):
    pytest.importorskip("skcuda", reason="scikit-cuda is not installed")
    found = examined("--require-gpu", before=child + "import sys; sys.modules['pkg_resources'] = None\n")
    assert "scikit-cuda" not in texts(found["notes"])  # nets/cublas.py brings what is missing


def test_no_compiler_and_no_ptx(child, tmp_path):
    before = f"""{child}
import os
os.environ["PATH"] = ""
from puzzlelib_rmsprop.kernels import cuda_source
cuda_source.shipped_ptx = lambda file="rmsprop_graves": (None, "it is damaged")
"""
    found = examined(before=before, env={"PUZZLELIB_RMSPROP_CACHE_DIR": str(tmp_path)})
    assert "it is damaged" in texts(found["problems"])
    assert found["found"]["CUDA kernel"] == "compiled from source by nvcc: it is damaged"
    assert "install the CUDA toolkit" in texts(found["problems"])
    assert found["training_runs"] is True


@pytest.mark.skipif(os.name != "posix", reason="asks for owners and modes")
def test_where_compiled_kernels_are_kept(child, tmp_path):
    before = f"""{child}
from puzzlelib_rmsprop.kernels import cuda_source
cuda_source.shipped_ptx = lambda file="rmsprop_graves": (None, "it is damaged")
"""
    for given, where in (
        (str(tmp_path / "own"), f"cached in {tmp_path / 'own'}"),
        ("", "not cached: no folder belongs to this user"),
    ):
        env = {"PUZZLELIB_RMSPROP_CACHE_DIR": given, "XDG_CACHE_HOME": "relative", "HOME": "relative"}
        assert where in examined(before=before, env=env)["found"]["kernel on GPU 0"]


def test_out_of_memory(child):
    before = f"""{child}
from pycuda import autoprimaryctx, driver, gpuarray
def full(*arguments, **more): raise driver.MemoryError("cuMemAlloc failed: out of memory")
gpuarray.to_gpu = full
"""
    found = examined("--require-gpu", before=before, code=1)
    assert "nvidia-smi shows which processes use it" in texts(found["problems"])
