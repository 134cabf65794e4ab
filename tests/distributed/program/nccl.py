"""Checks of NCCLNodeInfo, with a stand-in for NCCL."""

import socket
import time

import numpy as np
import pytest

from puzzlelib_rmsprop import NCCLNodeInfo
from puzzlelib_rmsprop.errors import ArrayError, GroupError
from tests.distributed import fake_nccl
from tests.distributed.program.group import CUDA, RANK, SIZE, WORLD, check, contents, equal, families, in_order
from tests.distributed.program.pairs import OPTIONS, in_step, pair


def nccl_groups():
    """A group that meets over MPI, and one that meets at an address; NCCL is a stand-in."""
    fake_nccl.install()
    yield NCCLNodeInfo(device=0, timeout=20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = WORLD.bcast(server.getsockname()[1])
    yield NCCLNodeInfo(address=f"127.0.0.1:{port}", index=RANK, gridsize=SIZE, timeout=20)


@check
def nccl_does_the_same():
    if not CUDA:
        return
    from pycuda import driver

    for node in nccl_groups():
        with node:
            assert (node.index, node.gridsize, node.device) == (RANK, SIZE, 0)
            assert node.meanValue(RANK) == (SIZE - 1) / 2
            assert node.allgatherObject([RANK, "x"]) == [[rank, "x"] for rank in range(SIZE)]
            for name, (make, get, dtypes) in families().items():
                for dtype in dtypes:
                    parts = contents(5, 16 * SIZE, dtype)
                    own = slice(16 * RANK, 16 * (RANK + 1))
                    for stream in (None, driver.Stream()):
                        array = make(parts[RANK])
                        node.sumTensor("grad", array, stream)
                        assert equal(get(array), in_order(parts)), (name, dtype)
                        array = make(parts[RANK])
                        node.reduceScatter("grad", array, stream)
                        assert equal(get(array)[own], in_order(parts)[own]), (name, dtype)
                        assert equal(np.delete(get(array), own), np.delete(parts[RANK], own)), (name, dtype)
                        node.allGather("data", array, stream)
                        assert equal(get(array), in_order(parts)), (name, dtype)
                    array = make(parts[RANK])
                    node.broadcastBuffer("data", array.gpudata if name == "puzzlelib-cuda" else array)
                    assert equal(get(array), parts[0]), (name, dtype)
            for options in OPTIONS.values():
                in_step(*pair(node, **options))
            in_step(*pair(node, sharded=False))
            with pytest.raises(ArrayError, match="needs arrays on a GPU"):
                node.sumTensor("grad", np.ones(3, np.float32))
        with pytest.raises(GroupError, match="closed"):
            node.sumTensor("grad", array)
        assert node._comm.destroyed
        assert not node._watcher.is_alive()


@check
def nccl_errors_and_late_processes_are_noticed():
    if not CUDA:
        return
    from pycuda import gpuarray as pycuda_arrays

    fake_nccl.install()
    for cause in ("an error", "a late process"):
        if cause == "a late process" and SIZE == 1:
            continue
        node = NCCLNodeInfo(device=0, timeout=3)
        tensor = pycuda_arrays.to_gpu(np.ones(3, np.float32))
        node.sumTensor("grad", tensor)
        if cause == "an error":
            node._comm.state = fake_nccl.Result.RemoteError
            deadline = time.monotonic() + 20
            while not node._comm.aborted and time.monotonic() < deadline:
                time.sleep(0.05)
            assert node._comm.aborted, "the watcher has seen nothing"
            said = "NCCL reports to process"
        else:
            said = "has waited 3 s in averaging 'grad' for the others"
        if cause == "an error" or RANK != SIZE - 1:  # the last process is late
            with pytest.raises(GroupError, match=said):
                node.sumTensor("grad", tensor)
            with pytest.raises(GroupError, match=said):
                node.meanValue(1.0)
        WORLD.Barrier()
        node._ended.set()
        node._meeting.close()
