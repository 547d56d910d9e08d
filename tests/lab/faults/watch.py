"""Asks a host's server for tokens all the time, from a thread that lives in the host's network namespace."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# The one question that the lab's real models answer for sure; the stub's answer tells its checkpoint.
QUESTION = "What is the capital of Japan?"
EVERY_S = 0.2
ANSWER_S = 2.0
_NEW_NET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Watch:
    """What was heard when: (monotonic seconds, the tokens' text or None where there were none)."""

    leader: Callable[[], int | None]
    port: int = 8000
    model: str = "tiny"
    heard: list[tuple[float, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def hear(self, timeout: float) -> str | None:
        """The first answer from now on; None where none comes in time."""
        began = len(self.heard)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            answers = [text for _, text in self.heard[began:] if text is not None]
            if answers:
                return answers[-1]
            time.sleep(EVERY_S)
        return None

    def gaps(self, since: float, until: float) -> list[tuple[float, float]]:
        """Stretches without an answer between two moments: each from the last answer to the next."""
        found, last, quiet = [], since, False
        for at, text in [item for item in list(self.heard) if since <= item[0] <= until]:
            if text is None:
                quiet = True
                continue
            if quiet:
                found.append((last, at))
            last, quiet = at, False
        return [*found, (last, until)] if quiet else found

    def _listen(self) -> None:
        inside: str | None = None
        while not self._stop.is_set():
            there = _network(self.leader())  # a booting host's first process is in ours for a moment
            if there != inside:
                inside = there if there is not None and _enter(self.leader()) else None
            answer = self.ask() if inside is not None else None
            self.heard.append((time.monotonic(), answer))
            self._stop.wait(EVERY_S)

    def ask(self) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 3,
            "temperature": 0,
        }
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = json.loads(connection.getresponse().read())
            return str(answer["choices"][0]["message"]["content"]).strip() or None
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        finally:
            connection.close()


def _network(leader: int | None) -> str | None:
    """The network that a process is in, by its name in the kernel; None where there is no such process."""
    try:
        return str(Path(f"/proc/{leader}/ns/net").readlink())
    except OSError:
        return None


def _enter(leader: int | None) -> bool:
    """Move this thread, and no other, into the host's network."""
    try:
        descriptor = os.open(f"/proc/{leader}/ns/net", os.O_RDONLY)
    except OSError:
        return False
    try:
        return bool(_libc.setns(descriptor, _NEW_NET) == 0)
    finally:
        os.close(descriptor)
