"""The files that a save leaves if its process dies, its disk is full or missing, or it is interrupted."""

import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop.checkpoint import atomic, atomicFile
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.training import Own, loaded_into, trained
from tests.stress import crash

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions, locks and signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs mounts, RLIMIT_FSIZE and ptrace of Linux")


@linux
def test_a_killed_save_leaves_the_old_or_the_new_checkpoint():
    # the long version: python -m tests.stress.crash
    command = [sys.executable, "-m", "tests.stress.crash", "--kills", "24", "--every", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "times a whole checkpoint loaded" in done.stdout


def test_a_mixture_is_noticed(tmp_path):
    # proves that the crash test can fail: half of the old and half of the new state
    optimizer = crash.fresh(False)
    crash.fill(optimizer, 3)
    optimizer.states["a.W"]["variance"][0, 0] = 2
    optimizer.save(tmp_path / "run.hdf")
    with pytest.raises(AssertionError, match=r"a mixture of \[2.0, 3.0\]"):
        crash.loaded(tmp_path / "run.hdf", False)


@posix
def test_what_is_synced_and_in_which_order(tmp_path, monkeypatch):
    # killing a process cannot test this: first the content is synced, then the file is renamed, then the folder is synced
    calls, path = [], tmp_path / "run.hdf"
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("folder" if folder else os.pread(descriptor, 100, 0)[:16])
        real_sync(descriptor)

    def replace(source, target):
        calls.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    trained(Own, False, {"W": (3,)}).save(path)
    assert calls == [b"puzzlelib_rmspro", "replace", "folder"]  # the content was sealed when it was synced


# ------------------------------------------------------------------------------------------- leftovers


@posix
def test_only_leftovers_of_dead_writers_of_this_file_are_removed(tmp_path):
    path = tmp_path / "run.hdf"
    stale = tmp_path / ".run.hdf.0123456789ab.tmp"
    others = [".other.hdf.0123456789ab.tmp", ".run.hdf.0123.tmp", ".run.hdf.0123456789ab.tmp.bak", "run.hdf.tmp"]
    for name in (stale.name, *others):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".run.hdf.aaaaaaaaaaaa.tmp").mkdir()
    (tmp_path / ".run.hdf.bbbbbbbbbbbb.tmp").symlink_to(tmp_path / others[0])
    optimizer = trained(Own, False, {"W": (3,)})
    with atomicFile(path) as living:
        (temporary,) = set(os.listdir(tmp_path)) - {*others, ".run.hdf.aaaaaaaaaaaa.tmp", ".run.hdf.bbbbbbbbbbbb.tmp"}
        assert not stale.exists()
        optimizer.save(path)  # another writer of the same file, at the same time
        assert (tmp_path / temporary).exists()
        living["x"] = 1
    assert set(os.listdir(tmp_path)) == {*others, ".run.hdf.aaaaaaaaaaaa.tmp", ".run.hdf.bbbbbbbbbbbb.tmp", "run.hdf"}
    with h5py.File(path) as file:  # the last to finish wins
        assert list(file) == ["x"]


@posix
def test_many_writers_at_once(tmp_path):
    path = tmp_path / "run.hdf"
    optimizers = [trained(Own, False, {"W": (50,)}, seed=seed) for seed in range(4)]
    failed = []

    def work(optimizer):
        try:
            for _ in range(20):
                optimizer.save(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(optimizer,)) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["run.hdf"]
    loaded_into(path, {"W": (50,)})


# ------------------------------------------------------------------------------------ permissions and kinds


@posix
def test_permissions_stay_and_new_files_follow_the_umask(tmp_path):
    optimizer = trained(Own, False, {"W": (3,)})
    for mode in (0o600, 0o640, 0o444, 0o666):
        path = tmp_path / f"{mode:o}.hdf"
        path.touch()
        path.chmod(mode)
        optimizer.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    before = os.umask(0o027)
    try:
        optimizer.save(tmp_path / "new.hdf")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.hdf").stat().st_mode) == 0o640


@posix
def test_links_are_followed_and_other_kinds_refused(tmp_path):
    optimizer = trained(Own, False, {"W": (3,)})
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.hdf"
    link.symlink_to(tmp_path / "data" / "run.hdf")  # to a file that does not exist yet
    for _ in range(2):
        optimizer.save(link)
    assert link.is_symlink()
    assert os.listdir(tmp_path / "data") == ["run.hdf"]
    loaded_into(link, {"W": (3,)})
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for wrong, message in (("fifo", "not a regular file"), ("loop", "symbolic links"), ("data", "is a folder")):
        with pytest.raises(CheckpointError, match=f"cannot write.*{wrong}.*{message}"):
            optimizer.save(tmp_path / wrong)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


# -------------------------------------------------------------------------------------------- no place


