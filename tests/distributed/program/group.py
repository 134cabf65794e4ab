"""The group of processes, and helpers of the checks."""

import contextlib
import sys

import numpy as np
from mpi4py import MPI

from puzzlelib_rmsprop import MPINodeInfo
from puzzlelib_rmsprop.distributed import mpi
from tests import standins

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
CUDA = "pycuda" in sys.modules
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def group(**kwargs):
    return MPINodeInfo(**{"timeout": 20.0, **kwargs})


@contextlib.contextmanager
def staging(nbytes, small=0):
    """Makes pieces so small that there are several."""
    before = mpi.STAGING, mpi.SMALL
    mpi.STAGING, mpi.SMALL = nbytes, small
    yield
    mpi.STAGING, mpi.SMALL = before


def leave(node):
    """Lets the next check run after a group has failed on purpose."""
    node._closed = True
    WORLD.Barrier()


def families():
    """Returns the arrays to check with: name -> (make, get, dtypes)."""
    host = ["float16", "float32", "float64"]
    found = {
        "numpy": (np.array, np.asarray, host),
        "puzzlelib": (standins.CPUArray.toDevice, lambda array: array.data, host),
    }
    if CUDA:
        import ml_dtypes  # noqa: F401
        import pycuda.gpuarray

        found = {
            "pycuda": (pycuda.gpuarray.to_gpu, lambda array: array.get(), [*host, "bfloat16"]),
            "puzzlelib-cuda": (standins.GPUArray.toGpu, lambda array: array.get(), host),
        }
    return found


def contents(seed, size, dtype):
    """Returns the contents of every process, in order; the same on each."""
    return [np.random.default_rng([seed, rank]).standard_normal(size).astype(dtype) for rank in range(SIZE)]


def in_order(parts):
    """Returns their mean, added in the order of the processes in the dtype of the arithmetic, and rounded once."""
    wide = np.float64 if parts[0].dtype == np.float64 else np.float32
    total = parts[0].astype(wide)
    for part in parts[1:]:
        total = total + part.astype(wide)
    return (total / wide(SIZE)).astype(parts[0].dtype)


def same_bits(array):
    """Returns whether every process has this array."""
    return len(set(WORLD.allgather(np.ascontiguousarray(array).tobytes()))) == 1


def equal(one, other):
    return np.array_equal(np.ascontiguousarray(one).view(np.uint8), np.ascontiguousarray(other).view(np.uint8))


def disaster(function):
    """Marks a function that ends the whole job. test_mpi.py checks the output, and when it came."""
    function.disaster = True
    CHECKS[function.__name__] = function
    return function
