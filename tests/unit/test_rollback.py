"""The way back lacks nothing and makes nothing worse: what other people and a short host do to it, on a
simulated host.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost

from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.server import service, systemd
from pyinfra_vllm.on_host.state import durable, lock, observe
from pyinfra_vllm.on_host.state import journal as journals
from pyinfra_vllm.on_host.switch import interruption, recovery
from pyinfra_vllm.on_host.switch.unfinished import Unfinished


def at(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], None]) -> None:
    """Have something happen when the entry `step` ("judge done") is on the disk."""
    write = journals.Journal.write

    def written(log: journals.Journal, name: str, state: str, **fields: Any) -> journals.Entry:
        entry = write(log, name, state, **fields)
        if f"{name} {state}" == step:
            act()
        return entry

    monkeypatch.setattr(journals.Journal, "write", written)


def refusing(*words: object, **more: object) -> Any:
    raise systemd.SystemdError("Refusing to reload, not enough space available on /run/systemd")


def full(*words: object, **more: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_server_that_answers_is_not_stopped_where_systemd_refuses_to_reload(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[str] = []
    monkeypatch.setattr(systemd, "stop", lambda unit, limit_s: stops.append(unit))
    with monkeypatch.context() as patch:
        patch.setattr(systemd, "daemon_reload", refusing)
        assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running, stops, serving.starts) == (OLD, OLD, [], [])


def test_a_server_that_somebody_stopped_is_started_where_systemd_refuses_to_reload(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the old release's unit loaded still, which is all that its start needs."""

    def stopped() -> None:
        serving.running = None
        monkeypatch.setattr(systemd, "daemon_reload", refusing)

    at(serving, monkeypatch, "window done", stopped)
    assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running, serving.starts) == (OLD, OLD, [OLD])


