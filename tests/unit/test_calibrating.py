"""A calibration on a simulated host: it restarts what runs, changes nothing of it, and keeps its noise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.record import Record, Traffic
from pyinfra_vllm.on_host.state import durable, lock
from pyinfra_vllm.on_host.switch import calibrating, order
from pyinfra_vllm.on_host.switch.order import CALIBRATION, Order


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    """The old release serves."""
    return installed(tmp_path, monkeypatch)


def installed(root: Path, patch: pytest.MonkeyPatch) -> SimulatedHost:
    host = SimulatedHost(root, patch)
    host.install(OLD)
    host.calls.clear()
    return host


def calibrate(host: SimulatedHost, release: str = OLD, runs: int = 5, **given: Any) -> str:
    values = {"service": "chat", "operator": "alice", "ready_timeout_s": 3.0, "purpose": CALIBRATION, **given}
    return calibrating.calibrate(Order(release=release, runs=runs, **values), host.paths)


def noise(host: SimulatedHost) -> Any:
    return durable.read_json(host.paths.noise)


def reason(host: SimulatedHost) -> str:
    return str(host.journal()[-1]["reason"])


def varying(host: SimulatedHost, patch: pytest.MonkeyPatch, rates: Iterator[float]) -> None:
    """Each measurement finds the old release at the next of these speeds."""
    measure = probe.measure

    def measured(*args: Any, **how: Any) -> Record:
        host.rates[OLD] = next(rates)
        return measure(*args, **how)

    patch.setattr(probe, "measure", measured)


def test_the_same_release_is_restarted_and_its_noise_kept(host: SimulatedHost) -> None:
    assert calibrate(host) == "calibrated"
    assert (host.current, host.running, host.starts) == (OLD, OLD, [OLD] * 4)
    assert (noise(host)["runs"], noise(host)["release"]) == (5, OLD)
    assert noise(host)["phases"]["c8"]["tokens_per_s"] == 0.0
    steps = [entry["step"] for entry in host.journal() if entry["state"] == "done"]
    rounds = ["measure-run", *["restart", "measure-run"] * 4]
    assert steps == ["begin", "prove-way-back", *rounds, "noise", "end"]
    assert (
        "5 runs; of two such runs the second is worse in 1 of 100 by more than: c1 tokens_per_s 0.0%"
        in reason(host)
    )


def test_no_margin_is_tighter_than_the_noise_that_was_found(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.stage(NEW)
    host.rates[NEW] = 94.0
    assert host.switch() == "rolled_back"
    with monkeypatch.context() as patch:
        varying(host, patch, itertools.cycle([100.0, 102.0, 98.0]))
        assert calibrate(host) == "calibrated"
    host.rates[OLD] = 100.0
    assert host.switch() == "committed"
    (verdict,) = [entry for entry in host.journal() if entry["step"] == "judge"][1:]
    assert any("calibrated over 5 runs" in line for line in verdict["reasons"])


def test_after_the_last_start_nothing_is_drained_or_measured(host: SimulatedHost) -> None:
    hooks = {"drain": {"argv": ["true"]}, "undrain": {"argv": ["true"]}}
    assert calibrate(host, last_start=time.time() - 1, hooks=hooks) == "deferred"
    assert not {"drain", "measure-run", "restart"} & {entry["step"] for entry in host.journal()}
    assert host.asked == [] and host.starts == [] and noise(host) is None
    assert "after 0 of 5 runs" in reason(host)


def test_last_start_that_passes_during_the_first_run_allows_no_restart(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1000.0)
    monkeypatch.setattr(calibrating.time, "time", lambda: next(clock))
    assert calibrate(host, last_start=1000.0) == "deferred"
    assert host.starts == [] and noise(host) is None
    assert "after 1 of 5 runs" in reason(host)


def test_calibration_ends_early_with_three_runs_when_the_window_closes(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1000.0)
    monkeypatch.setattr(calibrating.time, "time", lambda: next(clock))
    assert calibrate(host, last_start=1002.0) == "calibrated"
    assert noise(host)["runs"] == 3 and host.starts == [OLD, OLD]


def test_release_that_fails_to_restart_is_reported_with_its_log(host: SimulatedHost) -> None:
    host.dies_when_stopped.add(OLD)
    assert calibrate(host) == "restore_failed"
    assert "did not come back" in host.failing and noise(host) is None
    assert host.journal()[-1]["log"]
    assert host.outcome() is None, "the recovery unit goes on trying"


def test_other_traffic_does_not_count_as_noise(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, shares = probe.measure, iter([0.0, 0.0, 0.4, 0.0, 0.0])

    def measured(*args: Any, **how: Any) -> Record:
        return replace(measure(*args, **how), traffic=Traffic(other_share=next(shares)))

    monkeypatch.setattr(probe, "measure", measured)
    assert calibrate(host) == "failed"
    assert "record 3: other traffic" in reason(host) and "serves, and nothing was stored" in reason(host)
    assert noise(host) is None and host.running == OLD


@pytest.mark.parametrize("what", ["another release", "no tokens"])
def test_calibration_of_a_release_that_does_not_run_is_refused(host: SimulatedHost, what: str) -> None:
    if what == "no tokens":
        host.broken.add(OLD)
    assert calibrate(host, NEW if what == "another release" else OLD) == "refused"
    assert host.starts == [] and noise(host) is None


def test_it_holds_the_lock_of_a_switch(host: SimulatedHost) -> None:
    with lock.exclusive(host.paths.lock, "bob", "the rollout of release c"), pytest.raises(lock.Held):
        calibrate(host)
    assert host.journal() == []


@pytest.fixture
def calls(tmp_path: Path) -> list[str]:
    """Every call of a calibration that a real host could die at."""
    with pytest.MonkeyPatch.context() as patch:
        dry = installed(tmp_path / "dry", patch)
        calibrate(dry, runs=3)
        return dry.calls


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_any_call_leaves_the_service_serving(calls: list[str], tmp_path: Path, boot: bool) -> None:
    assert len(calls) > 20
    for moment in range(len(calls)):
        with pytest.MonkeyPatch.context() as patch:
            host = installed(tmp_path / f"{moment}", patch)
            host.die_at = moment
            with pytest.raises(Killed):
                calibrate(host, runs=3)
            host.recover(boot)
            assert (host.current, host.running) == (OLD, OLD), f"died at {moment}"
            assert host.outcome() in (None, "interrupted") or noise(host)["runs"] == 3, f"died at {moment}"
            entries = len(host.journal())
            assert host.recover() == [] and len(host.journal()) == entries
            assert calibrate(host, runs=3) == "calibrated"


def test_an_interrupted_one_whose_release_will_not_start_says_so(
    calls: list[str], host: SimulatedHost
) -> None:
    host.dies_when_stopped.add(OLD)
    host.die_at = calls.index("start")
    with pytest.raises(Killed):
        calibrate(host, runs=3)
    assert host.recover() == ["chat: restore_failed"]
    assert "the calibration was interrupted" in host.failing
    host.dies_when_stopped.clear()
    host.broken.clear()
    assert host.recover() == ["chat: interrupted"] and host.running == OLD


def test_an_order_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    durable.write_json(path, {"service": "chat", "release": OLD, "operator": "a", "purpose": "meltdown"})
    with pytest.raises(order.BadOrder, match="meltdown"):
        order.load(path)
