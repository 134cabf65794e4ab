"""Faults planted in what puts work in the order of the users' streams: each makes a test of theirs fail."""

import os
import shutil
import subprocess
import sys

import pytest

import puzzlelib_rmsprop
from tests.cuda.test_planted_faults import TESTS, plant

FAMILY, JOINED = (
    "cuda_family.py",
    "        with self._joined() if stream is None else nullcontext(stream) as own:\n            ",
)
TO, BACK = "        joint.order(handle, own.handle)", "    for handle in others:\n        joint.order(own.handle, handle)\n"

FAULTS = {
    "nothing is joined": (FAMILY, "return launching_on(*self.handles(arrays), stream=stream)", "return nullcontext(stream)"),
    "the user's stream is not waited for": ("foreign_stream.py", TO, "        pass"),
    "the user's stream does not wait": ("foreign_stream.py", f"        raise\n{BACK}", "        raise\n"),
    "a step that is not joined": (
        FAMILY,
        f"{JOINED}self._made.update(hyper, own, ",
        "        if True:\n            self._made.update(hyper, stream, ",
    ),
    "zeroing that is not joined": (
        FAMILY,
        f"{JOINED}self._made.zero_gradients(own)",
        "        if True:\n            self._made.zero_gradients(stream)",
    ),
    "statistics that are not joined": (
        FAMILY,
        f"{JOINED}self._made.run(operations, policy, own)",
        "        if True:\n            self._made.run(operations, policy, stream)",
    ),
    "a memset that is not joined": (FAMILY, "super().fill_zero(array, own)", "super().fill_zero(array, None)"),
    "operations that are not joined": (
        FAMILY,
        "super().operate(grad, param, wc, operations, own)",
        "super().operate(grad, param, wc, operations, None)",
    ),
    "a copy that is not joined": (FAMILY, "self.address(source), nbytes, own)", "self.address(source), nbytes, None)"),
    "content that has not arrived": (
        FAMILY,
        "self.address(array), own)\n                _wait(own)",
        "self.address(array), own)",
    ),
    "content read too early": (
        FAMILY,
        "view(np.uint8), self.address(array), own)",
        "view(np.uint8), self.address(array), None)",
    ),
    "content written too early": (
        FAMILY,
        "content.reshape(-1).view(np.uint8), own)",
        "content.reshape(-1).view(np.uint8), None)",
    ),
    "an own stream that is not joined": ("plan.py", "with self.family.joined(arrays, self._stream):", "if arrays:"),
    "CuPy's default stream for its current one": (
        "cupy_array.py",
        'int(sys.modules["cupy"].cuda.get_current_stream().ptr),',
        "0,",
    ),
    "PyTorch's default stream for its current one": (
        "torch_tensor.py",
        'sys.modules["torch"].cuda.current_stream(self.torch_device).cuda_stream,',
        "0,",
    ),
    "a stream that is named and ignored": (
        "cuda_interface.py",
        "    return {stream for array in arrays if",
        "    return set() and {stream for array in arrays if",
    ),
    "no default stream for PyCUDA's": ("cuda_interface.py", "False, False, 0)", "False, False, None)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, simulator, kernels, tmp_path):
    package, ignored = tmp_path / "puzzlelib_rmsprop", shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(puzzlelib_rmsprop.__path__[0], package, ignore=ignored)
    shutil.copytree(TESTS, tmp_path / "tests", ignore=ignored)
    plant(package, *FAULTS[fault])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=..", "--cuda=sim", "-p", "no:cacheprovider"]
        + ["test_foreign_arrays.py"],
        cwd=tmp_path / "tests" / "cuda",
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CUSIM_TIMEOUT": "30"},
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr
    assert " failed" in done.stdout
