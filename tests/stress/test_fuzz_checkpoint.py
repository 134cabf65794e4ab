"""A quick run of the fuzzer, and proof that it can fail."""

import os
import subprocess
import sys

import pytest

from puzzlelib_rmsprop.checkpoint import integrity, source
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.damage import flipped
from tests.stress import fuzz_checkpoint

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_damaged_files_are_refused_or_load_right():
    # the long version: python -m tests.stress.fuzz_checkpoint
    command = [sys.executable, "-m", "tests.stress.fuzz_checkpoint", "--count", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 mutants" in done.stdout


def test_the_fuzzer_notices_numbers_that_are_not_checked(tmp_path, monkeypatch):
    file = fuzz_checkpoint.valid_files(tmp_path)[0]
    path = tmp_path / "local.hdf"
    flipped(path, ".states/a.W.variance")
    assert fuzz_checkpoint.load_in_fork(file, path)[0] == "refused"
    monkeypatch.setattr(integrity, "sealed", lambda path: True)
    assert fuzz_checkpoint.load_in_fork(file, path)[0] == "refused"
    real = source.content_of
    monkeypatch.setattr(source, "content_of", lambda dataset: (real(dataset)[0], "a checksum"))
    monkeypatch.setattr(source.Source, "sum_of", lambda self, part, key: "a checksum")
    found, _ = fuzz_checkpoint.load_in_fork(file, path)
    assert found == "loaded, other numbers"
    assert fuzz_checkpoint.wrong(file, found)


def test_the_fuzzer_notices_hangs_crashes_and_changes(tmp_path, monkeypatch):
    file = fuzz_checkpoint.valid_files(tmp_path)[0]
    monkeypatch.setattr(fuzz_checkpoint, "LIMIT", 1)

    def changes(path):
        file.target.t += 1
        raise CheckpointError("no")

    cases = {"A HANG": lambda path: os.read(os.pipe()[0], 1), "A CRASH": lambda path: os.abort()}
    cases |= {"THE OPTIMIZER CHANGED": changes, "ANOTHER EXCEPTION": lambda path: 1 / 0}
    for outcome, load in cases.items():
        monkeypatch.setattr(file, "load", load)
        found, _ = fuzz_checkpoint.load_in_fork(file, "")
        assert found.startswith(outcome)
        assert fuzz_checkpoint.wrong(file, found)
