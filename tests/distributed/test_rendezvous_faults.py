"""Faults while processes meet without MPI: machines that come up late, strangers, ports in use. Runs in threads."""

import contextlib
import errno
import itertools
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from puzzlelib_rmsprop.distributed import rendezvous
from puzzlelib_rmsprop.distributed.rendezvous import Rendezvous
from puzzlelib_rmsprop.errors import GroupError, SetupError
from tests.distributed.ports import free_port

NOT_YET = {
    **{name: OSError(getattr(errno, name), name) for name in ("EHOSTUNREACH", "ENETUNREACH", "EADDRNOTAVAIL", "EHOSTDOWN")},
    **{name: OSError(getattr(errno, name), name) for name in ("ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ENETDOWN")},
    **{name: socket.gaierror(getattr(socket, name), name) for name in ("EAI_AGAIN", "EAI_NONAME", "EAI_FAIL")},
    "a try without an answer": TimeoutError("timed out"),
}


@pytest.fixture
def faulty(monkeypatch):
    """``faulty(error, count)`` makes the first ``count`` connections or name lookups fail with the error."""

    def use(error, count):
        left = iter(range(count))
        connect, look_up = socket.socket.connect, socket.getaddrinfo

        class Socket(socket.socket):
            def connect(self, address):
                if not isinstance(error, socket.gaierror) and next(left, None) is not None:
                    raise error
                connect(self, address)

        def getaddrinfo(*arguments, **named):
            if isinstance(error, socket.gaierror) and next(left, None) is not None:
                raise error
            return look_up(*arguments, **named)

        monkeypatch.setattr(socket, "socket", Socket)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return use


def both(address, gridsize=2, timeout=20.0):
    """Lets all processes of a group meet. Returns the result or exception of each constructor, and gathered values."""

    def one(index):
        try:
            return Rendezvous(address, index, gridsize, timeout=timeout)
        except Exception as error:
            return error

    with ThreadPoolExecutor(gridsize) as pool:
        return list(pool.map(one, range(gridsize)))


def assert_met(groups):
    errors = [group for group in groups if isinstance(group, Exception)]
    assert not errors, errors
    with ThreadPoolExecutor(len(groups)) as pool:
        said = list(pool.map(lambda group: group.allgatherObject(group.index), groups))
    assert said == [list(range(len(groups)))] * len(groups)
    for group in groups:
        group.close()


@pytest.mark.parametrize("name", NOT_YET)
def test_every_error_is_tried_again(faulty, name):
    faulty(NOT_YET[name], 4)
    assert_met(both(f"127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("name", NOT_YET)
def test_the_last_error_is_named_when_the_time_is_over(faulty, name):
    faulty(NOT_YET[name], 10**9)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(GroupError) as caught:
        Rendezvous(address, 1, 2, timeout=0.5)
    said = str(caught.value)
    assert said.startswith(f"process 1 of 2 has not met the others at {address} in 0.5 s: the last error: "), said
    assert str(NOT_YET[name]) in said
    assert "Start all processes, with an address of process 0 that the others can reach" in said


def test_those_that_have_not_come_are_named():
    address = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(Rendezvous, address, index, 4, timeout=timeout) for index, timeout in ((0, 1.0), (2, 60.0))]
        errors = [str(each.exception()) for each in waiting]
    assert "process 1, 3 of 4 has not connected" in errors[0]
    assert errors[1] == errors[0]  # reported, without waiting for the timeout


@pytest.mark.parametrize("said", [b"", rendezvous.HELLO.pack(b"puzzlelib_rmsprop group", 1, 2)[:-1]])
def test_one_that_says_nothing_or_half_a_word_is_not_waited_for(said):
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Rendezvous, address, 0, 2, timeout=10.0)
        strangers = []
        while len(strangers) < 8:  # each one delayed the group by 5 s before
            try:
                strangers.append(socket.create_connection(("127.0.0.1", port)))
                strangers[-1].sendall(said)
            except ConnectionRefusedError:
                assert not first.done()
        assert_met([Rendezvous(address, 1, 2, timeout=10.0), first.result()][::-1])
        for stranger in strangers:
            stranger.settimeout(20)
            assert stranger.recv(1) == b""
            stranger.close()


@pytest.mark.parametrize(
    "said",
    [b"\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0" * 64, b"puzzlelib_rmsprop other" * 1000],
)
def test_what_scanners_say(said):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Rendezvous, f"127.0.0.1:{port}", 0, 2, timeout=20.0)
        for _ in range(5):
            connection = None
            while connection is None:
                with contextlib.suppress(ConnectionRefusedError):
                    connection = socket.create_connection(("127.0.0.1", port))
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(said)
                assert connection.recv(1) == b""  # closed immediately
        second = Rendezvous(f"127.0.0.1:{port}", 1, 2, timeout=20.0)
        assert_met([first.result(), second])


