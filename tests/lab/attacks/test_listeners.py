"""Somebody else listens on the service's port, and would be asked, measured and given the key
in its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .people import KEY, MALLORY, PORT, ROOT, UNIT, Attacked

pytestmark = pytest.mark.full

# Listens as soon as the address is free, in a thread that has descriptors of its own; answers as a server
# would.
LISTENER = """
import ctypes, socket, sys, threading, time
family, address, port, seconds = getattr(socket, sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def listen():
    if "hidden" in sys.argv:
        assert ctypes.CDLL(None).unshare(0x400) == 0
    while True:
        server = socket.socket(family)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            server.bind((address, port))
            server.listen(64)
            break
        except OSError:
            server.close()
            time.sleep(0.001)
    print("listens")
    server.settimeout(0.5)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            peer, _ = server.accept()
            print("was asked", peer.recv(65536))
            event = b'data: {"id": "x", "choices": [{"index": 0, "text": "one "}]}\\n\\n'
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\n\\r\\n" + event * 128 + b"data: [DONE]\\n\\n")
            peer.close()
        except OSError:
            pass
thread = threading.Thread(target=listen)
thread.start()
thread.join()
"""  # noqa: E501
KINDS = {
    "in sight": ("AF_INET", "127.0.0.1", "600"),
    "hidden": ("AF_INET", "127.0.0.1", "600", "hidden"),
    "at every address": ("AF_INET", "0.0.0.0", "600", "hidden"),
    "at another address": ("AF_INET", "127.0.0.2", "600", "hidden"),
    "in IPv6": ("AF_INET6", "::", "600", "hidden"),
}
FOREIGN_LISTENERS = (
    "from pyinfra_vllm.on_host.server import sockets\n"
    f"print(json.dumps(sockets.foreign_listeners({PORT}, '{UNIT}')))"
)
WITHOUT_SOCK_DIAG = FOREIGN_LISTENERS.replace("\n", "\ndef no(*_): raise OSError\nsockets._asked = no\n", 1)


@pytest.fixture(params=[FOREIGN_LISTENERS, WITHOUT_SOCK_DIAG], ids=["sock_diag", "proc"])
def listening(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stopped(serving: Attacked) -> Iterator[Attacked]:
    serving.sh(f"systemctl stop {UNIT}")
    yield serving
    serving.sh(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")


def words(kind: str) -> tuple[str, ...]:
    family, address, seconds, *hidden = KINDS[kind]
    return (family, address, str(PORT), seconds, *hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_listener_while_the_unit_is_stopped_is_foreign(stopped: Attacked, listening: str, kind: str) -> None:
    with stopped.running("listener", LISTENER, *words(kind), wait_for="listens"):
        assert len(stopped.on_host(listening)) == 1


@pytest.mark.parametrize("user", [MALLORY, "vllm"])
def test_listener_beside_the_unit_is_foreign_and_its_own_is_not(
    serving: Attacked, listening: str, user: str
) -> None:
    assert serving.on_host(listening) == []
    with serving.running("listener", LISTENER, *words("at another address"), user=user, wait_for="listens"):
        assert len(serving.on_host(listening)) == 1
    assert serving.on_host(listening) == []


@pytest.mark.parametrize("user", [MALLORY, "vllm"])
def test_a_control_group_with_the_units_name_elsewhere_is_not_the_units(
    stopped: Attacked, listening: str, user: str
) -> None:
    """As a user's own systemd makes it for a unit of that name."""
    with stopped.running("listener", LISTENER, *words("in sight"), user=user, wait_for="listens"):
        move = (
            "for top in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do"
            f" group=$top/user.slice/{UNIT}; test -e $top/cgroup.procs && mkdir -p $group && systemctl show"
            " -P MainPID attack-listener > $group/cgroup.procs; done; true"
        )
        stopped.sh(move)
        assert UNIT in stopped.sh("cat /proc/$(systemctl show -P MainPID attack-listener)/cgroup")
        assert len(stopped.on_host(listening)) == 1


def test_who_takes_the_port_between_stop_and_start_is_neither_kept_nor_given_the_key(
    serving: Attacked,
) -> None:
    old = serving.status()["current"]
    family, address, _, *hidden = KINDS["hidden"]
    with serving.running("taker", LISTENER, family, address, str(PORT), "6", *hidden) as said:
        done = serving.deploy("b")
        told = serving.sh(f"cat {said}")
    assert "listens" in told, "the port was never free: this shows nothing"
    assert "was asked" not in told and KEY not in told
    assert done.returncode == 1
    assert serving.outcome()[0] == "rolled_back", serving.outcome()
    assert serving.status()["running"] == old
    assert serving.sh(f"python3 -I {ROOT}/bin/on-host.pyz recover tiny; echo $?") == "0"