@posix
def test_a_folder_that_vanishes(tmp_path):
    optimizer = trained(Own, False, {"W": (3,)})
    folder = tmp_path / "gone"
    folder.mkdir()
    with (  # noqa: PT012
        pytest.raises(CheckpointError, match="cannot write.*gone.*No such file"),
        atomicFile(folder / "run.hdf") as file,
    ):
        file["x"] = 1
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="cannot write.*gone.*No such file"):
        optimizer.save(folder / "run.hdf")
    code = """
import os, shutil, sys
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.training import Own, trained
optimizer = trained(Own, False, {"W": (3,)})
os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); shutil.rmtree(sys.argv[1])
try:
    optimizer.save("run.hdf")
except CheckpointError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert "refused: cannot write run.hdf" in done.stdout, done.stderr


@contextlib.contextmanager
def small_disk(folder, size):
    """A separate file system, if this process may mount one."""
    if shutil.which("mount") is None:
        pytest.skip("mount is not on the PATH")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@linux
def test_a_read_only_disk(tmp_path):
    with small_disk(tmp_path, "1m"):
        optimizer = trained(Own, False, {"W": (3,)})
        optimizer.save(tmp_path / "run.hdf")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(CheckpointError, match="cannot write.*run.hdf.*Read-only"):
            optimizer.save(tmp_path / "run.hdf")
        assert os.listdir(tmp_path) == ["run.hdf"]
        loaded_into(tmp_path / "run.hdf", {"W": (3,)})


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder(tmp_path):
    optimizer = trained(Own, False, {"W": (3,)})
    optimizer.save(tmp_path / "run.hdf")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="cannot write.*run.hdf.*Permission"):
            optimizer.save(tmp_path / "run.hdf")
    finally:
        tmp_path.chmod(0o755)
    loaded_into(tmp_path / "run.hdf", {"W": (3,)})


@linux
@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("disk", ["full", "limited"])
def test_a_disk_that_is_full_at_any_point(disk, mode, tmp_path):
    # HDF5 itself crashes if it writes to a full disk, immediately or when the process exits
    with small_disk(tmp_path, "1m") if disk == "full" else contextlib.nullcontext():
        command = [sys.executable, "-m", "tests.stress.crash", "--full-disk", str(tmp_path), "--limit", disk, "--mode", mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        refused = int(done.stdout.split()[0])
        assert refused >= 10
        assert done.stderr == ""


def test_an_unwritable_disk_is_told_once(tmp_path, monkeypatch):
    # whichever write fails, HDF5 continues, and the save is refused
    optimizer = trained(Own, False, {"W": (300,)})
    optimizer.save(tmp_path / "run.hdf")
    real = atomic.write_at
    for number in range(40):
        count = iter(range(1000))

        def failing(*arguments, number=number, count=count):
            if next(count) >= number:
                raise OSError(28, "No space left on device")
            real(*arguments)

        monkeypatch.setattr(atomic, "write_at", failing)
        before = (tmp_path / "run.hdf").read_bytes()
        try:
            optimizer.save(tmp_path / "run.hdf")
            break
        except CheckpointError as error:
            message = str(error)
        assert "No space left" in message
        assert (tmp_path / "run.hdf").read_bytes() == before
        assert os.listdir(tmp_path) == ["run.hdf"]
    assert 10 < number < 40
    loaded_into(tmp_path / "run.hdf", {"W": (300,)})


# ------------------------------------------------------------------------------------------- interrupts


@posix
def test_an_interrupt_waits_until_hdf5_is_done(tmp_path):
    optimizer = trained(Own, False, {"W": (3,)})
    path = tmp_path / "run.hdf"
    optimizer.save(path)
    before = path.read_bytes()
    steps = []
    with pytest.raises(KeyboardInterrupt), atomicFile(path) as file:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
        file["x"] = np.ones(10)
    assert steps == ["went on"]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.hdf"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
def test_interrupted_at_random_it_goes_on_working(tmp_path):
    # it prints "saving" inside the try, so that a signal right after the word arrives there
    code = """
import sys
from tests.checkpoint.training import Own, trained
optimizer = trained(Own, False, {"W": (100,), "b": (7,)})
interrupts = 0
while interrupts < 300:
    try:
        print("saving", flush=True)
        while True:
            optimizer.save(sys.argv[1])
    except KeyboardInterrupt:
        interrupts += 1
optimizer.save(sys.argv[1])
print("ended", flush=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run.hdf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for number in range(300):  # one in a hundred comes while h5py frees an object, where Python drops the exception
            if not select.select([process.stdout], [], [], 30)[0]:
                process.kill()
                pytest.fail(f"interrupt {number} was lost: {process.stderr.read()}")
            assert process.stdout.readline() == "saving\n", process.stderr.read()
            time.sleep(number % 31 * 0.0003)
            process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
        assert said == "ended\n", errors
    assert process.returncode == 0, errors
    assert os.listdir(tmp_path) == ["run.hdf"]
    loaded_into(tmp_path / "run.hdf", {"W": (100,), "b": (7,)})
