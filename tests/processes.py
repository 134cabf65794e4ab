"""Child processes for tests that would change this process."""

import subprocess
import sys
import textwrap

from tests import conftest


def child(code):
    """Runs code in a separate process with the CUDA of this one; returns its output."""
    prelude = f"import os, sys\n{conftest.in_child()}\nimport numpy as np\nfrom puzzlelib_rmsprop import Config, gpuarray\n"
    command = [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout
