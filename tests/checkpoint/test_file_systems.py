"""File systems that lack calls of save or load: optional calls are skipped, others raise an error that names them."""

import os
import re
import shutil
import subprocess

import h5py
import pytest

from puzzlelib_rmsprop import convert
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.damage import FORMAT1
from tests.checkpoint.refusing import REFUSED, run
from tests.checkpoint.training import SHAPES, Own, loaded_into, trained

TWICE = """
optimizer = trained(Own, False, SHAPES)
for _ in range(2):
    optimizer.save(path)
assert_same(content(Own, loaded_into(path)), content(Own, optimizer))
print("loaded", end="")
"""
REPORTED = "try:\n    trained(Own, False, SHAPES).save(path)\n    print('saved')" + REFUSED


def test_the_calls_are_refused(tmp_path):
    # otherwise the tests below would prove nothing
    (tmp_path / "run.hdf").touch()
    code = """
import fcntl
rule, os.environ["REFUSE"] = os.environ["REFUSE"], ""
descriptor = os.open(path, os.O_RDWR)
os.environ["REFUSE"] = rule
for call in (lambda: os.fchmod(descriptor, 0o600), lambda: os.fsync(descriptor), lambda: fcntl.flock(descriptor, 2),
             lambda: os.ftruncate(descriptor, 9), lambda: os.fchown(descriptor, -1, -1), lambda: os.scandir(folder),
             lambda: os.rename(path, path), lambda: os.unlink(path), lambda: os.read(descriptor, 9),
             lambda: os.write(descriptor, b"x"), lambda: os.lseek(descriptor, 0, 0), lambda: os.close(os.dup(descriptor)),
             lambda: os.open(path, 0)):
    try:
        call()
    except OSError as error:
        print(error.errno, end=" ")
print(os.fstat(descriptor).st_nlink)
"""
    calls = "fchmod fsync flock ftruncate64 fchown opendir rename unlink read write lseek64 close open64".split()  # noqa: SIM905
    refuse = "nolinks=0 " + " ".join(f"{call}={number}" for number, call in enumerate(calls, 30))
    assert run(code, tmp_path, refuse) == ["30 31 32 33 34 35 36 37 38 39 40 41 42 0\n"]


def test_what_a_file_system_lacks_costs_no_checkpoint(tmp_path):
    rules = [
        *[f"fchmod={number}" for number in (1, 22, 38, 95)],
        *[f"fchown={number}" for number in (1, 22, 38, 95)],
        *[f"fsync={number}" for number in (22, 38, 95, 524)],
        *[f"flock={number}" for number in (37, 5, 11, 95, 524)],
        *[f"ftruncate64={number}" for number in (1, 22, 95)],
        "opendir=13",
        "nolinks=0",  # an open file with a link count of 0, though it exists: save used to retry forever
        "fchmod=1 fchown=1 fsync=22 flock=37 ftruncate64=95 opendir=1 nolinks=0 fsetxattr=95",
    ]
    assert run(TWICE, tmp_path, *rules) == ["loaded"] * len(rules)
    assert os.listdir(tmp_path) == ["run.hdf"]


def test_what_cannot_be_removed_is_when_it_can(tmp_path):
    # the second: a file that is created, but reported as existing
    for rule in ("unlink=1 rename=5", "made=17@0-1"):
        run(REPORTED, tmp_path, rule)
        assert len(os.listdir(tmp_path)) == 2 - ("unlink" in rule)
        trained(Own, False, SHAPES).save(tmp_path / "run.hdf")
        assert os.listdir(tmp_path) == ["run.hdf"]


def test_where_the_mode_cannot_be_set_nobody_gets_more_than_before(tmp_path):
    path = tmp_path / "run.hdf"
    modes = {0o644: 0o644, 0o664: 0o644, 0o660: 0o600, 0o604: 0o600, 0o444: 0o644, 0o600: 0o600}
    code = "mode = int(rule.split()[1])\npath.touch()\npath.chmod(mode)\n" + TWICE + "print(path.stat().st_mode & 0o777)"
    said = run(code, tmp_path, *(f"fchmod=1 {mode}" for mode in modes))
    assert said == [f"loaded{mode}\n" for mode in modes.values()]
    assert os.listdir(tmp_path) == [path.name]


