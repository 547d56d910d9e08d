"""Watches a server on a host from inside the host's network: whether it answers, and how fast it serves."""

from __future__ import annotations

import ctypes
import http.client
import itertools
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.machine import Host
from lab.shell import LabError

EVERY_S, ANSWER_S = 0.2, 2.0
LOAD_TOKENS = 64  # of each answer
PATIENCE_S = 300.0  # of a client: as long as the front lets it wait
_NEW_NET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def enter(host: Host) -> None:
    """Move this thread, and no other, into the host's network."""
    descriptor = os.open(f"/proc/{host.leader()}/ns/net", os.O_RDONLY)
    try:
        if _libc.setns(descriptor, _NEW_NET) != 0:
            raise LabError(f"{host.name}: its network can't be entered: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


class Watch:
    """Something that goes on in a thread of its own from `begin` to `end`."""

    ending_s = 30.0  # at most, from `end` on

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(self.ending_s)

    def _go_on(self) -> None:
        raise NotImplementedError


@dataclass
class Pulse(Watch):
    """When the server was healthy: asking costs the GPU nothing, so that what is measured stays
    what it is.
    """

    host: Host
    port: int
    heard: list[tuple[float, bool]] = field(default_factory=list)  # time.monotonic(), whether it answered 200

    def silent_s(self, since: float, until: float) -> float:
        """Seconds without a healthy server between two moments: each from the last answer to the next."""
        silent, last, quiet = 0.0, since, False
        for at, healthy in [item for item in list(self.heard) if since <= item[0] <= until]:
            if healthy:
                silent += at - last if quiet else 0.0
                last = at
            quiet = not healthy
        return silent + (until - last if quiet else 0.0)

    def _go_on(self) -> None:
        enter(self.host)
        while not self._stop.is_set():
            healthy = self._healthy()
            self.heard.append((time.monotonic(), healthy))
            self._stop.wait(EVERY_S)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass
class GpuMemory(Watch):
    """MiB in use on the host's GPUs together, asked once a second."""

    host: Host
    used: list[int] = field(default_factory=list)

    def _go_on(self) -> None:
        while not self._stop.wait(1.0):
            asked = self.host.ssh(
                "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits", check=False
            )
            if asked.returncode == 0:
                self.used.append(sum(map(int, asked.stdout.split())))


@dataclass
class Load(Watch):
    """One stream of requests, one after another; (when it ended, how long it took) of each, None for a failed
    one.
    """

    host: Host
    port: int
    model: str
    done: list[tuple[float, float | None]] = field(default_factory=list)

    def told(self, since: float, until: float) -> dict[str, Any]:
        return {
            "tokens_per_s": round(self.tokens_per_s(since, until), 1),
            "longest_s": round(self.longest_s(since, until), 3),
            "failed": self.failed(since, until),
        }

    def tokens_per_s(self, since: float, until: float) -> float:
        """The median answer's rate of those that ended in between."""
        took = sorted(s for at, s in self.done if since <= at <= until and s is not None)
        return LOAD_TOKENS / took[len(took) // 2] if took else 0.0

    def longest_s(self, since: float, until: float) -> float:
        return max((s for at, s in self.done if since <= at <= until and s is not None), default=0.0)

    def failed(self, since: float, until: float) -> int:
        return sum(1 for at, s in self.done if since <= at <= until and s is None)

    def _go_on(self) -> None:
        enter(self.host)
        while not self._stop.is_set():
            begun = time.monotonic()
            took = time.monotonic() - begun if self._answered() else None
            self.done.append((time.monotonic(), took))

    def _answered(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"model": self.model, "prompt": "t5 t6 t7", "max_tokens": LOAD_TOKENS, "ignore_eos": True}
        try:
            words = json.dumps({**body, "temperature": 0})
            connection.request("POST", "/v1/completions", words, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            return bool(answer["usage"]["completion_tokens"] == LOAD_TOKENS)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            time.sleep(0.1)
            return False
        finally:
            connection.close()


@dataclass
class Clients(Watch):
    """Ten clients a second, each of whom asks for one token on a connection of its own, and waits for it."""

    ending_s = 2 * PATIENCE_S  # whoever has asked is answered

    host: Host
    port: int
    model: str
    answered: list[float] = field(default_factory=list)  # time.time() of each
    refused: list[str] = field(default_factory=list)  # why a client got no token

    def longest_gap_s(self, since: float, until: float) -> float:
        """Seconds in which no token came."""
        heard = [since, *sorted(at for at in list(self.answered) if since < at < until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(heard))

    def _go_on(self) -> None:
        enter(self.host)  # and so do the threads that are begun in here
        asking: list[threading.Thread] = []
        while not self._stop.wait(0.1):
            asking.append(threading.Thread(target=self._ask, daemon=True))
            asking[-1].start()
        for each in asking:
            each.join(PATIENCE_S)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        words = json.dumps({"model": self.model, "prompt": "t5 t6 t7", "max_tokens": 1})
        try:
            connection.request("POST", "/v1/completions", words, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status == 200:
                self.answered.append(time.time())
            else:
                self.refused.append(f"{response.status}: {answer[:80]!r}")
        except (OSError, http.client.HTTPException) as error:
            self.refused.append(repr(error))
        finally:
            connection.close()


@dataclass
class HostMemory(Watch):
    """The most of this machine's memory in use, in MiB, by one look a second."""

    def __post_init__(self) -> None:
        self.before = self.most = self._used()
        super().__post_init__()

    def _go_on(self) -> None:
        while not self._stop.wait(1.0):
            self.most = max(self.most, self._used())

    @staticmethod
    def _used() -> int:
        """Total less available: a machine whose memory grows has more of both."""
        lines = (line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        told = {name: int(value.split()[0]) for name, value in lines}
        return (told["MemTotal"] - told["MemAvailable"]) >> 10
