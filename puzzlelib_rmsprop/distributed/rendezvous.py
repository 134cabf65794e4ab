"""A meeting point for processes without MPI: process 0 listens at an address and forwards small messages."""

from __future__ import annotations

import contextlib
import errno
import json
import numbers
import selectors
import socket
import struct
import time
from typing import Any

from ..errors import GroupError, SetupError
from ..validation import number
from .nodeinfo import NodeInfo

__all__ = ["Rendezvous"]

PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts to reach process 0, doubled each time
TRY = 5.0  # seconds per attempt: the next one may find a machine that has come up meanwhile
HELD = 5.0  # seconds to wait for a former run to release the port
TELL = 1.0  # seconds for reporting a failure to the others
HOUR = 3600.0  # seconds; system calls limit their timeouts
HELLO = struct.Struct("!23sII")  # the first message of a process: a fixed text, its index and gridsize
_WHO = b"puzzlelib_rmsprop group"
_LENGTH = struct.Struct("!Q")  # before each message: its length in bytes

_CANNOT_LISTEN = {
    errno.EADDRINUSE: "another process has the port, perhaps a former run: end it, or give every process another port",
    errno.EADDRNOTAVAIL: "give process 0 an address of its own machine, or 0.0.0.0 ([::] with IPv6) for all that it has",
    errno.EACCES: "give every process a port above 1023",
}


