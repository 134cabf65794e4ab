"""Net and optimizer in one file, with a net whose save() and load() close the file, as PuzzleLib's do."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import CheckpointError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


class ClosingNet:
    """Saves and loads like PuzzleLib's modules, which close the file, whoever opened it, unless isRoot is False."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.var = Variable(rng.standard_normal(3).astype(np.float32), grad=np.ones(3, np.float32))

    def getVarTable(self):
        return {self.var: ["W"]}

    def getVar(self, name):
        return self.var

    def setVar(self, name, var):
        self.var = var

    def save(self, hdf, isRoot=True):
        hdf.require_group("links")[".W"] = 0
        hdf.require_group("params").create_dataset("0", data=self.var.data, compression="gzip")
        if isRoot:
            hdf.close()

    def load(self, hdf, isRoot=True):
        self.var.data[:] = hdf["params/0"]
        if isRoot:
            hdf.close()


def trained(seed, globalState=False):
    net, optimizer = ClosingNet(seed), RMSPropGraves(learnRate=0.1)
    optimizer.setupOn(net, globalState)
    for _ in range(seed):
        optimizer.update()
    return net, optimizer


def content(net, optimizer):
    (state,) = optimizer.states.values()
    return [np.array(net.var.data).tolist(), *(np.array(state[key]).ravel()[:3].tolist() for key in state), optimizer.t]


def block_of_the_page(text):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (found,) = [block for block in blocks if text in block]
    return found


def test_the_documentations_example(globalState, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, optimizer = trained(3, globalState)
    exec(block_of_the_page("net.save(file)"), {"net": net, "optimizer": optimizer})
    other, another = trained(1, globalState)
    assert content(other, another) != content(net, optimizer)
    with h5py.File("run.hdf") as file:
        another.load(file)
        other.load(file)
    assert content(other, another) == content(net, optimizer)
    another.load("run.hdf")  # it has a valid seal


def test_either_first_where_the_net_leaves_the_file_open(tmp_path):
    net, optimizer = trained(3)
    with atomicFile(tmp_path / "run.hdf") as file:
        net.save(file, isRoot=False)
        optimizer.save(file)
    other, another = trained(1)
    with h5py.File(tmp_path / "run.hdf") as file:
        other.load(file, isRoot=False)
        another.load(file)
    assert content(other, another) == content(net, optimizer)


def test_the_net_first_is_refused_with_the_remedy(tmp_path):
    net, optimizer = trained(3)
    path = tmp_path / "run.hdf"
    with atomicFile(path) as file:
        optimizer.save(file)
        net.save(file)
    before = path.read_bytes()

    def net_first():
        with atomicFile(path) as file:
            net.save(file)
            optimizer.save(file)

    with pytest.raises(CheckpointError, match=r"is closed \(PuzzleLib's net.save .* save or load the optimizer first"):
        net_first()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["run.hdf"]
    with h5py.File(path) as file:
        net.load(file)
        with pytest.raises(CheckpointError, match="or pass them isRoot=False"):
            optimizer.load(file)
