"""The option --cuda-only selects exactly the tests that use CUDA, also in processes that they start."""

import re
import subprocess
import sys

CHOSEN = [
    "test_freed_arrays",  # only for CUDA
    "test_environment",  # only for the simulator
    "test_on_a_gpu",  # in processes that tests start, or in a tool
    "test_replays_are_compared[False]",
    "test_under_mpirun[2-averages]",
]


def test_what_is_left(simulator, request):
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--cuda=sim", "--cuda-only", "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=request.config.rootpath, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    names = re.findall(r"^tests/.+?::(?:\w+::)*(\w+(?:\[.*\])?)$", done.stdout, re.MULTILINE)
    assert {*CHOSEN} <= {*names}
    by_arrays = [
        found[1] for name in names if (found := re.search(r"\[(own|numpy|puzzlelib|pycuda|puzzlelib-cuda)\]", name))
    ]
    assert {*by_arrays} == {"pycuda", "puzzlelib-cuda"}
