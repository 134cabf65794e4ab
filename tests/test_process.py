"""What users do to a process: threads, forks, several at once, an interpreter that ends. Each in a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import numpy as np
from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.kernels import cpu
from tests.reference import Reference
from tests.standins import Net
Config.backend, Config.numThreads = Config.Backend.cpu, 3
SIZE = 3 * cpu.BLOCK + 11

class Training:
    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        param, self.grad = rng.standard_normal((2, SIZE)).astype(np.float32)
        self.var = Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(self.grad))
        self.expected = Reference(param, dtype=np.float32)
        self.optimizer = RMSPropGraves()
        self.optimizer.setupOn(Net(W=self.var))
    def step(self):
        self.optimizer.update()
        self.expected.step(self.grad)
    def right(self):
        return np.array_equal(self.var.data, self.expected.param)
"""


def run(code, before="", env=None, timeout=100):
    return subprocess.run(
        [sys.executable, "-c", before + PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )


def test_updates_from_several_threads_at_once():
    done = run("""
        import threading
        trainings = [Training(seed) for seed in range(4)]
        gate = threading.Barrier(4)
        def work(training):
            gate.wait()
            for _ in range(5):
                training.step()
        threads = [threading.Thread(target=work, args=(training,)) for training in trainings]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print([training.right() for training in trainings])
    """)
    assert done.stdout == "[True, True, True, True]\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_an_update():
    # a data loader's worker: forked from a process whose helper threads exist, and which may train itself
    done = run("""
        import os, warnings
        training = Training(0)
        training.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads, of which NumPy has some
            child = os.fork()
        training.step()
        if child == 0:
            training.step()
            os._exit(0 if training.right() else 1)
        print(training.right(), os.waitpid(child, 0)[1])
    """)
    assert done.stdout == "True 0\n", done.stderr


def test_multiprocessing_workers():
    done = run("""
        import multiprocessing
        def work(seed):
            training = Training(seed)
            training.step()
            return bool(training.right())
        if __name__ == "__main__":
            Training(9).step()
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(4)))
    """)
    assert done.stdout == "[True, True, True, True]\n", done.stderr


def test_update_while_the_interpreter_ends():
    done = run("""
        import atexit, threading
        training = Training(0)
        def last():
            training.step()
            print(training.right())
        # after concurrent.futures has shut its threads down
        threading._register_atexit(lambda: None)
        atexit.register(last)
    """)
    assert done.stdout == "True\n", done.stderr


def test_no_threads_for_small_arrays():
    done = run("""
        import threading
        var = Variable(gpuarray.zeros(cpu.BLOCK))
        optimizer = RMSPropGraves()
        optimizer.setupOn(Net(W=var))
        optimizer.update()
        small = threading.active_count()
        Training(0).step()
        print(small, threading.active_count() > 1)
    """)
    assert done.stdout == "1 True\n", done.stderr


def test_compiled_code_is_kept_between_processes(tmp_path):
    code = """
        Training(0).step()
        print(sum(cpu._graves_kernel.stats.cache_hits.values()), sum(cpu._graves_kernel.stats.cache_misses.values()))
    """
    counts = [run(code, env={"NUMBA_CACHE_DIR": str(tmp_path)}).stdout for _ in range(2)]
    assert counts == ["0 1\n", "1 0\n"]


def test_no_folder_to_keep_compiled_code_in():
    # numba refuses to cache where no folder can be written; the kernel must run all the same
    before = """
from numba.core import caching
next(item for name, item in vars(caching).items() if name.lstrip("_") == "CacheImpl")._locator_classes = []
"""
    done = run(
        """
        training = Training(0)
        training.step()
        print(training.right())
        """,
        before=before,
    )
    assert done.stdout == "True\n", done.stderr


def test_an_interrupt_just_after_a_thread_began_waits_for_it_too():
    # or it would be one step behind from then on, and work on arrays that the caller has done with
    code = """
import threading, time
from puzzlelib_rmsprop import Config
from puzzlelib_rmsprop.kernels import cpu
Config.numThreads = 2
begin, done = cpu._Helper.begin, []
def run(first, last):
    time.sleep(0.2)
    done.append(first)
def interrupted(self, work):
    begin(self, work)
    cpu._Helper.begin = begin
    raise KeyboardInterrupt
cpu._Helper.begin = interrupted
try:
    cpu._in_threads(run, 2 * cpu.BLOCK)
except KeyboardInterrupt:
    print("interrupted", len(done))
for _ in range(2):
    done.clear()
    cpu._in_threads(run, 3 * cpu.BLOCK)
    print(len(done))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["interrupted", "2", "3", "3"]


def test_an_interrupt_waits_for_every_thread():
    # Ctrl-C while two threads update: when it is raised nothing works on the arrays any more
    code = """
import signal, threading, time
import numpy as np
from puzzlelib_rmsprop import Config
from puzzlelib_rmsprop.kernels import cpu
Config.numThreads = 2
working = []
def run(begin, end):
    working.append(begin)
    time.sleep(0.3)
    if threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.3)
    working.remove(begin)
try:
    cpu._in_threads(run, 2 * cpu.BLOCK)
except KeyboardInterrupt:
    print("interrupted", len(working))
done = []
cpu._in_threads(lambda begin, end: done.append((begin, end)), 2 * cpu.BLOCK)
print(len(done))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # its own block is left where it was; the helper's is done
    assert done.stdout.split() == ["interrupted", "1", "2"]
