"""Socket wrapper that enforces one deadline for a whole response.

http.client allows each read its own timeout, so a server that sends a byte now and then could hold a reader.
"""

from __future__ import annotations

import io
import socket
import time
from typing import Any


class TimedSocket:
    """Stands where http.client expects a socket. Closing it is left to the owner of the real one.

    + deadline: on time.perf_counter()'s clock; a read that would end later raises TimeoutError
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Raw(self))

    def read_into(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """http.client closes early, while the answer is still being read."""

    def _left(self) -> float:
        left = self._deadline - time.perf_counter()
        if left <= 0:
            raise TimeoutError
        return left


class _Raw(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        super().__init__()
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.read_into(buffer)
