"""Rollouts of a service with `standby: true`, as an operator types them: the old release sleeps while the new
one is judged, clients notice nothing, and what is no better goes back by a wake.

The host's card is a stand-in for nvidia-smi, and the server the stub of vLLM, which sleeps and wakes at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime, serving
from lab.machine import Host
from lab.session import Lab

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi

NAME, STATE, PORT = "sleeper", "/srv/pyinfra-vllm/tiny", 8000
ENGINE = "/srv/engine"  # what fails of the stub's engine: `RELEASE SLEEP fails`
ENVIRONMENT = {"LIGHT_KERNEL": "Machete", "NCCL_NVLS_ENABLE": "0", "LIGHT_ENGINE_FILE": ENGINE}
GATE = {**light_runtime.GATE, "concurrency": [1], "throughput_margin": 0.5}


def run(
    *command: str, release: str, how: dict[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    stub = {
        **light_runtime.SETTINGS,
        "gate": GATE,
        "environment": {**ENVIRONMENT, **(how or {})},
        "gpus": [0],
        "standby": True,
        **settings,
    }
    return control.run(*command, env=control.declared(release, **stub))


def deploy(release: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    words = ("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", NAME, *arguments)
    return run(*words, release=release, **settings)


def has(host: Host, used_mib: int = 0) -> None:
    card = nvidia_smi.card(0, (), **{"memory.used": used_mib})
    command = "cat > /usr/local/bin/nvidia-smi; chmod 755 /usr/local/bin/nvidia-smi"
    host.ssh(command, stdin=nvidia_smi.program(card))


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    with control.own_lock_file():
        (added,) = lab.add(NAME)
        has(added)
        serving.send(added, Path(__file__).parent / "front", "/srv/front")
        for release in ("a", "b"):
            done = run("pyinfra-vllm", "lock", control.INVENTORY, release=release)
            assert done.returncode == 0, done.stderr
        yield added
        lab.remove(NAME)


@pytest.fixture
def serves_a(host: Host) -> str:
    """Release a serves, with standby; its id."""
    done = deploy("a", "--data", "retry_rejected=true")
    assert done.returncode == 0, done.stderr[-4000:]
    return str(status(host)["current"])


def status(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def entries(host: Host) -> list[dict[str, Any]]:
    """The newest transaction."""
    found = [json.loads(line) for line in host.ssh(f"cat {STATE}/journal.jsonl").stdout.splitlines()]
    return [entry for entry in found if entry["tx"] == found[-1]["tx"]]


def acts(host: Host) -> list[str]:
    return [f"{entry['act']} {entry['who']}" for entry in entries(host) if entry["step"] == "turn"]


def pid(host: Host) -> str:
    return host.ssh("systemctl show -P MainPID vllm-tiny").stdout.strip()


def restarts(host: Host, release: str) -> str:
    return host.ssh(f"systemctl show -P Restart vllm-tiny.{release}.service").stdout.strip()


def units(host: Host) -> list[str]:
    """The servers that run."""
    told = host.ssh("systemctl list-units --plain --no-legend --state=active 'vllm-tiny.*.service'").stdout
    return [line.split()[0] for line in told.splitlines()]


@contextmanager
def client(host: Host) -> Iterator[dict[str, Any]]:
    """Asks ten times a second meanwhile; what it found is there afterwards."""
    found: dict[str, Any] = {}
    command = [*host.ssh_argv(), f"python3 /srv/front/ten.py {PORT}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        yield found
        found.update(json.loads(asking.communicate("\n", timeout=120)[0]))
    print(json.dumps(found))


@pytest.mark.full
def test_the_first_release_is_behind_its_front(host: Host, serves_a: str) -> None:
    assert units(host) == [f"vllm-tiny.{serves_a}.service"]
    assert host.ssh("readlink /run/vllm-tiny/awake").stdout.strip() == f"{serves_a}/api.sock"
    assert f"127.0.0.1:{PORT}" in host.ssh("systemctl show -P Listen vllm-tiny-front.socket").stdout
    again = deploy("a")
    assert again.returncode == 0 and "unchanged" in again.stderr


def commands(host: Host) -> int:
    """How many commands pyinfra ever ran: each through sudo, which writes it down."""
    said = host.ssh("journalctl --sync && journalctl -q -o cat -t sudo | grep -c COMMAND= || true").stdout
    return int(said)


def wait_until_led(host: Host) -> None:
    until = time.monotonic() + 30
    while status(host)["front_lost"]:
        assert time.monotonic() < until, "nobody laid the front's link"
        time.sleep(0.5)


@pytest.mark.full
def test_a_lost_front_is_laid_again_by_the_next_run_and_by_the_host(host: Host, serves_a: str) -> None:
    server, link = pid(host), "/run/vllm-tiny/awake"
    before = commands(host)
    assert deploy("a").returncode == 0 and commands(host) == before + 1
    host.ssh("systemctl stop pyinfra-vllm-recover-due.timer")
    try:
        host.ssh(f"rm {link}")
        assert status(host)["front_lost"]
        doctor = run("pyinfra-vllm", "doctor", control.INVENTORY, "--limit", NAME, release="a")
        assert f"{link} leads to nothing, so nobody is served" in " ".join(doctor.stdout.split())
        before = commands(host)
        done = deploy("a")
        assert done.returncode == 0 and "unchanged" in done.stderr, done.stderr[-4000:]
        assert before + 2 <= commands(host) <= before + 3 and not status(host)["front_lost"]
        host.ssh(f"ln -sfn gone/api.sock {link} && systemctl start pyinfra-vllm-recover-due.service")
        wait_until_led(host)
    finally:
        host.ssh("systemctl start pyinfra-vllm-recover-due.timer")
    assert host.ssh(f"readlink {link}").stdout.strip() == f"{serves_a}/api.sock"
    with client(host) as found:
        time.sleep(5)
    assert pid(host) == server and found["lost"] == {} and set(found["answered"]) == {serves_a}, found


@pytest.mark.full
def test_a_good_release_is_kept_and_no_client_is_refused(host: Host, serves_a: str) -> None:
    with client(host) as found:
        done = deploy("b")
    assert done.returncode == 0 and "committed" in done.stderr, done.stderr[-4000:]
    assert "standby: the old release sleeps meanwhile" in done.stderr
    now = status(host)
    assert now["current"] == now["running"] == now["proven"] != serves_a and now["previous"] == serves_a
    assert acts(host)[:2] == ["sleep old", "start new"] and acts(host)[-1] == "stop old"
    assert units(host) == [f"vllm-tiny.{now['current']}.service"]
    assert found["lost"] == {} and set(found["answered"]) == {serves_a, now["current"]}, found


@pytest.mark.full
def test_an_old_release_that_sleeps_on_is_woken_by_hand(host: Host, serves_a: str) -> None:
    server = pid(host)
    # Another release than those of other tests.
    how: Any = {"how": {"LIGHT_STORY": "sleeps on"}, "standby_for": "1h"}
    done = deploy("b", **how)
    assert done.returncode == 0 and "the old release sleeps on" in done.stderr, done.stderr[-4000:]
    new = status(host)["current"]
    assert status(host)["asleep"]["release"] == serves_a
    assert units(host) == sorted(f"vllm-tiny.{each}.service" for each in (serves_a, new))
    assert restarts(host, serves_a) == "no" and restarts(host, new) == "always"
    doctor = run("pyinfra-vllm", "doctor", control.INVENTORY, "--limit", NAME, "--json", release="b", **how)
    details = {check["name"]: check["detail"] for check in json.loads(doctor.stdout)["hosts"][0]["checks"]}
    assert f"release {serves_a} sleeps" in details["tiny: standby"]
    before = commands(host)
    assert deploy("b", **how).returncode == 0 and commands(host) == before + 1
    host.ssh("systemctl start pyinfra-vllm-recover-due.service")
    time.sleep(2)
    assert len(units(host)) == 2
    with client(host) as found:
        words = (
            "pyinfra",
            control.INVENTORY,
            "rollback.py",
            "-y",
            "--limit",
            NAME,
            "--data",
            "reason=a story",
        )
        back = run(*words, release="b", **how)
    assert back.returncode == 0 and pid(host) == server, back.stderr[-4000:]
    assert restarts(host, serves_a) == "always"
    assert units(host) == [f"vllm-tiny.{serves_a}.service"] and "start new" not in acts(host)
    assert found["lost"] == {} and serves_a in found["answered"], found


@pytest.mark.full
def test_an_old_release_whose_time_is_over_is_stopped_by_the_host(host: Host, serves_a: str) -> None:
    done = deploy("b", how={"LIGHT_STORY": "for a moment"}, standby_for="1s")
    assert done.returncode == 0, done.stderr[-4000:]
    new = status(host)["current"]
    host.ssh("systemctl start pyinfra-vllm-recover-due.service")
    until = time.monotonic() + 60
    while units(host) != [f"vllm-tiny.{new}.service"]:
        assert time.monotonic() < until, units(host)
        time.sleep(0.5)
    assert status(host)["running"] == new and not status(host)["front_lost"]


def test_a_worse_release_goes_back_by_a_wake(host: Host, serves_a: str) -> None:
    server = pid(host)
    with client(host) as found:
        done = deploy("b", how={"LIGHT_TOKEN_S": "0.05"})
    assert done.returncode == 1 and "rolled_back" in done.stderr, done.stderr[-4000:]
    assert (pid(host), status(host)["running"]) == (server, serves_a)
    assert "wake old" in acts(host) and "start old" not in acts(host)
    assert units(host) == [f"vllm-tiny.{serves_a}.service"]
    assert found["lost"] == {} and serves_a in found["answered"], found
    (back,) = [entry for entry in entries(host) if (entry["step"], entry["state"]) == ("restore", "done")]
    assert back["after_s"] < 10


@pytest.mark.full
def test_a_trial_measures_in_turns_and_leaves_the_old_release_where_it_was(host: Host, serves_a: str) -> None:
    server, rejected = pid(host), status(host)["rejected"]
    words = ("pyinfra-vllm", "trial", control.INVENTORY, "--limit", NAME, "--json")
    closed = {"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}
    done = run(*words, release="b", window=[closed])
    put_off = json.loads(done.stdout)
    assert (done.returncode, put_off["trials"], put_off["waiting"]) == (4, [], [f"{NAME} tiny"]), done.stderr
    with client(host) as found:
        done = run(*words, release="b")
    assert done.returncode == 0 and "tried" in done.stderr, done.stderr[-4000:]
    (told,) = json.loads(done.stdout)["trials"]
    assert (told["host"], told["from"], told["verdict"]) == (NAME, serves_a, "pass")
    assert "vLLM" not in {change["name"] for change in told["changes"]} and told["criteria"], told
    assert (pid(host), status(host)["running"], status(host)["proven"]) == (server, serves_a, serves_a)
    assert units(host) == [f"vllm-tiny.{serves_a}.service"] and status(host)["rejected"] == rejected
    (ended,) = [entry for entry in entries(host) if entry["step"] == "end"]
    assert (ended["outcome"], ended["verdict"]) == ("tried", "pass")
    (turns,) = [e for e in entries(host) if (e["step"], e["state"]) == ("turns", "done")]
    print(turns)
    assert turns["turns"] >= 2 and found["lost"] == {}


@pytest.mark.full
def test_two_starts_of_each_side_are_measured_in_turns(host: Host, serves_a: str) -> None:
    words = ("pyinfra-vllm", "trial", control.INVENTORY, "--limit", NAME, "--restarts", "2", "--json")
    with client(host) as found:
        # Half of the budget has no room for three blocks, so it is exceeded.
        gate = {**GATE, "budget_s": 30, "max_budget_s": 150, "on_inconclusive": "rollback"}
        done = run(*words, release="b", gate=gate)
    (told,) = json.loads(done.stdout)["trials"]
    assert (done.returncode, told["verdict"]) == (0, "pass"), told["reasons"]
    assert any("and 2 starts of each side" in reason for reason in told["reasons"]), told["reasons"]
    (turns,) = [e for e in entries(host) if (e["step"], e["state"]) == ("turns", "done")]
    print(turns)
    assert turns["starts"] == 2 and turns["blocks"] >= 6
    assert (acts(host).count("start new"), acts(host).count("start old")) == (2, 1)
    assert status(host)["running"] == serves_a and units(host) == [f"vllm-tiny.{serves_a}.service"]
    assert found["lost"] == {}, found


@pytest.mark.full
@pytest.mark.parametrize("fault", ["SLEEP fails", "WAKE fails", "WAKE wrong"])
def test_an_old_release_that_fails_is_started_plainly(host: Host, serves_a: str, fault: str) -> None:
    host.ssh(f"echo {serves_a} {fault} > {ENGINE}")
    try:
        done = deploy("b", "--data", "retry_rejected=true", how={"LIGHT_TOKEN_S": "0.05"})
    finally:
        host.ssh(f"rm {ENGINE}")
    assert done.returncode == 1 and "rolled_back" in done.stderr, done.stderr[-4000:]
    assert status(host)["running"] == serves_a and units(host) == [f"vllm-tiny.{serves_a}.service"]
    assert "start old" in acts(host), acts(host)


@pytest.mark.full
@pytest.mark.parametrize("fault", ["SLEEP fails", "WAKE fails", "WAKE wrong"])
def test_a_new_release_that_can_not_take_turns_goes_back(host: Host, serves_a: str, fault: str) -> None:
    how, _, what = fault.partition(" ")
    done = deploy("b", how={f"LIGHT_{how}": what})
    assert done.returncode == 1 and "rolled_back: the new release had to be stopped" in done.stderr, (
        done.stderr
    )
    assert status(host)["running"] == serves_a and units(host) == [f"vllm-tiny.{serves_a}.service"]


@pytest.mark.full
def test_memory_that_is_not_freed_ends_where_it_began(host: Host, serves_a: str) -> None:
    """Somebody holds the card's memory, and nobody is known to use it: the new release can't start."""
    try:
        has(host, used_mib=140_000)
        done = deploy("b", "--data", "retry_rejected=true")
    finally:
        has(host)
    assert done.returncode == 1, done.stderr[-4000:]
    assert "memory new" in acts(host)
    assert status(host)["running"] == serves_a and units(host) == [f"vllm-tiny.{serves_a}.service"]
