"""One box that rolls out to itself: `["@local"]` as inventory, from `init` to a rollback, without SSH."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

NAME = "box"
# What a person would add to group_data/prod.py: a runtime that is there, any time, a gate for the stub.
SETTINGS = f"""
window = []
services["chat"] |= {light_runtime.SETTINGS!r}
services["chat"] |= {{"max_model_len": 2048, "environment": {{"VLLM_CPU_KVCACHE_SPACE": "1"}}}}
"""
OVERRIDE = "/run/systemd/system/vllm-chat.service.d"
NEW_START = "systemctl daemon-reload && systemctl restart vllm-chat"


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[Host]:
    """A host with this Python and this package on it, and a project that `init` wrote there."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), control.CHECKOUT} - {Path("/usr")}
    (host,) = lab.add(NAME, binds={path: str(path) for path in needed})
    typed(lab, host, "pyinfra-vllm init fleet --host @local --model lab/good-a", folder="/root")
    host.ssh("cat >> /root/fleet/group_data/prod.py", stdin=SETTINGS)
    yield host
    lab.remove(NAME)


def typed(
    lab: Lab, host: Host, words: str, folder: str = "/root/fleet", code: int = 0
) -> subprocess.CompletedProcess[str]:
    """A command as the person at the box types it."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    set_up = f"cd {folder} && export PATH={programs}:$PATH HF_ENDPOINT={lab.hub.url}"
    done = host.ssh(f"{set_up} && {words}", check=False, timeout=600)
    assert done.returncode == code, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def serving(lab: Lab, box: Host) -> Host:
    """It serves, where the test that brings it there was not chosen."""
    typed(lab, box, "pyinfra-vllm lock")
    typed(lab, box, "pyinfra inventory/prod.py deploy.py -y")
    return box


def test_the_first_hour_needs_no_ssh(lab: Lab, box: Host) -> None:
    host_keys = box.ssh("ls /root/.ssh").stdout
    typed(lab, box, "pyinfra-vllm lock")
    dry = typed(lab, box, "pyinfra inventory/prod.py deploy.py --dry")
    assert "would be the first release" in dry.stderr
    typed(lab, box, "pyinfra inventory/prod.py deploy.py -y")
    (host,) = json.loads(typed(lab, box, "pyinfra-vllm status --json").stdout)["hosts"]
    (service,) = host["services"]
    assert (host["host"], service["state"], service["model"]) == ("@local", "ok", "lab/good-a")
    assert box.ssh("ls /root/.ssh").stdout == host_keys, "no known_hosts, no key: nothing went over SSH"


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_a_change_is_switched_to_and_taken_back(lab: Lab, box: Host) -> None:
    typed(lab, box, 'sed -i \'s/"max_model_len": 2048/"max_model_len": 1024/\' group_data/prod.py')
    typed(lab, box, "pyinfra inventory/prod.py deploy.py -y")
    typed(lab, box, "pyinfra inventory/prod.py rollback.py -y --data reason=no")
    past = json.loads(typed(lab, box, "pyinfra-vllm history --since yesterday --json").stdout)["switches"]
    assert [(each["purpose"], each["outcome"]) for each in past] == [
        ("rollout", "committed"),
        ("rollout", "committed"),
        ("rollback", "committed"),
    ]


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_it_is_examined_and_its_journal_is_read(lab: Lab, box: Host) -> None:
    (host,) = json.loads(typed(lab, box, "pyinfra-vllm doctor --json").stdout)["hosts"]
    assert host["ok"], host
    told = json.loads(typed(lab, box, "pyinfra-vllm logs @local chat --json").stdout)
    (service,) = told["services"]
    assert service["cause"] is None and {line["unit"] for line in service["lines"]} >= {"service", "switch"}


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_the_cause_of_a_start_that_failed_comes_first(lab: Lab, box: Host) -> None:
    box.ssh(
        f"mkdir -p {OVERRIDE} && printf '[Service]\\nExecStart=\\nExecStart=/no/such/vllm\\n'"
        f" > {OVERRIDE}/broken.conf && {NEW_START}",
        check=False,
    )
    try:
        first = typed(lab, box, "pyinfra-vllm logs @local").stdout.splitlines()[0]
    finally:
        box.ssh(f"rm -r {OVERRIDE} && {NEW_START}")
    assert first.startswith("@local chat: the start of 20") and "systemd: " in first
