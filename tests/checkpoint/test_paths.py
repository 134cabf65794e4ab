"""File names: up to the longest that the system allows, of any bytes, given as text, bytes or an os.PathLike."""

import os
import sys

import pytest

from puzzlelib_rmsprop.checkpoint import atomic, atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.training import SHAPES, Own, assert_same, content, loaded_into, trained

NAMES = {
    **{f"{size} bytes": "a" * (size - 4) + ".hdf" for size in (100, 101, 143, 200, 237, 238, 240, 251, 255)},
    "multi-byte": "β" * 125 + ".hdf",
    "of four bytes": "\U0001d6fd" * 62 + ".hdf",
    "no UTF-8": os.fsdecode(b"\xff\xfe" * 120 + b".hdf"),
    "short, no UTF-8": os.fsdecode(b"\xb5.hdf"),
    "of a pattern": "[a-z]*.(hdf)+",
    "a line's end": "a\nb.hdf",
    "an option's": "-c",
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes, 255 at most, on Linux")


@linux
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names(name, tmp_path, monkeypatch):
    optimizer = trained(Own, False, SHAPES)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, name, os.fsencode(name)):
        optimizer.save(path)
        assert os.listdir(tmp_path) == [name]
        assert_same(content(Own, loaded_into(path)), content(Own, optimizer))
        assert inspect(path)["seal"] == "ok"


@linux
def test_leftovers_of_long_names_are_removed_and_those_of_others_not(tmp_path):
    first, second = ("β" * 120 + end + ".hdf" for end in "ab")
    short = "run.hdf"
    left = {}
    for name in (first, second, short):
        path, descriptor = atomic._new_file(str(tmp_path / name), 0o600)
        os.close(descriptor)  # as if its process had died
        left[name] = os.path.basename(path)
    assert len(set(left.values())) == 3
    optimizer = trained(Own, False, SHAPES)
    for name in (first, second, short):
        optimizer.save(tmp_path / name)
        assert left.pop(name) not in os.listdir(tmp_path)
        assert set(left.values()) <= set(os.listdir(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([first, second, short])


@linux
def test_a_name_that_is_too_long(tmp_path):
    for name in ("a" * 256, "β" * 128, "a" * 5000):
        with pytest.raises(CheckpointError, match="cannot write .*Errno 36"):
            trained(Own, False, SHAPES).save(tmp_path / name)
        with pytest.raises(CheckpointError, match="cannot read .*Errno 36"):
            loaded_into(tmp_path / name)
    assert os.listdir(tmp_path) == []


class Path:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer = trained(Own, False, SHAPES)
    for number, kind in enumerate((str, os.fsencode, Path, lambda name: Path(os.fsencode(name)))):
        path = kind(f"{number}.hdf")
        optimizer.save(path)
        assert_same(content(Own, loaded_into(path)), content(Own, optimizer))
        assert inspect(path)["path"] == f"{number}.hdf"
        with atomicFile(path) as file:
            file["x"] = 1
    assert sorted(os.listdir(tmp_path)) == [f"{number}.hdf" for number in range(4)]
    with pytest.raises(CheckpointError, match=r"cannot read absent.hdf: .*No such file"):
        loaded_into(b"absent.hdf")