@pytest.mark.parametrize("name", ["ETIMEDOUT", "EHOSTUNREACH", "ECONNRESET"])
def test_a_connection_that_breaks_before_the_hello(monkeypatch, name):
    left = iter(range(3))

    class Socket(socket.socket):
        def recv(self, *arguments):
            if arguments == (rendezvous.HELLO.size,) and next(left, None) is not None:  # process 0's end
                raise OSError(getattr(errno, name), name)
            return super().recv(*arguments)

    monkeypatch.setattr(socket, "socket", Socket)
    assert_met(both(f"127.0.0.1:{free_port()}", timeout=1e8))  # more than selectors accept


def test_the_timeout_is_of_the_whole():
    """Occasional single bytes do not count as an answer."""
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Rendezvous, f"127.0.0.1:{port}", 0, 2, timeout=2.0)
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert not first.done()
        connection.sendall(rendezvous.HELLO.pack(b"puzzlelib_rmsprop group", 1, 2))
        connection.sendall(struct.pack("!Q", 1 << 20))
        sent, ended = itertools.count(), threading.Event()
        while not ended.wait(0.1):
            assert next(sent) < 300, "it goes on as long as bytes come"
            try:
                connection.sendall(b" ")
            except OSError:
                ended.set()
        assert "the last error: timed out" in str(first.exception())
        connection.close()


