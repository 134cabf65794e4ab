"""Net files: PuzzleLib's, this library's, and files that do not fit."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import Variable, gpuarray
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.nets import Linear, Sequential
from tests.golden import DATA, KINDS, NAMES, Replay

# every test runs on each available backend
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("kind", KINDS)
def test_puzzlelibs_module_files(kind, tmp_path):
    replay = Replay(kind, globalState=False)
    replay.net.load(DATA / f"module_{kind}.hdf")
    for name in NAMES:
        assert np.array_equal(replay.net.getVar(name).data.get(), replay.golden[f"final.{name}"])
    # and this library writes the same layout
    replay.net.save(tmp_path / "ours.hdf")
    with h5py.File(tmp_path / "ours.hdf") as ours, h5py.File(DATA / f"module_{kind}.hdf") as theirs:
        for group in ("params", "links"):
            assert set(ours[group]) == set(theirs[group])
            for key in theirs[group]:
                assert ours[group][key].dtype == theirs[group][key].dtype
                assert np.array_equal(ours[group][key][()], theirs[group][key][()])


def test_files_of_every_kind(tmp_path):
    def make():
        shared = Linear(3, 3)
        tied = Linear(3, 3, empty=True)
        tied.setVar("W", shared.getVar("W"))
        tied.setVar("b", Variable(gpuarray.to_gpu(np.random.rand(3).astype(np.float32))))
        return Sequential("net").append(shared).append(Sequential("in").append(tied))

    net = make()
    blob = net.save()
    assert isinstance(blob, bytes)
    net.save(tmp_path / "net.hdf", compress=None)
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        net.save(file)
        assert len(file["params"]) == 3, "a shared variable is saved once"
        assert set(file["links"]) == {"net.0.W", "net.0.b", "net.in.0.W", "net.in.0.b"}
    with h5py.File(tmp_path / "open.hdf", "r") as file:
        for source in (blob, str(tmp_path / "net.hdf"), tmp_path / "net.hdf", file):
            other = make()
            arrays = [var.data for var in other.getVarTable()]
            other.load(source)
            for var, mine, array in zip(other.getVarTable(), net.getVarTable(), arrays, strict=True):
                assert np.array_equal(var.data.get(), mine.data.get())
                assert var.data is array, "loaded in place"


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    net = Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="b"))
    path = tmp_path / "net.hdf"
    net.save(path)
    wrong = [
        (Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="c")), "no parameter '.c.W'"),
        (Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 5, name="b")), r"'.b.W' must be of shape \(2, 5\)"),
        (Linear(3, 2), "no parameter '.W'"),
    ]
    for other, message in wrong:
        before = [var.data.get() for var in other.getVarTable()]
        with pytest.raises(CheckpointError, match=message):
            other.load(path)
        for var, kept in zip(other.getVarTable(), before, strict=True):
            assert np.array_equal(var.data.get(), kept)
    half = Sequential().append(Linear(3, 2, name="a")).append(Linear(2, 2, name="b"))
    half.calcMode(np.float16)
    with pytest.raises(CheckpointError, match="float16.*float32.*without loss"):
        half.load(path)
    with pytest.raises(CheckpointError, match="bytes are not an HDF5 file"):
        net.load(b"xyz")
