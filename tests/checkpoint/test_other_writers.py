"""Files of PuzzleLib, and of this library's older versions."""

import json

import h5py
import ml_dtypes
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.damage import FORMAT1, VERSION010, rewritten
from tests.checkpoint.training import (
    BUFFERS,
    FILED,
    SHAPES,
    Own,
    assert_same,
    content,
    in_file,
    loaded_into,
    net_of,
    trained,
    variance_of,
)
from tests.golden import DATA, KINDS, NAMES, Replay
from tests.tolerances import TOLERANCE, assert_close


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", KINDS)
def test_puzzlelib_checkpoints_load_and_go_on(kind, globalState):
    replay = Replay(kind, globalState)
    for _ in range(60):
        replay.step()
    # as in a new process: a new net and optimizer, everything from PuzzleLib's files
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
            # both after sixty steps, each with its own rounding errors
            ours, theirs = (each.state(name)[entity].get() for each in (replay, fresh))
            assert_close(ours, theirs, 1e-4, f"{name}: {entity}")
    errors = [(replay.step(), fresh.step()) for _ in range(20)]
    assert np.allclose(*zip(*errors, strict=True), rtol=1e-5, atol=0)


def test_puzzlelib_cuda_checkpoint(globalState, tmp_path):
    # its CUDA backend spells the key differently, and aligns variables to 16 bytes, with arbitrary data in the gaps
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
        # one dataset under both names that PuzzleLib's backends look for
        for entity in FILED:
            one, other = (file[f".states/{key}.{entity}"] for key in ("float32", "<class 'numpy.float32'>"))
            assert one == other
            assert one.shape == (sum(int(np.prod(shape)) for shape in SHAPES.values()),)


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
    (slot,) = optimizer._variables
    assert {entity: array.dtype for entity, array in slot.state.items()} == dict.fromkeys(BUFFERS, np.float32)
    assert {entity: array.tolist() for entity, array in slot.state.items()} == {
        "mg": [-0.5, 2.0],
        "variance": [1.25, 0.0],
        "delta": [1.5, 2.5],
    }


@pytest.mark.parametrize("kind", FORMAT1)
def test_files_of_format_1_load(kind, globalState):
    found, filed = content(Own, loaded_into(FORMAT1[kind], globalState=globalState)), in_file(FORMAT1[kind], SHAPES)
    same = content(Own, trained(Own, False, SHAPES))  # the training that was saved
    for name, state in filed.items():
        state["variance"] = variance_of(state["mg"], state["ms"])
        for entity in BUFFERS:
            assert np.array_equal(found[name][entity], state[entity])
            assert_close(found[name][entity], same[name][entity], TOLERANCE["float32"][entity], f"{name}: {entity}")


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
        # with bfloat16 state, the variance was named ms
        expected = {"mg": mg, "delta": delta, "variance": ms if kind == "bfloat16" else variance_of(mg, ms)}
        assert (expected["variance"] > 0).all()
        for entity, values in expected.items():
            assert state[entity].dtype == dtype
            assert np.array_equal(state[entity], values.astype(dtype)), f"{name}: {entity}"


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
