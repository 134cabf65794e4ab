"""Threads, forks, several processes at once, interpreter shutdown. Each test runs in its own process."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from puzzlelib_rmsprop.kernels import cpu

compiled = pytest.mark.skipif(cpu.chosen() is not cpu, reason="is about the compiled library, which is not in use")
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the threads of a process")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PRELUDE = """
import os, sys, warnings
import numpy as np
from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.kernels import cpu
from tests.reference import Reference
from tests.standins import Net
Config.backend, Config.numThreads = Config.Backend.cpu, 3
SIZE = 5 * 32768 + 11  # work for several threads

class Training:
    def __init__(self, seed, size=SIZE):
        rng = np.random.default_rng(seed)
        param, self.grad = rng.standard_normal((2, size)).astype(np.float32)
        self.var = Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(self.grad))
        self.expected = Reference(param, dtype=np.float32)
        self.optimizer = RMSPropGraves()
        self.optimizer.setupOn(Net(W=self.var))
    def step(self):
        self.optimizer.update()
        self.expected.step(self.grad)
    def right(self):
        state = self.optimizer.states["W"]
        found = {"param": self.var.data, **{name: state[name] for name in ("mg", "variance", "delta")}}
        return all(np.array_equal(found[name], content) for name, content in self.expected.buffers().items())

def tasks():
    return set(os.listdir("/proc/self/task"))
