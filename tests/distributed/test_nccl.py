"""NCCLNodeInfo without GPUs: the stand-in compared with the real bindings, arguments, a missing library."""

import inspect
import sys
import types

import pytest

from puzzlelib_rmsprop import NCCLNodeInfo
from puzzlelib_rmsprop.errors import DependencyError, SetupError
from tests.distributed import fake_nccl
from tests.distributed.ports import free_port


def test_the_stand_in_takes_what_nccl4py_takes():
    # only import and protocol: several processes would need a GPU each
    nccl = pytest.importorskip("nccl.bindings.nccl")
    for name, function in inspect.getmembers(fake_nccl, inspect.isfunction):
        if name.startswith("_") or name == "install":
            continue
        found = getattr(nccl, name).__doc__.partition("(")[2].partition(")")[0]
        arguments = [each.split()[-1] for each in found.split(", ") if each]
        assert arguments == list(inspect.signature(function).parameters), name
    for kind in (fake_nccl.DataType, fake_nccl.RedOp, fake_nccl.Result):
        real = getattr(nccl, kind.__name__)
        assert {each.name: each.value for each in kind} == {each.name: real[each.name].value for each in kind}
    config = nccl.Config()
    config.blocking = 0
    assert (config.blocking, config.ptr != 0) == (0, True)
    assert issubclass(nccl.NCCLError, Exception)


def test_nccl_meets_over_one_way_only():
    pytest.importorskip("nccl.bindings.nccl")
    for arguments in ({"index": 0}, {"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1", "index": 0, "comm": 1}):
        with pytest.raises(SetupError, match="index and gridsize"):
            NCCLNodeInfo(**arguments)


def test_nccl_without_its_library(cuda, monkeypatch):
    def missing():
        raise RuntimeError('Failure finding "libnccl.so.2"')  # the real one raises a subclass

    package = types.ModuleType("nccl.bindings")
    package.nccl = fake_nccl
    monkeypatch.setitem(sys.modules, "nccl", types.ModuleType("nccl"))
    monkeypatch.setitem(sys.modules, "nccl.bindings", package)
    monkeypatch.setattr(fake_nccl, "get_version", missing)
    with pytest.raises(DependencyError, match=r"needs nccl4py and NCCL: .*libnccl.so.2.*pip install"):
        NCCLNodeInfo(address=f"127.0.0.1:{free_port()}", index=0, gridsize=1)
