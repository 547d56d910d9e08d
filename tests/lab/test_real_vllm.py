"""The main ways on the real vLLM with trained AWQ checkpoints: installed, kept, slower, broken, not starting,
unchanged.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from lab import control, deciding, serving
from lab.machine import Host

# the gate measures what the real vLLM makes of two cores
pytestmark = [pytest.mark.alone, pytest.mark.full]
QUESTION = "What is the capital of Japan?"


def deploy(solo: Host, release: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    env = {"PYINFRA_VLLM_LAB_RELEASE": release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}
    locked = control.pyinfra_vllm("lock", control.INVENTORY, env=env)
    assert locked.returncode == 0, locked.stderr
    return deciding.until_decided(
        lambda: control.pyinfra("deploy.py", "-y", "--limit", "solo", env=env), solo
    )


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def pid(host: Host) -> str:
    return host.ssh("systemctl show -P MainPID vllm-tiny").stdout.strip()


def serves(host: Host, repository: str) -> bool:
    """Whether that checkpoint generates tokens: the process has it on its command line, and the
    server answers.
    """
    command = host.ssh(f"tr '\\0' ' ' < /proc/{pid(host)}/cmdline").stdout
    return repository.replace("/", "--") in command and serving.ask(host, [QUESTION])[0].strip() != ""


@pytest.fixture(autouse=True)
def own_lock_file() -> Iterator[None]:
    with control.own_lock_file():
        yield


@pytest.mark.timeout(1500)
def test_releases_come_and_go_on_the_real_vllm(solo: Host) -> None:
    first = deploy(solo, "a")
    assert first.returncode == 0, first.stderr
    assert "check the kernel: pass; CPUWNA16" in first.stderr
    assert serves(solo, "lab/good-a")

    kept = deploy(solo, "b")
    assert kept.returncode == 0, kept.stderr
    assert "c1 tokens_per_s" in kept.stderr and "c8 tokens_per_s" in kept.stderr
    assert serves(solo, "lab/good-b")
    release = observed(solo)["current"]

    slower = deploy(solo, "slow")
    assert slower.returncode == 1, slower.stderr
    assert "verdict: fail" in slower.stderr, slower.stderr
    # what is beyond doubt first, tokens per second or the time of an answer, depends on the machine
    assert re.search(r"c8 (tokens_per_s|e2e_s): worse: ", slower.stderr), slower.stderr
    assert observed(solo)["running"] == release and serves(solo, "lab/good-b")

    broken = deploy(solo, "broken")
    assert broken.returncode == 1, broken.stderr
    ended = deciding.last(solo)
    assert (ended["outcome"], ended["verdict"]) == ("rolled_back", "fail"), broken.stderr
    assert "quality_points: " in ended["reason"], ended["reason"]
    assert observed(solo)["running"] == release and serves(solo, "lab/good-b")

    silent = deploy(solo, "b", flags={"enforce-eager": True, "block-size": 7})  # no error to it
    assert silent.returncode == 1, silent.stderr
    assert "vLLM can't start: " in silent.stderr and "block size for 7" in deciding.last(solo)["reason"]
    assert observed(solo)["running"] == release and serves(solo, "lab/good-b")

    before = pid(solo)
    unchanged = deploy(solo, "b")
    assert unchanged.returncode == 0 and "unchanged" in unchanged.stderr
    assert pid(solo) == before