def answering(answers):
    """Starts a foreign server, which closes each connection after one answer. Returns its port and thread."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread


def test_an_address_that_is_forwarded_before_anybody_listens():
    # a proxy accepts and closes connections until there is a server behind it
    port, thread = answering([b"", b"", b""])
    address = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(Rendezvous, address, 1, 2, timeout=20.0)
        thread.join()
        assert_met([Rendezvous(address, 0, 2, timeout=20.0), second.result()])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"a message of \d+ bytes is not from this library"),
        (struct.pack("!Q", 3) + b"\xff\xfe\xfd", "a message is not from this library"),
    ],
)
def test_another_service_at_the_address(answer, said):
    port, thread = answering([answer] * 3)
    with pytest.raises(GroupError, match=rf"at 127.0.0.1:{port} in .* s: the last error: ({said}|.*refused|.*reset)"):
        Rendezvous(f"127.0.0.1:{port}", 1, 2, timeout=0.6)
    for _ in range(3):  # those that were not tried any more
        with socket.socket() as rest:
            rest.connect_ex(("127.0.0.1", port))
    thread.join()


def test_a_port_that_connects_to_itself(monkeypatch):
    """The system may choose the port of process 0 for the near end, while nothing listens there yet."""
    port, tried = free_port(), threading.Event()
    connect = socket.socket.connect

    class Socket(socket.socket):
        def connect(self, address):
            if not tried.is_set():
                self.bind(("127.0.0.1", port))
            connect(self, address)
            tried.set()

    monkeypatch.setattr(socket, "socket", Socket)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(Rendezvous, f"127.0.0.1:{port}", 1, 2, timeout=20.0)
        assert tried.wait(20)
        assert_met([Rendezvous(f"127.0.0.1:{port}", 0, 2, timeout=20.0), second.result()])


def hello(port, index, gridsize):
    """Connects as a process. Returns its connection and the answer."""
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            continue
    connection.settimeout(20)
    connection.sendall(rendezvous.HELLO.pack(b"puzzlelib_rmsprop group", index, gridsize))
    return connection, receive(connection)


def receive(connection):
    (length,) = struct.unpack("!Q", connection.recv(8, socket.MSG_WAITALL))
    return connection.recv(length, socket.MSG_WAITALL)


def test_one_that_lost_its_connection_comes_again():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Rendezvous, f"127.0.0.1:{port}", 0, 3, timeout=20.0)
        connection, said = hello(port, 1, 3)
        assert said == b'["welcome"]'
        connection.close()
        with ThreadPoolExecutor(2) as others:
            rest = others.map(lambda index: Rendezvous(f"127.0.0.1:{port}", index, 3, timeout=20.0), (1, 2))
        assert_met([first.result(), *rest])


@pytest.mark.parametrize(
    ("index", "gridsize", "said"),
    [
        (1, 3, "a process that says it is 1 of 3 came a second time to this group of 3"),
        (1, 4, "a process that says it is 1 of 4 came to this group of 3"),
    ],
)
def test_a_process_that_is_none_of_the_group_is_told_to_all(index, gridsize, said):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Rendezvous, f"127.0.0.1:{port}", 0, 3, timeout=60.0)
        real, heard = hello(port, 1, 3)
        assert heard == b'["welcome"]'
        for connection, heard in (hello(port, index, gridsize), (real, receive(real))):
            assert heard == f'"{said}"'.encode()
            connection.close()
        assert str(first.exception()) == said


def test_a_failure_is_told_while_another_process_is_waited_for():
    address, release = f"127.0.0.1:{free_port()}", threading.Event()
    groups = both(address, 3, timeout=60.0)

    def work(group):
        if group.index == 1:
            release.wait(60)  # so that process 0 reads it first
        if group.index == 2:
            group.fail(ValueError("no more digits"))
        try:
            group.allgatherObject(0)
        except GroupError as error:
            if group.index == 0:
                release.set()
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, groups)) == ["process 2 of 3 has failed: ValueError: no more digits"] * 3
    assert release.is_set()


def test_a_failure_is_told_without_waiting_for_one_that_does_not_listen():
    first, second = both(f"127.0.0.1:{free_port()}", timeout=60.0)
    second._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    first.fail(ValueError("x" * 10**8))
    first.close()
    with pytest.raises(GroupError):
        second.allgatherObject(0)


# ------------------------------------------------------------------------------- where process 0 listens


def test_a_port_that_another_process_has(monkeypatch):
    monkeypatch.setattr(rendezvous, "HELD", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            SetupError, match=rf"0 cannot listen at {address}: .*in use.*: another process has the port, perh"
        ):
            Rendezvous(address, 0, 2, timeout=20.0)


def test_a_port_that_a_former_run_still_has(monkeypatch):
    monkeypatch.setattr(rendezvous, "HELD", 20.0)
    real, tries = socket.create_server, itertools.count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def create_server(*arguments, **named):
            if next(tries) == 3:
                server.close()
            return real(*arguments, **named)

        monkeypatch.setattr(socket, "create_server", create_server)
        assert_met(both(f"127.0.0.1:{port}"))


def test_connections_of_a_former_run_in_time_wait_are_in_nobodys_way():
    address = f"127.0.0.1:{free_port()}"
    for _ in range(3):
        assert_met(both(address))  # process 0 closes first, so its end is in TIME_WAIT


def test_an_address_of_another_machine(monkeypatch):
    monkeypatch.setattr(rendezvous, "HELD", 0.2)
    with pytest.raises(
        SetupError, match=r"cannot listen at 192.0.2.1:29500: .*: give process 0 an address of its own machine"
    ):
        Rendezvous("192.0.2.1:29500", 0, 2, timeout=20.0)


def test_a_port_that_only_root_may_use(monkeypatch):
    def create_server(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(rendezvous, "HELD", 0.2)
    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(SetupError, match=r"cannot listen at 127.0.0.1:80: .*: give every process a port above 1023"):
        Rendezvous("127.0.0.1:80", 0, 2, timeout=20.0)


def test_process_0_whose_own_name_is_not_known(faulty):
    faulty(NOT_YET["EAI_NONAME"], 10**9)
    with pytest.raises(SetupError, match=r"cannot listen at node0:29500: .*EAI_NONAME: give every process an address"):
        Rendezvous("node0:29500", 0, 2, timeout=0.3)


@pytest.mark.parametrize(
    ("address", "index", "gridsize", "said"),
    [
        (None, 0, 2, "must be 'host:port', with a port from 1 to 65535; got None"),
        ("127.0.0.1:0", 0, 2, "a port from 1 to 65535"),
        ("127.0.0.1:65536", 1, 2, "a port from 1 to 65535"),
        ("127.0.0.1:²", 1, 2, "a port from 1 to 65535"),
        ("127.0.0.1:" + "9" * 5000, 1, 2, "a port from 1 to 65535"),
        ("h" * 64 + ":29500", 1, 2, "cannot be looked up"),
        ("127.0.0.1:29500", "1", 2, "index must be an int; got '1'"),
        ("127.0.0.1:29500", 1, 2.0, "gridsize must be an int; got 2.0"),
        ("127.0.0.1:29500", 0, 0, "index must be from 0 to -1, below gridsize; got 0"),
    ],
)
def test_addresses_and_numbers_that_are_none(address, index, gridsize, said):
    with pytest.raises(SetupError, match=said):
        Rendezvous(address, index, gridsize, timeout=0.3)
