"""The control socket from the host's side, against the middleware itself."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyinfra_vllm.in_runtime import standby
from pyinfra_vllm.on_host.server import control as control_socket
from pyinfra_vllm.on_host.server.control import Control, Mute, Refused
from pyinfra_vllm.on_host.state import cgroup

UNIT = "vllm-chat.0a1b2c3d4e5f.service"


class Engine:
    """Sleeps at once."""

    asleep = False

    async def sleep(self, level: int, mode: str) -> None:
        self.asleep = True

    async def wake_up(self) -> None:
        self.asleep = False

    async def is_sleeping(self) -> bool:
        return self.asleep


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A server's middleware in another thread, and the host's side of its socket."""
    path = tmp_path / "control.sock"
    monkeypatch.setenv(standby.CONTROL, str(path))
    monkeypatch.setattr(standby, "ROOT", os.getuid())
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT if process.name == str(os.getpid()) else None)
    ready, over = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.01)

    def serve() -> None:
        scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(engine_client=Engine()))}
        asyncio.run(standby.Standby(app)(scope, app, app))  # type: ignore[arg-type]

    serving = threading.Thread(target=serve)
    serving.start()
    ready.wait(5)
    yield Control(path, UNIT)
    over.set()
    serving.join()


def test_a_server_is_told_to_sleep_and_to_wake(control: Control) -> None:
    assert (control.state().state, control.state().slept) == ("serving", False)
    slept = control.tell("sleep", limit_s=5)
    assert (slept.state, slept.held, slept.in_flight, slept.relay) == ("asleep", 0, 0, "")
    assert control.tell("relay", to="/b/api.sock").relay == "/b/api.sock"
    woken = control.tell("wake", limit_s=5)
    assert woken.state == "awake" and len(woken.key) == 32
    served = control.tell("serve")
    assert (served.state, served.slept) == ("serving", True)


def test_refusal_carries_the_servers_reason(control: Control) -> None:
    with pytest.raises(Refused, match="the server is serving"):
        control.tell("relay", to="/b")


def test_listener_of_another_unit_is_refused(control: Control) -> None:
    with pytest.raises(Mute, match=r"control.sock belongs to vllm-chat.*, not to vllm-other.service"):
        Control(control.path, "vllm-other.service").tell("sleep")
    assert control.state().state == "serving"


@contextmanager
def answering(path: Path, answer: bytes, pause_s: float = 0.0) -> Iterator[Control]:
    """The socket of a server of the unit that answers each command so.

    + pause_s: after each byte
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def say() -> None:
            while True:
                connected, _ = server.accept()
                with connected, suppress(OSError):  # whoever asked may have gone
                    if not connected.recv(1000):
                        return
                    for place in range(len(answer)) if pause_s else ():
                        connected.sendall(answer[place : place + 1])
                        time.sleep(pause_s)
                    connected.sendall(b"" if pause_s else answer)

        saying = threading.Thread(target=say)
        saying.start()
        try:
            yield Control(path, UNIT)
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            saying.join()


def told(**other: object) -> bytes:
    """A server's answer, but for these of its words."""
    words = {"ok": True, "state": "serving", "in_flight": 0, "held": 0, "relay": "", "pass": "x", **other}
    return json.dumps(words).encode() + b"\n"


DAMAGED = [
    b"", b"{}\n", b"[]\n", b"\xff\n", b'{"ok": true}\n', b"x" * (1 << 17), b"[" * 60_000 + b"\n",
    told(in_flight=math.inf), told(held=math.nan), told(state="down"), told(state=["serving"]),
]  # fmt: skip


@pytest.mark.parametrize("answer", [*DAMAGED, b'{"ok": false, "error": "no"}\n'])
def test_damaged_answer_is_mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT)
    with answering(tmp_path / "control.sock", answer) as control, pytest.raises(Mute):
        control.state()


def test_a_server_of_an_older_release_does_not_say_whether_it_has_slept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT)
    old = b'{"ok": true, "state": "serving", "in_flight": 0, "held": 0, "relay": "", "pass": "x"}\n'
    with answering(tmp_path / "control.sock", old) as control:
        assert control.state().slept


@pytest.mark.parametrize("answer", DAMAGED)
def test_damaged_answer_to_a_command_is_mute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT)
    with answering(tmp_path / "control.sock", answer) as control, pytest.raises(Mute):
        control.tell("serve")


@pytest.mark.parametrize("answer", [*DAMAGED, b'{"ok": false, "error": "no"}\n'])
def test_no_answer_keeps_a_server_from_being_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT)
    with answering(tmp_path / "control.sock", answer) as control:
        control.end()


def test_an_answer_has_one_limit_however_its_bytes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "unit_of", lambda process: UNIT)
    monkeypatch.setattr(control_socket, "ASK_S", 0.2)
    with answering(tmp_path / "control.sock", b" " * 40, pause_s=0.05) as control:
        for ask in (control.state, control.end):
            began = time.monotonic()
            with suppress(Mute):
                ask()
            assert time.monotonic() - began < 1


def test_missing_socket_is_mute(tmp_path: Path) -> None:
    with pytest.raises(Mute, match="No such file"):
        Control(tmp_path / "control.sock", UNIT).state()
