"""Groups without MPI: a group of one, missing packages and methods, and other transports."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from puzzlelib_rmsprop import MPINodeInfo, NCCLNodeInfo, NodeInfo, RMSPropGraves, distributed
from puzzlelib_rmsprop.distributed.agreement import agree
from puzzlelib_rmsprop.distributed.nodeinfo import on_stream
from puzzlelib_rmsprop.errors import DependencyError, SetupError
from puzzlelib_rmsprop.nets import Linear


def in_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_importing_the_library_imports_no_transport():
    done = in_python(
        "import sys, puzzlelib_rmsprop; print([m for m in sys.modules if m.split('.')[0] in ('mpi4py', 'nccl', 'pycuda')])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("blocked", "made", "remedy"),
    [
        ("mpi4py", "MPINodeInfo", "pip install 'mpi4py>=4'"),
        ("nccl", "NCCLNodeInfo", "pip install 'nccl4py>=0.6,<0.7' nvidia-nccl-cu13 'cuda-bindings~=13.0' 'pycuda>=2024.1'"),
    ],
)
def test_a_missing_package_is_named(blocked, made, remedy):
    done = in_python(f"""
import sys
sys.modules[{blocked!r}] = None
from puzzlelib_rmsprop import {made}
from puzzlelib_rmsprop.errors import DependencyError
try:
    {made}()
except DependencyError as error:
    print(error)
""")
    assert remedy in done.stdout, done.stderr
    assert issubclass(DependencyError, ImportError)


def test_a_group_of_one_has_every_method():
    node = NodeInfo()
    tensor = np.arange(3.0)
    for method in (node.sumTensor, node.reduceScatter, node.allGather):
        method("grad", tensor)
    node.broadcastBuffer("data", tensor)
    assert (tensor == [0, 1, 2]).all()
    assert node.allgatherObject("x") == ["x"]
    node.barrier()
    with node as same:
        assert same is node


@pytest.mark.parametrize("method", ["reduceScatter", "allGather"])
def test_a_transport_that_lacks_a_method_says_so(method):
    with pytest.raises(SetupError, match=rf"NodeInfo must define {method}\(\) for a group of 2"):
        getattr(NodeInfo(gridsize=2), method)("grad", None)


def test_parts_are_refused_at_setup_where_a_transport_has_the_four_methods_alone():
    class PuzzleLibs(NodeInfo):
        def sumTensor(self, name, tensor, stream=None):
            pass

    optimizer = RMSPropGraves(nodeinfo=PuzzleLibs(gridsize=2), shardState=True)
    with pytest.raises(SetupError, match=r"needs a nodeinfo with a method reduceScatter\(\); got PuzzleLibs"):
        optimizer.setupOn(Linear(2, 1), useGlobalState=True)


def test_a_group_cannot_be_captured():
    for capturable in (True, False):
        optimizer = RMSPropGraves(nodeinfo=NodeInfo(gridsize=2), capturable=capturable)
        with (
            pytest.raises(SetupError, match="capturable=True is for a single process")
            if capturable
            else contextlib.nullcontext()
        ):
            optimizer.setupOn(Linear(2, 1), useGlobalState=True)


def test_a_stream_reaches_those_that_take_one():
    class Stream:
        waited = 0

        def synchronize(self):
            self.waited += 1

    calls = []
    stream = Stream()
    on_stream(lambda name, tensor, stream=None: calls.append((name, tensor, stream)), "grad", 1, stream)
    assert (calls.pop(), stream.waited) == (("grad", 1, stream), 0)
    on_stream(lambda name, tensor: calls.append((name, tensor)), "grad", 1, stream)  # PuzzleLib's
    assert (calls.pop(), stream.waited) == (("grad", 1), 1)


def test_agreement_leaves_transports_alone_that_cannot_compare():
    class PuzzleLibs:
        index, gridsize = 0, 2

    agree(PuzzleLibs(), [["a", "1"]])
    agree(NodeInfo(gridsize=2), [["a", "1"]])
    agree(None, [["a", "1"]])


def test_public_names():
    assert distributed.__all__ == ["MPINodeInfo", "NCCLNodeInfo", "NodeInfo"]
    assert issubclass(MPINodeInfo, NodeInfo)
    assert issubclass(NCCLNodeInfo, NodeInfo)
