"""The front of a service with standby on a simulated host: laid, lost, mended, and taken away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import simulated
from standby_host import NEW, OLD, Killed, StandbyHost, ends_right, prepared

from pyinfra_vllm.on_host import doctor
from pyinfra_vllm.on_host.server import service, systemd
from pyinfra_vllm.on_host.state import observe, paths, running
from pyinfra_vllm.on_host.state.lock import exclusive
from pyinfra_vllm.on_host.switch import recovery


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandbyHost]:
    yield (made := prepared(tmp_path, monkeypatch))
    assert made.violations == []


def test_first_and_last_switch_of_standby_restart_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.install(OLD, standby=False)
    host.stage(NEW)
    assert not host.listening and host.switch() == "committed"
    assert host.acts() == [] and host.starts == [NEW]
    ends_right(host, NEW)
    (said,) = [entry for entry in host.journal() if entry["step"] == "standby"]
    assert said["standby"] is False and "the next switch has it" in said["because"]
    host.stage("cccccccccccc", standby=False)
    host.rates["cccccccccccc"] = 100.0
    assert host.switch("cccccccccccc") == "committed"
    assert host.servers == {"cccccccccccc": "serving"} and not host.listening
    assert host.paths.unit_link.readlink() == host.paths.current / "vllm.service"
    assert not any(link.is_symlink() for link in host.paths.front_links)


def test_switch_to_another_address_restarts_plainly(host: StandbyHost) -> None:
    (host.paths.release(NEW) / "front.socket").write_text("ListenStream=127.0.0.1:2\n")
    assert host.switch() == "committed"
    assert host.acts() == [] and host.servers == {NEW: "serving"}
    (said,) = [entry for entry in host.journal() if entry["step"] == "standby"]
    assert said["because"] == "clients are to ask at another address"


def lose_front(leads: str | None = None) -> None:
    link = paths.awake("chat")
    link.unlink()
    if leads:
        link.symlink_to(f"{leads}/api.sock")


@pytest.mark.parametrize("leads", [None, OLD], ids=["missing", "leads to the release before"])
def test_a_front_that_is_lost_outside_of_a_switch_is_laid_again_by_the_host(
    host: StandbyHost, leads: str | None
) -> None:
    host.switch()
    entries = host.journal()
    where = (host.paths.root, host.paths.units)
    assert recovery.start_due(*where) == []
    lose_front(leads)
    assert recovery.start_due(*where) == ["chat"] and host.in_background.pop() == host.paths.recovery_unit
    assert recovery.insist(host.paths, host.said.append)
    ends_right(host, NEW)
    assert recovery.start_due(*where) == [] and host.starts == [NEW] and host.journal() == entries


def test_a_service_that_cannot_be_looked_at_keeps_no_other_from_its_turn(host: StandbyHost) -> None:
    host.switch()
    other = paths.ServicePaths(host.paths.root, "aaa", host.paths.units)
    other.releases.mkdir(parents=True)
    other.current.mkdir()  # no link, as somebody's `cp -rL` leaves it
    where = (host.paths.root, host.paths.units)
    assert recovery.start_due(*where) == []
    other.journal.mkdir()  # can't be read
    lose_front(None)
    assert recovery.start_due(*where) == ["aaa", "chat"]


def test_recover_says_that_it_mended_the_front_and_does_it_once(host: StandbyHost) -> None:
    host.switch()
    lose_front()
    assert host.recover() == ["chat: its front was mended"]
    ends_right(host, NEW)
    assert host.recover() == []


def test_nobody_mends_the_front_of_a_service_that_is_switched_or_stopped(host: StandbyHost) -> None:
    lose_front()
    where = (host.paths.root, host.paths.units)
    with exclusive(host.paths.lock, "somebody", "a switch"):
        assert recovery.start_due(*where) == []
    host.servers.clear()
    assert recovery.start_due(*where) == host.recover() == [] and host.leads_to is None


def test_a_switch_that_was_interrupted_before_anything_was_touched_ends_with_its_front(
    host: StandbyHost,
) -> None:
    host.die_at = 16
    with contextlib.suppress(Killed):
        host.switch()
    assert host.acts() == [] and host.journal()[-1]["step"] == "measure-before"
    lose_front()
    host.recover()
    ends_right(host, OLD)


def test_whoever_looks_at_the_host_sees_that_the_front_is_lost(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "unit_state", lambda unit: {"ActiveState": "active", "MainPID": "1"})
    monkeypatch.setattr(running, "release", lambda unit, shown: host.running)

    def lost() -> bool:
        return bool(observe.service(host.paths)["front_lost"])

    checked = service.Service(host.paths, host.said.append)
    assert not lost() and f"leads to release {OLD}" in doctor._front(checked)
    lose_front()
    assert lost()
    with pytest.raises(doctor.Wrong, match=r"leads to nothing, so nobody is served.*recover@chat"):
        doctor._front(checked)
    paths.awake("chat").symlink_to(f"{NEW}/api.sock")
    with pytest.raises(doctor.Wrong, match=f"{NEW}/api.sock"):
        doctor._front(checked)
    with exclusive(host.paths.lock, "somebody", "a switch"):
        assert not lost()  # it may lead to the new release then
    host.servers.clear()
    assert not lost()  # a stopped service is told otherwise


def test_a_release_without_a_front_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.install(OLD, standby=False)
    checked = service.Service(host.paths, host.said.append)
    assert not checked.front_lost and not checked.mend_front()
    assert doctor._front(checked).startswith("it has none")


def test_a_first_release_that_fails_leaves_no_front_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.stage(NEW)
    host.broken.add(NEW)
    assert host.switch() == "rolled_back"
    assert (host.current, host.servers, host.listening) == (None, {}, False)
    assert list(host.paths.units.glob("**/vllm-*")) == []


def neighbour(tmp_path: Path) -> paths.ServicePaths:
    """A service whose unit has the name of chat's front, as an older version laid it."""
    other = paths.ServicePaths(tmp_path, "chat-front", tmp_path / "units")
    other.releases.mkdir(parents=True)
    other.current.symlink_to("releases/cccccccccccc")
    other.units.mkdir(exist_ok=True)
    other.unit_link.symlink_to(other.current / "vllm.service")
    return other


def test_a_service_that_has_the_name_of_a_front_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = simulated.SimulatedHost(tmp_path, monkeypatch)
    host.install(OLD)
    host.stage(NEW)
    other = neighbour(tmp_path)
    stopped = []
    monkeypatch.setattr(systemd, "stop", lambda unit, limit_s: stopped.append(unit))
    assert host.switch() == "committed"
    assert set(stopped) == {host.paths.unit}
    assert other.unit_link.readlink() == other.current / "vllm.service"


def test_a_switch_that_needs_the_name_of_another_service_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.install(OLD, standby=False)
    host.stage(NEW)
    other = neighbour(tmp_path)
    assert host.switch() == "refused"
    end = host.journal()[-1]
    assert f"{other.unit_link} is there and was not made" in end["reason"]
    assert other.unit_link.readlink() == other.current / "vllm.service"
    assert (host.current, host.servers) == (OLD, {OLD: "serving"})
