"""Processes that tests start to try something that would change this one."""

import subprocess
import sys
import textwrap

from tests import conftest


def child(code):
    """A process of its own, with the CUDA that this one has."""
    prelude = f"import os, sys\n{conftest.in_child()}\nimport numpy as np\nfrom puzzlelib_rmsprop import Config, gpuarray\n"
    command = [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout
