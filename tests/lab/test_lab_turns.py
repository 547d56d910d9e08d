"""Two light servers of one card take turns behind the front, by the product's own program, whatever breaks.

The card is a number: a server starts, serves and wakes only where there is room (front/sleeper.py), so two
that hold memory at once are seen.
"""

from __future__ import annotations

import inspect
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
from pyinfra_vllm.in_runtime import standby
from pyinfra_vllm.operations.util import archive

pytestmark = pytest.mark.full

PORT, RUN, ROOT = 8000, "/run/vllm-chat", "/srv/pyinfra-vllm"
SERVER = """
[Unit]
StartLimitIntervalSec=0
[Service]
Type=exec
User=chat
RuntimeDirectory=vllm-chat/{name}
RuntimeDirectoryMode=0700
UMask=0077
LimitNOFILE=65535
Environment=PYTHONPATH=/srv/standby {control}={run}/{name}/control.sock
ExecStart=/usr/bin/python3 /srv/front/sleeper.py {name} {run}/{name}
Restart=always
RestartSec=1
TimeoutStopSec=5
ExecStopPost=-+/bin/sh -c 'case $$(readlink {run}/awake) in {name}/*) \\
    systemctl --no-block try-restart vllm-chat-front.service;; esac'
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    (host,) = lab.add("turns")
    serving.send(host, Path(__file__).parent / "front", "/srv/front")
    write(host, f"{ROOT}/bin/on-host.pyz", archive.archive())
    write(host, "/srv/standby/pyinfra_vllm_standby.py", inspect.getsource(standby).encode())
    host.ssh("useradd --system chat")
    for name, text in front.units("chat", "127.0.0.1", PORT, "chat", ROOT).items():
        write(host, f"/etc/systemd/system/vllm-chat-{name}", text.encode())
    for name in "ab":
        text = SERVER.format(name=name, run=RUN, control=standby.CONTROL)
        write(host, f"/etc/systemd/system/vllm-chat.{name}.service", text.encode())
    host.ssh("systemctl daemon-reload; systemctl enable vllm-chat-front.socket")
    yield host
    lab.remove("turns")


def write(host: Host, path: str, data: bytes) -> None:
    command = [*host.ssh_argv(), f"mkdir -p $(dirname {path}) && cat > {path} && chmod a+r {path}"]
    subprocess.run(command, input=data, check=True, timeout=60)


def begin(host: Host) -> None:
    """The old release serves, alone."""
    host.ssh(
        "systemctl stop vllm-chat-front.service vllm-chat.a vllm-chat.b; rm -rf /run/card"
        f" {RUN}; mkdir -m 777 /run/card; mkdir {RUN}; systemctl start vllm-chat-front.socket"
    )
    assert reach(host, "back").states == {"old": "serving", "new": "down"}
    assert asked(host) == "a"


def asked(host: Host) -> str:
    """Who answers a client now; it may have to wait."""
    done = host.ssh(f"python3 /srv/front/client.py hold {PORT} 1 0").stdout
    found: dict[str, Any] = json.loads(done)
    assert found["lost"] == {}, found
    (name,) = found["answered"]
    return str(name)


class Reached:
    """The acts of one run of the program, and what the servers were at its end; None where it was killed."""

    def __init__(self, output: str) -> None:
        lines = output.splitlines()
        self.states = json.loads(lines.pop()) if lines and lines[-1].startswith("{") else None
        self.acts = [line for line in lines if not line.startswith(("reached", "not "))]
        self.output = output


def reach(host: Host, *goals: str, **faults: Any) -> Reached:
    words = " ".join(f"{name}={value}" for name, value in faults.items())
    done = host.ssh(
        f"PYTHONPATH={ROOT}/bin/on-host.pyz {words} python3 /srv/front/reach.py {' '.join(goals)}",
        check=False,
        timeout=240,
    )
    assert "VIOLATION" not in done.stderr
    assert done.returncode in (0, 255), done.stderr  # 255: it was killed
    return Reached(done.stdout)


def pid(host: Host, name: str) -> str:
    return host.ssh(f"systemctl show -P MainPID vllm-chat.{name}").stdout.strip()


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_clients_notice_nothing_of_a_start_of_turns_and_of_the_way_back(host: Host) -> None:
    begin(host)
    old = pid(host, "a")
    command = "systemd-run --quiet --pipe --wait -p LimitNOFILE=60000"
    command += f" python3 /srv/front/client.py rate {PORT} 1000 15"
    with subprocess.Popen([*host.ssh_argv(), command], stdout=subprocess.PIPE, text=True) as client:
        time.sleep(1)
        told = reach(host, "to-new", "to-old", "to-new", "to-old", "to-new", "back")
        output, _ = client.communicate(timeout=200)
    found = json.loads(output)
    print(told.output, json.dumps(found))
    assert found["lost"] == {} and sum(found["answered"].values()) == 15_000
    assert (
        set(found["answered"]) == {"a", "b"}
        and min(found["answered"].values()) > 500
        and found["per_s"] > 900
    )
    assert told.states == {"old": "serving", "new": "down"} and pid(host, "a") == old


def test_after_the_commit_the_new_one_is_alone(host: Host) -> None:
    begin(host)
    told = reach(host, "to-new", "to-old", "to-new", "keep", "forward")
    assert told.states == {"old": "down", "new": "serving"} and asked(host) == "b"


# Fault, whose, and how the turn to the new release ends: nothing where it is reached. The way back is reached
# in every case, while the fault lasts.
FAULTS = [
    ("sleep-fails", "a", ""),
    ("sleep-fails", "b", ""),
    ("sleep-hangs", "a", ""),
    ("sleep-hangs", "b", ""),
    ("wake-fails", "a", ""),
    ("wake-fails", "b", "Failed"),
    ("wrong", "a", ""),
    ("wrong", "b", "Failed"),
    ("keeps-memory", "a", ""),
    ("keeps-memory", "b", ""),
    ("slow-requests", "a", "Busy"),
    ("slow-requests", "b", ""),
]


# Ends when the old release has a request in flight.
IN_FLIGHT = """
import time
from pathlib import Path
from pyinfra_vllm.on_host.server.control import Control
asked = Control(Path("{run}/a/control.sock"), "vllm-chat.a.service")
while not asked.state().in_flight:
    time.sleep(0.1)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "name", "says"), FAULTS)
