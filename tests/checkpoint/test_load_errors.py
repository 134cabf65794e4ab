"""Files that do not match the optimizer, or are not HDF5 files, are refused, and nothing is changed."""

import json

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning
from tests.checkpoint.damage import damaged
from tests.checkpoint.training import BUFFERS, SHAPES, VALUES, Own, loaded_into, net_of, place, through, trained


@pytest.mark.parametrize("saved", [False, True], ids=["from-local", "from-global"])
def test_what_does_not_fit_is_named_and_changes_nothing(saved, globalState, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, saved, SHAPES).save(path)
    with pytest.raises(CheckpointError, match="'new.W'.*has no 'mg'"):
        loaded_into(path, SHAPES | {"new.W": (2,)}, globalState)
    with pytest.raises(CheckpointError, match=r"'b\.W'.*\(4, 7\).*\(4, 3\)"):
        loaded_into(path, SHAPES | {"b.W": (4, 7)}, globalState)
    trained(Own, saved, SHAPES, "float64").save(path)
    with pytest.raises(CheckpointError, match="is float32 here.*float64.*without loss"):
        loaded_into(path, globalState=globalState)


def test_what_the_file_has_besides_is_told(tmp_path):
    path = tmp_path / "run.hdf"
    optimizer = trained(Own, False, SHAPES)
    optimizer.setAttr("extra", 1)
    optimizer.save(path)
    small = {name: SHAPES[name] for name in ("a.W", "a.b")}
    with (
        pytest.warns(CheckpointWarning, match="attribute 'extra'"),
        pytest.warns(CheckpointWarning, match="without a variable.*b.W.delta"),
    ):
        loaded_into(path, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop(".states"), "has no group '.states'"),
        (lambda f: f[".states"].pop("a.W.ms"), "'a.W'.*has no 'variance' and no 'ms' for it"),
        (lambda f: f[".states"].pop("a.W.delta"), "'a.W'.*has no 'delta'"),
        (lambda f: f[".attrs"].pop("alpha") and f[".attrs"].create_dataset("alpha", data=2.0), "alpha.*got 2.0"),
        (lambda f: f[".attrs"].pop("t") and f[".attrs"].create_dataset("t", data="x"), "'t' must be of type int"),
        (lambda f: f[".attrs"].pop("t") and f[".attrs"].create_dataset("t", data=[1, 2]), "'t' must be of type int"),
        (lambda f: f.pop(".layout") and f.create_dataset(".layout", data="{"), "'.layout' is damaged"),
        (lambda f: f.pop(".layout") and f.create_dataset(".layout", data="[]"), "'.layout' is damaged"),
        (
            lambda f: f.pop(".layout") and f.create_dataset(".layout", data=json.dumps({"format": 99, "variables": []})),
            "is in format 99.*upgrade",
        ),
    ],
    ids=["no-states", "one-missing", "another-missing", "bad-alpha", "bad-t", "t-array", "bad-json", "json-list", "newer"],
)
def test_damaged_files(change, message, tmp_path):
    path = tmp_path / "run.hdf"
    damaged(path, change)
    with pytest.raises(CheckpointError, match=message):
        loaded_into(path)


def test_attributes_before_an_invalid_one_are_put_back(tmp_path):
    path = tmp_path / "run.hdf"

    def change(file):
        file[".attrs/alpha"][()] = 0.5
        file[".attrs/momRate"][()] = 2.0

    damaged(path, change)
    with pytest.raises(CheckpointError, match="momRate.*got 2.0"):
        loaded_into(path)


def test_files_that_are_none(tmp_path):
    garbage = tmp_path / "garbage.hdf"
    garbage.write_bytes(b"not HDF5" * 100)
    truncated = tmp_path / "truncated.hdf"
    trained(Own, False, SHAPES).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:3000])
    for path in (garbage, truncated, tmp_path / "absent.hdf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read"):
            loaded_into(path)
    for wrong in (3, None, bytearray(b"bytes")):
        with pytest.raises(CheckpointError, match="must be a path or an open h5py"):
            loaded_into(wrong)
    with h5py.File(truncated, "w") as file:
        pass
    with pytest.raises(CheckpointError, match="is closed"):
        loaded_into(file)


@pytest.mark.parametrize("value", [-5, 3.7, 1e300, 3j, 2**64 - 1, "7", [7]], ids=str)
def test_a_number_of_updates_that_is_none_is_refused(value, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    with h5py.File(path, "r+") as file:
        del file[".layout"], file[".attrs/t"]
        file[".attrs/t"] = value
    with h5py.File(path) as file, pytest.raises(CheckpointError, match=r"\bt'? must be"):
        loaded_into(file)


@pytest.mark.parametrize("saved", [None, "bfloat16"])
def test_a_variance_below_0_is_refused(saved, globalState, tmp_path):
    # an update would take its square root
    optimizer = RMSPropGraves(stateDtype=saved)
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    slot = next(slot for slot in optimizer._variables if slot.names[0] == "b.W")
    slot.state["variance"][1] = -1
    optimizer.save(tmp_path / "run.hdf")
    for wanted in (saved, "bfloat16"):
        other = RMSPropGraves(stateDtype=wanted)
        other.setupOn(net_of(Own, SHAPES))
        with pytest.raises(CheckpointError, match="'b.W': its 'variance' in .*run.hdf is below 0; a variance cannot be"):
            other.load(tmp_path / "run.hdf")
    slot.state["variance"][1] = np.nan
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert np.isnan(other.states["b.W"]["variance"][1]).all()
    assert not np.isnan(other.states["b.W"]["variance"][0]).any()


def test_master_copies_may_be_missing_or_too_many(tmp_path):
    state = dict.fromkeys(BUFFERS, VALUES)
    with_master = place(np.float32, entities=(*BUFFERS, "master"))
    assert "master" not in through(tmp_path / "a.hdf", state, place(np.float32), with_master)
    assert "master" not in through(tmp_path / "b.hdf", {**state, "master": VALUES}, with_master, place(np.float32))
    both = through(tmp_path / "c.hdf", {**state, "master": VALUES + 1}, with_master, with_master)
    assert np.array_equal(both["master"], VALUES + 1)


def test_a_size_that_the_file_cannot_hold_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "run.hdf"
    with h5py.File(path, "w") as file:
        file.create_dataset(".attrs/t", (2**40,), np.float64, chunks=(1024,))  # eight terabytes, none of them written
    with h5py.File(path) as file, pytest.raises(CheckpointError, match="'/.attrs/t' claims 8796093022208 bytes, more than"):
        loaded_into(file)
    with pytest.raises(CheckpointError, match="claims 8796093022208 bytes"):
        loaded_into(path)


def test_a_warning_names_the_users_line(tmp_path):
    optimizer = RMSPropGraves()
    optimizer.setAttr("more", 3)
    optimizer.setupOn(net_of(Own, SHAPES))
    optimizer.save(tmp_path / "run.hdf")
    other = RMSPropGraves()
    other.setupOn(net_of(Own, {"a.W": SHAPES["a.W"]}))
    with pytest.warns(CheckpointWarning) as found:
        other.load(tmp_path / "run.hdf")
    assert [each.filename for each in found] == [__file__, __file__]