MOUNTED = "a file that is mounted by itself .* cannot be replaced: mount its folder, or save elsewhere$"
PROTECTED = "the folder or file is protected .*: save under another name$"
COSTLY = {
    "fsync=5": r"\[Errno 5\] Input/output error$",
    "fsync=28": r"\[Errno 28\] No space left on device$",
    "fsync=122": r"\[Errno 122\] Disk quota exceeded$",
    "close=122": r"\[Errno 122\] Disk quota exceeded$",  # reported on close by AFS, NFS and others
    "write=28@20": r"\[Errno 28\] No space left on device$",
    "read=5@3": r"\[Errno 5\] Input/output error$",
    "lseek64=5@9": r"\[Errno 5\] Input/output error$",
    "rename=16": f"Errno 16.*{MOUNTED}",
    "rename=18": f"Errno 18.*{MOUNTED}",
    "rename=1": f"Errno 1.*{PROTECTED}",
    "rename=13": f"Errno 13.*{PROTECTED}",
    "rename=17": "Errno 17.*this file system cannot replace files: remove the old one, or save under another name$",
    "rename=38": "Errno 38.*this file system cannot rename files: save elsewhere, and copy it$",
    "rename=95": "Errno 95.*this file system cannot rename files: save elsewhere, and copy it$",
    "rename=116": "Errno 116.*Stale file handle",
    "open64=30": "Errno 30.*Read-only file system",
    "made=17": "each of 100 temporary files existed already, or was removed again",
}


def test_what_costs_a_checkpoint_leaves_the_old_one(tmp_path):
    path = tmp_path / "run.hdf"
    trained(Own, False, {"W": (2,)}).save(path)
    before = path.read_bytes()
    for (rule, message), said in zip(
        COSTLY.items(), run(REPORTED, tmp_path, *COSTLY, under=tmp_path / ".run.hdf."), strict=True
    ):
        assert said.startswith(f"refused: cannot write {path}: "), rule
        assert re.search(message, said.strip()), said
    assert path.read_bytes() == before
    trained(Own, False, {"W": (2,)}).save(path)
    assert os.listdir(tmp_path) == ["run.hdf"]


def test_a_folder_that_cannot_be_synced(tmp_path):
    # the temporary file is synced first: only the second call fails
    failed, lacking = run(REPORTED, tmp_path, "fsync=5@1", "fsync=22@1")
    assert re.match("refused: written, but .* cannot be synced to disk: .*Errno 5", failed)
    assert lacking == "saved\n"
    loaded_into(tmp_path / "run.hdf")


# ----------------------------------------------------------------------------------------------- reading


def test_files_are_read_without_locks(tmp_path):
    code = """
from puzzlelib_rmsprop.__main__ import main
for bare in (False, True):
    if bare:
        shutil.copy(FORMAT1["local"], path)
    else:
        trained(Own, False, SHAPES).save(path)
    loaded_into(path)
    if "37" in rule:
        print(main(["inspect", str(path)]))
print("loaded")
"""
    numbers = (37, 5, 11, 95, 524)
    for number, said in zip(numbers, run(code, tmp_path, *(f"flock={number}" for number in numbers)), strict=True):
        assert said.endswith("loaded\n")
        assert said.count("\n0\n") == 2 * (number == 37)
        assert "DAMAGED" not in said