def test_whatever_fails_the_way_back_ends_with_the_old_release(
    host: Host, fault: str, name: str, says: str
) -> None:
    begin(host)
    reach(host, "to-new", "to-old")
    write(host, f"/run/card/faults-{name}", fault.encode())
    if fault == "slow-requests":
        host.ssh(f"systemd-run --quiet python3 /srv/front/client.py rate {PORT} 5 20")
        if name == "a":
            host.ssh(f"PYTHONPATH={ROOT}/bin/on-host.pyz python3 -", stdin=IN_FLIGHT.format(run=RUN))
    turned, back = reach(host, "to-new", FAULT=fault), reach(host, "back", FAULT=fault)
    print(fault, name, turned.acts, back.acts)
    assert (f": {says}: " if says else "reached to-new") in turned.output, turned.output
    assert back.states == {"old": "serving", "new": "down"}, (turned.output, back.output)
    assert asked(host) == ("wrong" if (fault, name) == ("wrong", "a") else "a")
    restarted = fault not in ("slow-requests",) and name == "a"
    assert (("start old" in back.acts) or ("start old" in turned.acts)) == restarted


@pytest.mark.timeout(300)
def test_a_new_release_that_does_not_start_is_given_up(host: Host) -> None:
    begin(host)
    old = pid(host, "a")
    write(host, "/run/card/faults-b", b"start-fails")
    told = reach(host, "to-new", FAULT="start-fails")
    assert told.acts == ["sleep old", "start new", "await new", "stop new"] and "Failed" in told.output
    assert reach(host, "back").acts == ["wake old", "canary old", "serve old"]
    assert pid(host, "a") == old and asked(host) == "a"


BREAKS = {
    "program": "kill -KILL $PPID",
    "old": "systemctl kill -s KILL vllm-chat.a.service",
    "new": "systemctl kill -s KILL vllm-chat.b.service",
    "front": "systemctl kill -s KILL vllm-chat-front.service",
    "link": f"rm -f {RUN}/awake",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["BEFORE", "DURING"])
@pytest.mark.parametrize("what", BREAKS)
def test_whatever_breaks_at_any_act_the_old_release_serves_in_the_end(
    host: Host, what: str, when: str
) -> None:
    """A start of the new release, a turn back and another one; then the way back, as a recovery goes it."""
    for number in range(12):
        begin(host)
        cut = reach(host, "to-new", "to-old", "to-new", BREAK=shlex.quote(BREAKS[what]), **{when: number})
        back = reach(host, "back")
        print(what, when, number, cut.acts[number:], back.acts)
        assert back.states == {"old": "serving", "new": "down"}, (cut.output, back.output)
        assert asked(host) == "a"
        assert reach(host, "back").acts == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [2, 4, 8])
def test_after_a_power_cut_the_old_release_is_started(host: Host, number: int) -> None:
    begin(host)
    reach(host, "to-new", "to-old", BREAK=shlex.quote(BREAKS["program"]), DURING=number)
    host.power_cut()
    host.start()
    host.ssh(f"mkdir -m 777 /run/card; mkdir -p {RUN}")
    back = reach(host, "back")
    assert back.acts == ["start old", "await old", "lead old"] and asked(host) == "a"
