"""Ways in which a job ends: an error, a signal, a hang, or a missing close()."""

import contextlib
import itertools
import os
import signal
import sys
import time

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.distributed import mpi
from tests.distributed.program.group import RANK, disaster, group, staging
from tests.distributed.program.nets import some_net


def training(timeout, closing=True):
    node = group(timeout=60.0)  # a slow machine may need long to start the others
    optimizer = RMSPropGraves(nodeinfo=node)
    optimizer.setupOn(some_net(), useGlobalState=True)
    optimizer.update()
    node.timeout = timeout
    return node, optimizer


@disaster
def one_raises():
    _, optimizer = training(60.0)
    if RANK == 1:
        raise ValueError("no more digits")
    while True:
        optimizer.update()


@disaster
def one_raises_in_a_hook():
    _, optimizer = training(60.0)
    if RANK == 1:
        optimizer.addHook(lambda var, state, stream: 1 / 0)
    while True:
        optimizer.update()


@disaster
def one_raises_and_goes_on():
    """A process that ignores its error, and is a step behind, cannot continue."""
    _, optimizer = training(60.0)
    if RANK == 1:
        optimizer.addHook(lambda var, state, stream: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            optimizer.update()
        optimizer.hooks.clear()
    while True:
        optimizer.update()


@disaster
def one_raises_within_the_block():
    with group(timeout=60.0) as node:
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(some_net(), useGlobalState=True)
        while True:
            if RANK == 1:
                raise ValueError("no more digits")
            optimizer.update()


@disaster
def one_says_much_and_hangs():
    """The error message is longer than MPI's eager limit."""
    node, optimizer = training(2.0)
    if RANK == 1:
        node.fail(ValueError("no more digits" * 10**6))
        time.sleep(600)
    optimizer.update()


@disaster
def one_hangs():
    _, optimizer = training(2.0)
    if RANK == 1:
        time.sleep(600)
    optimizer.update()


@disaster
def one_is_killed():
    print(f"process {os.getpid()}", flush=True)
    _, optimizer = training(2.0)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        optimizer.update()


@disaster
def one_is_killed_in_the_middle_of_a_step():
    node, optimizer = training(2.0)
    if RANK == 1:
        # within the reduction: the others have some pieces from this process, and wait for the next
        real, calls = node._call, itertools.count()

        def dying(*arguments):
            real(*arguments)
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        node._call = dying
    with staging(64):
        while True:
            optimizer.update()


@disaster
def one_leaves():
    _, optimizer = training(60.0)
    if RANK == 1:
        sys.exit(0)
    while True:
        optimizer.update()


@disaster
def one_is_not_there():
    if RANK == 1:
        time.sleep(600)
    group(timeout=2.0)


@disaster
def all_end_without_closing():
    training(20.0)
    print("ended", flush=True)


@disaster
def one_has_work_left():
    """No process calls close(), or waits for this one in an update."""
    mpi.GRACE = 1.0
    training(20.0)
    if RANK == 0:
        time.sleep(3)
    print("ended", flush=True)
