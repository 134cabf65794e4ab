"""Runs processes whose system calls fail as on limited file systems, with refusing.c, preloaded before the C library."""

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
import os, shutil, sys
from pathlib import Path
import h5py
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.damage import FORMAT1
from tests.checkpoint.training import SHAPES, Own, content, assert_same, loaded_into, trained
folder, rules = Path(sys.argv[1]), sys.argv[2:]
path = folder / "run.hdf"
for rule in rules:  # a fork for each: new imports would take longer than the test
    if os.fork() == 0:
        os.environ["REFUSE"] = rule
        break
    if os.wait()[1]:
        sys.exit(f"{rule}: the process failed")
    print("\\0", end="", flush=True)
else:
    sys.exit(0)
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


def run(code, folder, *rules, under=None):
    """Runs code that works in a folder, once for each rule that makes calls fail there; returns what it prints."""
    environment = {**os.environ, "LD_PRELOAD": str(library()), "UNDER": str(under or folder)}
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        PRELUDE + textwrap.dedent(code),
        str(folder),
        *rules,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.split("\0")[:-1]
