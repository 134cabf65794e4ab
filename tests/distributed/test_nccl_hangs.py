"""NCCL calls that never return: the failure is reported in time, and the process ends. NCCL and CUDA are stand-ins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# a group of one, in which a hang lasts for ever; each case runs in a new process, which must end
PRELUDE = """
import contextlib, os, sys, threading, types
from puzzlelib_rmsprop import NCCLNodeInfo
from puzzlelib_rmsprop.distributed import nccl as module
from puzzlelib_rmsprop.errors import GroupError
from tests.distributed import fake_nccl
from tests.distributed.ports import free_port

hanging, hangs, aborted, calls = set(sys.argv[1].split(",")), threading.Event(), threading.Event(), []

def call(name, result=None, until=None):
    def function(*arguments):
        calls.append(name)
        if name in hanging:
            hangs.set()
            (until or threading.Event()).wait()
        if name == "comm_abort":
            aborted.set()
        return result
    return function

class Event:
    ended = True
    def __init__(self, flags): pass
    def record(self, stream): pass
    def query(self): return Event.ended

class CUDAError(Exception): pass
context = types.SimpleNamespace(push=lambda: None, pop=lambda: None)
driver = types.SimpleNamespace(Error=CUDAError, Event=Event, event_flags=types.SimpleNamespace(DISABLE_TIMING=2))
library = types.SimpleNamespace(**{name: getattr(fake_nccl, name) for name in (
    "NCCLError", "DataType", "RedOp", "Result", "Config", "get_version", "get_unique_id", "get_error_string")})
for name in ("comm_abort", "comm_finalize", "comm_destroy"):
    setattr(library, name, call(name))
library.comm_init_rank_scalable = call("comm_init_rank_scalable", result="comm")
library.comm_get_async_error = call("comm_get_async_error", result=0)
library.all_reduce = call("all_reduce", until=aborted)  # NCCL's returns too when another thread aborts

class NodeInfo(NCCLNodeInfo):
    def _make_current(self):
        self._driver, self._context = driver, context

module._bindings = lambda: library

def make():
    return NodeInfo(address=f"127.0.0.1:{free_port()}", index=0, gridsize=1, timeout=1.0)

def average(node):
    node._call("averaging 'grad'", "all_reduce", 0, 0, 1, 7, 4, stream=None)

@contextlib.contextmanager
def refused():
    try:
        yield
    except GroupError as error:
        print("GroupError:", error)
    else:
        print("not refused")
"""


def in_child(hanging, code):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, hanging],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


LATE = "GroupError: process 0 of 1 has waited 1 s in {} for the others: one has died, hangs, or needs a longer timeout\n"
A_LATE_PROCESS = """
node = make()
average(node)
Event.ended = False
with refused():
    while True:
        average(node)
with refused():
    node.meanValue(1.0)
"""


@pytest.mark.parametrize("hanging", ["nothing", "comm_abort", "comm_abort,comm_finalize,comm_destroy"])
def test_a_late_process_is_told_whether_the_abort_returns_or_not(hanging):
    done = in_child(hanging, A_LATE_PROCESS + "node.close()\nassert 'comm_abort' in calls")
    assert done.stdout == LATE.format("averaging 'grad'") * 2
    assert "the parameters are no longer valid" in done.stderr


def test_nothing_is_aborted_where_all_is_well():
    done = in_child("nothing", "with make() as node: average(node)\nprint(calls[-3:], 'comm_abort' in calls)")
    assert done.stdout == "['comm_finalize', 'comm_get_async_error', 'comm_destroy'] False\n"
    assert done.stderr == ""


def test_one_that_closes_alone():
    done = in_child(
        "comm_abort",
        """
from puzzlelib_rmsprop.distributed.rendezvous import Rendezvous
address, calls_of_one = f"127.0.0.1:{free_port()}", threading.Event()

def other():
    group = Rendezvous(address, 1, 2, timeout=30)
    group.allgatherObject(None)  # the identifier
    calls_of_one.wait()
    group.close()

thread = threading.Thread(target=other)
thread.start()
node = NodeInfo(address=address, index=0, gridsize=2, timeout=5.0)
with refused():
    node.close()
calls_of_one.set()
thread.join()
""",
    )
    assert (
        done.stdout
        == "GroupError: process 0 of 2 has failed: GroupError: it has lost the connection to another process: timed out\n"
    )


def test_a_process_that_does_not_close_ends():
    assert in_child("comm_abort", A_LATE_PROCESS).stdout.count("GroupError") == 2
    assert in_child("comm_abort", "node = make(); average(node); print('ended')").stdout == "ended\n"
    # remaining work is aborted
    assert (
        in_child("nothing", "import atexit; atexit.register(lambda: print(calls[-1])); node = make()").stdout
        == "comm_abort\n"
    )


def test_a_failure_is_told_while_the_abort_hangs():
    done = in_child(
        "comm_abort",
        """
with refused(), make() as node:
    try:
        raise ValueError("no more digits")
    except ValueError as error:
        node.fail(error)
    average(node)
""",
    )
    assert done.stdout == "GroupError: process 0 of 1 has failed: ValueError: no more digits\n"


def test_a_communicator_that_is_never_made():
    done = in_child("comm_init_rank_scalable", "with refused(): make()")
    assert done.stdout == LATE.format("making a communicator")


@pytest.mark.parametrize("hanging", ["comm_finalize", "comm_destroy", "comm_finalize,comm_abort"])
def test_a_close_that_never_ends(hanging):
    done = in_child(hanging, "node = make(); average(node)\nwith refused(): node.close()\nnode.close()")
    assert done.stdout == LATE.format("close()")


@pytest.mark.parametrize("hanging", ["all_reduce", "all_reduce,comm_finalize"])
def test_a_collective_that_returns_only_when_it_is_aborted(hanging):
    done = in_child(hanging, "node = make()\nwith refused(): average(node)\nassert aborted.is_set()\nnode.close()")
    assert done.stdout == LATE.format("averaging 'grad'")


def test_a_watcher_that_hangs_keeps_nobody_waiting():
    done = in_child(
        "nothing",
        """
node = make()
hanging.add("comm_get_async_error")
hangs.wait()
with refused():
    average(node)
with refused():
    node.close()
    node.barrier()
""",
    )
    assert done.stdout == LATE.format("averaging 'grad'") * 2


def test_an_error_of_cuda_is_noticed():
    done = in_child(
        "nothing",
        """
def query(event):
    raise CUDAError("an illegal memory access was encountered")
node = make()
average(node)
Event.query = query
aborted.wait()
with refused():
    average(node)
""",
    )
    assert done.stdout == ("GroupError: process 0 of 1 can no longer be watched: an illegal memory access was encountered\n")


def test_what_nccl_refuses():
    done = in_child(
        "nothing",
        """
def refuse(*arguments):
    raise fake_nccl.NCCLError(5)
node = make()
library.all_reduce = refuse
with refused():
    average(node)
node = make()
library.comm_finalize = refuse
with refused():
    node.close()
library.comm_init_rank_scalable = refuse
with refused():
    make()
""",
    )
    lines = done.stdout.splitlines()
    assert lines == [
        "GroupError: NCCL refuses averaging 'grad' on process 0: status 5",
        "GroupError: NCCL refuses close() on process 0: status 5",
        "GroupError: NCCL refuses process 0 of 1 on GPU 0: status 5",
    ]
