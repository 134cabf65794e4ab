"""Dtypes and forms of a state: which ones convert, exactly or not at all; variance and mean square."""

import copy
import os
import pickle

import h5py
import ml_dtypes
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, gpuarray
from puzzlelib_rmsprop.checkpoint import mean_square
from puzzlelib_rmsprop.checkpoint.mean_square import MeanSquare
from puzzlelib_rmsprop.errors import ArrayError, CheckpointError
from tests.checkpoint.training import (
    BUFFERS,
    FILED,
    SHAPES,
    VALUES,
    Own,
    assert_same,
    content,
    in_file,
    loaded_into,
    net_of,
    place,
    states_of,
    step,
    through,
    trained,
    variance_of,
)


def test_bfloat16_is_stored_exactly_and_as_numbers(tmp_path):
    path = tmp_path / "run.hdf"
    # all bfloat16 values
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
        # rounded to nearest: within half of the last of eight bits
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
    mg[1], ms[1] = 97.36, 97.36**2  # a gradient that hardly varied: float32 would lose its variance
    state = {"mg": mg, "ms": ms, "delta": mg}
    wanted = place(dtype, forms=(MeanSquare(),))
    found = through(tmp_path / "a.hdf", state, place(dtype), wanted)
    expected = np.maximum(ms.astype(np.longdouble) - np.square(mg.astype(np.longdouble)), 0)
    # the square and the difference round in float64, then the result in the dtype
    bound = 2.0**-52 * ms + np.finfo(dtype).eps * expected
    assert found["variance"].dtype == dtype
    assert np.all(np.abs(found["variance"] - expected) <= bound)
    assert found["variance"][0] == 0
    assert np.array_equal(found["variance"], variance_of(mg, ms, dtype))
    assert np.array_equal(found["mg"], mg)
    # a variance in the file is not changed, whatever ms is
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
    optimizer._variables[0].state["mg"].fill(1e25)
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


def test_a_subclass_that_keeps_ms_itself(globalState, tmp_path):
    class Both(RMSPropGraves):
        def setupState(self, var):
            return {**super().setupState(var), "ms": gpuarray.zeros(var.data.shape)}

    optimizer, other = Both(), Both()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    for slot in optimizer._variables:
        slot.state["ms"].fill(7)
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))
    assert all((slot.state["ms"] == 7).all() for slot in other._variables)


def test_a_mean_square_of_arrays_that_do_not_fit_is_refused(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    optimizer.states["b.b"]["mg"] = gpuarray.zeros(9)
    with pytest.raises(ArrayError, match=r"'b.b': its 'mg' and 'variance' must have the same shape; got \(9,\) and \(3,\)"):
        optimizer.save(tmp_path / "run.hdf")
    assert os.listdir(tmp_path) == []


def test_ms_is_a_key_error_that_says_what_took_its_place(globalState, tmp_path):
    seen = []
    optimizer = trained(Own, globalState, SHAPES)
    optimizer.addHook(lambda var, state, stream: seen.append(state))
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    optimizer.load(tmp_path / "run.hdf")
    found = [*states_of(optimizer), *seen]
    assert len(seen) == 4
    for other in (
        copy.copy(optimizer),
        copy.deepcopy(optimizer),
        pickle.loads(pickle.dumps(trained(Own, globalState, SHAPES))),
    ):
        step(Own, other)
        found += states_of(other)
    for state in found:
        with pytest.raises(KeyError, match=r"'ms' was replaced by 'variance': ms equals variance \+ mg\*mg"):
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
        with pytest.raises(KeyError, match="'ms' was replaced by 'variance'"):
            state["ms"]
