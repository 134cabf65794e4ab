"""What the tests of the simulator share: the simulator itself, PyCUDA on it, and arrays. Imported before PyCUDA.

CUSIM_DIR names the folder that tests/cudasim/build.sh filled; without one, tests that import this are left out.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from tests import cudasim
from tests.cudasim import control

OUT = os.environ.get("CUSIM_DIR", "")
if not (OUT and Path(OUT, "libcuda.so.1").is_file() and importlib.util.find_spec("pycuda")):
    pytest.skip("needs PyCUDA, and CUSIM_DIR naming the folder that tests/cudasim/build.sh filled", allow_module_level=True)

cudasim.activate(OUT)

import pycuda.driver as drv  # noqa: E402
from pycuda import compiler, gpuarray  # noqa: E402
from pycuda.compiler import SourceModule  # noqa: E402
from pycuda.elementwise import ElementwiseKernel  # noqa: E402
from pycuda.reduction import ReductionKernel  # noqa: E402

__all__ = [
    "NON_BLOCKING",
    "OUT",
    "SEEDS",
    "ElementwiseKernel",
    "N",
    "ReductionKernel",
    "SourceModule",
    "compiler",
    "control",
    "drv",
    "gpuarray",
    "random",
    "zeros",
]

SEEDS = range(12)
NON_BLOCKING = 1
N = 1000


def random(*shape, dtype=np.float32, seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def zeros(n=N):
    """Zeros that are there: gpuarray fills them on the default stream, which non-blocking streams do not wait for."""
    x = gpuarray.zeros(n, np.float32)
    drv.Context.synchronize()
    return x
