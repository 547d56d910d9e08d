"""Metrics on a real host: written at the end of a switch and of a recovery, and never in the way of one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

NAME, COLLECTOR = "measured", "/var/lib/collector"
FILE = f"{COLLECTOR}/pyinfra-vllm.prom"
UNIT = "pyinfra-vllm-recover-due.service"
ASK = "python3 /srv/pyinfra-vllm/bin/on-host.pyz"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    with control.own_lock_file():
        (added,) = lab.add(NAME)
        added.ssh(f"useradd --system exporter && install -d -o exporter -g exporter {COLLECTOR}")
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(release))
            assert done.returncode == 0, done.stderr
        yield added
        lab.remove(NAME)


def declared(release: str, metrics: str | None = COLLECTOR, **environment: str) -> dict[str, str]:
    settings = {**light_runtime.SETTINGS, "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **environment}}
    settings["ready_timeout_s"] = 90
    own = {NAME: {"metrics": metrics}}
    return {**control.declared(release, **settings), "PYINFRA_VLLM_LAB_HOSTS": json.dumps(own)}


def deploy(release: str, **settings: Any) -> Any:
    return control.pyinfra("deploy.py", "-y", "--limit", NAME, env=declared(release, **settings))


def written(host: Host) -> dict[str, float]:
    """Samples of the file, by their names and labels."""
    lines = host.ssh(f"cat {FILE} || true").stdout.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {sample: float(value) for sample, _, value in pairs}


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh(f"{ASK} status tiny").stdout)
    return dict(found)


def until(reached: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def outcome(host: Host, word: str) -> bool:
    return any(f'outcome="{word}"' in sample for sample in written(host))


def failed(host: Host) -> list[str]:
    return host.ssh("systemctl --failed --plain --no-legend 'pyinfra-vllm*' | cut -d' ' -f1").stdout.split()


def test_a_switch_writes_them_at_its_end_without_waiting_for_the_timer(host: Host) -> None:
    done = deploy("a")
    assert done.returncode == 0, done.stderr
    until(lambda: outcome(host, "committed"), "the end of the switch wrote nothing", timeout_s=30)
    found, current = written(host), observed(host)["current"]
    assert found['pyinfra_vllm_service_running{service="tiny"}'] == 1
    assert found['pyinfra_vllm_release_proven{service="tiny"}'] == 1
    assert any(f'release="{current}",model="lab/good-a"' in sample for sample in found)
    assert host.ssh(f"stat -c '%a %U' {FILE}").stdout.split() == ["644", "root"]
    host.ssh(f"runuser -u exporter -- cat {FILE}")
    assert failed(host) == []


def test_a_killed_switch_is_told_by_its_recovery(host: Host) -> None:
    env = declared("b", LIGHT_START_S="80")
    process = control.spawn("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", NAME, env=env)
    last_entry = "tail -1 /srv/pyinfra-vllm/tiny/journal.jsonl"
    until(lambda: '"ready"' in host.ssh(last_entry).stdout, "no switch came to its restart", timeout_s=180)
    host.ssh(f"systemctl start {UNIT}")
    assert written(host)['pyinfra_vllm_switch_unfinished{service="tiny"}'] == 1
    host.ssh("systemctl kill --kill-who=main --signal=KILL pyinfra-vllm-switch-tiny.service")
    process.communicate(timeout=120)
    until(lambda: outcome(host, "rolled_back"), "the recovery wrote nothing")
    found = written(host)
    assert found['pyinfra_vllm_switch_unfinished{service="tiny"}'] == 0
    assert found['pyinfra_vllm_last_switch_without_service_seconds{service="tiny"}'] > 0


def test_where_they_cant_be_written_a_switch_goes_on_and_the_journal_says_why(host: Host) -> None:
    host.ssh(f"mv {COLLECTOR} {COLLECTOR}.away")
    try:
        done = deploy("b")
        assert done.returncode == 0, done.stderr
        until(lambda: f"{COLLECTOR}/" in host.journal(UNIT), "nobody was told")
        assert observed(host)["last"]["outcome"] == "committed" and failed(host) == []
    finally:
        host.ssh(f"mv {COLLECTOR}.away {COLLECTOR}")
    assert outcome(host, "rolled_back"), "the file is as it was"


def test_without_the_setting_the_host_writes_nothing(host: Host) -> None:
    host.ssh(f"rm {FILE}")
    done = deploy("b", metrics=None)
    assert done.returncode == 0, done.stderr
    assert "metrics" not in host.ssh(f"systemctl cat {UNIT}").stdout
    host.ssh(f"systemctl start {UNIT}")
    assert written(host) == {} and "pyinfra_vllm_release_info" in host.ssh(f"{ASK} metrics").stdout


def test_what_doctor_finds_is_among_them(host: Host) -> None:
    found = f"{COLLECTOR}/pyinfra-vllm-doctor.prom"
    ask = ("doctor", control.INVENTORY, "--limit", NAME)
    gone = "/srv/pyinfra-vllm/tiny/previous/env"
    assert control.pyinfra_vllm(*ask, env=declared("b")).returncode == 0
    assert "check_failed{" not in host.ssh(f"cat {found}").stdout
    host.ssh(f"mv {gone} {gone}.away")
    try:
        assert control.pyinfra_vllm(*ask, env=declared("b")).returncode == 1
    finally:
        host.ssh(f"mv {gone}.away {gone}")
    text = host.ssh(f"runuser -u exporter -- cat {found}").stdout
    assert 'pyinfra_vllm_doctor_check_failed{check="tiny: rollback files"} 1.0' in text
    assert host.ssh(f"stat -c '%a %U' {found}").stdout.split() == ["644", "root"]
