"""Garbage collection on a host that serves: shown, then deleted, while the server goes on; never beside a
switch.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

ROOT = "/srv/pyinfra-vllm"


def run(*command: str, release: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    env = control.declared(release, **light_runtime.SETTINGS, **settings)
    return control.run(*command, "--limit", "tidy", env=env)


def deploy(release: str, **settings: Any) -> None:
    done = run("pyinfra", control.INVENTORY, "deploy.py", "-y", release=release, **settings)
    assert done.returncode == 0, done.stderr


def prune(*options: str, release: str = "b") -> tuple[int, dict[str, Any]]:
    done = run("pyinfra-vllm", "prune", control.INVENTORY, "--json", *options, release=release)
    (host,) = json.loads(done.stdout)["hosts"]
    return done.returncode, host


@pytest.fixture(scope="module")
def tidy(lab: Lab) -> Iterator[Host]:
    """A host that served release a, then twice b with other flags: a is neither current nor previous."""
    with control.own_lock_file():
        (host,) = lab.add("tidy")
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=control.declared(release))
            assert done.returncode == 0, done.stderr
        deploy("a")
        deploy("b")
        deploy("b", flags={"enforce-eager": True, "max-num-seqs": 7})
        yield host
        lab.remove("tidy")


def listing(host: Host) -> list[str]:
    return host.ssh(f"cd {ROOT} && ls -d checkpoints/*/* tiny/releases/*").stdout.split()


def pid(host: Host) -> str:
    return host.ssh("systemctl show -P MainPID vllm-tiny").stdout


def test_it_shows_then_deletes_and_the_server_goes_on(tidy: Host) -> None:
    before, serving = listing(tidy), pid(tidy)
    code, shown = prune()
    assert code == 0 and listing(tidy) == before
    paths = [item["path"].removeprefix(f"{ROOT}/") for item in shown["items"]]
    assert [path.split("/")[:2] for path in paths] == [["tiny", "releases"], ["checkpoints", "lab--good-a"]]
    code, deleted = prune("--yes")
    assert code == 0 and deleted["items"] == shown["items"]
    assert listing(tidy) == [path for path in before if path not in paths]
    assert pid(tidy) == serving
    assert prune()[1]["items"] == []


def test_it_touches_nothing_while_the_service_is_switched(tidy: Host) -> None:
    deploy("a")  # the release before the previous one can go again
    tidy.ssh(f"systemd-run --unit=busy flock {ROOT}/tiny/lock sleep 60")
    try:
        before = listing(tidy)
        code, busy = prune("--yes")
        assert code == 1 and "has held this service" in busy["problem"]
        assert listing(tidy) == before
    finally:
        tidy.ssh("systemctl stop busy")
