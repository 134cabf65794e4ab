"""A save that fails or is killed keeps the old file, and leaves no other."""

import os
import signal
import subprocess
import sys
import time

import h5py
import pytest

from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.training import SHAPES, Own, loaded_into, step, trained


def test_an_open_file_that_has_the_groups_is_left_as_it_was(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    with h5py.File(tmp_path / "run.hdf", "w") as file:
        optimizer.save(file)
        step(Own, optimizer)
        with pytest.raises(CheckpointError, match="already has a group '.attrs'"):
            optimizer.save(file)
        assert file[".attrs/t"][()] == 3


def test_an_attribute_that_cannot_be_saved_costs_nothing(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    path = tmp_path / "run.hdf"
    optimizer.save(path)
    before = path.read_bytes()
    optimizer.setAttr("odd", object())
    with pytest.raises(CheckpointError, match="'odd' cannot be saved"):
        optimizer.save(path)
    assert path.read_bytes() == before
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        with pytest.raises(CheckpointError, match="'odd' cannot be saved"):
            optimizer.save(file)
        assert list(file) == []
    assert sorted(os.listdir(tmp_path)) == ["open.hdf", "run.hdf"]


def test_no_place_to_write(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    with pytest.raises(CheckpointError, match="cannot write.*absent"):
        optimizer.save(tmp_path / "absent" / "run.hdf")
    with pytest.raises(CheckpointError, match="it is a folder"):
        optimizer.save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_old_file(tmp_path):
    # simulated by the process's limit on the size of a file
    code = f"""
import resource, signal, sys
from tests.checkpoint.training import Own, trained
from puzzlelib_rmsprop.errors import CheckpointError
optimizer = trained(Own, False, {{"W": (100_000,)}})
optimizer.save({str(tmp_path / "run.hdf")!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    optimizer.save({str(tmp_path / "run.hdf")!r})
except CheckpointError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "refused: cannot write" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["run.hdf"]
    loaded_into(tmp_path / "run.hdf", {"W": (100_000,)})


def test_a_killed_save_keeps_the_old_file(tmp_path):
    # PuzzleLib truncates the file before it writes: if killed then, it leaves nothing
    path = tmp_path / "run.hdf"
    code = f"""
from tests.checkpoint.training import Own, trained
optimizer = trained(Own, False, {{"W": (300_000,)}})
optimizer.save({str(path)!r})
print("saved", flush=True)
while True:
    optimizer.save({str(path)!r})
"""
    for delay in (0.0, 0.003, 0.011, 0.02):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "saved\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        loaded_into(path, {"W": (300_000,)})


def test_atomic_file_writes_through_a_link(tmp_path):
    target, link = tmp_path / "target.hdf", tmp_path / "link.hdf"
    target.touch()
    link.symlink_to(target)
    with atomicFile(link) as file:
        file["x"] = 1
    assert link.is_symlink()
    with h5py.File(target) as file:
        assert file["x"][()] == 1