def test_nnablas_files_are_read_without_locks(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    with h5py.File(tmp_path / "states.h5", "w") as file:
        for key, array in convert.toNnabla(optimizer).items():
            file[key] = array
    code = """
from puzzlelib_rmsprop import convert
optimizer = trained(Own, False, SHAPES, seed=1)
for name in (folder / "states.h5", os.fsencode(folder / "states.h5")):
    convert.fromNnabla(optimizer, name)
print("loaded", optimizer.t)
"""
    assert run(code, tmp_path, "flock=37") == ["loaded 3\n"]


def test_locks_that_are_asked_for_and_missing_are_no_damage(tmp_path):
    shutil.copy(FORMAT1["local"], tmp_path / "run.hdf")
    code = "os.environ['HDF5_USE_FILE_LOCKING'] = 'TRUE'\ntry:\n    loaded_into(path)" + REFUSED
    (said,) = run(code, tmp_path, "flock=37")
    assert said == f"refused: cannot read {tmp_path / 'run.hdf'}: HDF5 cannot read it: [Errno 37] No locks available\n"


@pytest.mark.parametrize("locking", [None, True, False])
def test_a_file_that_this_process_has_open(locking, tmp_path):
    # HDF5 refuses to open a file once with and once without locks
    trained(Own, False, SHAPES).save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf", "r", locking=locking):
        loaded_into(tmp_path / "run.hdf")


def test_an_hdf5_that_is_too_old_to_be_told_of_locks(tmp_path, monkeypatch):
    # h5py can be compiled with one before 1.10.7
    trained(Own, False, SHAPES).save(tmp_path / "run.hdf")
    real = h5py.File

    def old(path, mode, locking=None):
        if locking is not None:
            raise ValueError("HDF5 version >= 1.12.1 or 1.10.x >= 1.10.7 required for file locking.")
        return real(path, mode)

    monkeypatch.setattr(h5py, "File", old)
    loaded_into(tmp_path / "run.hdf")


@pytest.mark.parametrize("kind", ["ours", "bare"])
def test_what_the_disk_refuses_is_not_called_damage(kind, tmp_path):
    path = tmp_path / "run.hdf"
    if kind == "ours":
        trained(Own, False, SHAPES).save(path)
    else:
        shutil.copy(FORMAT1["local"], path)
    code = """
for call in (loaded_into, inspect):
    try:
        found = call(path)
        print("read", found["damaged"] == [], found["unread"])
    except CheckpointError as error:
        print("refused:", error)
"""
    rules = ["read=5", "read=116", "pread64=5", "pread64=5@30", "pread64=116@40", "open64=13", "open64=24"]
    for rule, said in zip(rules, run(code, tmp_path, *rules), strict=True):
        number = int(re.search(r"=(\d+)", rule)[1])
        load, look = said.splitlines()
        assert load.startswith(f"refused: cannot read {path}: ")
        assert look.startswith((f"refused: cannot read {path}: ", "read True ["))
        for text in (load, look):
            assert f"[Errno {number}] {os.strerror(number)}" in text, rule
            assert "damaged" not in text


def test_every_read_that_is_refused(tmp_path):
    # wherever HDF5 meets the error, and whatever type h5py raises for it
    trained(Own, False, SHAPES).save(tmp_path / "run.hdf")
    code = "try:\n    loaded_into(path)\n    print('loaded')" + REFUSED
    said = run(code, tmp_path, *(f"pread64=5@{number}" for number in range(0, 80, 3)))
    assert set(said) == {f"refused: cannot read {tmp_path / 'run.hdf'}: [Errno 5] Input/output error\n", "loaded\n"}
    assert said.count("loaded\n") < 15


# ----------------------------------------------------------------------- file systems of this machine


@pytest.fixture
def mounted(tmp_path):
    """A file that is mounted by itself, as in containers."""
    for name in ("below.hdf", "run.hdf"):
        trained(Own, False, {"W": (2,)}).save(tmp_path / name)
    command = ["mount", "--bind", tmp_path / "below.hdf", tmp_path / "run.hdf"]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip() if done else 'no mount on the PATH'}")
    yield tmp_path / "run.hdf"
    subprocess.run(["umount", tmp_path / "run.hdf"], check=True)


def test_a_file_that_is_mounted_by_itself_names_the_remedy(mounted):
    with pytest.raises(CheckpointError, match=f"cannot write .*run.hdf.*{MOUNTED}"):
        trained(Own, False, SHAPES).save(mounted)
    with pytest.raises(CheckpointError, match="mounted by itself"), atomicFile(mounted) as file:
        file["x"] = 1
    loaded_into(mounted, {"W": (2,)})
    assert sorted(os.listdir(mounted.parent)) == ["below.hdf", "run.hdf"]
