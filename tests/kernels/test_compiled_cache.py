"""The cache of compiled kernels: a folder that only the user can write to, or none. A script stands in for nvcc."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from puzzlelib_rmsprop.errors import DeviceError
from puzzlelib_rmsprop.kernels import cuda_compile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks for owners and modes, and the stand-in is a script")

NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "release 99"; exit 0; fi
echo compiled >> "$NVCC_CALLS"
while [ "$1" != -o ]; do shift; done
printf 'machine code' > "$2"
"""
CODE = b"machine code"
VARIABLES = ("PUZZLELIB_RMSPROP_CACHE_DIR", "XDG_CACHE_HOME", "HOME")


class Machine:
    """A working folder, and an nvcc that counts its calls."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._calls = folder, folder / "calls"
        (folder / "bin").mkdir()
        (folder / "bin" / "nvcc").write_text(NVCC)
        (folder / "bin" / "nvcc").chmod(0o755)
        (folder / "work").mkdir()
        monkeypatch.chdir(folder / "work")
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("NVCC_CALLS", str(self._calls))
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)

    def compiles(self):
        """Returns how often nvcc compiles for two loads."""
        self._calls.write_text("")
        assert cuda_compile.compiled("nets", "sm_90") == CODE
        assert cuda_compile.compiled("nets", "sm_90") == CODE
        return len(self._calls.read_text().splitlines())

    def files(self, folder="."):
        return [path for path in (self.folder / folder).rglob("*") if path.is_file() and path.parent.name != "bin"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def no_entry(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_a_user_without_a_home_or_an_entry(machine, monkeypatch):
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert os.path.expanduser("~/x") == "~/x"
    assert machine.compiles() == 2
    assert machine.files("work") == []
    # the folder is neither made nor read: a file planted there is not executed
    planted = machine.folder / "work" / "~" / ".cache" / "puzzlelib_rmsprop"
    planted.mkdir(parents=True)
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(planted))
    assert machine.compiles() == 1
    (kept,) = planted.iterdir()
    kept.write_bytes(hashlib.sha256(b"planted").digest() + b"planted")
    monkeypatch.delenv("PUZZLELIB_RMSPROP_CACHE_DIR")
    assert machine.compiles() == 2


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"PUZZLELIB_RMSPROP_CACHE_DIR": "{root}/own", "XDG_CACHE_HOME": "{root}/xdg", "HOME": "{root}"}, "own"),
        ({"PUZZLELIB_RMSPROP_CACHE_DIR": "", "XDG_CACHE_HOME": "{root}/xdg", "HOME": "{root}"}, "xdg/puzzlelib_rmsprop"),
        ({"XDG_CACHE_HOME": "", "HOME": "{root}/home"}, "home/.cache/puzzlelib_rmsprop"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "{root}/home"}, "home/.cache/puzzlelib_rmsprop"),
        ({"XDG_CACHE_HOME": "~/cache", "HOME": "{root}/home"}, "home/.cache/puzzlelib_rmsprop"),
        ({"PUZZLELIB_RMSPROP_CACHE_DIR": "relative", "HOME": "{root}/home"}, "home/.cache/puzzlelib_rmsprop"),
        # as in a Dockerfile's ENV or a systemd unit, where no shell expands ~
        ({"PUZZLELIB_RMSPROP_CACHE_DIR": "~/own", "HOME": "{root}/home"}, "home/own"),
        (
            {"PUZZLELIB_RMSPROP_CACHE_DIR": "~nobody-of-that-name/own", "HOME": "{root}/home"},
            "home/.cache/puzzlelib_rmsprop",
        ),
        ({"XDG_CACHE_HOME": "relative", "HOME": "relative"}, None),
    ],
)
def test_the_folder(machine, monkeypatch, variables, where):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(root=machine.folder))
    assert machine.compiles() == (2 if where is None else 1)
    assert machine.files("work") == []
    kept = [path for path in machine.files() if path.suffix == ".cubin"]
    assert [path.parent for path in kept] == ([] if where is None else [machine.folder / where])
    if where is not None:
        assert kept[0].parent.stat().st_mode & 0o777 == 0o700
        assert kept[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write(machine, monkeypatch, mode):
    folder = machine.folder / "cache"
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(folder))
    assert machine.compiles() == 1
    folder.chmod(mode)
    assert machine.compiles() == 2
    folder.chmod(0o755)  # read access is harmless
    assert machine.compiles() == 0


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_that_others_may_write(machine, monkeypatch, mode):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    assert machine.compiles() == 1
    (kept,) = (machine.folder / "cache").iterdir()
    kept.chmod(mode)
    assert machine.compiles() == 1, "compiled again, and another file took its place"
    assert machine.compiles() == 0


def test_a_folder_or_file_of_another_user(machine, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    assert machine.compiles() == 1
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)  # as with a sudo that keeps HOME
    assert machine.compiles() == 2
    monkeypatch.setattr(os, "geteuid", lambda: real)
    if real == 0:
        # only the file is another user's, written while the folder was open to all
        (kept,) = (machine.folder / "cache").iterdir()
        os.chown(kept, 1, -1)
        assert machine.compiles() == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["mkdir", "mkstemp", "replace"])
def test_a_folder_that_cannot_be_written(machine, monkeypatch, number, where):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    monkeypatch.setattr({"mkdir": Path, "mkstemp": cuda_compile.tempfile, "replace": os}[where], where, refuse)
    assert machine.compiles() == 2
    assert not [path for path in machine.files() if "cache" in path.parts]


def test_a_full_disk_while_it_is_written(machine, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    real = os.fdopen

    def full(descriptor, mode):
        stream = real(descriptor, mode, buffering=0)
        stream.write(b"half")
        stream.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    assert machine.compiles() == 2
    assert list((machine.folder / "cache").iterdir()) == []


def test_no_room_to_compile_in(machine, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cuda_compile.tempfile, "TemporaryDirectory", full)
    with pytest.raises(DeviceError, match=r"nets.cu could not be compiled for sm_90.*No space left.*Set TMPDIR to another"):
        cuda_compile.compiled("nets", "sm_90")


def test_damaged_files_are_compiled_again(machine, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    assert machine.compiles() == 1
    (kept,) = (machine.folder / "cache").iterdir()
    whole = kept.read_bytes()
    for wrong in (b"", whole[:10], whole[:32], whole[:-1], whole + b"x", bytes(len(whole)), whole[::-1]):
        kept.write_bytes(wrong)
        assert machine.compiles() == 1
        assert kept.read_bytes() == whole


def test_processes_that_compile_at_once(machine, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(machine.folder / "cache"))
    code = """
import sys
from puzzlelib_rmsprop.kernels import cuda_compile
sys.stdin.readline()
for _ in range(20):
    assert cuda_compile.compiled("nets", "sm_90") == b"machine code"
    for path in cuda_compile.cache_folder().glob("*.cubin"):
        path.unlink(missing_ok=True)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=100)
    assert [process.returncode for process in processes] == [0] * 4
    assert machine.compiles() <= 1
    assert [path.suffix for path in (machine.folder / "cache").iterdir()] == [".cubin"], "nothing half written is left"
