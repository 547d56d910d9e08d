"""The front of a service with standby on a real host: a thousand requests a second while the symlink changes,
a slow start, a missing target, a crash, a full proxy, and the cost of a request. The servers are light.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import serving
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm import front
from pyinfra_vllm.operations.util import archive

pytestmark = pytest.mark.alone  # a thousand requests a second, and the cost of one
PORT, DIRECT = 8000, 9001
RUN, ROOT = "/run/vllm-chat", "/srv/pyinfra-vllm"
MOST_EXPOSED = 20  # tenths, as for the server's own unit
AWAKE = f"{RUN}/awake"
# The part of a server's unit that concerns its front.
SERVER = """
[Service]
Type=exec
User=chat
RuntimeDirectory=vllm-chat/{name}
RuntimeDirectoryMode=0700
UMask=0077
LimitNOFILE=65535
ExecStart=/usr/bin/python3 /srv/front/server.py {name} {run}/{name}/api.sock {start_s} {port}
Restart=always
RestartSec=1
ExecStopPost=-+/bin/sh -c 'case $$(readlink {run}/awake) in {name}/*) \
    systemctl --no-block try-restart vllm-chat-front.service;; esac'
"""
# Has the two servers take turns, by the product's own rename, until its input ends.
TURNS = """
import itertools, select, sys
sys.path[:0] = ["{root}/bin/on-host.pyz"]
from pathlib import Path
from pyinfra_vllm.on_host.server import front
for number in itertools.count(1):
    front.lead(Path("{run}/awake"), Path("{run}", "ab"[number % 2], "api.sock"))
    if select.select([sys.stdin], [], [], {pause_s})[0]:
        sys.exit(print(number))
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    (host,) = lab.add("front")
    serving.send(host, Path(__file__).parent / "front", "/srv/front")
    _write(host, f"{ROOT}/bin/on-host.pyz", archive.archive())
    host.ssh("useradd --system chat")
    for name, text in front.units("chat", "127.0.0.1", PORT, "chat", ROOT).items():
        _write(host, f"/etc/systemd/system/vllm-chat-{name}", text.encode())
    yield host
    lab.remove("front")


def _write(host: Host, path: str, data: bytes) -> None:
    words = [*host.ssh_argv(), f"mkdir -p $(dirname {path}) && cat > {path}"]
    subprocess.run(words, input=data, check=True, timeout=60)


def server(host: Host, name: str, start_s: float = 0, port: int | str = "") -> None:
    text = SERVER.format(name=name, run=RUN, start_s=start_s, port=port)
    _write(host, f"/etc/systemd/system/vllm-chat.{name}.service", text.encode())
    host.ssh(f"systemctl daemon-reload && systemctl restart vllm-chat.{name}.service")


def lead(host: Host, name: str) -> None:
    host.ssh(f"ln -sfn {name}/api.sock {RUN}/.next && mv -T {RUN}/.next {AWAKE}")


