"""The real vLLM with the middleware that lets it sleep.

On a CPU the engine pauses and counts as asleep, and its memory stays where it is: `CPUWorker.sleep` does
nothing. So this shows the control, the requests and the engine's states; memory and its faults need a GPU.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import serving, venvs
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError

from pyinfra_vllm.in_runtime import api_key, standby

pytestmark = pytest.mark.full

FOLDER, KEY = "/run/vllm-chat", "k3y"
UNIT = """
[Service]
Type=exec
User=chat
RuntimeDirectory=vllm-chat/{name}
RuntimeDirectoryMode=0700
CacheDirectory=vllm-chat-{name}
PrivateTmp=yes
UMask=0077
KillMode=mixed
Environment=HOME=/var/cache/vllm-chat-{name} HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
Environment=PYTHONPATH=/srv/standby {control}={folder}/{name}/control.sock {key}=k3y
ExecStart={vllm} serve /srv/model --uds {folder}/{name}/api.sock --served-model-name tiny \
    --max-model-len 1024 --enforce-eager --middleware pyinfra_vllm_standby.Standby \\
    --middleware pyinfra_vllm_api_key.ApiKey
"""
HEALTHY = """
import socket
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect("{path}")
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    (host,) = lab.add("sleeper")
    serving.send(host, lab.parts.checkpoints["lab/good-a"], "/srv/model")
    serving.send(host, Path(__file__).parent / "front", "/srv/front")
    host.ssh("useradd --system chat")
    for module, name in ((standby, "pyinfra_vllm_standby"), (api_key, "pyinfra_vllm_api_key")):
        write(host, f"/srv/standby/{name}.py", inspect.getsource(module).encode())
    for name in "ab":
        words = {"name": name, "folder": FOLDER, "vllm": f"{venvs.path()}/bin/vllm"}
        unit = UNIT.format(control=standby.CONTROL, key=api_key.VARIABLE, **words)
        write(host, f"/etc/systemd/system/vllm-chat.{name}.service", unit.encode())
        host.ssh(f"systemctl daemon-reload && systemctl start vllm-chat.{name}.service")
    for name in "ab":
        wait(host, name)
    yield host
    lab.remove("sleeper")


def write(host: Host, path: str, data: bytes) -> None:
    command = [*host.ssh_argv(), f"mkdir -p $(dirname {path}) && cat > {path} && chmod a+r {path}"]
    subprocess.run(command, input=data, check=True, timeout=60)


def wait(host: Host, name: str) -> None:
    begun = time.monotonic()
    asked = HEALTHY.format(path=f"{FOLDER}/{name}/api.sock")
    while host.ssh("python3 -", stdin=asked, check=False).returncode:
        if time.monotonic() - begun > 400:
            raise LabError(host.journal(f"vllm-chat.{name}.service", 40))
        time.sleep(2)


@pytest.fixture(scope="module")
def seen(host: Host) -> dict[str, Any]:
    done = host.ssh(f"python3 /srv/front/drive.py {FOLDER} {KEY}", timeout=400, check=False)
    assert done.returncode == 0, done.stderr + host.journal("vllm-chat.a.service", 40)
    found = dict(json.loads(done.stdout))
    print(json.dumps(found, indent=1))
    return found


@pytest.mark.timeout(900)
def test_what_is_in_flight_ends_before_it_sleeps(seen: dict[str, Any]) -> None:
    assert seen["canary"].strip()
    assert (seen["sleep"]["ok"], seen["sleep"]["state"]) == (True, "asleep")
    assert seen["in flight"] == {"closes": "close", "tokens": 600, "equal": True}


def test_asleep_clients_wait_and_monitoring_does_not(seen: dict[str, Any]) -> None:
    assert seen["asleep"]["health"] == 200 and seen["asleep"]["no key"] == 401
    assert any(line.endswith(" 1.0") and "discard_all" not in line for line in seen["asleep"]["gauge"])
    assert seen["held"] == 8


def test_after_the_wake_answers_are_the_same_and_clients_come_last(seen: dict[str, Any]) -> None:
    assert (seen["wake"]["ok"], seen["wake"]["state"]) == (True, "awake")
    assert seen["canary with the pass"] and seen["held after the wake"] == 8
    assert seen["serve"]["state"] == "serving" and seen["answers of those who waited"] == 8
    assert seen["cycles"]["equal"] == 10
    assert seen["at the end"][0] and seen["at the end"][1]["in_flight"] == 0


def test_those_who_wait_are_answered_by_the_server_that_is_awake(seen: dict[str, Any]) -> None:
    assert seen["relay"]["ok"] and seen["relay"]["state"] == "asleep"
    assert seen["relayed"]["equal"] == 16 and seen["relayed"]["late"] and seen["relayed"]["closes"] == "close"
    assert seen["relayed"]["asked b"] == 18  # sixteen that waited, a late one and one of its own
    assert seen["relayed"]["left"]["held"] == seen["relayed"]["left"]["in_flight"] == 0


def test_nobody_but_root_commands_it_and_no_development_endpoint_is_there(seen: dict[str, Any]) -> None:
    assert "PermissionError" in seen["other_users"]["nobody"]
    unanswered = ("b''", "ConnectionResetError", "BrokenPipeError")
    assert seen["other_users"]["chat"].startswith(unanswered)  # of the servers' own user
    assert seen["state"]["state"] == "serving"
    assert set(seen["development endpoints"].values()) == {404}


def test_a_server_that_ends_keeps_nobody_waiting_and_leaves_no_socket(
    host: Host, seen: dict[str, Any]
) -> None:
    told = json.loads(host.ssh(f"python3 /srv/front/drive.py {FOLDER} {KEY} end", timeout=200).stdout)
    print(told)
    assert told["statuses"] == [503, 503] and told["stopped after s"] < 30
    assert host.ssh(f"ls {FOLDER}").stdout.split() == ["a"]
