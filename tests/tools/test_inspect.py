"""``python -m puzzlelib_rmsprop inspect``: its report on files of every kind, intact and damaged."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import ml_dtypes
import numpy as np
import pytest

import puzzlelib_rmsprop
from puzzlelib_rmsprop import Hook, RMSPropGraves, WeightDecay, __version__
from puzzlelib_rmsprop.__main__ import main
from puzzlelib_rmsprop.checkpoint import OptimizerState, atomicFile, listing, write
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.damage import FORMAT1, VERSION010, flipped
from tests.checkpoint.training import BUFFERS, FILED, SHAPES, Own, content, net_of, place, step, trained
from tests.golden import DATA, Replay
from tests.tools.running import assert_narrow, joined


def said(capsys, *arguments):
    status = main(["inspect", *map(str, arguments)])
    text = capsys.readouterr().out
    if "--json" not in arguments:
        assert_narrow(text)
    return status, text


def variables(path):
    (part,) = inspect(path)["parts"]
    return {variable["names"][0]: variable for variable in part["variables"]}


def test_numbers_of_every_variable(globalState, tmp_path):
    optimizer = trained(Own, globalState, SHAPES)
    optimizer._variables[0].state["variance"][0] = np.nan  # the first variable's
    optimizer.save(tmp_path / "run.hdf")
    found, expected = variables(tmp_path / "run.hdf"), content(Own, optimizer)
    assert found.keys() == set(SHAPES)
    for name, variable in found.items():
        assert tuple(variable["shape"]) == SHAPES[name]
        assert variable["dtype"] == "float32"
        wide = {entity: array.astype(np.float64) for entity, array in expected[name].items()}
        expected[name]["ms"] = (wide["variance"] + wide["mg"] ** 2).astype(np.float32)
        assert set(variable["entities"]) == set(FILED)
        for entity in FILED:
            row, array = variable["entities"][entity], expected[name][entity].astype(np.float64)
            assert tuple(row["shape"]) == SHAPES[name]
            assert row["nonfinite"] == np.count_nonzero(~np.isfinite(array))
            assert (row["min"], row["max"]) == (np.nanmin(array), np.nanmax(array))
            assert row["mean"] == pytest.approx(np.nanmean(array), rel=1e-12)
            assert row["checksum"] == "ok"
    assert sum(row["nonfinite"] for v in found.values() for row in v["entities"].values()) > 0


def test_who_wrote_it_and_how(globalState, tmp_path, capsys):
    class Guard(Hook):
        def __call__(self, var, state, stream=None):
            pass

        def getState(self):
            return {"skipped": 4}

    optimizer = RMSPropGraves(learnRate=0.125, seed=3)
    optimizer.addHook(Guard())
    optimizer.addHook(WeightDecay(0.25))
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    optimizer.module.getVar("b.b").learnRate, optimizer.module.getVar("b.b").wc = 0, 2.0
    step(Own, optimizer, 2)
    optimizer.save(tmp_path / "run.hdf", name="opt")
    status, text = said(capsys, tmp_path / "run.hdf")
    assert status == 0
    mode = "global" if globalState else "local"
    lines = text.splitlines()
    assert lines[0] == "Intact: the SHA-256 of the whole file matches."
    assert lines[1:3] == [f"  {tmp_path / 'run.hdf'}", f"  {os.path.getsize(tmp_path / 'run.hdf'):,} bytes"]
    for expected in (
        f"\nOptimizer 'opt', written by puzzlelib_rmsprop {__version__}\n",
        f"format 3, {mode} mode, t = 2",
        "learnRate=0.125",
        "options: gradOfLoss=False, stateDtype=None, masterWeights=False, seed=3\n",
        "hooks: Guard() {'skipped': 4}, WeightDecay(rate=0.25, decoupled=False)",
        "b.W, float32 (4, 3)\n",
        "b.b, float32 (3,), learnRate 0.0, wc 2.0\n",
    ):
        assert expected in text
    status, text = said(capsys, tmp_path / "run.hdf", "--json")
    found = json.loads(text)
    assert (status, found["seal"], found["damaged"]) == (0, "ok", [])
    assert found["parts"][0]["extra"]["options"]["seed"] == 3


@pytest.mark.parametrize("kind", ["local", "global"])
def test_other_writers(kind, capsys):
    status, text = said(capsys, DATA / f"optimizer_{kind}.hdf")
    assert status == 0
    assert "written by PuzzleLib" in text
    assert f"{kind} mode, t = 60" in text
    assert text.startswith("Readable: the file has no checksums.\n")
    names = set(variables(DATA / f"optimizer_{kind}.hdf"))
    assert names == ({"float32"} if kind == "global" else {f"fc{i}.{what}" for i in range(3) for what in "Wb"})
    status, text = said(capsys, FORMAT1[kind])
    assert status == 0
    assert f"format 1, {kind} mode, t = 3" in text
    assert "b.W, float32 (4, 3)" in text


def test_nets_several_parts_and_other_things(tmp_path, capsys):
    status, text = said(capsys, DATA / "module_local.hdf")
    assert status == 0
    assert "\nNet, in PuzzleLib's module format\n" in text
    replay = Replay("local", True)
    with atomicFile(tmp_path / "run.hdf") as file:
        replay.net.save(file)
        replay.optimizer.save(file, name="one")
        replay.optimizer.save(file.create_group("inner"), name="two")
        file["mine"] = [1, 2]
    found = inspect(tmp_path / "run.hdf")
    assert [(part["kind"], part["name"]) for part in found["parts"]] == [
        ("optimizer", "inner/two"),
        ("optimizer", "one"),
        ("net", ""),
        ("other", ""),
    ]
    assert found["parts"][3]["datasets"][0] | {"checksum": "none", "max": 2.0} == found["parts"][3]["datasets"][0]
    status, text = said(capsys, tmp_path / "run.hdf")
    assert status == 0
    assert "\nOptimizer 'inner/two', written by puzzlelib_rmsprop" in text
    assert text.index("\nOther datasets\n") < text.index("  /mine")


def test_long_lines_are_wrapped(tmp_path, capsys):
    name = "encoder.layers.0.self_attention.query_and_key.weight"
    shapes = {name: (2, 1, 3, 1, 1, 2), f"{name}.{'x' * 60}": (2,)}
    optimizer = RMSPropGraves(learnRate=1.23456789e-4, stateDtype="bfloat16", seed=2**64 - 1)
    for rate in (0.25, 0.125, 0.0625):
        optimizer.addHook(WeightDecay(rate, decoupled=True))
    optimizer.setupOn(net_of(Own, shapes), False)
    for var in optimizer.module.vars.values():
        var.learnRate, var.momRate, var.wc = 0.12345678, 0.87654321, 3.3333333
    step(Own, optimizer)
    path = tmp_path / f"{'long' * 30}.hdf"
    optimizer.save(path)
    status, text = said(capsys, path)  # and their width is checked
    assert status == 0
    assert f"  {path}\n" in text
    for expected in (
        f"{name}, float32 (2, 1, 3, 1, 1, 2), learnRate 0.12345678, momRate 0.87654321, wc 3.3333333",
        "hooks: WeightDecay(rate=0.25, decoupled=True), WeightDecay(rate=0.125, decoupled=True), WeightDecay(rate=0.0625",
        f"masterWeights=False, seed={2**64 - 1}",
    ):
        assert expected in joined(text)
    assert f"  {list(shapes)[1]},\n" in text
    assert len(max(text.splitlines(), key=len)) > 80  # the path


def test_bfloat16(tmp_path):
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    where = place(ml_dtypes.bfloat16, shape=(2,))
    write(tmp_path / "run.hdf", "", OptimizerState({"t": 1}, [where], {"W": dict.fromkeys(BUFFERS, values)}))
    row = variables(tmp_path / "run.hdf")["W"]["entities"]["variance"]
    assert (row["min"], row["max"], row["checksum"]) == (-2.0, 1.5, "ok")


@pytest.mark.parametrize("kind", VERSION010)
def test_version_0_1_0_kept_the_variance_of_bfloat16_state_in_ms(kind, capsys):
    status, text = said(capsys, VERSION010[kind])
    assert status == 0
    assert "written by puzzlelib_rmsprop 0.1.0" in text
    assert "format 2" in text
    assert text.count("ms holds the variance") == (4 if kind == "bfloat16" else 0)


@pytest.mark.parametrize("stateDtype", [None, "bfloat16"])
def test_ours_say_nothing_of_the_kind(stateDtype, globalState, tmp_path, capsys):
    optimizer = RMSPropGraves(stateDtype=stateDtype)
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    status, text = said(capsys, tmp_path / "run.hdf")
    assert status == 0
    assert "holds the variance" not in text
    assert text.count("    variance ") == text.count("    ms ") == 4


def test_damage_is_named(tmp_path, capsys):
    path = tmp_path / "run.hdf"
    trained(Own, True, SHAPES).save(path)
    whole = path.read_bytes()
    for what in (".states/float32.ms", ".states/float32.variance", ".attrs/alpha", ".layout"):
        path.write_bytes(whole)
        flipped(path, what)
        status, text = said(capsys, path)
        assert status == 1
        assert text.startswith("DAMAGED: ")
        assert text.index("the SHA-256 of the file is not") < text.index("\nOptimizer")
        text = joined(text)
        named = what.replace(".states/float32", "<class 'numpy.float32'>")
        assert f'dataset "/.states/{named}"' in text or f"dataset '/{what}'" in text
    path.write_bytes(whole[: len(whole) // 2])
    status, text = said(capsys, path)
    assert status == 1
    assert "HDF5 cannot read it" in joined(text)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file[".attrs/t"]
    status, text = said(capsys, path, "--json")
    assert status == 1
    assert "dataset '/.attrs/t': it is missing" in json.loads(text)["damaged"]


def test_what_cannot_be_read(tmp_path, capsys):
    (tmp_path / "text").write_text("no HDF5")
    shutil.copy(FORMAT1["local"], tmp_path / "cut")
    with open(tmp_path / "cut", "r+b") as file:
        file.truncate(3000)
    for name, message in (
        ("absent", "No such file"),
        ("text", "it is not an HDF5 file"),
        ("cut", "HDF5 cannot read it"),
        (".", ""),
    ):
        status, text = said(capsys, tmp_path / name)
        assert status == 2
        assert joined(text).startswith(f"cannot read {tmp_path / name}: ")
        assert message in joined(text)
        with pytest.raises(CheckpointError, match="cannot read"):
            inspect(tmp_path / name)
        status, text = said(capsys, tmp_path / name, "--json")
        assert status == 2
        assert message in json.loads(text)["error"]
    with pytest.raises(SystemExit) as ended:
        main(["inspect"])
    assert ended.value.code == 2


# ---------------------------------------------------------------------------------------------- the terminal


def command(*arguments, **more):
    """The command in a process of its own, as people run it."""
    encoding = os.environ | {"PYTHONIOENCODING": more.pop("encoding", "utf-8"), "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-m", "puzzlelib_rmsprop", *arguments], env=encoding, stderr=subprocess.PIPE, timeout=120, **more
    )


def test_names_that_a_terminal_cannot_show(tmp_path):
    path = tmp_path / "β\U0001d6fd.hdf"
    trained(Own, False, {"β.W": (2,), "é.b": (2,)}).save(path)
    for encoding, shown in (
        ("cp1252", ("\\u03b2.W", "é.b")),
        ("ascii", ("\\u03b2.W", "\\xe9.b")),
        ("utf-8", ("β.W", "é.b")),
    ):
        done = command("inspect", path, encoding=encoding, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode(encoding)
        assert all(f"  {name}, float32 (2,)" in text for name in shown)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    for arguments, status in (([path], 1), ([path, "--json"], 1), ([tmp_path / "β"], 2), ([tmp_path / "β", "--json"], 2)):
        done = command("inspect", *arguments, encoding="ascii", stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (status, b"")
        assert b"\\u03b2" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_names_in_no_encoding(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.hdf"
    trained(Own, False, SHAPES).save(path)
    for encoding in ("utf-8", "cp1252", "ascii"):
        done = command("inspect", path, encoding=encoding, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff.hdf\n" in done.stdout
        done = command("inspect", path + b"x", encoding=encoding, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"")
        assert b"No such file" in b" ".join(done.stdout.split())


def test_doctor_on_such_a_terminal(tmp_path):
    # the folder that it names
    place = tmp_path / "β"
    place.mkdir()
    (place / "puzzlelib_rmsprop").symlink_to(os.path.dirname(puzzlelib_rmsprop.__file__))
    code = (
        "import sys; from pathlib import Path; Path.resolve = lambda self: self; sys.argv[0] = 'm'; import runpy; "
        "runpy.run_module('puzzlelib_rmsprop', run_name='__main__')"
    )
    variables = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": f"{place}{os.pathsep}{os.getcwd()}"}
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], env=variables, capture_output=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u03b2/puzzlelib_rmsprop" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_an_answer_that_cannot_be_printed_is_not_damage(tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    with open("/dev/full", "w") as full:
        done = command("inspect", path, stdout=full)
    assert done.returncode == 3
    assert done.stderr == b"cannot write the output: [Errno 28] No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)  # as of "inspect FILE | head"
    done = command("inspect", path, stdout=writer)
    os.close(writer)
    assert done.returncode == 3
    assert done.stderr == b""  # "| head" has read all that it wants


def test_what_could_not_be_read_is_told_apart_from_damage(tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.hdf"
    trained(Own, False, SHAPES).save(path)
    real = listing.content_of

    def refused(dataset):
        if dataset.name.endswith("a.W.mg"):
            raise OSError(5, "Input/output error")
        return real(dataset)

    monkeypatch.setattr(listing, "content_of", refused)
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # it reads in this process
    status, text = said(capsys, path)
    assert status == 2
    assert text.startswith("Some of the file could not be read: ")
    listed = "\nCould not be read\n  - dataset '/.states/a.W.mg': it cannot be read: [Errno 5] Input/output error\n"
    assert listed in text.replace("\n    ", " ")
    assert "damaged" not in text.lower()
    assert said(capsys, path, "--json")[0] == 2
