"""Processes that meet at an address without MPI. Runs in threads."""

import contextlib
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.arrays import family_of
from puzzlelib_rmsprop.distributed import agreement
from puzzlelib_rmsprop.distributed.agreement import agree, facts
from puzzlelib_rmsprop.distributed.rendezvous import Rendezvous
from puzzlelib_rmsprop.errors import GroupError, SetupError
from tests.distributed.ports import free_port


def meet(work, gridsize=3, timeout=10.0, address=None):
    """Runs ``work(rendezvous)`` for every process, in threads. Returns the results or exceptions."""
    address = address or f"127.0.0.1:{free_port()}"

    def one(index):
        time.sleep(0.05 * (gridsize - index))  # process 0 starts last
        try:
            return work(Rendezvous(address, index, gridsize, timeout=timeout))
        except Exception as error:
            return error

    with ThreadPoolExecutor(gridsize) as pool:
        return list(pool.map(one, range(gridsize)))


def test_rendezvous():
    def work(group):
        assert group.allgatherObject({"i": group.index}) == [{"i": 0}, {"i": 1}, {"i": 2}]
        group.barrier()
        found = group.allgatherObject("x" * 100_000)
        group.close()
        return [len(each) for each in found]

    assert meet(work) == [[100_000] * 3] * 3


@pytest.mark.parametrize("what", ["the version of puzzlelib_rmsprop", "the byte order", "the device of the arrays"])
def test_processes_of_unlike_installations_are_refused(monkeypatch, what):
    """Process 0 and another process with another version, machine or setting."""
    optimizer = RMSPropGraves()
    family, theirs = (
        family_of(np.zeros(1, np.float32)),
        dict(facts(optimizer, {}, [], None)) | {"the device of the arrays": "cuda"},
    )
    monkeypatch.setattr(agreement, "__version__", "0.1.0")
    monkeypatch.setattr(sys, "byteorder", "big")
    own = dict(facts(optimizer, {}, [], family))
    assert own[what] != theirs[what]

    def work(group):
        with group:
            agree(group, [[name, (own if group.index == 1 and name == what else theirs)[name]] for name in theirs])

    errors = meet(work, gridsize=2)
    assert {(type(error), str(error)) for error in errors} == {
        (
            SetupError,
            f"the processes of the group differ: {what} is {theirs[what]} on process 0, and {own[what]} on process 1",
        )
    }


def test_rendezvous_of_one_that_fails():
    def work(group):
        if group.index == 1:
            group.fail(ValueError("no more digits"))
            raise ValueError
        return group.allgatherObject(0)

    first, second, third = meet(work)
    assert isinstance(second, ValueError)
    for error in (first, third):
        assert isinstance(error, GroupError)
        assert str(error) == "process 1 of 3 has failed: ValueError: no more digits"


def test_rendezvous_of_one_that_is_gone():
    def work(group):
        if group.index == 2:
            group._drop()
            return None
        return group.allgatherObject(0)

    first, second, _ = meet(work)
    assert "process 0 of 3 has failed: GroupError: it has lost the connection to another process" in str(first)
    assert str(second) == str(first)


def test_rendezvous_that_nobody_comes_to():
    for index, said in ((0, "process 1 of 2 has not connected"), (1, r"the last error: \[Errno 111\] Connection refused")):
        began = time.monotonic()
        with pytest.raises(GroupError, match=rf"process {index} of 2 has not met the others at 127.* in 0.3 s: {said}"):
            Rendezvous(f"127.0.0.1:{free_port()}", index, 2, timeout=0.3)
        assert time.monotonic() - began < 20


def test_rendezvous_sends_others_away():
    address = f"127.0.0.1:{free_port()}"

    def stranger():
        time.sleep(0.3)
        with socket.create_connection(address.split(":")) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                return connection.recv(10)
            return b""

    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(Rendezvous, address, 0, 2, timeout=10.0)
        assert pool.submit(stranger).result() == b""
        other = Rendezvous(address, 1, 2, timeout=10.0)
        server.result().close()
        other.close()


@pytest.mark.parametrize(
    ("address", "index", "said"),
    [("host", 0, "'host:port'"), ("h:x", 0, "'host:port'"), ("h:1", 2, "index must be from 0 to 1")],
)
def test_rendezvous_arguments(address, index, said):
    with pytest.raises(SetupError, match=said):
        Rendezvous(address, index, 2, timeout=1.0)
