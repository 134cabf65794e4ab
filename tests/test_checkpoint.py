"""Files: ours and PuzzleLib's, local and global, into either mode; and what must not happen to them."""

import copy
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import h5py
import ml_dtypes
import numpy as np
import pytest

import puzzlelib_rmsprop
from puzzlelib_rmsprop import LossScaling, Optimizer, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.checkpoint import Place, atomicFile, integrity, mean_square, read, write
from puzzlelib_rmsprop.checkpoint.mean_square import MeanSquare
from puzzlelib_rmsprop.errors import ArrayError, CheckpointError, CheckpointWarning
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.golden import DATA, KINDS, NAMES, Replay
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

BUFFERS = ("mg", "variance", "delta")
FILED = (*BUFFERS, "ms")  # what a file holds for each


def net_of(arrays, shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return Net({name: arrays.var(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()})


def trained(arrays, globalState, shapes, dtype="float32", steps=3, seed=0):
    net = net_of(arrays, shapes, dtype, seed)
    optimizer = RMSPropGraves(learnRate=1e-2)
    optimizer.setupOn(net, globalState)
    step(arrays, optimizer, steps, seed)
    return optimizer


def step(arrays, optimizer, steps=1, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for name in sorted(optimizer.module.vars):
            grad = optimizer.module.getVar(name).grad
            arrays.put(grad, rng.standard_normal(grad.shape))
        optimizer.update()


def content(arrays, optimizer):
    return {slot.names[0]: {entity: arrays.get(array) for entity, array in slot.state.items()} for slot in optimizer._slots}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for entity in BUFFERS:
            assert np.array_equal(first[name][entity], second[name][entity]), f"{name}: {entity}"


SHAPES = {"b.W": (4, 3), "b.b": (3,), "a.W": (2, 4), "a.b": (5,)}


def variance_of(mg, ms, dtype=np.float32):
    """What becomes of a mean square."""
    return np.maximum(ms.astype(np.float64) - mg.astype(np.float64) ** 2, 0).astype(dtype)


def in_file(path, shapes, entities=("mg", "ms", "delta")):
    """What a file holds of each variable, found without the library: by h5py, in PuzzleLib's order."""
    with h5py.File(path) as file:
        found = {}
        for entity in entities:
            begin = 0
            for name in sorted(shapes):
                size = int(np.prod(shapes[name]))
                if f".states/{name}.{entity}" in file:
                    values = file[f".states/{name}.{entity}"][()]
                else:
                    values = file[f".states/<class 'numpy.float32'>.{entity}"][begin : begin + size].reshape(shapes[name])
                found.setdefault(name, {})[entity] = values
                begin += size
    return found


# -------------------------------------------------------------------------------------- PuzzleLib's files


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", KINDS)
def test_puzzlelib_checkpoints_load_and_go_on(kind, globalState):
    replay = Replay(kind, globalState)
    for _ in range(60):
        replay.step()
    # a fresh process: a new net and optimizer, everything from PuzzleLib's files
    fresh = Replay(kind, globalState)
    fresh.net.load(DATA / f"module_{kind}.hdf")
    fresh.optimizer.load(DATA / f"optimizer_{kind}.hdf")
    assert fresh.optimizer.t == 60
    assert fresh.optimizer.learnRate == 1e-3
    filed = in_file(DATA / f"optimizer_{kind}.hdf", {name: fresh.net.getVar(name).data.shape for name in NAMES})
    for name in NAMES:
        state = fresh.state(name)
        for entity in ("mg", "delta"):
            assert np.array_equal(state[entity].get(), filed[name][entity])
        assert np.array_equal(state["variance"].get(), variance_of(filed[name]["mg"], filed[name]["ms"]))
        for entity in BUFFERS:
            # both after sixty steps, each with its own rounding on the way
            ours, theirs = (each.state(name)[entity].get() for each in (replay, fresh))
            assert_close(ours, theirs, 1e-4, f"{name}: {entity}")
    errors = [(replay.step(), fresh.step()) for _ in range(20)]
    assert np.allclose(*zip(*errors, strict=True), rtol=1e-5, atol=0)


def test_puzzlelib_cuda_checkpoint(globalState, tmp_path):
    # its CUDA backend: another spelling of the key, and variables aligned to 16 bytes with whatever lay between
    optimizer = trained(Own, False, SHAPES)
    names = sorted(SHAPES)
    expected = content(Own, optimizer)
    for state in expected.values():
        state["ms"] = (state["variance"] + state["mg"] ** 2).astype(np.float32)
    with h5py.File(tmp_path / "cuda.hdf", "w") as file:
        file.create_group(".attrs").create_dataset("t", data=3)
        for entity in ("mg", "ms", "delta"):
            parts = []
            for name in names:
                flat = expected[name][entity].ravel()
                parts += [flat, np.full(-flat.size % 4, np.nan, np.float32)]
            file[f".states/float32.{entity}"] = np.concatenate(parts)
    fresh = RMSPropGraves()
    fresh.setupOn(net_of(Own, SHAPES), globalState)
    fresh.load(tmp_path / "cuda.hdf")
    for state in expected.values():
        state["variance"] = variance_of(state["mg"], state["ms"])
    assert_same(content(Own, fresh), expected)


class Own:
    """The library's own arrays, for tests that need no other family."""

    @staticmethod
    def var(values):
        return Variable(gpuarray.to_gpu(values))

    @staticmethod
    def get(array):
        return array.get()

    @staticmethod
    def put(array, values):
        array[...] = values


# -------------------------------------------------------------------------------------------- our files


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("saved", [False, True], ids=["from-local", "from-global"])
@pytest.mark.parametrize("loaded", [False, True], ids=["to-local", "to-global"])
def test_resume_is_bit_for_bit(arrays, dtype, saved, loaded, tmp_path):
    optimizer = trained(arrays, saved, SHAPES, dtype)
    optimizer.learnRate = 0.5
    optimizer.save(tmp_path / "run.hdf")
    params = {name: arrays.get(optimizer.module.getVar(name).data) for name in SHAPES}

    fresh = RMSPropGraves(alpha=0.1, momRate=0.2, epsilon=0.3)
    fresh.setupOn(net_of(arrays, SHAPES, dtype, seed=9), loaded)
    for name, param in params.items():
        arrays.put(fresh.module.getVar(name).data, param)
    fresh.load(tmp_path / "run.hdf")
    assert fresh.getAttrDict() == optimizer.getAttrDict()
    assert_same(content(arrays, fresh), content(arrays, optimizer))
    step(arrays, optimizer, 4, seed=1)
    step(arrays, fresh, 4, seed=1)
    assert_same(content(arrays, fresh), content(arrays, optimizer))
    for name in SHAPES:
        ends = [arrays.get(each.module.getVar(name).data) for each in (optimizer, fresh)]
        assert np.array_equal(*ends), name


def test_groups_are_puzzlelibs(tmp_path):
    local, flat = trained(Own, False, SHAPES), trained(Own, True, SHAPES)
    local.save(tmp_path / "local.hdf", name="opt")
    flat.save(tmp_path / "flat.hdf")
    with h5py.File(tmp_path / "local.hdf") as file:
        assert set(file) == {"opt.attrs", "opt.states", "opt.layout"}
        assert set(file["opt.attrs"]) == {"t", "learnRate", "alpha", "momRate", "epsilon"}
        assert file["opt.attrs/t"][()] == 3
        assert set(file["opt.states"]) == {f"{name}.{entity}" for name in SHAPES for entity in FILED}
        assert file["opt.states/b.W.mg"].shape == (4, 3)
    with h5py.File(tmp_path / "flat.hdf") as file:
        # both spellings that PuzzleLib's backends look for, of one dataset
        for entity in FILED:
            one, other = (file[f".states/{key}.{entity}"] for key in ("float32", "<class 'numpy.float32'>"))
            assert one == other
            assert one.shape == (sum(int(np.prod(shape)) for shape in SHAPES.values()),)


def test_saving_replaces_a_file_and_closes_it(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    path = tmp_path / "run.hdf"
    for _ in range(2):
        optimizer.save(str(path))
        step(Own, optimizer)
    with h5py.File(path, "r+") as file:  # open handles elsewhere would refuse this
        assert file[".attrs/t"][()] == 4
    assert os.listdir(tmp_path) == ["run.hdf"]


def test_an_open_file_is_left_open_and_may_hold_several(tmp_path):
    first, second = trained(Own, False, SHAPES), trained(Own, True, SHAPES, seed=1)
    with h5py.File(tmp_path / "both.hdf", "w") as file:
        first.save(file, name="first")
        second.save(file.create_group("inner"), name="second")
        assert file
        file["mine"] = 1
    others = [RMSPropGraves(), RMSPropGraves()]
    for other in others:
        other.setupOn(net_of(Own, SHAPES))
    with h5py.File(tmp_path / "both.hdf", "r") as file:
        others[0].load(file, name="first")
        others[1].load(file["inner"], name="second")
        assert file["mine"][()] == 1
    assert_same(content(Own, others[0]), content(Own, first))
    assert_same(content(Own, others[1]), content(Own, second))


def test_a_different_order_and_other_tied_names(tmp_path):
    shared = Own.var(np.ones((2, 2), np.float32))
    net = Net({"z": Own.var(np.ones(3, np.float32)), "enc.W": shared, "dec.W": shared})
    for globalState in (False, True):
        optimizer = RMSPropGraves()
        optimizer.setupOn(net, globalState)
        step(Own, optimizer, 2)
        optimizer.save(tmp_path / "tied.hdf")
        turned = Own.var(np.ones((2, 2), np.float32))
        other = RMSPropGraves()
        other.setupOn(Net({"dec.W": turned, "z": Own.var(np.ones(3, np.float32)), "enc.W": turned}), not globalState)
        other.load(tmp_path / "tied.hdf")
        states = {slot.names[0]: slot.state for slot in other._slots}
        for entity in BUFFERS:
            saved = next(slot.state for slot in optimizer._slots if slot.var is shared)
            assert np.array_equal(states["dec.W"][entity], saved[entity])


def test_attributes_of_every_kind(tmp_path):
    class Mine(RMSPropGraves):
        def __init__(self):
            super().__init__()
            for name, value in (("epoch", 3), ("tag", "a"), ("on", True), ("table", np.arange(3))):
                self.setAttr(name, value)

    optimizer, other = Mine(), Mine()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES))
    optimizer.setAttr("epoch", 7)
    optimizer.setAttr("tag", "b/ü")
    optimizer.setAttr("on", False)
    optimizer.setAttr("table", np.array([5, 6, 7]))
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert (other.epoch, other.tag, other.on, other.table.tolist()) == (7, "b/ü", False, [5, 6, 7])
    assert type(other.epoch) is int
    assert type(other.on) is bool


def test_names_with_slashes(tmp_path):
    shapes = {"a/b.W": (2,), "c": (3,)}
    optimizer = trained(Own, False, shapes)
    optimizer.save(tmp_path / "run.hdf")
    other = RMSPropGraves()
    other.setupOn(net_of(Own, shapes), True)
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))


