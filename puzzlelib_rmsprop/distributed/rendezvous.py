"""Where processes meet without MPI: process 0 listens at an address, and small messages go through it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from typing import Any

from ..errors import GroupError, SetupError
from .nodeinfo import NodeInfo

__all__ = ["Rendezvous"]

HELLO = 5.0  # seconds for a process to say who it is
_HELLO = "puzzlelib_rmsprop group"


class Rendezvous(NodeInfo):
    """Messages between the processes of a group, as JSON over TCP through process 0. For setting up, not for tensors.

    Args:
        address: ``"host:port"`` where process 0 listens, and the others find it.
        index, gridsize: this process's number, and how many there are.
        timeout: seconds that the others are waited for.

    Raises:
        SetupError: the address or a number is none.
        GroupError: the processes do not meet within ``timeout``.
    """

    def __init__(self, address: str, index: int, gridsize: int, *, timeout: float) -> None:
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdigit()):
            raise SetupError(f"address must be 'host:port'; got {address!r}")
        if not 0 <= index < gridsize:
            raise SetupError(f"index must be from 0 to {gridsize - 1}, below gridsize; got {index}")
        super().__init__(index, gridsize)
        self._timeout = timeout
        self._failure: str | None = None
        self._sockets: dict[int, socket.socket] = {}  # process 0: all others; the others: process 0
        deadline = time.monotonic() + timeout
        try:
            if index == 0:
                self._listen(host.strip("[]"), int(port), deadline)
            else:
                self._sockets[0] = self._connect(host.strip("[]"), int(port), deadline)
                self._send(0, [_HELLO, index, gridsize])
            self.allgatherObject(gridsize)
        except OSError as error:
            self._drop()
            raise GroupError(
                f"process {index} of {gridsize} has not met the others at {address} within {timeout:g} s: {error}"
            ) from error

    def _listen(self, host: str, port: int, deadline: float) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=self.gridsize) as server:
            while len(self._sockets) < self.gridsize - 1:
                server.settimeout(_left(deadline))
                connection, _ = server.accept()
                connection.settimeout(min(_left(deadline), HELLO))
                try:
                    hello, index, gridsize = _receive(connection)
                except (OSError, ValueError, TypeError):
                    connection.close()  # something else that knocked at this port
                    continue
                if hello != _HELLO or gridsize != self.gridsize or not 0 < index < gridsize or index in self._sockets:
                    connection.close()
                    raise GroupError(
                        f"a process that says it is {index} of {gridsize} came to this group of {self.gridsize}"
                    )
                self._sockets[index] = connection

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        while True:
            try:
                return socket.create_connection((host, port), timeout=_left(deadline))
            except (ConnectionRefusedError, socket.gaierror):  # process 0 is not up yet
                if time.monotonic() + 0.05 > deadline:
                    raise
                time.sleep(0.05)

    def _send(self, to: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self._sockets[to].settimeout(self._timeout)
        self._sockets[to].sendall(struct.pack("=Q", len(content)) + content)

    def allgatherObject(self, value: Any) -> list[Any]:
        if self._failure is not None:
            raise GroupError(self._failure)
        try:
            if self.index:
                self._send(0, [value])
                return self._receive(0)
            values = [value, *(self._receive(other)[0] for other in range(1, self.gridsize))]
            for other in self._sockets:
                self._send(other, values)
            return values
        except OSError as error:
            self.fail(GroupError(f"it has lost another: {error}"))
            raise GroupError(self._failure) from error

    def _receive(self, other: int) -> Any:
        self._sockets[other].settimeout(self._timeout)
        found = _receive(self._sockets[other])
        if isinstance(found, str):  # what another process has failed of
            self._fail(found)
            raise GroupError(found)
        return found

    def fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._fail(f"process {self.index} of {self.gridsize} has failed: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        """Tells those that this process talks to."""
        self._failure = message
        for other in self._sockets:
            with contextlib.suppress(OSError):
                self._send(other, message)
        self._drop()

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._sockets = {}


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _receive(connection: socket.socket) -> Any:
    def exactly(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            part = connection.recv(min(count - len(content), 1 << 20))
            if not part:
                raise ConnectionError("the connection was closed")
            content += part
        return bytes(content)

    (length,) = struct.unpack("=Q", exactly(8))
    if length > 1 << 30:
        raise ConnectionError(f"a message of {length} bytes is none of this library's")
    return json.loads(exactly(length))
