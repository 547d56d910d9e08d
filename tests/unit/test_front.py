"""The front of a service with standby: its units, and the symlink that is changed in one step."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from unit_syntax import directives

from pyinfra_vllm import front as units
from pyinfra_vllm.on_host import __main__ as program
from pyinfra_vllm.on_host.server import front


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


def test_a_socket_that_is_there_and_refuses_does_not_accept(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    assert not front.accepts(path)
    with listening(path) as server:
        assert not front.accepts(path)
        server.listen()
        assert front.accepts(path)
    assert not front.accepts(path)


def test_waiting_ends_when_the_target_of_the_symlink_accepts(tmp_path: Path) -> None:
    awake = tmp_path / "awake"
    waiting = threading.Thread(target=program.main, args=(["front-wait", str(awake)],))
    waiting.start()
    time.sleep(2 * front.PAUSE_S)
    assert waiting.is_alive()
    (tmp_path / "a").mkdir()
    with listening(tmp_path / "a/api.sock") as server:
        front.lead(awake, tmp_path / "a/api.sock")
        server.listen()
        waiting.join(5)
    assert not waiting.is_alive()


def test_front_wait_needs_one_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["front-wait"]) == 2
    assert "one Unix socket" in capsys.readouterr().err


def test_the_symlink_is_there_at_every_moment(tmp_path: Path) -> None:
    awake, seen, over = tmp_path / "awake", set(), threading.Event()
    front.lead(awake, tmp_path / "a/api.sock")

    def look() -> None:
        while not over.is_set():
            seen.add(str(awake.readlink()))

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(2000):
        front.lead(awake, tmp_path / "ab"[number % 2] / "api.sock")
    over.set()
    looking.join()
    assert seen <= {"a/api.sock", "b/api.sock"}
    assert list(tmp_path.iterdir()) == [awake]


def test_a_link_that_a_killed_process_left_half_made_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".awake.partial").symlink_to("old/api.sock")
    front.lead(tmp_path / "awake", tmp_path / "new/api.sock")
    assert str((tmp_path / "awake").readlink()) == "new/api.sock"


@pytest.mark.parametrize(
    ("bind", "address"), [("127.0.0.1", "127.0.0.1:8000"), ("::", "[::]:8000"), ("0.0.0.0", "0.0.0.0:8000")]
)
def test_the_units_say_where_clients_ask(bind: str, address: str) -> None:
    found = units.units("chat", bind, 8000, "vllm", "/srv/pyinfra-vllm")
    assert sorted(found) == ["front.service", "front.socket"]
    listens = directives(found["front.socket"])
    assert ("Socket", "ListenStream", address) in listens
    assert ("Socket", "TriggerLimitIntervalSec", "0") in listens
    proxy = directives(found["front.service"])
    assert ("Service", "User", "vllm") in proxy and ("Service", "PrivateNetwork", "yes") in proxy
    (start,) = [value for _, key, value in proxy if key == "ExecStart"]
    assert start.endswith('"/run/vllm-chat/awake"')


def test_the_proxys_files_are_enough_for_its_connections() -> None:
    text = units.units("chat", "127.0.0.1", 8000, "vllm", "/srv")["front.service"]
    told = {key: value for _, key, value in directives(text)}
    connections = int(told["ExecStart"].partition("--connections-max=")[2].split()[0])
    assert int(told["LimitNOFILE"]) > 6 * connections
