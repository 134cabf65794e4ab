"""Files of 8-bit state: plain float32 for other readers, the same codes and scales for the optimizer that wrote them."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.__main__ import main
from puzzlelib_rmsprop.tools.inspection import inspect
from tests import reference_int8
from tests.checkpoint.training import BUFFERS, Own, in_file, net_of, step, variance_of
from tests.convert.peers import FROM, TO
from tests.golden import DATA, KINDS, NAMES, Replay

SHAPES = {"b.W": (40, 33), "b.b": (3,), "a.W": (2, 64), "a.b": (), "a.none": (0, 2)}


def made(globalState=False, dtype="float32", stateDtype="int8", shapes=SHAPES, **options):
    optimizer = RMSPropGraves(1e-2, stateDtype=stateDtype, **options)
    optimizer.setupOn(net_of(Own, shapes, dtype), globalState)
    return optimizer


def trained(globalState=False, steps=3, **options):
    optimizer = made(globalState, seed=77, **options)
    step(Own, optimizer, steps)
    return optimizer


def bytes_of(optimizer):
    """Returns the codes and scales of each variable."""
    found = {v.name: [v.state[e].codes.tobytes() for e in BUFFERS] for v in optimizer._variables}
    return {v.name: [*found[v.name], v.state["mg"].scales.tobytes()] for v in optimizer._variables}


def numbers_of(optimizer):
    return {v.name: {e: v.state[e].get() for e in v.state} for v in optimizer._variables}


def take_parameters(optimizer, other):
    for name in SHAPES:
        optimizer.module.getVar(name).data[...] = other.module.getVar(name).data


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("saved", [False, True], ids=["from-local", "from-global"])
@pytest.mark.parametrize("loaded", [False, True], ids=["to-local", "to-global"])
def test_resume_is_bit_for_bit(dtype, saved, loaded, tmp_path):
    optimizer = trained(saved, dtype=dtype, masterWeights=True)
    optimizer.save(tmp_path / "run.hdf")
    fresh = made(loaded, dtype, masterWeights=True)
    take_parameters(fresh, optimizer)
    fresh.load(tmp_path / "run.hdf")
    assert fresh.seed == 77
    assert bytes_of(fresh) == bytes_of(optimizer)
    for each in (optimizer, fresh):
        step(Own, each, 4, seed=1)
    assert bytes_of(fresh) == bytes_of(optimizer)
    for name in SHAPES:
        assert optimizer.module.getVar(name).data.tobytes() == fresh.module.getVar(name).data.tobytes(), name


def test_a_file_holds_plain_numbers(globalState, tmp_path):
    optimizer = trained(globalState)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        datasets = {key: file[".states"][key] for key in file[".states"]}
        assert {dataset.dtype for dataset in datasets.values()} == {np.dtype(np.float32)}
        if not globalState:
            for name, state in numbers_of(optimizer).items():
                for entity in BUFFERS:
                    assert datasets[f"{name}.{entity}"][()].tobytes() == state[entity].tobytes(), (name, entity)


@pytest.mark.parametrize("other", [None, "bfloat16"])
def test_files_of_floats_and_back(other, globalState, tmp_path):
    pytest.importorskip("ml_dtypes")
    source = made(not globalState, stateDtype=other)
    step(Own, source, 4)
    source.save(tmp_path / "floats.hdf")
    optimizer = made(globalState)
    optimizer.load(tmp_path / "floats.hdf")
    found = numbers_of(optimizer)
    for variable in source._variables:
        for n, entity in enumerate(BUFFERS):
            exact = np.asarray(variable.state[entity], np.float32).ravel()
            codes, scales = reference_int8.codes_of(exact, entity)  # to nearest
            right = reference_int8.values(codes, scales, entity)
            assert np.array_equal(found[variable.name][entity].ravel(), right), (variable.name, entity)
            last = np.repeat(2.0 ** (scales.astype(float) - 127), 64)[: exact.size]
            # half the distance of the codes around the number, at least that of the smallest codes
            mantissa, least = reference_int8.FORMS[entity][1], 2.0 / reference_int8.units_of(entity)
            assert (np.abs(right - exact) <= 2.0 ** -(mantissa + 1) * (np.abs(exact) + least * last)).all(), n
    optimizer.save(tmp_path / "codes.hdf")
    back = made(not globalState, stateDtype=other)
    back.load(tmp_path / "codes.hdf")
    for variable in back._variables:
        for entity in BUFFERS:
            expected, again = found[variable.name][entity], np.asarray(variable.state[entity], np.float32)
            # bfloat16 rounds to nearest, with eight bits
            assert (np.abs(again - expected) <= (0 if other is None else 2.0**-8 * np.abs(expected))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_puzzlelibs_files(kind, globalState):
    replay = Replay(kind, globalState)
    optimizer = RMSPropGraves(stateDtype="int8")
    optimizer.setupOn(replay.net, globalState)
    path = DATA / f"optimizer_{kind}.hdf"
    optimizer.load(path)
    assert optimizer.t == 60
    filed = in_file(path, {name: replay.net.getVar(name).data.shape for name in NAMES})
    for name, state in numbers_of(optimizer).items():
        expected = filed[name] | {"variance": variance_of(filed[name]["mg"], filed[name]["ms"])}
        for entity in BUFFERS:
            right = reference_int8.values(*reference_int8.codes_of(expected[entity].ravel(), entity), entity)
            assert np.array_equal(state[entity].ravel(), right), (name, entity)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_saved_after_nan(bad, globalState, tmp_path):
    optimizer = trained(globalState)
    optimizer.module.getVar("b.W").grad[...] = 1.0
    optimizer.module.getVar("b.W").grad[3, 5] = bad
    optimizer.update()
    optimizer.save(tmp_path / "run.hdf")
    fresh = made(not globalState)
    take_parameters(fresh, optimizer)
    fresh.load(tmp_path / "run.hdf")
    assert bytes_of(fresh) == bytes_of(optimizer)
    spoilt = np.isnan(numbers_of(fresh)["b.W"]["delta"].ravel())
    assert np.flatnonzero(spoilt).tolist() == list(range(64, 128))  # element 3 * 33 + 5 = 104
    for each in (optimizer, fresh):
        step(Own, each, 2, seed=1)
    assert bytes_of(fresh) == bytes_of(optimizer)


@pytest.mark.parametrize("peer", FROM)
def test_other_libraries_states(peer):
    rng = np.random.default_rng(0)
    params = {"fc0.W": rng.standard_normal((70, 3)).astype(np.float32), "fc0.b": rng.standard_normal(5).astype(np.float32)}
    optimizers = []
    for _ in range(2):
        optimizer = RMSPropGraves(1e-2, stateDtype="int8", seed=1)
        optimizer.setupOn({name: Variable(param.copy()) for name, param in params.items()})
        optimizers.append(optimizer)
    first, second = optimizers
    for t in range(3):
        for name in params:
            first.module.getVar(name).grad[...] = np.random.default_rng([t]).standard_normal(params[name].shape)
        first.update()
    FROM[peer](second, TO[peer](first))
    for name in params:
        for entity in BUFFERS:
            mine, theirs = first.states[name][entity].get(), second.states[name][entity].get()
            # they keep the mean square, from which the variance is computed again
            limit = (
                2.0**-20 * max(np.abs(mine).max(), np.square(first.states[name]["mg"].get()).max()) if entity != "mg" else 0
            )
            step_of = 2.0**-4 * np.abs(mine) + limit if entity == "variance" else limit
            assert (np.abs(mine - theirs) <= step_of).all(), (name, entity)


def test_inspect_reads_it(globalState, tmp_path, capsys):
    optimizer = trained(globalState)
    optimizer.save(tmp_path / "run.hdf")
    assert main(["inspect", str(tmp_path / "run.hdf")]) == 0
    assert "int8" in capsys.readouterr().out
    (part,) = inspect(tmp_path / "run.hdf")["parts"]
    numbers = numbers_of(optimizer)
    for variable in part["variables"]:
        name = variable["names"][0]
        for entity in BUFFERS if 0 not in SHAPES[name] else ():
            row = variable["entities"][entity]
            assert (row["min"], row["max"]) == (numbers[name][entity].min(), numbers[name][entity].max()), (name, entity)
            assert row["nonfinite"] == 0


def test_import_takes_what_export_gives(globalState):
    optimizer = trained(globalState)
    fresh = made(not globalState)
    fresh.importState(optimizer.exportState())
    assert bytes_of(fresh) == bytes_of(optimizer)