"""


def run(code, env=None, timeout=100, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


# ------------------------------------------------------------------------------------------------ threads


def test_updates_from_several_threads_at_once():
    done = run("""
        import threading
        trainings = [Training(seed, SIZE // (1 + seed % 2 * 50)) for seed in range(6)]  # small ones as well
        gate = threading.Barrier(6)
        def work(training):
            gate.wait()
            for _ in range(10):
                training.step()
        threads = [threading.Thread(target=work, args=(training,)) for training in trainings]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print([training.right() for training in trainings])
    """)
    assert done.stdout == f"{[True] * 6}\n", done.stderr


@compiled
@linux
def test_no_more_threads_than_are_allowed():
    done = run("""
        Config.numThreads = 64
        cores = len(os.sched_getaffinity(0))
        before = tasks()
        Training(0, 30000).step()
        small = len(tasks() - before)
        Config.numThreads = 1
        Training(1).step()
        one = len(tasks() - before)
        Config.numThreads = 64
        training = Training(2, 2**21)
        training.step()
        all_ = len(tasks() - before)
        print(small, one, all_ == min(cores, 64) - 1, training.right())
    """)
    assert done.stdout == "0 0 True True\n", done.stderr


@compiled
@linux
def test_no_more_threads_than_the_affinity_allows_now():
    done = run("""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # after Config was made
        before = tasks()
        training = Training(0)
        training.step()
        print(Config.numThreads, len(tasks() - before), training.right())
    """)
    assert done.stdout == "3 0 True\n", done.stderr


@compiled
@linux
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda pid: [0])(0)) < 2, reason="one core: no helpers")
def test_helpers_take_no_signals_of_the_program():
    done = run("""
        import signal
        before = tasks()
        Training(0).step()
        for task in tasks() - before:
            status = open(f"/proc/self/task/{task}/status").read()
            blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
            print(all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)))
    """)
    assert set(done.stdout.split()) == {"True"}, done.stderr


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such timer")
def test_ctrl_c_during_an_update():
    # raised after the call: every element has taken the step, or none, and nothing still writes the arrays
    done = run("""
        import signal
        def interrupt(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        SIZE = 2**21
        var = Variable(np.zeros(SIZE, np.float32), grad=np.full(SIZE, 0.5, np.float32))
        optimizer = RMSPropGraves()
        optimizer.setupOn(Net(W=var))
        expected, steps = Reference(np.zeros(1), dtype=np.float32), 0
        for wait in np.linspace(1e-3, 2e-2, 12):
            try:
                signal.setitimer(signal.ITIMER_REAL, wait)
                while True:
                    optimizer.update()
            except KeyboardInterrupt:
                pass
            state = optimizer.states["W"]
            found = {"param": var.data.copy(), **{name: state[name].copy() for name in ("mg", "variance", "delta")}}
            while expected.param[0] != found["param"][0] and steps < optimizer.t:
                expected.step(0.5)
                steps += 1
            print(optimizer.t - steps in (0, 1), {
                name: bool((found[name] == content[0]).all()) for name, content in expected.buffers().items()
            })
    """)
    assert set(done.stdout.splitlines()) == {f"True {dict.fromkeys(('param', 'mg', 'variance', 'delta'), True)}"}, (
        done.stderr
    )
    assert done.returncode == 0


# -------------------------------------------------------------------------------------------------- forks


@forks
def test_fork_after_an_update():
    # a data loader's worker: forked from a process with helper threads, and may train too
    done = run("""
        training = Training(0)
        training.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads
            child = os.fork()
        training.step()
        if child == 0:
            training.step()
            os._exit(0 if training.right() else 1)
        print(training.right(), os.waitpid(child, 0)[1])
    """)
    assert done.stdout == "True 0\n", done.stderr


@compiled
@linux
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda pid: [0])(0)) < 2, reason="one core: no helpers")
def test_a_forked_child_makes_helpers_of_its_own():
    done = run("""
        warnings.simplefilter("ignore", DeprecationWarning)
        training = Training(0)
        training.step()
        child = os.fork()
        if child == 0:
            before = tasks()
            training.step()
            os._exit(len(tasks() - before))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 0)
    """)
    assert done.stdout == "True\n", done.stderr


@forks
def test_fork_during_another_threads_update():
    done = run("""
        import threading, time
        warnings.simplefilter("ignore", DeprecationWarning)
        other, training, stop = Training(0), Training(1), threading.Event()
        def work():
            while not stop.is_set():
                other.optimizer.update()
        thread = threading.Thread(target=work)
        thread.start()
        statuses = []
        for _ in range(10):
            time.sleep(0.003)
            child = os.fork()
            if child == 0:
                training.step()
                os._exit(0 if training.right() else 1)
            statuses.append(os.waitpid(child, 0)[1])
        stop.set()
        thread.join()
        training.step()
        print(statuses, training.right())
    """)
    assert done.stdout == f"{[0] * 10} True\n", done.stderr


@forks
def test_multiprocessing_workers():
    done = run("""
        import multiprocessing
        def work(seed):
            training = Training(seed)
            training.step()
            return bool(training.right())
        if __name__ == "__main__":
            Training(9).step()
            warnings.simplefilter("ignore", DeprecationWarning)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(4)))
    """)
    assert done.stdout == "[True, True, True, True]\n", done.stderr


# ---------------------------------------------------------------------------------------- beginning and end


def test_update_while_the_interpreter_ends():
    done = run("""
        import atexit
        training = Training(0)
        def last():
            training.step()
            print(training.right())
        atexit.register(last)
    """)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize("wait", [0, 0.01])
def test_the_end_while_helpers_look_for_work_or_sleep(wait):
    done = run(f"""
        import time
        training = Training(0)
        training.step()
        time.sleep({wait})
        print(training.right())
    """)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize("number", range(3))
def test_the_end_while_a_daemon_thread_updates(number):
    done = run(f"""
        import threading, time
        training = Training(0, 2**20)
        def work():
            while True:
                training.optimizer.update()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.02 + 0.007 * {number})
        print("end")
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


@compiled
def test_the_library_loaded_twice():
    done = run("""
        import importlib
        training = Training(0)
        training.step()
        for name in [name for name in sys.modules if name.startswith("puzzlelib_rmsprop")]:
            del sys.modules[name]
        from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
        from puzzlelib_rmsprop.kernels import cpu as second
        Config.backend, Config.numThreads = Config.Backend.cpu, 3
        again = Training(1)
        training.step(), again.step()
        print(second is not cpu, second.library is not cpu.library, training.right(), again.right())
    """)
    assert done.stdout == "True True True True\n", done.stderr