ODD_NAMES = ["a\0b", "/abs", ".", "", "./x", "a//b", "/", "a/", "ü€😀", "float32", "<class 'numpy.float32'>", "x" * 10_000]


@pytest.mark.parametrize("loaded", [False, True], ids=["into-local", "into-global"])
def test_odd_names(globalState, loaded, tmp_path):
    # to HDF5 a name is a path, and ends at a NUL; and a flat state is called float32
    shapes = {name: (2 + i,) for i, name in enumerate([*ODD_NAMES, "abs", "x", "a/b", "W"])}
    optimizer = trained(Own, globalState, shapes)
    optimizer.save(tmp_path / "run.hdf")
    found = inspect(tmp_path / "run.hdf")
    assert not found["damaged"]
    for each in found["parts"][0]["variables"]:
        assert [entity["shape"] for entity in each["entities"].values()] == [each["shape"]] * 4
    other = RMSPropGraves()
    other.setupOn(net_of(Own, shapes), loaded)
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        optimizer.save(file.create_group("within"))
        assert list(file) == ["within"]


def test_a_state_for_all_of_the_shape_of_one(tmp_path):
    class Counting(RMSPropGraves):
        def setupState(self, var):
            return {**super().setupState(var), "count": gpuarray.zeros(3)}

    optimizer, other = Counting(), Counting()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, {"a": (2,), "b": (3,)}), True)
    optimizer.states[np.dtype(np.float32)]["count"].set(np.array([1, 2, 3], np.float32))
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert other.states[np.dtype(np.float32)]["count"].tolist() == [1, 2, 3]