def client(host: Host, *words: object) -> subprocess.Popen[str]:
    """A client under way on the host; `result` has what it says at its end."""
    command = "systemd-run --quiet --pipe --wait --property=LimitNOFILE=60000 python3 /srv/front/client.py"
    whole = [*host.ssh_argv(), " ".join([command, *map(str, words)])]
    return subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def result(running: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = running.communicate(timeout=180)
    assert running.returncode == 0
    found = dict(json.loads(output))
    print(json.dumps(found))
    return found


def begin(host: Host, *names: str) -> None:
    """The front with these servers, the first of them awake; nothing of an earlier test runs any more."""
    host.ssh(f"systemctl stop 'vllm-chat*' 2>/dev/null; rm -f {AWAKE}; mkdir -p {RUN}", check=False)
    host.ssh("systemctl daemon-reload; systemctl reset-failed; systemctl start vllm-chat-front.socket")
    for number, name in enumerate(names):
        server(host, name, port="" if number else DIRECT)
    if names:
        lead(host, names[0])


def swaps(host: Host, running: subprocess.Popen[str], pause_s: float) -> int:
    """Has the two servers take turns on the host, by the product's own rename, until the client has ended."""
    code = shlex.quote(TURNS.format(root=ROOT, run=RUN, pause_s=pause_s))
    command = [*host.ssh_argv(), f"python3 -c {code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as turning:
        running.wait(180)
        told, _ = turning.communicate(timeout=60)
    return int(told)


def test_a_thousand_requests_a_second_lose_none_while_the_symlink_changes(host: Host) -> None:
    begin(host, "a", "b")
    assert result(client(host, "hold", PORT, 1, 0))["answered"] == {"a": 1}  # the proxy runs
    running = client(host, "rate", PORT, 1000, 12)
    changed = swaps(host, running, 0.2)
    found = result(running)
    assert found["lost"] == {}
    assert sum(found["answered"].values()) == 12000 and set(found["answered"]) == {"a", "b"}
    assert min(found["answered"].values()) > 3000 and changed > 20
    assert found["per_s"] > 900, "this machine is too slow to tell"


@pytest.mark.full
def test_connections_that_are_kept_lose_none_either(host: Host) -> None:
    begin(host, "a", "b")
    running = client(host, "keep", PORT, 32, 6)
    swaps(host, running, 0.2)
    found = result(running)
    assert found["lost"] == {} and sum(found["answered"].values()) > 1000


@pytest.mark.full
def test_a_stream_stays_where_it_is(host: Host) -> None:
    begin(host, "a", "b")
    ask = f"exec 3<>/dev/tcp/127.0.0.1/{PORT}; printf 'GET /stream HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3"
    words = [*host.ssh_argv(), f'bash -c "{ask}"']
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while running.stdout.readline().strip():
            pass  # its head: a server has it
        lead(host, "b")
        assert running.stdout.read().strip() == 50 * "a"


@pytest.mark.full
def test_clients_of_a_missing_and_slowly_starting_server_wait(host: Host) -> None:
    begin(host)
    running = client(host, "hold", PORT, 300, 0)
    time.sleep(2)
    server(host, "a", start_s=4)  # its socket is there at once, and refuses until it has started
    lead(host, "a")
    found = result(running)
    assert found["answered"] == {"a": 300} and found["lost"] == {}
    assert found["median_s"] > 5


def test_clients_of_a_server_that_crashed_wait_for_its_next_start(host: Host) -> None:
    begin(host)
    server(host, "a", start_s=3)
    lead(host, "a")
    assert result(client(host, "hold", PORT, 1, 0))["answered"] == {"a": 1}
    host.ssh("systemctl kill -s KILL vllm-chat.a.service; sleep 0.5")
    found = result(client(host, "rate", PORT, 50, 2))
    assert found["answered"] == {"a": 100} and found["lost"] == {} and found["longest_s"] > 2


@pytest.mark.full
def test_a_killed_proxy_comes_back_and_new_connections_wait(host: Host) -> None:
    begin(host, "a")
    assert result(client(host, "hold", PORT, 1, 0))["answered"] == {"a": 1}
    for _ in range(10):
        host.ssh("systemctl kill -s KILL vllm-chat-front.service; sleep 0.02")
        assert result(client(host, "hold", PORT, 20, 0))["answered"] == {"a": 20}
    assert host.ssh("systemctl is-active vllm-chat-front.socket").stdout.strip() == "active"


@pytest.mark.full
def test_three_thousand_connections_at_once_are_not_too_many(host: Host) -> None:
    begin(host, "a")
    found = result(client(host, "hold", PORT, 3000, 5))
    assert found["answered"] == {"a": 3000} and found["lost"] == {}


@pytest.mark.full
def test_a_full_proxy_closes_connections_and_so_must_not_be_full(host: Host) -> None:
    """The behaviour of systemd-socket-proxyd that the unit's limit is there for."""
    begin(host, "a")
    path = "/run/systemd/system/vllm-chat-front.service.d/few.conf"
    proxy = f"/usr/lib/systemd/systemd-socket-proxyd --connections-max=20 {AWAKE}"
    _write(host, path, f"[Service]\nExecStart=\nExecStart={proxy}\n".encode())
    host.ssh("systemctl daemon-reload; systemctl restart vllm-chat-front.service")
    found = result(client(host, "hold", PORT, 60, 2))
    host.ssh(f"rm {path}; systemctl daemon-reload; systemctl restart vllm-chat-front.service")
    assert 20 <= found["answered"]["a"] <= 22 and sum(found["lost"].values()) == 60 - found["answered"]["a"]


@pytest.mark.full
def test_what_a_request_costs(host: Host) -> None:
    """The same server asked at its own port, as today, and by way of the front."""
    begin(host, "a")
    found = result(client(host, "cost", 3000, DIRECT, PORT))
    direct, fronted = found[str(DIRECT)], found[str(PORT)]
    print({kind: fronted[kind] - direct[kind] for kind in direct})
    assert fronted["kept_us"] - direct["kept_us"] < 100
    assert fronted["fresh_us"] - direct["fresh_us"] < 300


def test_the_proxy_can_do_little_else(host: Host) -> None:
    begin(host, "a")
    host.ssh("systemctl start vllm-chat-front.service")
    found = host.ssh("systemd-analyze security --no-pager vllm-chat-front.service", check=False).stdout
    print(found.splitlines()[-1])
    exposed = float(
        found.splitlines()[-1].split("exposure level for vllm-chat-front.service: ")[1].split()[0]
    )
    assert exposed * 10 <= MOST_EXPOSED
