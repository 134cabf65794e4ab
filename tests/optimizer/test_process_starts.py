"""Processes started while the CPU's helper threads exist: by fork, spawn and forkserver, from threads, and nested."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.optimizer.test_process import PRELUDE, forks, run


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize(
    "pool", ["multiprocessing.get_context(method).Pool(2)", "ProcessPoolExecutor(2, get_context(method))"]
)
def test_workers_train(tmp_path, method, pool):
    script = tmp_path / "script.py"
    script.write_text(
        PRELUDE
        + textwrap.dedent(f"""
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads
            def work(seed):
                training = Training(seed)
                training.step()
                return bool(training.right())
            if __name__ == "__main__":
                method = {method!r}
                if method not in multiprocessing.get_all_start_methods():
                    method = "spawn"
                training = Training(9)
                training.step()
                with {pool} as pool:
                    print(list(pool.map(work, range(4))))
                training.step()
                print(training.right())
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[True, True, True, True]\nTrue\n", done.stderr
    assert done.returncode == 0


@forks
@pytest.mark.parametrize("end", ["sys.exit(5)", "os._exit(5)", "os.execv('/bin/sh', ['sh', '-c', 'exit 5'])"])
@pytest.mark.parametrize("trains", [False, True])
def test_a_fork_ends_as_it_should(end, trains):
    done = run(f"""
        warnings.simplefilter("ignore", DeprecationWarning)
        training = Training(0)
        training.step()
        child = os.fork()
        if child == 0:
            if {trains}:
                training.step()
                assert training.right()
            {end}
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        training.step()
        print(training.right())
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("5\nTrue\n", "", 0)


@forks
def test_a_fork_of_a_fork():
    done = run("""
        warnings.simplefilter("ignore", DeprecationWarning)
        training = Training(0)
        for depth in range(3):
            training.step()
            child = os.fork()
            if child:
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                training.step()
                os._exit(status + (not training.right())) if depth else print(status, training.right())
                break
        else:
            training.step()
            os._exit(0 if training.right() else 100)
    """)
    assert done.stdout == "0 True\n", done.stderr


@forks
def test_a_fork_in_a_thread_that_trains():
    # the child's only thread is not the one that started the interpreter
    done = run("""
        import threading
        warnings.simplefilter("ignore", DeprecationWarning)
        trainings = [Training(seed) for seed in range(3)]
        statuses = []
        def work(training):
            for _ in range(5):
                training.step()
                child = os.fork()
                if child == 0:
                    training.step()
                    os._exit(0 if training.right() else 1)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        threads = [threading.Thread(target=work, args=(training,)) for training in trainings]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print({*statuses}, len(statuses), [training.right() for training in trainings])
    """)
    assert done.stdout == "{0} 15 [True, True, True]\n", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="runs a command of Unix")
def test_commands_started_while_another_thread_trains():
    done = run("""
        import subprocess, threading
        warnings.simplefilter("ignore", DeprecationWarning)
        training, stop = Training(0), threading.Event()
        def work():
            while not stop.is_set():
                training.step()
        thread = threading.Thread(target=work)
        thread.start()
        told = [subprocess.run(["echo", "x"], capture_output=True, text=True, preexec_fn=f).stdout for f in (None, int) * 5]
        stop.set()
        thread.join()
        print({*told}, training.right())
    """)
    assert done.stdout == "{'x\\n'} True\n", done.stderr


def test_an_update_imports_no_module_of_the_package():
    # a process forked while another thread imports waits for that import for ever
    done = run("""
        from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard
        def loaded():
            return {name for name in sys.modules if name.startswith("puzzlelib_rmsprop")}
        training, before = Training(0), loaded()
        training.optimizer.addHook(NonFiniteGuard("skip"))
        training.optimizer.addHook(GradientClipping(1.0))
        training.optimizer.update()
        print(loaded() - before)
    """)
    assert done.stdout == "set()\n", done.stdout + done.stderr
