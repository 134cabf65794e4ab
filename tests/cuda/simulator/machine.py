"""Helpers of the tests of the simulator: the simulator, PyCUDA and arrays. Must be imported before PyCUDA.

CUSIM_DIR is the output folder of tests/cudasim/build.sh. If it is not set, tests that import this module are skipped.
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
    """Zeros, waited for: gpuarray fills them on the default stream, for which non-blocking streams do not wait."""
    x = gpuarray.zeros(n, np.float32)
    drv.Context.synchronize()
    return x
