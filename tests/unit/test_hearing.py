"""How much a host may say: real channels of paramiko would block, so these are read as theirs are."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pyinfra_vllm import hearing
from pyinfra_vllm.hearing import TooMuch


class Channel:
    """The pieces that a host sends on both streams, until it was closed."""

    def __init__(self, out: Iterator[bytes], err: Iterable[bytes] = (), ends: bool = True) -> None:
        self.streams = {"out": out, "err": iter(err)}
        self.closed = False
        self.status_event = threading.Event()
        if ends:
            self.status_event.set()
        self.channel = self

    def recv(self, count: int) -> bytes:
        return self._next("out")

    def recv_stderr(self, count: int) -> bytes:
        return self._next("err")

    def _next(self, name: str) -> bytes:
        gevent.sleep(0)
        return b"" if self.closed else next(self.streams[name], b"")

    def close(self) -> None:
        self.closed = True


def heard(channel: Any, timeout: int | None = None) -> Any:
    return hearing._read_bounded(channel, channel, timeout, False, "")


def test_lines_come_whole_from_whatever_pieces() -> None:
    said = heard(Channel(iter([b"on", b"e\ntw", b"o\nthree"]), iter([b"oh\n"])))
    assert said.stdout_lines == ["one", "two", "three"]
    assert said.stderr_lines == ["oh"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert heard(Channel(iter([b"\xff\xfe\n"]))).stdout_lines == ["\ufffd\ufffd"]


@pytest.mark.thorough
@pytest.mark.parametrize("piece", [b"x" * 65536, b"\n" * 65536, b"\x00" * 65536])
@pytest.mark.parametrize("stream", ["out", "err"])
def test_an_answer_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, piece: bytes, stream: str
) -> None:
    monkeypatch.setattr(hearing, "MOST_BYTES", 1 << 20)
    endless = itertools.repeat(piece)
    channel = Channel(endless) if stream == "out" else Channel(iter(()), endless)
    with pytest.raises(TooMuch, match="and was given up"):
        heard(channel)
    assert channel.closed


@pytest.mark.thorough
def test_trickling_output_ends_at_the_time_limit() -> None:
    def drip() -> Iterator[bytes]:
        while True:
            gevent.sleep(0.05)
            yield b"."

    channel = Channel(drip())
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        heard(channel, timeout=1)
    assert channel.closed and time.monotonic() - began < 3


def test_an_exit_status_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "EXIT_S", 0.1)
    channel = Channel(iter([b"done\n"]), ends=False)
    with pytest.raises(TimeoutError, match="no exit status"):
        heard(channel)
    assert channel.closed


def test_a_connection_that_is_lost_is_an_error() -> None:
    def cut() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("reset by peer")

    with pytest.raises(ConnectionResetError):
        heard(Channel(cut()))


@pytest.mark.thorough
def test_a_host_that_speaks_no_ssh_is_one_line_and_does_not_steer_the_terminal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\x1b[2J\x1b]0;owned\x07\r\n" * 3)

        answering = threading.Thread(target=answer)
        answering.start()
        data = {"ssh_hostname": "127.0.0.1", "ssh_port": server.getsockname()[1]}
        (tmp_path / "hosts.py").write_text(f"away = [('gpu-1', {data!r})]\n")
        program = Path(sys.executable).parent / "pyinfra-vllm"
        told = subprocess.run(
            [program, "status", "hosts.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        answering.join()
    assert told.returncode == 1 and "not reached: SSH error" in told.stdout
    assert "Traceback" not in told.stderr and "\x1b" not in told.stdout + told.stderr
