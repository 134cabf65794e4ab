"""CUDA in forked processes, in threads, and at process exit. Each test runs in its own process."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests import conftest

pytestmark = pytest.mark.usefixtures("cuda")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PRELUDE = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads
import numpy as np
from puzzlelib_rmsprop import Config, GradientClipping, RMSPropGraves, Variable, WeightDecay, gpuarray
from tests.standins import Net
Config.backend = Config.Backend.auto

def training(globalState=False):
    net = Net(a=Variable(gpuarray.zeros(300)), b=Variable(gpuarray.zeros(70)))
    optimizer = RMSPropGraves()
    optimizer.addHook(GradientClipping(1.0))
    optimizer.setupOn(net, globalState)
    optimizer.update()
    return net, optimizer

def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"

def in_fork(work):
    # runs work() in a forked process and returns its exit status
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

CALLS = """
calls = {
    "zeros": lambda: gpuarray.zeros(3),
    "to_gpu": lambda: gpuarray.to_gpu(np.ones(3)),
    "borrow": lambda: gpuarray.streamManager.borrow(1),
    "Variable": lambda: Variable(net.getVar("a").data),
    "setupOn": lambda: RMSPropGraves().setupOn(net),
    "zeroGradParams": lambda: optimizer.zeroGradParams(),
    "update": lambda: optimizer.update(),
    "update on a stream of its own": lambda: optimizer.update(useStreams=True),
    "save": lambda: optimizer.save("never.hdf"),
    "load": lambda: optimizer.load(file),
    "exportState": lambda: optimizer.exportState(),
    "importState": lambda: optimizer.importState(state),
    "addHook": lambda: optimizer.addHook(GradientClipping(1.0)),
    "norm": lambda: optimizer.hooks[0].norm,
    "a hook": lambda: WeightDecay(0.5)(net.getVar("a"), {}),
}
net, optimizer = training(globalState)
state = optimizer.exportState()
optimizer.save(file)
"""


def run(code, cwd=None, **names):
    given = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    command = [sys.executable, "-c", "\n".join([conftest.in_child(), given, PRELUDE, textwrap.dedent(code)])]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def told(done):
    """Returns the error of each call by name."""
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


# ---------------------------------------------------------------------------------------------------- forks


@forks
def test_each_call_in_a_fork_says_what_to_do(tmp_path, globalState):
    code = CALLS + 'print("status", in_fork(lambda: [print(n, error_of(c), sep="=") for n, c in calls.items()]), sep="=")'
    found = told(run(code, tmp_path, file="saved.hdf", globalState=globalState))
    assert found.pop("status") == "0"
    assert len(found) == 15
    for name, error in found.items():
        assert error.startswith("DeviceError: CUDA cannot be used in this process: it was forked after its parent"), name
        assert "multiprocessing.set_start_method('spawn')" in error, name
    assert not (tmp_path / "never.hdf").exists()


@forks
@pytest.mark.parametrize(
    "parent",
    [
        "gpuarray.zeros(3)",
        "import pycuda.driver; pycuda.driver.init()",  # by the user, without this package
        "from puzzlelib_rmsprop.kernels.context import driver_library; driver_library().cuInit(0)",  # as in PyTorch
        "thread = threading.Thread(target=gpuarray.zeros, args=(3,)); thread.start(); thread.join()",
    ],
)
def test_auto_is_never_the_cpu_because_of_a_fork(parent):
    done = run(f"""
        {parent}
        print(in_fork(lambda: print(error_of(lambda: gpuarray.zeros(3)))))
        print(type(gpuarray.zeros(3)).__module__)
    """)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DeviceError: CUDA cannot be used in this process: it was forked"), done.stderr
    assert lines[1:] == ["0", "pycuda.gpuarray"]


@forks
def test_a_fork_before_cuda_begins_uses_cuda():
    done = run("""
        import pycuda.driver
        print(in_fork(lambda: print(type(gpuarray.zeros(3)).__module__, *gpuarray.zeros(3).get())))
        print(type(gpuarray.zeros(3)).__module__)
    """)
    assert done.stdout.splitlines() == ["pycuda.gpuarray 0.0 0.0 0.0", "0", "pycuda.gpuarray"], done.stderr


@forks
def test_the_cpu_in_a_fork():
    # a data loader's worker
    done = run("""
        def work():
            Config.backend = Config.Backend.cpu
            net, optimizer = training()
            print(type(net.getVar("a").data).__name__, optimizer.t)
        net, optimizer = training()
        print(in_fork(work))
        optimizer.update()
        print(optimizer.t, *gpuarray.zeros(2).get())
    """)
    assert done.stdout.splitlines() == ["CPUArray 1", "0", "2 0.0 0.0"], done.stderr


@forks
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("end", ["sys.exit(5)", "os._exit(5)", "os.execv('/bin/sh', ['sh', '-c', 'exit 5'])"])
def test_a_fork_that_leaves_cuda_alone_ends_as_it_should(threads, end):
    done = run(f"""
        def hold():
            arrays.append(gpuarray.zeros(3))
            gate.wait()
            stop.wait()
        net, optimizer = training()
        arrays, gate, stop = [], threading.Barrier({threads} + 1), threading.Event()
        holders = [threading.Thread(target=hold) for _ in range({threads})]
        for thread in holders: thread.start()
        gate.wait()
        def work(): {end}
        print(in_fork(work))
        stop.set()
        for thread in holders: thread.join()
        optimizer.update()
        print(optimizer.t)
    """)
    assert done.stdout.splitlines() == ["5", "2"], done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@forks
def test_a_pool_of_forked_workers_says_what_to_do():
    done = run("""
        import multiprocessing
        def work(seed):
            return error_of(lambda: gpuarray.to_gpu(np.ones(3)))
        gpuarray.zeros(3)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(*pool.map(work, range(2)), sep="\\n")
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("it was forked after its parent had initialized CUDA") == 2, done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_other_start_methods_use_cuda(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(
        conftest.in_child()
        + textwrap.dedent(f"""
            import multiprocessing
            from puzzlelib_rmsprop import gpuarray
            def work(number):
                return type(gpuarray.zeros(3)).__module__
            if __name__ == "__main__":
                gpuarray.zeros(3)
                if {method!r} not in multiprocessing.get_all_start_methods():
                    print(["pycuda.gpuarray"] * 2)
                else:
                    with multiprocessing.get_context({method!r}).Pool(1) as pool:
                        print(pool.map(work, range(2)))
                        pool.close()
                        pool.join()
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "['pycuda.gpuarray', 'pycuda.gpuarray']\n", done.stderr


# -------------------------------------------------------------------------------------------------- threads


def test_each_call_in_a_thread_without_the_context_says_what_to_do(tmp_path, globalState):
    # except the calls that make arrays: they make a context current
    code = """
        def work():
            for name in [*calls][4:]: print(name, error_of(calls[name]), sep="=")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print("t", optimizer.t, sep="=")
        optimizer.update()
    """
    found = told(run(CALLS + textwrap.dedent(code), tmp_path, file="saved.hdf", globalState=globalState))
    assert found.pop("t") == "1"
    assert len(found) == 11
    for name, error in found.items():
        assert error.startswith(("DeviceError: ", "ArrayError: ")), (name, error)
        assert "no CUDA context is current in this thread: push the arrays' context here" in error, name
    assert not (tmp_path / "never.hdf").exists()


def test_the_remedy_for_a_thread_without_the_context():
    done = run("""
        import pycuda.driver
        net, optimizer = training()
        context = pycuda.driver.Context.get_current()
        def work():
            context.push()
            optimizer.zeroGradParams()
            optimizer.update()
            context.pop()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(optimizer.t)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


def test_pools_of_threads_that_end_after_the_script():
    done = run("""
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(2)
        print([future.result() for future in [pool.submit(lambda: training()[1].t) for _ in range(4)]])
        threading.Thread(target=lambda: [training() for _ in range(5)]).start()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("[1, 1, 1, 1]\n", "", 0)


def test_arrays_of_a_thread_are_freed_in_another():
    done = run("""
        import pycuda.driver
        def work(made):
            made.append(gpuarray.zeros(2**20))
        gpuarray.zeros(3)
        free = []
        for _ in range(3):
            made = []
            thread = threading.Thread(target=work, args=(made,))
            thread.start()
            thread.join()
            made.clear()
            free.append(pycuda.driver.mem_get_info()[0])
        print(len({*free}))
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_first_arrays_in_several_threads_at_once():
    # each thread imports PyCUDA, or finds another thread's import in progress
    done = run("""
        Config.backend = Config.Backend.cuda
        gate, made = threading.Barrier(6), []
        def work():
            gate.wait()
            made.append(error_of(lambda: gpuarray.zeros(3)))
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print({*made})
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("{'none'}\n", "", 0)


# ---------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("main", ["", "gpuarray.zeros(3)"], ids=["", "main-has-a-context"])
@pytest.mark.parametrize(
    "body",
    [
        "optimizer.update(useStreams=True)",
        "optimizer.exportState()",  # waits for the device in PyCUDA's C++
        "optimizer.update(useStreams=True); time.sleep(0.002)",
        "forever.wait()",
    ],
)
def test_the_end_while_a_daemon_thread_trains(main, body):
    done = run(f"""
        import time
        ready, forever = threading.Event(), threading.Event()
        def work():
            net, optimizer = training()
            ready.set()
            while True:
                {body}
        {main}
        threading.Thread(target=work, daemon=True).start()
        ready.wait()
        print("end")
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("raise ValueError('planted')", 1), ("os._exit(4)", 4), ("os.abort()", -6)]
)
@pytest.mark.parametrize("daemon", [False, True])
def test_other_ends(end, status, daemon):
    done = run(f"""
        net, optimizer = training()
        if {daemon}:
            ready = threading.Event()
            def work():
                mine = training()[1]
                ready.set()
                while True:
                    mine.update(useStreams=True)
            threading.Thread(target=work, daemon=True).start()
            ready.wait()
        {end}
    """)
    assert done.returncode == status, done.stderr
    assert "PyCUDA" not in done.stderr


def test_what_runs_at_exit_can_still_train_and_save(tmp_path):
    done = run(
        """
        import atexit
        import h5py
        atexit.register(lambda: (optimizer.update(), optimizer.save("last.hdf"), print(optimizer.t)))
        net, optimizer = training()  # CUDA is initialized after the function was registered
    """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
    assert (tmp_path / "last.hdf").exists()
