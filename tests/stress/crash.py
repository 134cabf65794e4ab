"""Kills a process while it saves, and checks the files that are left: ``python -m tests.stress.crash --kills 500``.

Whenever the kill happens, the old or the new checkpoint must load, complete, and the next save must clean up. The kills
happen at random times, and before and after every system call of a save (on Linux, with ptrace), since a process changes a
disk only by system calls. This does not cover a loss of power, against which save calls fsync.

``--full-disk FOLDER`` instead saves in FOLDER with more and more free space: FOLDER is a small file system for this test, or
``--limit limited`` limits the size of a file for the process.
"""

import argparse
import collections
import contextlib
import ctypes
import itertools
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import CheckpointError
from tests.standins import Net

SHAPES = {"a.W": (60, 50), "a.b": (50,), "b.W": (50, 10), "b.b": (10,)}


def fresh(globalState):
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net({name: Variable(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}), globalState)
    return optimizer


def fill(optimizer, value):
    """Sets everything in the optimizer to ``value``."""
    optimizer.t = value
    optimizer.learnRate = float(value)
    for state in optimizer.states.values():
        for array in state.values():
            array[...] = value


def loaded(path, globalState):
    """Returns the value in a file; everything in the file must have the same value."""
    optimizer = fresh(globalState)
    optimizer.load(path)
    found = {float(optimizer.t), optimizer.learnRate}
    for state in optimizer.states.values():
        for array in state.values():
            found |= set(np.unique(np.asarray(array)).tolist())
    if len(found) != 1:
        raise AssertionError(f"a mixture of {sorted(found)}")
    return int(found.pop())


class Scene:
    """A folder with one checkpoint, the processes that save there, and the outcomes of killing them."""

    def __init__(self, folder, globalState):
        self.folder, self.path, self.globalState = folder, folder / "run.hdf", globalState
        self.saved = mmap.mmap(-1, 8)  # shared with the child: the last value that was saved
        self.optimizer = fresh(globalState)
        self.outcomes = collections.Counter()
        self.save(0)

    def save(self, value):
        fill(self.optimizer, value)
        self.optimizer.save(self.path)
        self.saved[:] = value.to_bytes(8, "little")

    def child(self, work):
        """Forks a child that runs ``work`` and exits."""
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException as error:
                print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        return pid

    def look(self, what):
        """Checks after a kill that the old or the new checkpoint is complete, and that the next save cleans up."""
        last = int.from_bytes(self.saved[:], "little")
        found = loaded(self.path, self.globalState)
        if found not in (last, last + 1):
            raise AssertionError(f"{what}: found {found}; {last} was saved, {last + 1} being saved")
        self.outcomes["the new one" if found == last + 1 else "the one before"] += 1
        self.outcomes["with a leftover file"] += len(os.listdir(self.folder)) > 1
        self.save(last + 2)
        if os.listdir(self.folder) != ["run.hdf"]:
            raise AssertionError(f"{what}: the next save left {os.listdir(self.folder)}")

    # --------------------------------------------------------------------------------------- random times

    def kill_at(self, delay):
        start = int.from_bytes(self.saved[:], "little") + 1

        def work():
            for value in itertools.count(start):
                self.save(value)

        pid = self.child(work)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise AssertionError("the child ended by itself")
        self.look(f"killed after {delay:.4f} s")

    # ----------------------------------------------------------------------------------- every system call

    def kill_at_call(self, number):
        """Kills a save at its stop ``number``, before or after a system call. Returns False if the save has fewer."""
        value = int.from_bytes(self.saved[:], "little") + 1
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        traceme, syscall = 0, 24

        def work():
            if libc.ptrace(traceme, 0, 0, 0):
                os._exit(2)
            os.kill(os.getpid(), signal.SIGSTOP)
            self.save(value)

        pid = self.child(work)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            return None
        for _ in range(number):
            libc.ptrace(syscall, pid, 0, 0)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status):
                    raise AssertionError("the child failed")
                return False
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.look(f"killed at stop {number}")
        return True


# --------------------------------------------------------------------------------------------- full disks


@contextlib.contextmanager
def full_disk(folder, free):
    """Fills a file system up to ``free`` bytes."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(max(0, file.tell() - free))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def limited(folder, free):
    """Limits the size of files to ``free`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def no_room(folder, globalState, room, step):
    """Saves with more and more space, and checks each time; returns how many saves were refused, and how many were not."""
    path, optimizer = folder / "run.hdf", fresh(globalState)
    fill(optimizer, 1)
    optimizer.save(path)
    refused = went = 0
    for free in range(0, path.stat().st_size + 2 * step, step):
        expected = 1 + went
        try:
            with room(folder, free):
                fill(optimizer, expected + 1)
                optimizer.save(path)
            went += 1
            expected += 1
        except CheckpointError as error:
            if "cannot write" not in str(error):
                raise
            refused += 1
        if loaded(path, globalState) != expected or os.listdir(folder) != ["run.hdf"]:
            raise AssertionError(f"with {free} bytes: {os.listdir(folder)}")
        held = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink() and each.exists()]
        if any("run.hdf" in each for each in held):
            raise AssertionError(f"with {free} bytes: still open: {held}")
    return refused, went


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.stress.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500, help="number of kills at random times")
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th stop at a system call; 0: at none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-disk", metavar="FOLDER", type=Path, help="instead, save there with more and more space")
    parser.add_argument("--limit", choices=["full", "limited"], default="full")
    parser.add_argument("--mode", choices=["local", "global"], default="local")
    given = parser.parse_args(arguments)
    if given.full_disk is not None:
        room, step = (full_disk, 4096) if given.limit == "full" else (limited, 1024)
        refused, went = no_room(given.full_disk, given.mode == "global", room, step)
        print(f"{refused} saves refused, {went} went; after each the file was whole, with nothing beside it")
        return
    rng = random.Random(given.seed)
    total = collections.Counter()
    for globalState in (False, True):
        mode = "global" if globalState else "local"
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene(Path(folder), globalState)
            begin = time.perf_counter()
            for value in range(1, 6):
                scene.save(value)
            one_save = (time.perf_counter() - begin) / 5
            for _ in range(given.kills // 2):
                scene.kill_at(rng.uniform(0, 4 * one_save))
            print(f"{mode} mode, {given.kills // 2} kills at random moments within four saves: {say(scene.outcomes)}")
            total += scene.outcomes
            scene.outcomes.clear()
            stops = 0
            for number in itertools.count(1 + rng.randrange(given.every), given.every) if given.every else ():
                went = scene.kill_at_call(number)
                if not went:
                    break
                stops += 1
            if given.every and went is None:
                print(f"{mode} mode, left out: this system permits no ptrace")
            elif given.every:
                print(f"{mode} mode, {stops} kills before and after system calls of a save: {say(scene.outcomes)}")
            total += scene.outcomes
    print(
        f"all {total['the one before'] + total['the new one']} times a whole checkpoint loaded, and the next save cleared up"
    )


def say(outcomes):
    return ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))


if __name__ == "__main__":
    main()
