"""Processes for which the calls that a file system lacks fail: refusing.c, compiled once and loaded before the C library."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

REFUSED = "\nexcept CheckpointError as error:\n    print('refused:', error)\n"

PRELUDE = """
import errno, os, stat, sys
from pathlib import Path
import numpy as np
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.training import SHAPES, Own, content, assert_same, loaded_into, trained
folder = Path(sys.argv[1])
path = folder / "run.hdf"
"""


@functools.cache
def library():
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    made = Path(tempfile.mkdtemp()) / "refusing.so"
    source = Path(__file__).with_name("refusing.c")
    done = subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source, "-ldl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


def start(code, folder, refuse, under=None, **more):
    """Runs code on a folder in a process of its own for which the calls in ``refuse`` fail: subprocess.run's answer."""
    variables = {"LD_PRELOAD": str(library()), "REFUSE": refuse, "UNDER": str(under or folder)}
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, **more)


def run(code, folder, refuse="", under=None, **more):
    """What code prints that must end well."""
    done = start(code, folder, refuse, under, **more)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout
