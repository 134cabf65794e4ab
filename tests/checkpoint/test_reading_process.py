"""The process that first reads a file without a seal: when it is started, what it answers, and what its exit means."""

import os
import re
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.checkpoint import integrity, listing
from puzzlelib_rmsprop.errors import CheckpointError
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.damage import FORMAT1
from tests.checkpoint.training import SHAPES, Own, loaded_into, trained
from tests.standins import Net

pytestmark = pytest.mark.skipif(os.name != "posix", reason="such a process is started on POSIX systems only")
BARE = FORMAT1["local"]
BEGINS = "import os, signal, sys, time; os.write(int(sys.argv[2]), b' '); "  # as the real one does before it opens the file


def test_hdf5_that_hangs_or_crashes_is_an_error(monkeypatch):
    # as on some damaged files without a seal: tests/stress/fuzz_checkpoint.py
    monkeypatch.setattr(integrity, "SECONDS", 1.0)
    for code, message in (
        ("time.sleep(60)", r"cannot read .*hdf: HDF5 hangs on it \(no progress in 1 s\): it is damaged, or"),
        ("os.abort()", r"cannot read .*hdf: it is damaged: HDF5 crashes on it \(signal 6\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"it is damaged: HDF5 crashes on it \(signal 11\)"),
    ):
        monkeypatch.setattr(integrity, "_PROBE", BEGINS + code)
        with pytest.raises(CheckpointError, match=message):
            loaded_into(BARE)


@pytest.mark.parametrize("number", [2, 9, 15])  # Ctrl-C, the kernel short of memory, a scheduler
def test_a_process_that_is_ended_from_outside_is_no_damage(number, monkeypatch):
    monkeypatch.setattr(
        integrity, "_PROBE", f"{BEGINS}signal.signal({number}, 0) if {number} != 9 else 0; os.kill(os.getpid(), {number})"
    )
    message = f"cannot read .*local.hdf: the process that checks it was killed by signal {number}; if memory was short"
    for call in (loaded_into, inspect):
        with pytest.raises(CheckpointError, match=message) as caught:
            call(BARE)
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "code", ["import no_such_module", "raise SystemExit(3)", "import os; os.abort()", "import time; time.sleep(60)", "pass"]
)
def test_a_process_that_does_not_begin_is_done_without(code, monkeypatch):
    monkeypatch.setattr(integrity, "START", 1.0)
    monkeypatch.setattr(integrity, "_PROBE", code)
    assert integrity.probe(BARE) is None
    loaded_into(BARE)
    assert inspect(BARE)["damaged"] == []


PROGRAM = """
import sys
with open(sys.argv[1], "a") as file:
    file.write("started\\n")
if len(open(sys.argv[1]).readlines()) > 3:
    sys.exit("it starts itself without end")
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.damage import FORMAT1
from tests.checkpoint.training import SHAPES, Own, loaded_into, trained
{change}
loaded_into(FORMAT1["local"])
print(inspect(FORMAT1["local"])["parts"][0]["mode"])
"""


@pytest.mark.parametrize(
    "change",
    [
        "sys.frozen, sys.executable = True, sys.argv[2]",  # PyInstaller, cx_Freeze, py2exe
        "sys.executable = sys.argv[2]",  # a program that embeds Python
        "sys.executable = None",
        "sys.executable = ''",
    ],
)
def test_a_program_that_is_no_python_does_not_start_itself_again(change, tmp_path):
    program, count = tmp_path / "python" if "frozen" in change else tmp_path / "trainer", tmp_path / "count"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path / 'program.py'}' '{count}' '{program}'\n")
    program.chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM.format(change=change))
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert (done.returncode, done.stdout) == (0, "local\n"), done.stderr
    assert count.read_text() == "started\n"


@pytest.mark.parametrize(
    "name", ["python", "python3", "python3.11", "python3.13t", "python3.12d", "python3-dbg", "pypy3.10", "Python"]
)
def test_names_of_pythons(name, monkeypatch):
    monkeypatch.setattr(sys, "executable", f"/usr/bin/{name}")
    assert integrity._is_python()


@pytest.mark.parametrize("name", ["uwsgi", "blender", "train", "python-trainer", "pythonic", "my.python", "python.sh"])
def test_names_of_other_programs(name, monkeypatch):
    monkeypatch.setattr(sys, "executable", f"/usr/bin/{name}")
    assert not integrity._is_python()


def test_a_python_that_is_gone(tmp_path, monkeypatch):
    # upgraded during the training: loading works, without this protection
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert integrity.probe(BARE) is None
    loaded_into(BARE)
    assert inspect(BARE)["parts"][0]["mode"] == "local"


