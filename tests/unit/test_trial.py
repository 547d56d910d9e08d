"""A trial on a simulated host: it finds out how a release does, goes back whatever it finds, and changes
nothing for the next rollout.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost
from standby_host import StandbyHost

from pyinfra_vllm.on_host.state import durable, observe
from pyinfra_vllm.on_host.switch import outcomes, transaction
from pyinfra_vllm.on_host.switch.order import TRIAL

KINDS = (SimulatedHost, StandbyHost)


def prepared(kind: type[SimulatedHost], root: Path, patch: pytest.MonkeyPatch, rate: float) -> SimulatedHost:
    host = kind(root, patch)
    host.install(OLD)
    host.stage(NEW)
    host.rates[NEW] = rate
    host.calls.clear()
    return host


@pytest.fixture(params=KINDS, ids=["restarts", "standby"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    return prepared(request.param, tmp_path, monkeypatch, 100.0)


def is_as_before(host: SimulatedHost, at: object = "") -> None:
    assert (host.current, host.running) == (OLD, OLD), at
    assert durable.read_json(host.paths.rejected, {}) == {}, at
    if isinstance(host, StandbyHost):
        assert (host.servers, host.leads_to, host.violations) == ({OLD: "serving"}, OLD, []), at


def the_end(host: SimulatedHost) -> dict[str, Any]:
    (end,) = [entry for entry in host.journal() if entry["step"] == "end"]
    return end


@pytest.mark.parametrize(("rate", "verdict"), [(100.0, "pass"), (50.0, "fail")])
def test_a_trial_goes_back_whatever_it_finds(host: SimulatedHost, rate: float, verdict: str) -> None:
    host.rates[NEW] = rate
    assert host.switch(purpose=TRIAL) == "tried"
    is_as_before(host)
    assert the_end(host)["verdict"] == verdict
    assert not any(entry["step"] in ("commit", "point") for entry in host.journal())
    kept = {path.name for path in (host.paths.evidence / host.journal()[0]["tx"]).iterdir()}
    assert {"before.json", "after.json", "verdict.json", "release.json", "journal.jsonl"} <= kept
    assert observe.service(host.paths)["proven"] is None  # it proves nothing
    assert host.switch() == ("committed" if verdict == "pass" else "rolled_back")


def test_a_release_that_does_not_start_fails_its_trial_and_its_log_says_why(host: SimulatedHost) -> None:
    host.broken.add(NEW)
    assert host.switch(purpose=TRIAL) == "tried"
    is_as_before(host)
    assert the_end(host)["verdict"] == "fail"


def test_a_rejected_release_stays_rejected_whatever_its_trial_finds(host: SimulatedHost) -> None:
    outcomes.reject(host.paths, NEW, "ticket 7", "tx")
    assert host.switch(purpose=TRIAL) == "tried"
    assert list(durable.read_json(host.paths.rejected)) == [NEW]


def test_without_a_release_that_serves_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SimulatedHost(tmp_path, monkeypatch)
    host.stage(NEW)
    assert host.switch(purpose=TRIAL) == "refused"
    assert "nothing is tried" in the_end(host)["reason"] and host.starts == []


def test_what_is_no_fault_of_the_release_is_no_verdict(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the disk")

    monkeypatch.setattr(transaction.Switch, "_check_kernel", broken)
    assert host.switch(purpose=TRIAL) == "failed"
    is_as_before(host)
    assert "verdict" not in the_end(host)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS, ids=["restarts", "standby"])
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_some_calls_leaves_the_old_release(
    kind: type[SimulatedHost], boot: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at_every(7, kind, boot, tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS, ids=["restarts", "standby"])
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_any_call_leaves_the_old_release(
    kind: type[SimulatedHost], boot: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at_every(1, kind, boot, tmp_path, monkeypatch)


def die_at_every(
    step: int, kind: type[SimulatedHost], boot: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dry = prepared(kind, root / "dry", patch, 50.0)
        dry.switch(purpose=TRIAL)
        total = len(dry.calls)
    ends = set()
    for moment in range(0, total, step):
        with monkeypatch.context() as patch:
            host = prepared(kind, root / f"{moment}", patch, 50.0)
            host.die_at = moment
            with contextlib.suppress(Killed):
                host.switch(purpose=TRIAL)
            judged = any(entry["step"] == "judge" for entry in host.journal())
            host.recover(boot)
            is_as_before(host, f"dead at {moment}")
            if not host.journal():  # it had not begun
                continue
            end = the_end(host)
            assert end["outcome"] == ("tried" if judged else "interrupted"), f"dead at {moment}"
            assert end.get("verdict") == ("fail" if judged else None), f"dead at {moment}"
            ends.add(end["outcome"])
    assert ends == {"tried", "interrupted"}
