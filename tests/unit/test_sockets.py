"""A program on the service's port that is not the service is found and named; the kernel says whose a socket
is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.openai.client import Client, Refused
from pyinfra_vllm.on_host.server import sockets, systemd

UNIT = "vllm-chat.service"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Systemd's account of the unit: that it is this very process, until a test changes it."""
    own = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if "name=systemd" in line or line.startswith("0::")
    )
    shown = {"ControlGroup": own.split(":", 2)[2], "UID": str(os.getuid()), "MainPID": str(os.getpid())}
    monkeypatch.setattr(systemd, "show", lambda unit, *properties: shown)
    return shown


def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.fixture(params=["sock_diag", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of asking the kernel."""

    def nothing(port: int, family: int) -> Iterator[sockets.Listener]:
        raise OSError("no such kernel module")

    if request.param == "proc":
        monkeypatch.setattr(sockets, "_asked", nothing)


@pytest.mark.usefixtures("way")
def test_listener_of_another_user_or_control_group_is_foreign(
    server: socket.socket, unit: dict[str, str]
) -> None:
    unit["ControlGroup"] = f"/user.slice/{UNIT}"
    (found,) = sockets.foreign_listeners(port(server), UNIT)
    assert found.endswith(f"(process {os.getpid()})")
    unit["ControlGroup"] = ""
    assert len(sockets.foreign_listeners(port(server), UNIT)) == 1


@pytest.mark.usefixtures("way")
def test_the_units_own_listener_is_none_but_for_another_user(
    server: socket.socket, unit: dict[str, str]
) -> None:
    assert sockets.foreign_listeners(port(server), UNIT) == []
    unit["UID"] = "12345"
    assert len(sockets.foreign_listeners(port(server), UNIT)) == 1


@pytest.mark.usefixtures("unit", "way")
def test_nobody_listens_on_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = port(server)
    assert sockets.listeners(number) == frozenset()
    assert sockets.foreign_listeners(number, UNIT) == []


@pytest.mark.usefixtures("way")
def test_a_client_of_the_port_is_no_listener(unit: dict[str, str]) -> None:
    unit["UID"] = "12345"
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
        socket.create_connection(("::1", port(server))) as client,
    ):
        assert sockets.foreign_listeners(client.getsockname()[1], UNIT) == []
        assert len(sockets.foreign_listeners(port(server), UNIT)) == 1


def test_socket_without_a_known_process_is_foreign(
    unit: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = sockets.Listener(inode=1, user=os.getuid())
    assert sockets.foreign_listeners(1, UNIT, [hidden]) == [], "it is gone already"
    monkeypatch.setattr(sockets, "listeners", lambda port: frozenset([hidden]))
    assert sockets.foreign_listeners(1, UNIT, [hidden]) == [
        f"a hidden program of the user with the number {os.getuid()}"
    ]


def test_a_control_group_is_its_own_and_what_is_below_it() -> None:
    assert sockets._below("/system.slice/a.service", "/system.slice/a.service")
    assert sockets._below("/system.slice/a.service/worker", "/system.slice/a.service")
    assert not sockets._below("/system.slice/a.service2", "/system.slice/a.service")
    assert not sockets._below("/user.slice/system.slice/a.service", "/system.slice/a.service")


def test_nothing_is_sent_where_the_server_was_replaced_meanwhile(server: socket.socket) -> None:
    answers = iter([1, 2])
    client = Client(
        f"http://127.0.0.1:{port(server)}", "m", api_key="hunter2", listener=lambda: next(answers)
    )
    with pytest.raises(Refused, match="was replaced"):
        client.get("/health", 5)
    taken, _ = server.accept()
    with taken:
        taken.settimeout(5)
        assert taken.recv(1000) == b""


def test_no_request_is_sent_to_a_foreign_listener(server: socket.socket) -> None:
    def strange() -> None:
        raise Refused("held by another program")

    with pytest.raises(Refused, match="another program"):
        Client(f"http://127.0.0.1:{port(server)}", "m", api_key="hunter2", listener=strange).get("/health", 5)


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(tmp_path: Path) -> None:
    """The front's socket is systemd's own, which opens and closes others all the time."""
    (tmp_path / "fd").mkdir()
    for number in range(3, 40):
        (tmp_path / "fd" / str(number)).touch()  # no link any more when it is read
    assert not sockets._holds(tmp_path, sockets.Listener(7, 0))
    (tmp_path / "fd" / "40").symlink_to("socket:[7]")
    assert sockets._holds(tmp_path, sockets.Listener(7, 0))
    assert not sockets._holds(tmp_path / "gone", sockets.Listener(7, 0))