# ---------------------------------------------------------------------------------- files that do not fit


def loaded_into(path, shapes=SHAPES, globalState=False, dtype="float32"):
    """Loads into a trained optimizer and, when that fails, checks that it is as it was."""
    optimizer = trained(Own, globalState, shapes, dtype, seed=5)
    before, attrs = content(Own, optimizer), optimizer.getAttrDict()
    try:
        optimizer.load(path)
    except Exception:
        assert_same(content(Own, optimizer), before)
        assert optimizer.getAttrDict() == attrs
        raise
    return optimizer


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


def test_a_puzzlelib_global_file_of_another_net_is_refused(globalState):
    with pytest.raises(CheckpointError, match=r"\(489,\).*fc0\.W.*take 490 or 492 elements"):
        loaded_into(DATA / "optimizer_global.hdf", {"fc0.W": (490,)}, globalState)


def test_narrower_state_is_widened(globalState, tmp_path):
    # PuzzleLib keeps the state of float16 parameters in float16
    path = tmp_path / "half.hdf"
    with h5py.File(path, "w") as file:
        for entity, values in {"mg": [-0.5, 2.0], "ms": [1.5, 2.5], "delta": [1.5, 2.5]}.items():
            file[f".states/W.{entity}"] = np.array(values, np.float16)
    optimizer = loaded_into(path, {"W": (2,)}, globalState, dtype="float16")
    (slot,) = optimizer._slots
    assert {entity: array.dtype for entity, array in slot.state.items()} == dict.fromkeys(BUFFERS, np.float32)
    assert {entity: array.tolist() for entity, array in slot.state.items()} == {
        "mg": [-0.5, 2.0],
        "variance": [1.25, 0.0],
        "delta": [1.5, 2.5],
    }


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


FORMAT1 = {kind: DATA / f"format1_{kind}.hdf" for kind in ("local", "global")}


