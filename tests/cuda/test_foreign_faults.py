"""Faults planted in the code that orders work with the users' streams: test_foreign_arrays.py catches each of them."""

import os
import shutil
import subprocess
import sys

import pytest

import puzzlelib_rmsprop
from tests.cuda.test_planted_faults import TESTS, plant

FAMILY, STREAMS = "cuda_family.py", "foreign_stream.py"
TO, BACK = "        joint.order(handle, own.handle)", "    for handle in others:\n        joint.order(own.handle, handle)\n"


def joined(call):
    """A fault: a call of a table or of statistics that is not ordered with the users' streams."""
    with_, body = (
        "        with self._joined() if stream is None else nullcontext(stream) as own:\n",
        f"            self._made.{call}",
    )
    return FAMILY, with_ + body, f"        own = stream\n        if True:\n{body}"


def on_default(call):
    """A fault: a call of an array family on the default stream instead of the joint one."""
    assert call.endswith(", own)")
    return FAMILY, call, f"{call[: -len('own)')]}None)"


FAULTS = {
    "nothing is joined": (FAMILY, "return launching_on(*self.handles(arrays), stream=stream)", "return nullcontext(stream)"),
    "the user's stream is not waited for": (STREAMS, TO, "        pass"),
    "the user's stream does not wait": (STREAMS, f"        raise\n{BACK}", "        raise\n"),
    "a step that is not joined": joined("update("),
    "zeroing that is not joined": joined("zero_gradients("),
    "statistics that are not joined": joined("run("),
    "a memset on the default stream": on_default("super().fill_zero(array, own)"),
    "operations on the default stream": on_default("super().operate(grad, param, wc, operations, own)"),
    "a copy on the default stream": on_default("self.address(source), nbytes, own)"),
    "content read too early": on_default("view(np.uint8), self.address(array), own)"),
    "content written too early": on_default("content.reshape(-1).view(np.uint8), own)"),
    "content that has not arrived": (
        FAMILY,
        "self.address(array), own)\n                _wait(own)",
        "self.address(array), own)",
    ),
    "an own stream that is not joined": ("plan.py", "with self.family.joined(arrays, self._stream):", "if arrays:"),
    "CuPy's default stream": ("cupy_array.py", 'int(sys.modules["cupy"].cuda.get_current_stream().ptr),', "0,"),
    "PyTorch's default stream": (
        "torch_tensor.py",
        'sys.modules["torch"].cuda.current_stream(self.torch_device).cuda_stream,',
        "0,",
    ),
    "a stream that is named and ignored": (
        "cuda_interface.py",
        "return {stream for array in arrays if",
        "return () and {stream for array in arrays if",
    ),
    "no stream for PyCUDA's": ("cuda_interface.py", "False, False, 0)", "False, False, None)"),
    "copies that decay on another stream": ("gradients.py", ', *([segment.state["master"]] if param.master else ())', ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, simulator, kernels, tmp_path):
    package, ignored = tmp_path / "puzzlelib_rmsprop", shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(puzzlelib_rmsprop.__path__[0], package, ignore=ignored)
    shutil.copytree(TESTS, tmp_path / "tests", ignore=ignored)
    plant(package, *FAULTS[fault])
    options = ["-x", "-q", "--rootdir=..", "--cuda=sim", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_foreign_arrays.py"],
        cwd=tmp_path / "tests" / "cuda",
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CUSIM_TIMEOUT": "30"},
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr
    assert " failed" in done.stdout