def test_a_new_release_that_serves_stays_until_systemd_reloads_and_goes_then(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.rates[NEW] = 50.0
    with monkeypatch.context() as patch:
        at(serving, patch, "judge done", lambda: patch.setattr(systemd, "daemon_reload", refusing))
        assert serving.switch() == "restore_failed"
        assert serving.running == NEW and NEW in durable.read_json(serving.paths.rejected)
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == serving.current == OLD


def test_going_back_needs_no_inode(serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    serving.rates[NEW] = 50.0
    at(serving, monkeypatch, "judge done", lambda: monkeypatch.setattr(Path, "symlink_to", full))
    assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running) == (OLD, OLD)
    assert NEW in durable.read_json(serving.paths.rejected)
    assert not list(serving.paths.directory.glob(".current.*"))


def test_pointing_to_and_fro_needs_no_inode_once_it_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, targets = tmp_path / "current", [tmp_path / "a", tmp_path / "b"]
    durable.prepare(link, *targets)
    monkeypatch.setattr(Path, "symlink_to", full)
    for target in targets * 3:
        durable.point(link, target, keep=True)
        assert link.resolve() == target
    durable.tidy(link)
    assert list(tmp_path.iterdir()) == [link]


def test_a_reserved_journal_takes_entries_and_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("{}\n")
    durable.reserve(path, 1 << 18)
    assert path.stat().st_size == 3 and path.stat().st_blocks * 512 >= 1 << 17


def test_a_replacement_of_any_length_is_written_into_its_reserve(tmp_path: Path) -> None:
    path = tmp_path / "rejected.json"
    durable.reserve_replacement(path, 1 << 16)
    durable.write_text(path, "a longer text")
    (tmp_path / ".rejected.json.partial").write_text("what an interrupted write left, which is longer still")
    durable.write_text(path, "short")
    assert path.read_text() == "short"


def test_what_is_short_just_before_the_switch_refuses_it(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.Service, "refused", lambda this: "/run has 3 MiB free")
    assert serving.switch() == "refused"
    assert serving.starts == [] and "/run has 3 MiB free" in serving.journal()[-1]["reason"]


def test_a_unit_edited_during_the_baseline_refuses_the_switch(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit() -> None:
        serving.paths.unit_link.unlink()
        serving.paths.unit_link.write_text("[Service]\n")

    at(serving, monkeypatch, "window done", edit)
    assert serving.switch() == "refused"
    assert serving.running == OLD and serving.starts == [] and serving.paths.unit_link.is_file()


def test_a_unit_edited_after_the_switch_is_moved_aside_on_the_way_back(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit() -> None:
        serving.paths.unit_link.unlink()
        serving.paths.unit_link.write_text("[Service]\n# by a colleague\n")

    serving.rates[NEW] = 50.0
    at(serving, monkeypatch, "judge done", edit)
    assert serving.switch() == "rolled_back"
    assert serving.running == OLD and serving.paths.unit_link.is_symlink()
    (kept,) = serving.paths.units.glob("vllm-chat.service.replaced-*")
    assert "by a colleague" in kept.read_text()


def test_a_unit_that_somebody_disabled_meanwhile_is_enabled_again(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disable() -> None:  # of a linked unit, systemctl removes both links
        serving.paths.unit_link.unlink()
        serving.paths.wants_link.unlink()

    at(serving, monkeypatch, "commit done", disable)
    assert serving.switch() == "committed"
    assert serving.paths.unit_link.is_symlink() and serving.paths.wants_link.is_symlink()


def test_a_unit_masked_after_the_way_back_is_ours_again_before_the_end(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask() -> None:
        serving.paths.unit_link.unlink()
        serving.paths.unit_link.symlink_to("/dev/null")

    serving.rates[NEW] = 50.0
    at(serving, monkeypatch, "restore done", mask)
    assert serving.switch() == "rolled_back"
    assert serving.paths.unit_link.readlink() == serving.paths.current / "vllm.service"


def test_a_unit_disabled_before_an_interrupted_switch_touched_anything_starts_at_the_next_boot(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disable_and_die() -> None:
        serving.paths.unit_link.unlink()
        serving.paths.wants_link.unlink()
        raise Killed

    at(serving, monkeypatch, "window done", disable_and_die)
    with pytest.raises(Killed):
        serving.switch()
    assert serving.recover(boot=True) == ["chat: interrupted"]
    assert serving.paths.unit_link.is_symlink() and serving.paths.wants_link.is_symlink()


def test_a_unit_masked_before_an_interrupted_switch_touched_anything_stays_masked_and_fails_no_boot(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask_and_die() -> None:
        serving.paths.unit_link.unlink()
        serving.paths.unit_link.symlink_to("/dev/null")
        raise Killed

    at(serving, monkeypatch, "window done", mask_and_die)
    with pytest.raises(Killed):
        serving.switch()
    starts = list(serving.starts)
    assert serving.recover(boot=True) == ["chat: interrupted"]
    assert serving.starts == starts and "somebody masked" in serving.said[-1]


def test_a_unit_stopped_before_the_baseline_leaves_nothing_to_judge_by(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(serving, monkeypatch, "prove-way-forward done", lambda: setattr(serving, "running", None))
    assert serving.switch() == "rolled_back"
    assert serving.running == OLD and not durable.read_json(serving.paths.rejected, {})
    judged = next(entry for entry in serving.journal() if entry["step"] == "judge")
    assert judged["verdict"] == "inconclusive" and "served when the switch began" in judged["reasons"][0]


def test_unit_stopped_during_the_generation_check_is_noticed_at_once(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(serving, monkeypatch, "ready intended", lambda: setattr(serving, "running", None))
    assert serving.switch(ready_timeout_s=600.0) == "rolled_back"
    assert serving.running == OLD and "stopped by somebody" in serving.journal()[-1]["reason"]
    assert not durable.read_json(serving.paths.rejected, {})


def test_temporary_error_of_a_rollback_is_retried(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No start succeeds for a while, of neither release; then nobody has to come."""
    start, obstacles = systemd.start, iter(range(17))

    def obstructed(unit: str) -> None:
        if next(obstacles, None) is not None:
            raise systemd.SystemdError("status=1: the GPU's memory is still taken")
        start(unit)

    monkeypatch.setattr(systemd, "start", obstructed)
    assert serving.switch() == "restore_failed"
    assert serving.outcome() is None and serving.running is None
    assert recovery.insist(serving.paths, serving.said.append, tries=9)
    assert serving.running == serving.current == OLD and serving.outcome() == "rolled_back"
    failed = [
        entry for entry in serving.journal() if (entry["step"], entry["state"]) == ("restore", "failed")
    ]
    assert len(failed) == 1, "the journal says each problem once, however often it is tried"


def test_a_shutdown_is_no_failure_and_the_next_boot_finishes(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shut_down() -> None:
        interruption.note(serving.paths)
        serving.dead = True

    with monkeypatch.context() as patch:
        patch.setattr(systemd, "stopping", lambda: True)
        at(serving, patch, "ready done", shut_down)
        with pytest.raises(Killed):
            serving.switch()
        serving.dead = False
        with pytest.raises(Unfinished, match="shutting down"):
            serving.recover()
        assert not recovery.insist(serving.paths, serving.said.append)
        assert serving.failing == "" and serving.outcome() is None
    serving.recover(boot=True)
    assert serving.running == OLD and serving.outcome() == "rolled_back"
    assert "interrupted by a shutdown" in serving.journal()[-1]["reason"]


def test_a_soak_that_is_cut_short_is_told(serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*words: object, **more: object) -> Any:
        serving.dead = True
        raise Killed

    monkeypatch.setattr(soak, "soak", die)
    with pytest.raises(Killed):
        serving.switch(criteria={"soak_s": 60.0})
    assert serving.recover() == ["chat: committed"]
    assert serving.running == NEW and "the soak was cut short" in serving.journal()[-1]["reason"]


def soak_ends(patch: pytest.MonkeyPatch, verdict: str) -> None:
    reasons = [] if verdict == "pass" else ["no token for 60 s"]
    patch.setattr(soak, "soak", lambda *words, **more: soak.Watched(verdict, reasons, 60.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("boot", [False, True])
@pytest.mark.parametrize("action", ["rollback", "alert"])
@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_what_a_soak_found_counts_whenever_its_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, action: str, boot: bool
) -> None:
    worse = verdict == "fail" and action == "rollback"
    deaths = 0
    for moment in itertools.count():
        with monkeypatch.context() as patch:
            host = SimulatedHost(tmp_path / str(moment), patch)
            host.install(OLD)
            host.stage(NEW)
            host.calls.clear()
            soak_ends(patch, verdict)
            host.die_at = moment
            with suppress(Killed):
                host.switch(criteria={"soak_s": 60.0, "soak_action": action})
                break
            if not any((entry["step"], entry["state"]) == ("soak", "done") for entry in host.journal()):
                continue
            deaths += 1
            host.recover(boot)
            end = host.journal()[-1]
            assert "no token for 60 s" in end["reason"], (moment, end)
            assert (host.running, end["outcome"]) == ((OLD, "rolled_back") if worse else (NEW, "committed"))
            assert list(durable.read_json(host.paths.rejected, {})) == ([NEW] if worse else [])
    assert deaths


def test_a_host_on_which_neither_release_starts_rejects_none(serving: SimulatedHost) -> None:
    """The card is lost: it is the host's fault, as far as anybody knows."""
    serving.broken |= {OLD, NEW}
    assert serving.switch() == "restore_failed"
    serving.broken.clear()
    serving.recover()
    assert serving.running == OLD and serving.outcome() == "rolled_back"
    assert durable.read_json(serving.paths.rejected, {}) == {}


def test_a_boot_recovery_beside_a_live_switch_has_nothing_to_do(serving: SimulatedHost) -> None:
    with lock.exclusive(serving.paths.lock, "alice@control", "the rollout of release b"):
        assert serving.recover(boot=True) == []
    assert serving.starts == []


def test_only_what_was_committed_and_is_not_being_judged_counts_as_proven(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "unit_state", lambda unit: {"ActiveState": "active", "MainPID": "0"})

    def proven() -> Any:
        (seen,) = observe.observe(serving.paths.root, [])
        return seen["proven"]

    assert proven() is None
    found: list[Any] = []
    at(serving, monkeypatch, "judge done", lambda: found.append(proven()))
    assert serving.switch() == "committed"
    assert found == [None] and proven() == NEW
    serving.rates[OLD] = 10.0
    assert serving.switch(OLD) == "rolled_back" and proven() == NEW


def test_the_next_run_of_the_same_rollout_is_refused_while_the_old_release_can_t_be_had(
    serving: SimulatedHost,
) -> None:
    serving.stage("cccccccccccc")
    serving.rates["cccccccccccc"] = 100.0
    serving.rates[NEW] = 50.0
    serving.dies_when_stopped.add(OLD)
    assert serving.switch() == "restore_failed"
    with pytest.raises(Unfinished, match=f"{NEW} is to be replaced by {OLD}, which fails"):
        serving.switch()
    assert serving.switch("cccccccccccc") == "committed", "another release is somebody's decision"
    ends = [entry["outcome"] for entry in serving.journal() if entry["step"] == "end"]
    assert ends == ["restore_failed", "committed"]


def test_sigterm_notes_only_in_a_transaction_of_this_process(serving: SimulatedHost) -> None:
    log = journals.Journal(serving.paths.journal, "t")
    log.write("begin", "done", **{"from": OLD, "to": NEW})
    serving.paths.lock.write_text(json.dumps({"pid": os.getpid() + 1}))
    interruption.note(serving.paths)
    assert len(serving.journal()) == 1
    with lock.exclusive(serving.paths.lock, "alice", "the rollout"):
        interruption.note(serving.paths)
    assert serving.journal()[-1]["by"] == "`systemctl stop`"