def test_what_is_printed_while_python_starts_is_not_the_answer(tmp_path, monkeypatch, capfd):
    text = "import atexit, os\nprint('Welcome', flush=True)\nos.write(2, b'quota')\natexit.register(print, 'Bye')\n"
    (tmp_path / "sitecustomize.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert integrity.probe(BARE)["parts"][0]["kind"] == "optimizer"
    loaded_into(BARE)
    assert capfd.readouterr() == ("", "")


def test_modules_of_the_working_folder_are_not_taken_for_pythons(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [each for each in sys.path if each] + [os.path.dirname(os.path.dirname(listing.__file__))]
    )
    assert integrity.probe(BARE)["parts"]


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert integrity.probe(str(BARE)) is None
    loaded_into(BARE)


def test_ten_thousand_variables(tmp_path, monkeypatch):
    # the limit is per step: a limit of 5 s in total would refuse them
    monkeypatch.setattr(integrity, "SECONDS", 5.0)
    names = [f"layer{number}.W" for number in range(10_000)]
    with h5py.File(tmp_path / "run.hdf", "w") as file:  # as PuzzleLib writes it
        for key, value in {"alpha": 0.95, "learnRate": 1e-3, "momRate": 0.9, "epsilon": 1e-4, "t": 7}.items():
            file[f".attrs/{key}"] = value
        for number, name in enumerate(names):
            for entity in ("mg", "ms", "delta"):
                file[f".states/{name}.{entity}"] = np.full(1, number if entity == "delta" else 0, np.float32)
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net({name: Variable(np.zeros(1, np.float32)) for name in names}))
    optimizer.load(tmp_path / "run.hdf")
    assert optimizer.t == 7
    assert [float(optimizer.states[name]["delta"][0]) for name in names] == list(range(10_000))


def test_a_file_that_is_a_circle_comes_to_an_end():
    class Circle:
        id = types.SimpleNamespace(get_filesize=lambda: 1000)

        def visititems(self, visit):
            while True:
                visit("again", self)

    with pytest.raises(CheckpointError, match="more objects than a file of its size can hold"):
        listing.contents_of_file(Circle())


def test_every_object_is_a_step():
    steps = []
    found = listing.found_in(BARE, lambda: steps.append(1))
    assert len(steps) >= 1 + 2 * len(found["parts"][0]["datasets"])


def test_an_interrupt_ends_that_process_too(tmp_path):
    # it may hang, so it must not be left running
    hangs = "open(sys.argv[1] + '.pid', 'w').write(str(os.getpid())); os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    code = f"""
import sys
from puzzlelib_rmsprop.checkpoint import integrity
integrity._PROBE = {BEGINS + hangs!r}
try:
    integrity.probe(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted")
"""
    path = tmp_path / "run.hdf"
    path.write_bytes(BARE.read_bytes())
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=50)
    assert done.stdout == "interrupted\n", done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run.hdf.pid").read_text()), 0)


# -------------------------------------------------------------------------------------- damage and other causes


def without_memory(*arguments):
    raise MemoryError


def test_no_memory_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "content_of", without_memory)
    (part,) = listing.found_in(BARE)["parts"][:1]
    assert {each["checksum"] for each in part["datasets"]} == {"unread"}
    assert part["datasets"][0]["why"] == "it cannot be read: MemoryError"
    monkeypatch.setattr(listing, "contents_of_file", without_memory)
    assert listing.found_in(BARE) == {"error": "HDF5 cannot read it: MemoryError", "damaged": False}


def test_a_file_that_another_has_open_to_write_is_no_damage(tmp_path, monkeypatch):
    # or had when it was killed: newer versions of HDF5 mark the file
    path = tmp_path / "run.hdf"
    with h5py.File(path, "w", libver="latest") as file:
        trained(Own, False, SHAPES).save(file)
        file.flush()
        raw = path.read_bytes()
    path.write_bytes(raw)
    for call in (loaded_into, inspect):
        with pytest.raises(
            CheckpointError, match="cannot read .*run.hdf: HDF5 cannot read it: .*already open for write"
        ) as caught:
            call(path)
        assert "damaged" not in str(caught.value)


@pytest.fixture
def filtered(tmp_path):
    """A file with a dataset whose filter (here 32015, Zstandard) is a plugin that is not installed."""
    path = tmp_path / "run.hdf"
    with h5py.File(path, "w") as file:
        trained(Own, False, SHAPES).save(file)
        del file[".layout"]
        values = file[".states/a.W.mg"][()]
        del file[".states/a.W.mg"]
        file.create_dataset(".states/a.W.mg", data=values, compression="gzip")
    raw = path.read_bytes()
    at = raw.index(b"deflate\0") - 8  # the filter's number comes before the length of its name
    assert raw[at : at + 2] == b"\x01\x00"
    path.write_bytes(raw[:at] + (32015).to_bytes(2, "little") + raw[at + 2 :])
    return path


def test_a_filter_that_is_not_installed_is_no_damage(filtered):
    message = r"'/.states/a.W.mg': the required filter 32015 \(deflate\) is not available; pip install hdf5plugin"
    with pytest.raises(CheckpointError, match=f"^cannot read .*|{message}") as caught:
        loaded_into(filtered)
    assert re.search(message, str(caught.value))
    assert "damaged" not in str(caught.value)
    found = inspect(filtered)
    assert found["damaged"] == []
    assert re.search(f"^dataset '/.states/a.W.mg': it cannot be read: {message}", found["unread"][0])


def test_what_is_damaged_is_called_so(tmp_path):
    path = tmp_path / "run.hdf"
    for change in (lambda raw: raw[:3000], lambda raw: raw[:8] + bytes(500) + raw[508:]):
        path.write_bytes(change(BARE.read_bytes()))
        with pytest.raises(CheckpointError, match="cannot read .*run.hdf: it is damaged: HDF5 cannot read it: "):
            loaded_into(path)
