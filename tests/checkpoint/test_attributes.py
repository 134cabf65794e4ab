"""Attributes in files: values of setAttr are loaded with their type; others are refused before a file is touched."""

import collections
import concurrent.futures
import enum
import hashlib
import json
import os

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.tools.inspection import inspect


def made(**attributes):
    optimizer = RMSPropGraves()
    for name, value in attributes.items():
        optimizer.setAttr(name, value)
    optimizer.setupOn({"w": Variable(np.ones(3, np.float32), grad=np.ones(3, np.float32))})
    return optimizer


def same(first, second):
    """Returns whether values are equal, with the same types at every depth; NaN equals NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return first == second or (first != first and second != second)


class Level(enum.IntEnum):
    """An integer with a name."""

    LOW = 1


PLAIN = [
    None,
    [10, 20],
    (10, 20),
    [],
    (),
    [[1, 2], [3, 4]],
    [[1], [2, 3]],
    ([1, 2], (3, [4, (5,)])),
    [0.1, 1e300, 5e-324],
    [1, 2.0],
    [True, False, 1],
    [True, False],
    [None, 1],
    ["a", "ü", ""],
    ["a", 1],
    ["a\0b", "\udc80"],
    [float("inf"), float("nan")],
    [2**70, -(2**70)],
    [b"a\0", b""],
    [1 + 2j, 3],
    [np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True)],
    b"bytes",
    b"ends in a NUL\0",
    b"",
    1 + 2j,
    3,
    True,
    0.1,
    "text",
    np.float32(0.1),
    np.float64(0.1),
    np.int16(3),
    np.arange(3),
    np.float16(0.5),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
@pytest.mark.parametrize("other", ["the same", "another value", "None"])
def test_it_comes_back_with_its_type(value, other, tmp_path):
    optimizer = made(milestones=value)
    optimizer.save(tmp_path / "run.hdf")
    others = {"the same": value, "None": None, "another value": value}
    if isinstance(value, list | tuple):
        others["another value"] = type(value)([7, "x"])
    again = made(milestones=others[other])
    again.load(tmp_path / "run.hdf")
    assert same(again.milestones, value)
    # the same in an open file, under a name
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        again.save(file, "opt")
        third = made(milestones=others[other])
        third.load(file, "opt")
    assert same(third.milestones, value)


def test_none_takes_the_place_of_a_value(tmp_path):
    made(limit=None).save(tmp_path / "run.hdf")
    for current in (3, 0.5, "x", [1], np.arange(3)):
        optimizer = made(limit=current)
        optimizer.load(tmp_path / "run.hdf")
        assert optimizer.limit is None


def test_lists_and_tuples_become_what_the_optimizer_has(tmp_path):
    # as for numbers
    made(milestones=[1, (2, [3])]).save(tmp_path / "run.hdf")
    optimizer = made(milestones=())
    optimizer.load(tmp_path / "run.hdf")
    assert same(optimizer.milestones, (1, (2, [3])))


def test_an_enumeration_comes_back(tmp_path):
    made(level=Level.LOW).save(tmp_path / "run.hdf")
    optimizer = made(level=Level.LOW)
    optimizer.load(tmp_path / "run.hdf")
    assert optimizer.level is Level.LOW


@pytest.mark.parametrize("value", [[10, 20], (10, 20), [[1, 2], [3, 4]], [0.5, 1.5]], ids=repr)
def test_puzzlelib_reads_it(value, tmp_path):
    made(milestones=value).save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        # PuzzleLib calls the type of its own value with an array of the dataset
        read = type(value)(np.array(file[".attrs/milestones"]))
    assert np.array_equal(read, value)


@pytest.mark.parametrize("value", [None, [1, "a"], [[1], [2, 3]], [None]], ids=repr)
def test_what_hdf5_has_not_is_text_for_people(value, tmp_path):
    made(milestones=value).save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        assert file[".attrs/milestones"][()].decode() == str(value).replace("None", "null").replace("'", '"')


def without_layout(path, key, content):
    """Turns a file into one as PuzzleLib would have written it."""
    with h5py.File(path, "r+") as file:
        del file[".layout"], file[f".attrs/{key}"]
        file[".attrs"].create_dataset(key, data=content)
    return h5py.File(path, "r")


@pytest.mark.parametrize(
    ("content", "current", "right"),
    [
        ([10, 20], [1], [10, 20]),
        ([10, 20], (1,), (10, 20)),
        ([[1, 2], [3, 4]], [], [[1, 2], [3, 4]]),
        ([0.5, 1.5], [1, 2], [0.5, 1.5]),
        (["a", "ü"], ["x"], ["a", "ü"]),
        ([10, 20], np.zeros(2, np.uint8), np.array([10, 20], np.uint8)),
    ],
    ids=repr,
)
def test_arrays_of_other_files_become_lists(content, current, right, tmp_path):
    made(milestones=1).save(tmp_path / "run.hdf")
    optimizer = made(milestones=current)
    with without_layout(tmp_path / "run.hdf", "milestones", content) as file:
        optimizer.load(file)
    assert same(optimizer.milestones, right)


@pytest.mark.parametrize(
    ("saved", "current", "says"),
    [
        ([1, 2], 3, "must be of type int; the file has [1, 2]"),
        ([[1], [2, 3]], 3, "must be of type int"),
        ((1, 2), "text", "must be of type str"),
        (3, [1], "must be of type list"),
        ("text", ("a",), "must be of type tuple; the file has 'text'"),
        (b"x", 3, "must be of type int"),
        (3, b"x", "must be of type bytes"),
        (np.array([1.5, 2]), np.array([1, 2]), "must be of type ndarray"),
        (np.array([1, 300]), np.array([1], np.uint8), "must be of type ndarray"),
        (np.array([1j]), np.array([1.0]), "must be of type ndarray"),
        ("7", np.array([1.0]), "must be of type ndarray"),
        ([1, 2], np.array(["a"], "S1"), "must be of type ndarray"),
    ],
    ids=repr,
)
def test_another_type_is_refused_and_nothing_changes(saved, current, says, tmp_path):
    made(milestones=saved, learnRate=0.5).save(tmp_path / "run.hdf")
    again = made(milestones=current)
    before = again.getAttrDict()
    with pytest.raises(CheckpointError, match=r"attribute 'milestones' " + says.replace("[", r"\[")):
        again.load(tmp_path / "run.hdf")
    assert same(list(again.getAttrDict().values()), list(before.values()))


class Odd(list):
    """A subclass of list."""


Pair = collections.namedtuple("Pair", "a b")
ITSELF = []
ITSELF.append(ITSELF)
DEEP = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([object()], "holds a value of type object"),
        ([1, [2, {"a": 1}]], "holds a value of type dict"),
        ((np.arange(3),), "holds a value of type ndarray"),
        ([np.longdouble(1)], f"holds a value of type {np.longdouble.__name__}"),
        ([Level.LOW], "holds a value of type Level"),
        (Pair(1, 2), "is of type Pair"),
        (Odd([1, 2]), "is of type Odd"),
        ([Odd([1, 2])], "holds a value of type Odd"),
        (ITSELF, "has lists nested more than 32 deep"),
        (DEEP, "has lists nested more than 32 deep"),
        (range(3), "would not be loaded as range"),
        ({1: 2}, "is not a number, text, list, tuple or array"),
        ({1, 2}, "is not a number, text, list, tuple or array"),
        (object(), "is not a number, text, list, tuple or array"),
        (np.array(["a"]), "is not a number, text, list, tuple or array"),
        (np.array([None]), "is not a number, text, list, tuple or array"),
        (np.datetime64("2026-01-01"), "is not a number, text, list, tuple or array"),
        ("a\0b", "is not valid in a file"),
        (2**70, "is not a number"),
        (10**5000, "cannot be printed"),
        ([10**5000], "is not valid in a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_saved_is_refused_before_the_file_is_touched(value, says, tmp_path):
    optimizer = made()
    path = tmp_path / "run.hdf"
    optimizer.save(path)
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
    optimizer.setAttr("milestones", value)
    with pytest.raises(CheckpointError, match=f"attribute 'milestones' cannot be saved: .*{says}"):
        optimizer.save(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert os.listdir(tmp_path) == ["run.hdf"]
    # this error comes before those of the path
    with pytest.raises(CheckpointError, match="attribute 'milestones' cannot be saved"):
        optimizer.save(tmp_path / "absent" / "run.hdf")

    class Watched(h5py.File):
        def create_group(self, *arguments, **keywords):
            raise AssertionError("the file was touched")

    with Watched(tmp_path / "open.hdf", "w") as file, pytest.raises(CheckpointError, match="'milestones' cannot be saved"):
        optimizer.save(file)


def test_threads_save_at_once(tmp_path):
    # HDF5 identifies an open file by its name, even if it is in memory
    optimizers = [made(milestones=[number]) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        saved = [pool.submit(each.save, tmp_path / f"{n}.hdf") for n, each in enumerate(optimizers * 10)]
    assert [each.exception() for each in saved] == [None] * 80
    assert len(os.listdir(tmp_path)) == 80


def test_inspect_shows_them(tmp_path):
    values = {"none": None, "pair": (1, "a"), "ragged": [[1], [2, 3]], "array": np.arange(2), "raw": b"a"}
    made(**values).save(tmp_path / "run.hdf")
    found = inspect(tmp_path / "run.hdf")
    attrs = found["parts"][0]["attrs"]
    assert (attrs["none"], attrs["pair"], attrs["ragged"], attrs["array"]) == (None, [1, "a"], [[1], [2, 3]], [0, 1])
    assert attrs["raw"] == "b'a'"
    assert found["damaged"] == []


@pytest.mark.parametrize(
    "damage", [3, {"tuple": 3}, {"bytes": "x"}, {"complex": [1]}, {"scalar": ["O", 1]}, {"later": 1}, {}, {"a": 1, "b": 2}]
)
def test_a_damaged_description_is_refused(damage, tmp_path):
    path = tmp_path / "run.hdf"
    made(milestones=(1,)).save(path)
    with h5py.File(path, "r+") as file:
        layout = json.loads(file[".layout"][()])
        layout["attrs"] = damage if damage == 3 else {**layout["attrs"], "milestones": damage}
        text = json.dumps(layout).encode()
        del file[".layout"]
        file[".layout"] = np.bytes_(text)
        file[".layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())
    optimizer = made(milestones=(2,))
    with h5py.File(path) as file, pytest.raises(CheckpointError, match="damaged"):
        optimizer.load(file)
    assert optimizer.milestones == (2,)


def test_a_mask_is_not_dropped(tmp_path):
    optimizer = RMSPropGraves()
    optimizer.setupOn({"w": Variable(np.zeros(3, np.float32))})
    optimizer.setAttr("seen", np.ma.array([1, 2], mask=[0, 1]))
    with pytest.raises(CheckpointError, match=r"attribute 'seen' cannot be saved: (?s:.*) has a mask, which would be lost"):
        optimizer.save(tmp_path / "run.hdf")
    state = optimizer.exportState()
    state.arrays["w"]["mg"] = np.ma.array(state.arrays["w"]["mg"], mask=True)
    with pytest.raises(CheckpointError, match="variable 'w': its 'mg' must be a NumPy array without a mask"):
        optimizer.importState(state)


def test_a_bfloat16_scalar_is_refused_by_name(tmp_path):
    optimizer = RMSPropGraves()
    optimizer.setupOn({"w": Variable(np.zeros(3, np.float32))})
    optimizer.setAttr("best", pytest.importorskip("ml_dtypes").bfloat16(0.5))
    with pytest.raises(CheckpointError, match="attribute 'best' cannot be saved"):
        optimizer.save(tmp_path / "run.hdf")