def test_an_update_writes_no_file(tmp_path):
    package = Path(cpu.__file__).parent.parent
    folders = {name: tmp_path / name for name in ("home", "cwd", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    before = sorted(package.rglob("*"))
    env = {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"]), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"XDG_CACHE_HOME": "", "PYTHONPATH": os.pathsep.join([str(package.parent), str(Path(__file__).parents[2])])}
    done = run("training = Training(0); training.step(); print(training.right())", env, cwd=folders["cwd"])
    assert done.stdout == "True\n", done.stderr
    assert [list(folder.iterdir()) for folder in folders.values()] == [[], [], []]
    # Python's bytecode cache, which other test processes write too
    kept = [path for path in sorted(package.rglob("*")) if "__pycache__" not in path.parts]
    assert kept == [path for path in before if "__pycache__" not in path.parts]


# ------------------------------------------------------------------------------------- the caller's flush mode

MODE = """
#include <xmmintrin.h>
unsigned get(void) { return _mm_getcsr(); }
void set(unsigned mode) { _mm_setcsr(mode); }
"""

FLUSHING = """
import ctypes, hashlib
mode = ctypes.CDLL({library!r})
mode.get.restype = ctypes.c_uint
CONTROL = ~0x3F  # without the flags that say what has happened
before = mode.get() & CONTROL
when = {when!r}

def start(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    i = np.arange(SIZE)
    # of each buffer some elements are subnormal, some normal but small enough that the results are subnormal
    small = [(1 + i % (5 + k)) * np.finfo(dtype).tiny for k in range(5)]
    return [np.where(i % (3 + k) == 0, tiny * dtype(1 + k), array).astype(dtype) for k, array in enumerate(small)]

def digest(buffers):
    dtype = buffers[0].dtype.type
    var = Variable(buffers[0], grad=buffers[1])
    optimizer = RMSPropGraves(epsilon=1e-4)
    optimizer.setupOn(Net(W=var))
    for k, name in enumerate(("mg", "variance", "delta")):
        optimizer.states["W"][name][...] = buffers[2 + k]
    for _ in range(3):
        optimizer.update()
    state = [optimizer.states["W"][name] for name in ("mg", "variance", "delta")]
    # looked at with integers, which no mode changes
    bits = np.concatenate([x.view(np.uint32 if dtype is np.float32 else np.uint64) for x in [var.data, *state]])
    mantissa = 23 if dtype is np.float32 else 52
    magnitude = bits & bits.dtype.type((1 << (bits.itemsize * 8 - 1)) - 1)
    subnormal = ((magnitude != 0) & (magnitude < bits.dtype.type(1 << mantissa))).sum()
    return hashlib.sha256(bits.tobytes()).hexdigest(), int(subnormal), int((magnitude == 0).sum())

starts = [start(dtype) for dtype in (np.float32, np.float64)]
if when == "late":
    Training(0).step()  # helpers exist, with the mode from before
if when != "never":
    mode.set(before | 0x8040)
asked = mode.get() & CONTROL
digests = [digest(buffers) for buffers in starts]
print(mode.get() & CONTROL == asked, asked != before)
print(digests)
"""


@compiled
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets the mode of x86")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to compile what sets the mode")
def test_the_callers_flush_mode_changes_nothing_and_is_left(tmp_path):
    (tmp_path / "mode.c").write_text(MODE)
    library = tmp_path / "mode.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, tmp_path / "mode.c"], check=True)
    told = {}
    for when in ("never", "early", "late"):
        done = run(FLUSHING.format(library=str(library), when=when))
        lines = done.stdout.splitlines()
        assert lines[:1] == [f"True {when != 'never'}"], done.stdout + done.stderr
        told[when] = lines[1]
    assert told["early"] == told["never"]
    assert told["late"] == told["never"]
    for _, subnormal, zeros in eval(told["never"]):
        assert subnormal == 0
        assert zeros > 1000
