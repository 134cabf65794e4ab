"""Damage that only checksums and the seal can detect is detected and named."""

import hashlib

import h5py
import ml_dtypes
import pytest

from puzzlelib_rmsprop.checkpoint import OptimizerState, read, write
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.damage import flipped
from tests.checkpoint.training import BUFFERS, FILED, SHAPES, VALUES, Own, assert_same, content, loaded_into, place, trained


@pytest.mark.parametrize("what", [".states/a.W.ms", ".states/a.W.variance", ".attrs/alpha", ".layout"])
def test_a_turned_bit_is_noticed_and_named(what, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    flipped(path, what)
    with pytest.raises(CheckpointError, match=rf"run.hdf is damaged: its SHA-256.*{what}"):
        loaded_into(path)
    # the seal of an open file is not checked, but its datasets have their own checksums
    with h5py.File(path) as file, pytest.raises(CheckpointError, match=rf"{what}' is damaged: its checksum does not match"):
        loaded_into(file)


def test_a_turned_bit_in_a_flat_state_is_noticed(globalState, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, True, SHAPES).save(path)
    whole = path.read_bytes()
    for entity in FILED:
        path.write_bytes(whole)
        flipped(path, f".states/float32.{entity}")
        with h5py.File(path) as file, pytest.raises(CheckpointError, match=f"float32.{entity}' is damaged: its checksum"):
            loaded_into(file, globalState=globalState)


@pytest.mark.parametrize("lost", [".attrs/alpha", ".states/a.W.ms", ".states/a.W.variance", ".attrs", ".states"])
def test_what_was_taken_out_is_missed(lost, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    with h5py.File(path, "r+") as file:
        del file[lost]
        with pytest.raises(CheckpointError, match="alpha|no 'ms' for it$|no 'variance' for it$|no group"):
            loaded_into(file)


@pytest.mark.parametrize("entity", ["variance", "ms"])
def test_what_was_taken_out_of_a_flat_state_is_missed(entity, globalState, tmp_path):
    # one could be computed from the other, but the file is not as it was saved
    trained(Own, True, SHAPES).save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf", "r+") as file:
        for key in ("float32", "<class 'numpy.float32'>"):
            del file[f".states/{key}.{entity}"]
        with pytest.raises(CheckpointError, match=f"has no '{entity}' for it$"):
            loaded_into(file, globalState=globalState)


def test_a_file_that_was_changed_on_purpose_loads_when_it_is_opened(tmp_path):
    path = tmp_path / "run.hdf"
    optimizer = trained(Own, False, SHAPES)
    optimizer.save(path)
    with h5py.File(path, "r+") as file:
        file["mine"] = 3
    with pytest.raises(CheckpointError, match="damaged: none of its datasets.*changed on purpose"):
        loaded_into(path)
    with h5py.File(path) as file:
        assert_same(content(Own, loaded_into(file)), content(Own, optimizer))


def test_the_seal_is_what_its_text_says(tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    raw = path.read_bytes()
    lines = raw[:512].decode().rstrip("\0").splitlines()
    assert lines[1:] == [f"bytes {len(raw)}", f"sha256 {hashlib.sha256(raw[512:]).hexdigest()}"]


def test_a_damaged_bfloat16_is_noticed(tmp_path):
    path = tmp_path / "run.hdf"
    state = dict.fromkeys(BUFFERS, VALUES.astype(ml_dtypes.bfloat16))
    write(path, "", OptimizerState({"t": 1}, [place(ml_dtypes.bfloat16)], {"W": state}))
    flipped(path, ".states/W.delta")
    with h5py.File(path) as file, pytest.raises(CheckpointError, match="W.delta' is damaged"):
        read(file, "", {"t": 0}, [place(ml_dtypes.bfloat16)])