class Rendezvous(NodeInfo):
    """Messages between the processes of a group, as JSON over TCP through process 0. For setup, not for tensors.

    Args:
        address: ``"host:port"`` at which process 0 listens and the others connect.
        index: rank of this process, from 0.
        gridsize: number of processes.
        timeout: total time in seconds to wait for the others. Failed connections are tried again until then.

    Raises:
        SetupError: if ``address``, ``index`` or ``gridsize`` is invalid, or process 0 cannot listen there.
        GroupError: if the processes do not meet within ``timeout``, or one belongs to another group.
    """

    def __init__(self, address: str, index: int, gridsize: int, *, timeout: float) -> None:
        host, port = _host_and_port(address)
        for name, value in (("index", index), ("gridsize", gridsize)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise SetupError(f"{name} must be an int; got {value!r}")
        index, gridsize = int(index), int(gridsize)
        if not 0 <= index < gridsize:
            raise SetupError(f"index must be from 0 to {gridsize - 1}, below gridsize; got {index}")
        super().__init__(index, gridsize)
        self._timeout = number("timeout", timeout, 1e-3)
        self._failure: str | None = None
        self._sockets: dict[int, socket.socket] = {}  # process 0: all others; the others: process 0
        began = time.monotonic()
        try:
            if index == 0:
                self._listen(address, host, port, began + timeout)
            else:
                self._connect(host, port, began + timeout)
            self._gather(gridsize, began + timeout)
        except OSError as error:
            missing = [str(other) for other in range(1, gridsize) if index == 0 and other not in self._sockets]
            why = f"process {', '.join(missing)} of {gridsize} has not connected" if missing else f"the last error: {error}"
            self._fail(
                f"process {index} of {gridsize} has not met the others at {address} in {time.monotonic() - began:.1f} s: "
                f"{why}. Start all processes, with an address of process 0 that the others can reach and a port that no "
                f"firewall blocks, or use a longer timeout"
            )
            raise GroupError(self._failure) from error
        except BaseException as error:
            self.fail(error)
            raise

    def _listen(self, address: str, host: str, port: int, deadline: float) -> None:
        """Waits for the hello of every other process. Clients that send nothing, or something else, are ignored."""
        unknown: set[socket.socket] = set()
        with _server(address, host, port, deadline) as server, selectors.DefaultSelector() as selector:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)
            try:
                while not self._are_all_here():
                    for key, _ in selector.select(min(_left(deadline), HOUR)):
                        if key.fileobj is server:
                            with contextlib.suppress(OSError):  # the client may be gone already
                                connection, _ = server.accept()
                                connection.setblocking(False)
                                selector.register(connection, selectors.EVENT_READ, bytearray())
                                unknown.add(connection)
                        elif self._has_said_hello(key.fileobj, key.data, deadline):  # type: ignore[arg-type]
                            selector.unregister(key.fileobj)
                            unknown.discard(key.fileobj)
            finally:
                for stranger in unknown:
                    stranger.close()

    def _are_all_here(self) -> bool:
        """Returns whether every other process is connected. Drops closed connections: their processes connect again."""
        if len(self._sockets) < self.gridsize - 1:
            return False
        for other in [other for other, connection in self._sockets.items() if _is_closed(connection)]:
            self._sockets.pop(other).close()
        return len(self._sockets) == self.gridsize - 1

    def _has_said_hello(self, connection: socket.socket, content: bytearray, deadline: float) -> bool:
        """Reads a part of a hello. Returns True when done: the process was accepted, or the connection was closed.

        A process that has lost its connection may connect again. Two processes with the same index are an error.
        """
        try:
            part = connection.recv(HELLO.size - len(content))
            content += part
            if not part or not _WHO.startswith(content[: len(_WHO)]):
                raise ConnectionError("the client is not from this library")
            if len(content) < HELLO.size:
                return False
            _, index, gridsize = HELLO.unpack(content)
            former = self._sockets.get(index)
            if gridsize != self.gridsize or not 0 < index < gridsize or not (former is None or _is_closed(former)):
                again = " a second time" if gridsize == self.gridsize else ""
                self._sockets[-1] = connection  # so that it gets the message too
                self._fail(f"a process that says it is {index} of {gridsize} came{again} to this group of {self.gridsize}")
                raise GroupError(self._failure)
            _send(connection, ["welcome"], deadline)
            if former is not None:
                former.close()
            self._sockets[index] = connection
        except BlockingIOError:
            return False
        except OSError:
            connection.close()
        return True

    def _connect(self, host: str, port: int, deadline: float) -> None:
        pause = PAUSE
        while True:
            try:
                # looked up in each attempt: a name may be unknown until its machine is up
                for family, kind, protocol, _, there in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                    try:
                        self._sockets[0] = socket.socket(family, kind, protocol)
                        self._enter(there, min(deadline, time.monotonic() + TRY))
                        return
                    except OSError as error:
                        self._drop()
                        last = error
            except socket.gaierror as error:
                last = error
            left = deadline - time.monotonic()
            if left < PAUSE:
                raise last
            time.sleep(min(pause, left - PAUSE / 2))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _enter(self, there: Any, deadline: float) -> None:
        """Sends a hello, and checks by the answer that process 0 of the group is listening there."""
        connection = self._sockets[0]
        connection.settimeout(_left(deadline))
        connection.connect(there)
        if connection.getsockname() == connection.getpeername():
            # the system chose the same port for this end; process 0 needs it: release it without TIME_WAIT
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionError("nothing listens there yet")
        connection.sendall(HELLO.pack(_WHO, self.index, self.gridsize))
        self._receive(0, deadline)

    def allgatherObject(self, value: Any) -> list[Any]:
        if self._failure is not None:
            raise GroupError(self._failure)
        try:
            return self._gather(value, time.monotonic() + self._timeout)
        except OSError as error:
            self.fail(GroupError(f"it has lost the connection to another process: {error}"))
            raise GroupError(self._failure) from error

    def _gather(self, value: Any, deadline: float) -> list[Any]:
        if self.index:
            _send(self._sockets[0], [value], deadline)
            return self._receive(0, deadline)
        values = {0: value}
        with selectors.DefaultSelector() as selector:
            for other, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, other)
            # in order of arrival: a failure is forwarded without waiting for the other processes
            while len(values) < self.gridsize:
                for key, _ in selector.select(min(_left(deadline), HOUR)):
                    values[key.data] = self._receive(key.data, deadline)[0]
                    selector.unregister(key.fileobj)
        found = [values[other] for other in range(self.gridsize)]
        for connection in self._sockets.values():
            _send(connection, found, deadline)
        return found

    def _receive(self, other: int, deadline: float) -> Any:
        found = _receive(self._sockets[other], deadline)
        if isinstance(found, str):  # the failure of another process
            self._fail(found)
            raise GroupError(found)
        return found

    def fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._fail(f"process {self.index} of {self.gridsize} has failed: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        """Sends a failure to the connected processes, without waiting for one that does not read."""
        self._failure = message
        deadline = time.monotonic() + TELL
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):
                _send(connection, message, deadline)
        self._drop()

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._sockets = {}


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    host = host.strip("[]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise SetupError(f"address must be 'host:port', with a port from 1 to 65535; got {address!r}")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise SetupError(f"the host of the address {address!r} cannot be looked up: {error}") from error
    return host, int(port)


def _server(address: str, host: str, port: int, deadline: float) -> socket.socket:
    """Listens at the address. Waits if a former run still holds the port, or the host name is not known yet."""
    held = min(deadline, time.monotonic() + HELD)
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, *_, here = min(found, key=lambda each: each[0] != socket.AF_INET)
            return socket.create_server(here, family=family, backlog=socket.SOMAXCONN)
        except OSError as error:
            if time.monotonic() + PAUSE > (deadline if isinstance(error, socket.gaierror) else held):
                remedy = _CANNOT_LISTEN.get(error.errno or 0, "give every process an address that process 0 can listen at")
                raise SetupError(f"process 0 cannot listen at {address}: {error}: {remedy}") from error
            time.sleep(PAUSE)


def _is_closed(connection: socket.socket) -> bool:
    """Returns whether the other end of an idle connection is gone."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return not isinstance(error, BlockingIOError)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _send(connection: socket.socket, value: Any, deadline: float) -> None:
    content = json.dumps(value).encode()
    connection.settimeout(_left(deadline))
    connection.sendall(_LENGTH.pack(len(content)) + content)


def _receive(connection: socket.socket, deadline: float) -> Any:
    def exactly(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            connection.settimeout(_left(deadline))
            part = connection.recv(min(count - len(content), 1 << 20))
            if not part:
                raise ConnectionError("the connection was closed")
            content += part
        return bytes(content)

    (length,) = _LENGTH.unpack(exactly(_LENGTH.size))
    if length > 1 << 30:
        raise ConnectionError(f"a message of {length} bytes is not from this library")
    try:
        return json.loads(exactly(length))
    except ValueError as error:
        raise ConnectionError(f"a message is not from this library: {error}") from error
