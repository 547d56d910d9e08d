"""`standby_for` on a simulated host: the old release sleeps on after the commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from standby_host import NEW, OLD, Killed, StandbyHost, ends_right, prepared

from pyinfra_vllm.answers import typed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.server import service, systemd
from pyinfra_vllm.on_host.state import durable, observe, running
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.switch import calibrating, recovery, standby
from pyinfra_vllm.on_host.switch.order import CALIBRATION, ROLLBACK, Order
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.status import rows
from pyinfra_vllm.report.tables import reasons_of


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandbyHost]:
    yield (made := prepared(tmp_path, monkeypatch))
    assert made.violations == []


SLEEPS = {"standby_for_s": 3600.0}
WATCHED = {"criteria": {"soak_s": 60.0}}


def sleeps_on(host: StandbyHost) -> None:
    """The new release is current and serves, and the old one sleeps beside it."""
    assert host.servers == {OLD: "asleep", NEW: "serving"}
    assert (host.current, host.leads_to) == (NEW, NEW) and host.violations == []


@contextlib.contextmanager
def later(seconds: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        moment = time.time() + seconds
        patch.setattr(standby.time, "time", lambda: moment)
        yield


def watched(patch: pytest.MonkeyPatch, verdict: str, look: Any = None) -> None:
    """The soak finds this; `look` is called while it watches."""

    def soaks(*args: Any, sleep: Any, **kwargs: Any) -> soak.Watched:
        sleep(0.0)
        if look:
            look()
        return soak.Watched(verdict, ["it is slow"] if verdict == "fail" else [], 60.0, 0.0, 0.0, 0.0)

    patch.setattr(soak, "soak", soaks)


def test_the_old_release_sleeps_on_until_its_time_is_over(host: StandbyHost) -> None:
    assert host.switch(**SLEEPS) == "committed"
    sleeps_on(host)
    (noted,) = [entry for entry in host.journal() if entry["step"] == "standby-for"]
    assert noted["release"] == OLD and noted["until"] > time.time() + 3500
    where = (host.paths.root, host.paths.units)
    assert recovery.start_due(*where) == [] and host.recover() == []
    sleeps_on(host)
    with later(3601):
        assert recovery.start_due(*where) == ["chat"] and host.in_background.pop()
        assert host.recover() == [f"chat: {OLD} was stopped, which slept"]
        ends_right(host, NEW)
        assert recovery.start_due(*where) == []


def test_an_operators_own_settings_beside_ours_stay(host: StandbyHost) -> None:
    """As `systemctl edit --runtime` lays them."""
    host.switch(**SLEEPS)
    settings = host.paths.asleep_settings(OLD)
    own = settings.with_name("override.conf")
    own.write_text("[Service]\n")
    assert host.switch(OLD, purpose=ROLLBACK) == "committed"
    ends_right(host, OLD)
    assert own.exists() and not settings.exists()


def test_whoever_looks_at_the_host_sees_what_sleeps_on_and_until_when(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = host.paths.server_unit(OLD)

    def shown(unit: str) -> dict[str, str]:
        active = "active" if unit != sleeper or OLD in host.servers else "inactive"
        return {"ActiveState": active, "MainPID": "1"}

    monkeypatch.setattr(observe, "unit_state", shown)
    monkeypatch.setattr(running, "release", lambda unit, shown: host.running)
    assert observe.service(host.paths)["asleep"] is None
    host.switch(**SLEEPS)
    seen = typed(observe.service(host.paths), Observed, "test")
    (row,) = rows([Answer("gpu1", Look([seen], {}))])
    assert (
        row.asleep == OLD and 3500 < datetime.fromisoformat(row.asleep_until).timestamp() - time.time() < 3601
    )
    (note,) = reasons_of(row)
    assert note.startswith(f"{OLD} sleeps beside it until 20") and note.endswith("UTC: rollback.py wakes it")
    assert row.state == "ok"
    with later(3601):
        host.recover()
    assert observe.service(host.paths)["asleep"] is None


def test_systemd_does_not_restart_a_server_that_sleeps_on_and_restarts_it_once_it_serves(
    host: StandbyHost,
) -> None:
    settings = host.paths.asleep_settings(OLD)
    host.switch(**SLEEPS)
    assert settings.read_text() == "[Service]\nRestart=no\n"
    host.switch(OLD, purpose=ROLLBACK)
    assert not settings.parent.exists()
    host.switch(**SLEEPS)
    with later(3601):
        host.recover()
    assert not settings.parent.exists()
    ends_right(host, NEW)


def test_where_systemd_reloads_nothing_the_old_release_is_stopped(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(this: service.Service, release_id: str) -> None:
        raise systemd.SystemdError("no room in /run")

    monkeypatch.setattr(service.Service, "let_sleep", refused)
    assert host.switch(**SLEEPS) == "committed"
    ends_right(host, NEW)


def test_a_soak_that_fails_goes_back_by_a_wake(host: StandbyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch, "fail", lambda: sleeps_on(host))
    assert host.switch(**SLEEPS, **WATCHED) == "rolled_back"
    assert host.starts == [NEW] and "wake old" in host.acts()
    ends_right(host, OLD)
    assert not host.paths.asleep_settings(OLD).exists()
    assert NEW in durable.read_json(host.paths.rejected)


def test_after_a_good_soak_the_old_release_is_stopped(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, "pass", lambda: sleeps_on(host))
    assert host.switch(**SLEEPS, **WATCHED) == "committed"
    ends_right(host, NEW)


def test_time_that_is_over_during_the_soak_ends_the_sleep_and_not_the_soak(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, "pass", lambda: ends_right(host, NEW))
    with monkeypatch.context() as patch:
        noted = standby.Turns.keep_asleep
        patch.setattr(standby.Turns, "keep_asleep", lambda this, seconds: noted(this, -1.0))
        assert host.switch(**SLEEPS, **WATCHED) == "committed"
    ends_right(host, NEW)


def test_going_back_by_hand_wakes_the_release_that_sleeps(host: StandbyHost) -> None:
    host.switch(**SLEEPS)
    assert host.switch(OLD, purpose=ROLLBACK) == "committed"
    assert host.starts == [NEW]
    ends_right(host, OLD)
    assert host.acts()[-7:] == [
        "lead new", "sleep old", "wake new", "canary new", "serve new", "relay old", "stop old",
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["wake", "wrong"])
def test_going_back_by_hand_starts_a_release_that_fails_to_wake(host: StandbyHost, fault: str) -> None:
    host.switch(**SLEEPS)
    if fault == "wake":
        host.faults.add((OLD, "wake"))
    else:
        host.wrong.add(OLD)
    assert host.switch(OLD, purpose=ROLLBACK) == "committed"
    ends_right(host, OLD)


def test_going_back_from_a_soak_that_is_cut_short_wakes_the_old_release(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise Killed

    watched(monkeypatch, "pass", stopped)
    with contextlib.suppress(Killed):
        host.switch(**SLEEPS, **WATCHED)
    assert host.recover() == ["chat: committed"]
    sleeps_on(host)
    assert host.switch(OLD, purpose=ROLLBACK) == "committed"
    assert host.starts == [NEW]
    ends_right(host, OLD)


def test_the_next_switch_stops_the_sleeper_before_it_begins(host: StandbyHost) -> None:
    host.switch(**SLEEPS)
    third = "cccccccccccc"
    host.stage(third)
    host.rates[third] = 100.0
    assert host.switch(third) == "committed"
    ends_right(host, third)


def test_a_calibration_stops_the_sleeper_before_it_measures(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.switch(**SLEEPS)
    servers = []
    measure = probe.measure

    def look(*args: Any, **kwargs: Any) -> Any:
        servers.append(dict(host.servers))
        return measure(*args, **kwargs)

    monkeypatch.setattr(probe, "measure", look)
    order = Order(service="chat", release=NEW, operator="a", purpose=CALIBRATION, ready_timeout_s=3.0)
    assert calibrating.calibrate(order, host.paths) == "calibrated"
    assert servers and all(one == {NEW: "serving"} for one in servers)
    ends_right(host, NEW)


def test_after_a_power_cut_nothing_sleeps_and_nothing_is_left_of_it(host: StandbyHost) -> None:
    host.switch(**SLEEPS)
    host.recover(boot=True)
    assert host.servers == {NEW: "serving"} and host.starts[-1] == NEW
    host.recover()
    ends_right(host, NEW)


def test_a_sleeper_that_systemd_started_anew_is_stopped(host: StandbyHost) -> None:
    host.switch(**SLEEPS)
    host.servers[OLD] = "failed"
    where = (host.paths.root, host.paths.units)
    assert recovery.start_due(*where) == ["chat"] and host.in_background.pop()
    host.recover()
    ends_right(host, NEW)


def test_where_host_memory_is_short_after_the_commit_the_old_release_is_stopped_and_that_is_said(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_short_of_memory", lambda *asleep: "40 GiB" if len(asleep) == 1 else "")
    assert host.switch(**SLEEPS) == "committed"
    ends_right(host, NEW)
    (noted,) = [entry for entry in host.journal() if entry["step"] == "standby-for"]
    assert (noted["release"], noted["because"]) == (None, "40 GiB")


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_any_late_call_leaves_the_new_release_and_at_most_a_sleeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: bool
) -> None:
    with monkeypatch.context() as patch:
        host = prepared(tmp_path / "dry", patch)
        host.switch(**SLEEPS)
        total = len(host.calls)
    ends = set()
    for moment in range(total - 60, total):
        with monkeypatch.context() as patch:
            host = prepared(tmp_path / f"{moment}", patch)
            host.die_at = moment
            with contextlib.suppress(Killed):
                host.switch(**SLEEPS)
            host.recover(boot)
            host.recover()
            committed = any(entry["step"] == "commit" for entry in host.journal())
            slept = host.servers.get(OLD) == "asleep"
            ends.add((committed, slept))
            if slept:
                sleeps_on(host)
                with later(3601):
                    host.recover()
            ends_right(host, NEW if committed else OLD, f"dead at {moment}")
    assert ends == {(False, False), (True, False)} | (set() if boot else {(True, True)})