def damaged(path, change):
    """A file of format 1, which has no checksums, so that what it holds is looked at."""
    path.write_bytes(FORMAT1["local"].read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("kind", FORMAT1)
def test_files_of_format_1_load(kind, globalState):
    found, filed = content(Own, loaded_into(FORMAT1[kind], globalState=globalState)), in_file(FORMAT1[kind], SHAPES)
    same = content(Own, trained(Own, False, SHAPES))  # the training that it was saved from
    for name, state in filed.items():
        state["variance"] = variance_of(state["mg"], state["ms"])
        for entity in BUFFERS:
            assert np.array_equal(found[name][entity], state[entity])
            assert_close(found[name][entity], same[name][entity], TOLERANCE["float32"][entity], f"{name}: {entity}")


VERSION010 = {kind: DATA / f"version010_{kind}.hdf" for kind in ("local", "global", "bfloat16", "float16")}


@pytest.mark.parametrize("wanted", [None, "bfloat16"])
@pytest.mark.parametrize("kind", VERSION010)
def test_files_of_version_0_1_0_load(kind, wanted, globalState):
    filed = in_file(VERSION010[kind], SHAPES)
    with h5py.File(VERSION010[kind]) as file:
        layout = json.loads(file[".layout"][()])
    assert (layout["format"], layout["library"]) == (2, "0.1.0")
    assert {entry["variance"] for entry in layout["variables"]} == {kind == "bfloat16"}
    optimizer = RMSPropGraves(stateDtype=wanted)
    optimizer.setupOn(net_of(Own, SHAPES, "float16" if kind == "float16" else "float32"), globalState)
    if (kind, wanted) == ("float16", "bfloat16"):
        with pytest.raises(CheckpointError, match="'mg' is bfloat16 here; .* has float16, which does not fit without loss"):
            optimizer.load(VERSION010[kind])
        return
    optimizer.load(VERSION010[kind])
    assert (optimizer.t, optimizer.seed) == (3, 3 if kind == "bfloat16" else 0)
    dtype = np.dtype(np.float32 if wanted is None else ml_dtypes.bfloat16)
    for name, state in content(Own, optimizer).items():
        mg, ms, delta = (filed[name][entity] for entity in ("mg", "ms", "delta"))
        # with bfloat16 state it was the variance that was called ms
        expected = {"mg": mg, "delta": delta, "variance": ms if kind == "bfloat16" else variance_of(mg, ms)}
        assert (expected["variance"] > 0).all()
        for entity, values in expected.items():
            assert state[entity].dtype == dtype
            assert np.array_equal(state[entity], values.astype(dtype)), f"{name}: {entity}"


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
            "is of format 99.*upgrade",
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
    for wrong in (3, None, b"bytes"):
        with pytest.raises(CheckpointError, match="must be a path or an open h5py"):
            loaded_into(wrong)
    with h5py.File(truncated, "w") as file:
        pass
    with pytest.raises(CheckpointError, match="is closed"):
        loaded_into(file)


# ------------------------------------------------------------------------------------ damaged, and noticed


def flipped(path, what):
    """Turns a bit within a dataset, as a failing disk would."""
    with h5py.File(path) as file:
        at = file[what].id.get_offset() + 5
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("what", [".states/a.W.ms", ".states/a.W.variance", ".attrs/alpha", ".layout"])
def test_a_turned_bit_is_noticed_and_named(what, tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    flipped(path, what)
    with pytest.raises(CheckpointError, match=rf"run.hdf is damaged: its SHA-256.*{what}"):
        loaded_into(path)
    # an open file has no seal to compare; the datasets have checksums of their own
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
    # the one could be computed from the other, but the file is not what was saved
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


def test_hdf5_that_hangs_or_crashes_is_an_error(tmp_path, monkeypatch):
    # what it does on some damaged files without a seal: tests/fuzz_checkpoint.py
    for code, message in (
        ("import time; time.sleep(60)", "does not come to an end"),
        ("import os; os.abort()", "crashes on it .signal 6"),
    ):
        monkeypatch.setattr(integrity, "SECONDS", 1.0)
        monkeypatch.setattr(integrity, "_PROBE", code)
        with pytest.raises(CheckpointError, match=message):
            loaded_into(FORMAT1["local"])
    # where no process can be started there is no such protection, and loading works
    monkeypatch.setattr(integrity.sys, "executable", str(tmp_path / "absent"))
    loaded_into(FORMAT1["local"])


def test_the_seal_is_what_its_text_says(tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    raw = path.read_bytes()
    lines = raw[:512].decode().rstrip("\0").splitlines()
    assert lines[1:] == [f"bytes {len(raw)}", f"sha256 {hashlib.sha256(raw[512:]).hexdigest()}"]


# --------------------------------------------------------------------------------------- layout and options


def test_what_the_layout_says(globalState, tmp_path):
    class Mine(RMSPropGraves):
        def _extra(self):
            return {"options": {"seed": 3}, "hooks": [{"kind": "x"}]}

    optimizer = Mine(alpha=0.25)
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        layout = json.loads(file[".layout"][()])
    assert layout["format"] == 3
    assert layout["library"] == puzzlelib_rmsprop.__version__
    assert layout["mode"] == ("global" if globalState else "local")
    assert layout["attrs"] == {"alpha": 0.25, "epsilon": 1e-4, "learnRate": 1e-4, "momRate": 0.9, "t": 1}
    assert layout["extra"] == {"options": {"seed": 3}, "hooks": [{"kind": "x"}]}
    entry = next(each for each in layout["variables"] if each["names"] == ["b.W"])
    # in the order of names: a.W (8), a.b (5), b.W
    expected = {"names": ["b.W"], "shape": [4, 3], "dtype": "float32", "offset": 13 if globalState else 0}
    assert entry == expected


def test_extras_are_checked_before_and_applied_after_everything_else(tmp_path):
    seen = []

    class Mine(RMSPropGraves):
        good = True

        def _extra(self):
            return {"options": {}, "hooks": [self.t]}

        def _checkExtra(self, extra):
            seen.append(("check", extra["hooks"], self.t))
            if not self.good:
                raise CheckpointError("these hooks do not fit")

        def _applyExtra(self, extra):
            seen.append(("apply", extra["hooks"], self.t))

    optimizer = Mine()
    optimizer.setupOn(net_of(Own, SHAPES))
    step(Own, optimizer, 2)
    optimizer.save(tmp_path / "run.hdf")
    step(Own, optimizer, 1)
    optimizer.load(tmp_path / "run.hdf")
    assert seen == [("check", [2], 3), ("apply", [2], 2)]
    optimizer.good = False
    step(Own, optimizer, 1)
    before, attrs = content(Own, optimizer), optimizer.getAttrDict()
    with pytest.raises(CheckpointError, match="these hooks do not fit"):
        optimizer.load(tmp_path / "run.hdf")
    assert_same(content(Own, optimizer), before)
    assert optimizer.getAttrDict() == attrs


def rewritten(path, **changes):
    """Puts other things into a file's layout, with a checksum that fits."""
    with h5py.File(path, "r+") as file:
        text = json.dumps({**json.loads(file[".layout"][()]), **changes}).encode()
        del file[".layout"]
        file[".layout"] = np.bytes_(text)
        file[".layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())
    return h5py.File(path, "r")


@pytest.mark.parametrize(
    "extra",
    [
        *(
            [],
            None,
            3,
            "x",
            {"options": None},
            {"options": []},
            {"options": {"seed": "x"}},
            {"options": {"gradOfLoss": "x"}},
        ),
        *({"hooks": None}, {"hooks": [3]}, {"hooks": [["LossScaling"]]}, {"hooks": [[[], {}]]}),
        *({"hooks": [["LossScaling", state]]} for state in (None, {}, {"scale": float("nan"), "good": 0, "skipped": 0})),
    ],
    ids=str,
)
def test_extras_that_nobody_wrote_are_refused(extra, globalState, tmp_path):
    optimizer = trained(Own, globalState, SHAPES)
    optimizer.addHook(LossScaling())
    optimizer.save(tmp_path / "run.hdf")
    step(Own, optimizer)
    before = content(Own, optimizer)
    with rewritten(tmp_path / "run.hdf", extra=extra) as file, pytest.raises(CheckpointError, match="the file's"):
        optimizer.load(file)
    assert_same(content(Own, optimizer), before)
    assert (optimizer.t, optimizer.hooks[0].scale) == (4, 2.0**16)


def test_what_a_hook_does_not_know_is_left(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    optimizer.addHook(LossScaling())
    optimizer.save(tmp_path / "run.hdf")
    state = {"scale": 4.0, "good": 1, "skipped": 2, "factor": "x", "of a later version": 3}
    with rewritten(tmp_path / "run.hdf", extra={"hooks": [["LossScaling", state]]}) as file:
        optimizer.load(file)
    assert optimizer.hooks[0].getState() == {"scale": 4.0, "good": 1, "skipped": 2}


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
    # the step would take its root
    optimizer = RMSPropGraves(stateDtype=saved)
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    slot = next(slot for slot in optimizer._slots if slot.names[0] == "b.W")
    slot.state["variance"][1] = -1
    optimizer.save(tmp_path / "run.hdf")
    for wanted in (saved, "bfloat16"):
        other = RMSPropGraves(stateDtype=wanted)
        other.setupOn(net_of(Own, SHAPES))
        with pytest.raises(CheckpointError, match="'b.W': its 'variance' in .*run.hdf is below 0; no variance can be"):
            other.load(tmp_path / "run.hdf")
    slot.state["variance"][1] = np.nan
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert np.isnan(other.states["b.W"]["variance"][1]).all()
    assert not np.isnan(other.states["b.W"]["variance"][0]).any()


def test_a_variance_below_0_in_a_file_of_version_0_1_0_is_refused(tmp_path):
    path = tmp_path / "run.hdf"
    path.write_bytes(VERSION010["bfloat16"].read_bytes())
    with h5py.File(path, "r+") as file:
        dataset = file[".states/float32.ms"]  # a.W comes first
        bits = np.empty(dataset.shape, np.uint16)
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=dataset.id.get_type())
        bits[2] |= 0x8000
        dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=dataset.id.get_type())
    with (
        rewritten(path, format=1, sha256=None) as file,
        pytest.raises(CheckpointError, match="'a.W': its 'variance'.*below 0"),
    ):
        loaded_into(file)


def test_an_attribute_that_cannot_be_set_costs_nothing(tmp_path):
    class Mine(RMSPropGraves):
        kind = property(lambda self: 1)

    optimizer = Mine()
    optimizer.setupOn(net_of(Own, SHAPES))
    optimizer.attrs.add("kind")
    optimizer.save(tmp_path / "run.hdf")
    optimizer.alpha, optimizer.learnRate = 0.5, 0.25
    with pytest.raises(CheckpointError, match="the attributes in the file are not valid"):
        optimizer.load(tmp_path / "run.hdf")
    assert (optimizer.alpha, optimizer.learnRate) == (0.5, 0.25)


def test_extras_that_are_no_plain_data_cost_nothing(tmp_path):
    class Mine(RMSPropGraves):
        def _extra(self):
            return {"hooks": [object()]}

    optimizer = Mine()
    optimizer.setupOn(net_of(Own, SHAPES))
    with pytest.raises(CheckpointError, match="must be plain data to be saved"):
        optimizer.save(tmp_path / "run.hdf")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------ dtypes and forms of the state

VALUES = np.array([0.0, -0.0, 1.0, -1.5, 3.1415927, 1e-30, 65000.0, 1e30], np.float32)


def place(dtype, entities=BUFFERS, shape=VALUES.shape, forms=()):
    state = {entity: (shape, np.dtype(np.float32) if entity == "master" else np.dtype(dtype)) for entity in entities}
    return Place(["W"], shape, np.dtype(np.float32), 0, state, forms)


def through(path, state, saved, wanted):
    write(path, "", {"t": 1}, {"W": state}, [saved], False, {})
    (found,) = read(path, "", {"t": 0}, [wanted])[1]
    return found


def test_bfloat16_is_stored_exactly_and_as_numbers(tmp_path):
    path = tmp_path / "run.hdf"
    # every bfloat16 there is
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    state = dict.fromkeys(BUFFERS, every)
    where = place(ml_dtypes.bfloat16, shape=every.shape)
    found = through(path, state, where, where)
    as_float32 = through(path, state, where, place(np.float32, shape=every.shape))
    finite = np.isfinite(every.astype(np.float32))
    for entity in BUFFERS:
        assert found[entity].dtype == ml_dtypes.bfloat16
        assert np.array_equal(found[entity].view(np.uint16)[finite], every.view(np.uint16)[finite])
        assert np.array_equal(as_float32[entity], every.astype(np.float32), equal_nan=True)
    with h5py.File(path) as file:  # as any reader of HDF5 sees it
        dataset = file[".states/W.variance"]
        assert dataset.id.get_storage_size() == 2 * every.size
        assert dataset.dtype == np.float32
        assert np.array_equal(dataset[()], every.astype(np.float32), equal_nan=True)


def test_a_damaged_bfloat16_is_noticed(tmp_path):
    path = tmp_path / "run.hdf"
    state = dict.fromkeys(BUFFERS, VALUES.astype(ml_dtypes.bfloat16))
    write(path, "", {"t": 1}, {"W": state}, [place(ml_dtypes.bfloat16)], False, {})
    flipped(path, ".states/W.delta")
    with h5py.File(path) as file, pytest.raises(CheckpointError, match="W.delta' is damaged"):
        read(file, "", {"t": 0}, [place(ml_dtypes.bfloat16)])


NARROW = ("float16", "bfloat16", "float32", "float64")
LOSSLESS = {(a, a) for a in NARROW} | {("float16", "float32"), ("float16", "float64"), ("bfloat16", "float32")}
LOSSLESS |= {("bfloat16", "float64"), ("float32", "float64")}


@pytest.mark.parametrize("saved", NARROW)
@pytest.mark.parametrize("wanted", NARROW)
def test_which_dtypes_go_into_which(saved, wanted, tmp_path):
    from_, to = np.dtype(saved), np.dtype(wanted)
    state = dict.fromkeys(BUFFERS, np.clip(VALUES, -6e4, 6e4).astype(from_))
    if (saved, wanted) == ("float32", "bfloat16"):
        found = through(tmp_path / "run.hdf", state, place(from_), place(to))
        # to the nearest: within half of the last of eight bits
        off = np.abs(found["variance"].astype(np.float64) - state["variance"])
        assert np.all(off <= 2.0**-8 * np.abs(state["variance"]))
        assert np.array_equal(found["variance"], state["variance"].astype(ml_dtypes.bfloat16))
    elif (saved, wanted) in LOSSLESS:
        found = through(tmp_path / "run.hdf", state, place(from_), place(to))
        assert found["variance"].dtype == to
        assert np.array_equal(found["variance"].astype(np.float64), state["variance"].astype(np.float64))
    else:
        with pytest.raises(CheckpointError, match=f"is {wanted} here.*without loss"):
            through(tmp_path / "run.hdf", state, place(from_), place(to))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_square_becomes_the_variance(dtype, tmp_path):
    rng = np.random.default_rng(0)
    mg = (3 * rng.standard_normal(VALUES.shape)).astype(dtype)
    ms = (np.square(mg.astype(np.longdouble)) + rng.random(VALUES.shape)).astype(dtype)
    ms[0] = mg[0] ** 2 / 2  # as rounding leaves it
    mg[1], ms[1] = 97.36, 97.36**2  # a gradient that hardly varied: what float64 has, and float32 would lose
    state = {"mg": mg, "ms": ms, "delta": mg}
    wanted = place(dtype, forms=(MeanSquare(),))
    found = through(tmp_path / "a.hdf", state, place(dtype), wanted)
    expected = np.maximum(ms.astype(np.longdouble) - np.square(mg.astype(np.longdouble)), 0)
    # float64's rounding of the square and of the difference, and then the dtype's
    bound = 2.0**-52 * ms + np.finfo(dtype).eps * expected
    assert found["variance"].dtype == dtype
    assert np.all(np.abs(found["variance"] - expected) <= bound)
    assert found["variance"][0] == 0
    assert np.array_equal(found["variance"], variance_of(mg, ms, dtype))
    assert np.array_equal(found["mg"], mg)
    # a variance in the file is not touched, whatever ms says
    variance = rng.random(VALUES.shape).astype(dtype)
    assert np.array_equal(through(tmp_path / "b.hdf", {**state, "variance": variance}, wanted, wanted)["variance"], variance)
    # an optimizer that keeps ms gets ms
    own = place(dtype, entities=("mg", "ms", "delta"))
    assert np.array_equal(through(tmp_path / "c.hdf", state, own, own)["ms"], ms)


def test_a_mean_square_of_float32_goes_into_other_dtypes(tmp_path):
    mg, ms = np.abs(VALUES[:6]), np.square(VALUES[:6]) + np.float32(0.1)
    state = {"mg": mg, "ms": ms, "delta": mg}
    for dtype in (np.float64, ml_dtypes.bfloat16):
        wanted = place(dtype, shape=mg.shape, forms=(MeanSquare(),))
        found = through(tmp_path / "run.hdf", state, place(np.float32, shape=mg.shape), wanted)
        assert found["variance"].dtype == dtype
        exact = variance_of(mg, ms, np.float64)
        off = np.abs(found["variance"].astype(np.float64) - exact)
        assert np.all(off <= (0 if dtype == np.float64 else 2.0**-8 * exact))


@pytest.mark.parametrize("saved", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_mean_square_in_our_files_is_puzzlelibs(dtype, saved, globalState, tmp_path):
    optimizer = RMSPropGraves(learnRate=1e-2, alpha=0.75, stateDtype=saved)
    optimizer.setupOn(net_of(Own, SHAPES, dtype), globalState)
    step(Own, optimizer, 5)
    optimizer.save(tmp_path / "run.hdf")
    real = np.float64 if dtype == "float64" else np.float32
    states = content(Own, optimizer)
    with h5py.File(tmp_path / "run.hdf") as file:
        for spelling in (dtype, f"<class 'numpy.{dtype}'>") if globalState else ("",):
            flat = {entity: file[f".states/{spelling}.{entity}"][()] for entity in FILED} if globalState else {}
            begin = 0
            for name in sorted(SHAPES):
                size = int(np.prod(SHAPES[name]))
                found = {
                    entity: flat[entity][begin : begin + size].reshape(SHAPES[name])
                    if globalState
                    else file[f".states/{name}.{entity}"][()]
                    for entity in FILED
                }
                begin += size
                state = {entity: array.astype(np.float64) for entity, array in states[name].items()}
                assert all(np.array_equal(found[entity], state[entity]) for entity in BUFFERS)
                assert found["ms"].dtype == real
                expected = (state["variance"] + state["mg"] ** 2).astype(real)
                assert np.array_equal(found["ms"], expected)
                assert (found["ms"] > state["variance"]).all()


def test_a_mean_square_that_its_dtype_cannot_hold_costs_no_checkpoint(globalState, tmp_path):
    # PuzzleLib's own would be infinite too
    optimizer = trained(Own, globalState, SHAPES)
    optimizer._slots[0].state["mg"].fill(1e25)
    optimizer.save(tmp_path / "run.hdf")
    other = loaded_into(tmp_path / "run.hdf", globalState=globalState)
    assert_same(content(Own, other), content(Own, optimizer))


def test_files_larger_than_what_is_converted_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mean_square, "PIECE", 5)
    for name, mode in (("a", False), ("b", True)):
        optimizer = trained(Own, mode, SHAPES)
        optimizer.save(tmp_path / name)
        for key, state in in_file(tmp_path / name, SHAPES, FILED).items():
            wide = {entity: array.astype(np.float64) for entity, array in state.items()}
            assert np.array_equal(state["ms"], (wide["variance"] + wide["mg"] ** 2).astype(np.float32)), key


class Squares(Optimizer):
    """An optimizer of somebody's own, whose states have the names that files use for the two forms."""

    entities = ("mg", "variance", "ms")

    def setupState(self, var):
        return {entity: gpuarray.zeros(var.data.shape) for entity in self.entities}

    def updateVar(self, var, state, stream=None):
        for number, entity in enumerate(self.entities):
            state[entity][...] = -number - 1 + var.grad


@pytest.mark.parametrize("entities", [("mg", "variance", "ms"), ("mg", "ms"), ("mg", "variance"), ("ms",)], ids=str)
def test_other_optimizers_states_are_their_own(entities, globalState, tmp_path):
    class Mine(Squares):
        pass

    Mine.entities = entities
    optimizer, other = Mine(), Mine()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        names = SHAPES if not globalState else ("float32", "<class 'numpy.float32'>")
        assert set(file[".states"]) == {f"{name}.{entity}" for name in names for entity in entities}
    other.load(tmp_path / "run.hdf")
    expected = content(Own, optimizer)
    for name, state in content(Own, other).items():
        for entity in entities:
            assert np.array_equal(state[entity], expected[name][entity])
            assert state[entity].any()


def test_a_subclass_that_keeps_ms_itself(globalState, tmp_path):
    class Both(RMSPropGraves):
        def setupState(self, var):
            return {**super().setupState(var), "ms": gpuarray.zeros(var.data.shape)}

    optimizer, other = Both(), Both()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    for slot in optimizer._slots:
        slot.state["ms"].fill(7)
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))
    assert all((slot.state["ms"] == 7).all() for slot in other._slots)


def test_a_mean_square_of_arrays_that_do_not_fit_is_refused(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    optimizer.states["b.b"]["mg"] = gpuarray.zeros(9)
    with pytest.raises(ArrayError, match=r"'b.b': its 'mg' and 'variance' must be of one shape; got \(9,\) and \(3,\)"):
        optimizer.save(tmp_path / "run.hdf")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------- who asks a state for its mean square


def states_of(optimizer):
    return [*optimizer.states.values(), *(slot.state for slot in optimizer._slots)]


def test_ms_is_a_key_error_that_says_what_took_its_place(globalState, tmp_path):
    seen = []
    optimizer = trained(Own, globalState, SHAPES)
    optimizer.addHook(lambda var, state, stream: seen.append(state))
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    optimizer.load(tmp_path / "run.hdf")
    found = [*states_of(optimizer), *seen]
    assert len(seen) == 4
    if not globalState:  # in global mode neither is possible
        for other in (
            copy.copy(optimizer),
            copy.deepcopy(optimizer),
            pickle.loads(pickle.dumps(trained(Own, False, SHAPES))),
        ):
            step(Own, other)
            found += states_of(other)
    for state in found:
        with pytest.raises(KeyError, match=r"no 'ms' any more: 'variance' took its place, and ms is variance \+ mg\*mg"):
            state["ms"]
        with pytest.raises(KeyError, match="^'other'$"):
            state["other"]
        assert "ms" not in state
        assert state.get("ms") is None


def test_a_subclass_that_gives_a_plain_dict_says_so_too(globalState):
    class Plain(RMSPropGraves):
        def setupState(self, var):
            return dict(super().setupState(var))

    optimizer = Plain()
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    for state in states_of(optimizer):
        with pytest.raises(KeyError, match="'variance' took its place"):
            state["ms"]


def test_master_copies_may_be_missing_or_too_many(tmp_path):
    state = dict.fromkeys(BUFFERS, VALUES)
    with_master = place(np.float32, entities=(*BUFFERS, "master"))
    assert "master" not in through(tmp_path / "a.hdf", state, place(np.float32), with_master)
    assert "master" not in through(tmp_path / "b.hdf", {**state, "master": VALUES}, with_master, place(np.float32))
    both = through(tmp_path / "c.hdf", {**state, "master": VALUES + 1}, with_master, with_master)
    assert np.array_equal(both["master"], VALUES + 1)


# ------------------------------------------------------------------------------------ saving that fails


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
    # as much of one as a test may fill: the process's own limit on the size of a file
    code = f"""
import resource, signal, sys
from tests.test_checkpoint import Own, trained
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
    # PuzzleLib truncates the file before it writes: killed there, it leaves nothing
    path = tmp_path / "run.hdf"
    code = f"""
from tests.test_checkpoint import Own, trained
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


def test_a_size_that_the_file_cannot_hold_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "run.hdf"
    with h5py.File(path, "w") as file:
        file.create_dataset(".attrs/t", (2**40,), np.float64, chunks=(1024,))  # eight terabytes, none of them written
    with h5py.File(path) as file, pytest.raises(CheckpointError, match="'/.attrs/t' claims 8796093022208 bytes, more than"):
        loaded_into(file)
    with pytest.raises(CheckpointError, match="claims 8796093022208 bytes"):
        loaded_into(path)
