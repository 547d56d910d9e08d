"""Commands a server that can sleep, on its control socket; the other end is in_runtime/standby.py.

Believes an answer only where the kernel shows that the listener belongs to the server's own unit. A server
that was taken over may answer anything, or nothing, or one byte now and then: all of it is `Mute`.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..openai.timed_socket import TimedSocket
from ..state.values import shown
from . import sockets

SERVING, ASLEEP = "serving", "asleep"
STATES = (SERVING, "draining", ASLEEP, "awake", "failed")  # in_runtime/standby.py's own words
ASK_S = 10.0
MARGIN_S = 10.0  # beyond the server's own limits, of which a sleep has three
LARGEST = 1 << 16


class Mute(Exception):
    """No answer in time, none that can be read, or the listener is not the service's own server."""


class Refused(Exception):
    """The server refused the command; the message has its reason."""


@dataclass(frozen=True)
class State:
    """A server's answer on its control socket, with the pass for requests that go before its clients' own.

    slept: whether it has slept since its start
    """

    state: str
    slept: bool
    in_flight: int
    held: int
    relay: str
    key: str


class Control:
    """One server's control socket."""

    def __init__(self, path: Path, unit: str) -> None:
        self.path = path
        self.unit = unit

    def state(self) -> State:
        """Raises Mute."""
        try:
            return self._tell({"do": "state"}, ASK_S)
        except Refused as answer:
            raise Mute(f"{self.path} does not say its state: {answer}") from answer

    def tell(self, do: str, limit_s: float = ASK_S, **words: Any) -> State:
        """Have it done, and return what the server is then. Raises Mute or Refused."""
        limits = {"limit_s": limit_s} if do in ("sleep", "wake") else {}
        return self._tell({"do": do, **limits, **words}, 3 * limit_s + MARGIN_S)

    def end(self) -> None:
        """Before a stop, have nobody wait for it any more; it is stopped whatever it answers."""
        with suppress(Mute, Refused):
            self._tell({"do": "end"}, ASK_S)

    def _tell(self, words: dict[str, Any], timeout_s: float) -> State:
        """Ask and read the answer.

        + timeout_s: from connecting to the answer's last byte
        """
        deadline = time.perf_counter() + timeout_s
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                asking.settimeout(timeout_s)
                asking.connect(str(self.path))
                self._no_foreign_listener(asking)
                timed = TimedSocket(asking, deadline)
                timed.sendall(json.dumps(words).encode() + b"\n")
                with timed.makefile("rb") as answer:
                    return _read(answer.readline(LARGEST))
        except (Mute, Refused):
            raise
        except Exception as error:  # infinite numbers and deep lists raise others than ValueError
            raise Mute(f"{self.path}: {str(error) or type(error).__name__}") from error

    def _no_foreign_listener(self, asking: socket.socket) -> None:
        found = sockets.unit_behind(asking)
        if found != self.unit:
            raise Mute(f"{self.path} belongs to {found or 'no unit'}, not to {self.unit}")


def _read(line: bytes) -> State:
    answer = json.loads(line)
    if not answer["ok"]:
        raise Refused(shown(answer["error"]))
    if answer["state"] not in STATES:
        raise ValueError(f"{shown(answer['state'])} is no state of a server")
    return State(
        answer["state"],
        bool(answer.get("slept", True)),  # a release that was built before does not say
        int(answer["in_flight"]),
        int(answer["held"]),
        str(answer["relay"]),
        str(answer["pass"]),
    )
