"""The way back, on a simulated host: killed, powered off, out of disk, at every call and at every write."""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost

from pyinfra_vllm.on_host import __main__ as program
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.server import systemd
from pyinfra_vllm.on_host.server.release import NotReady
from pyinfra_vllm.on_host.server.service import Service
from pyinfra_vllm.on_host.state import durable, evidence, lock, manifest
from pyinfra_vllm.on_host.state import journal as journals
from pyinfra_vllm.on_host.switch import outcomes, recovery, rollback
from pyinfra_vllm.on_host.switch.order import ROLLBACK
from pyinfra_vllm.on_host.switch.unfinished import Unfinished


def prepared(root: Path, patch: pytest.MonkeyPatch, rate: float) -> SimulatedHost:
    """The old release serves, the new one is staged and makes `rate` tokens/s, and no call was
    counted yet.
    """
    host = SimulatedHost(root, patch)
    host.install(OLD)
    host.stage(NEW)
    host.rates[NEW] = rate
    host.calls.clear()
    return host


def count_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float) -> int:
    with monkeypatch.context() as patch:
        host = prepared(tmp_path / "dry", patch, rate)
        host.switch()
        return len(host.calls)


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_death_at_any_call_leaves_the_old_release_or_the_new_proven_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, boot: bool
) -> None:
    total = count_calls(tmp_path, monkeypatch, rate)
    assert total > 40
    for moment in range(total):
        with monkeypatch.context() as patch:
            host = prepared(tmp_path / f"{moment}", patch, rate)
            host.die_at = moment
            with pytest.raises(Killed):
                host.switch()
            host.recover(boot)
            check(host, moment)
            before = (host.current, host.running, len(host.journal()))
            host.recover()
            assert (host.current, host.running, len(host.journal())) == before, (
                "a second recovery did something"
            )
            host.switch()
            assert host.running == (NEW if rate == 100.0 else OLD), "the next ordinary run did not converge"


@pytest.mark.thorough
def test_death_during_recovery_is_recovered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _die_in_every_recovery(tmp_path, monkeypatch, range(5, count_calls(tmp_path, monkeypatch, 50.0), 12))


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(8))
def test_every_death_in_every_recovery_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    _die_in_every_recovery(tmp_path, monkeypatch, range(part, count_calls(tmp_path, monkeypatch, 50.0), 8))


def _die_in_every_recovery(root: Path, monkeypatch: pytest.MonkeyPatch, moments: range) -> None:
    """Every pair of (a call of the transaction) x (a call of its recovery), up to the last that there is."""
    for first in moments:
        second = 0
        while _die_twice(root / f"{first}-{second}", monkeypatch, first, second):
            second += 1


def _die_twice(root: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int) -> bool:
    """Whether the recovery was killed, too: it makes no further call than those before."""
    with monkeypatch.context() as patch:
        host = prepared(root, patch, 50.0)
        host.die_at = first
        with pytest.raises(Killed):
            host.switch()
        host.dead, host.die_at = False, len(host.calls) + second
        try:
            host.recover_until_death()
            killed = False
        except Killed:
            killed = True
            host.recover()
        check(host, first)
    return killed


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_a_disk_that_fills_at_any_write_never_keeps_an_unproven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    for moment in range(count_calls(tmp_path, monkeypatch, rate)):
        with monkeypatch.context() as patch:
            host = prepared(tmp_path / f"{moment}", patch, rate)
            host.disk_full_at = moment
            with contextlib.suppress(OSError):
                host.switch()
            proven = any(entry["step"] == "commit" for entry in host.journal())
            assert host.current == host.running, f"full at {moment}"
            assert host.running == (NEW if proven and host.running == NEW else OLD), f"full at {moment}"
            host.disk_full_at = None
            host.recover()
            assert host.current == host.running, f"full at {moment}, then recovered"
            assert (host.outcome() == "committed") == (host.running == NEW), (
                f"full at {moment}: the record lies"
            )
            host.switch()
            assert host.running == (NEW if rate == 100.0 else OLD), f"full at {moment}: no convergence"


def check(host: SimulatedHost, moment: int) -> None:
    committed = any(entry["step"] == "commit" for entry in host.journal())
    assert host.current == host.running, f"dead at {moment}: what runs is not what current says"
    assert host.running == (NEW if committed else OLD), f"dead at {moment}: {host.running} serves"
    ends = [entry for entry in host.journal() if entry["step"] == "end"]
    begun = [entry for entry in host.journal() if entry["step"] == "begin"]
    assert len(ends) == len(begun), f"dead at {moment}: the journal has no end"
    if ends:
        assert (ends[-1]["outcome"] == "committed") == committed


def refuse(*arguments: object, **more: object) -> None:
    raise OSError(30, "Read-only file system")


def test_a_recovery_that_the_disk_refuses_says_so_and_can_be_run_again(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = journals.Journal(serving.paths.journal, "t")
    log.write("begin", "done", **{"from": OLD, "to": NEW})
    log.write("activate", "intended", **{"from": OLD, "to": NEW})
    with monkeypatch.context() as patch:
        patch.setattr(rollback, "restore", refuse)
        with pytest.raises(Unfinished, match=r"chat: .*Read-only file system\. The host tries again"):
            serving.recover()
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == OLD


def test_a_proven_release_stays_where_its_record_could_not_be_completed(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(outcomes, "accept", refuse)
        with pytest.raises(OSError, match="Read-only"):
            serving.switch()
    assert serving.running == serving.current == NEW
    assert serving.recover() == ["chat: committed"]
    assert serving.running == NEW


def test_a_release_that_was_left_after_its_commit_is_not_called_committed(serving: SimulatedHost) -> None:
    """On a disk that took the commit and then no entry more, the way back was walked without being written
    down.
    """
    log = journals.Journal(serving.paths.journal, "t")
    log.write("begin", "done", **{"from": OLD, "to": NEW})
    log.write("activate", "intended", **{"from": OLD, "to": NEW})
    log.write("commit", "done", release=NEW)
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == serving.current == OLD


def activated(host: SimulatedHost, **begin: object) -> journals.Journal:
    """A switch was killed after its point of no return: the new release is current."""
    log = journals.Journal(host.paths.journal, "t")
    log.write("begin", "done", **{"from": OLD, "to": NEW, "purpose": "rollout", **begin})
    log.write("activate", "intended", **{"from": OLD, "to": NEW})
    durable.point(host.paths.current, host.paths.release(NEW))
    host.running = NEW
    return log


def test_a_boot_into_an_old_release_that_will_not_start_is_no_rollback(serving: SimulatedHost) -> None:
    activated(serving)
    serving.broken.add(OLD)
    serving.recover(boot=True)
    assert serving.outcome() is None and serving.failing
    assert (serving.current, serving.running) == (NEW, NEW)


def test_boot_lets_systemd_start_the_old_release_and_ends_after_the_generation_check(
    serving: SimulatedHost,
) -> None:
    activated(serving)
    assert serving.recover(boot=True) == ["chat: going back"]
    assert serving.outcome() == "rolled_back"
    assert serving.starts == [OLD], "it was started once, by systemd"
    assert "the host went down before the verdict" in serving.journal()[-1]["reason"]


def test_damaged_new_release_does_not_block_the_rollback(serving: SimulatedHost) -> None:
    activated(serving)
    (serving.paths.release(NEW) / "release.json").write_text("{")
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == OLD


def test_where_the_old_release_lost_its_files_the_new_one_goes_on_serving(serving: SimulatedHost) -> None:
    activated(serving)
    (serving.paths.release(OLD) / "release.json").unlink()
    serving.recover(boot=True)
    assert serving.outcome() is None and serving.failing
    assert serving.running == NEW


def test_one_service_s_damaged_journal_holds_up_no_other(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = serving.paths.root / "aaa"
    (other / "releases").mkdir(parents=True)
    lines = ('"begin", "state": "done"', '"activate", "state": "intended"')
    texts = [f'{{"at": "2026-11-21T03:00:00+00:00", "tx": "t", "step": {line}}}\n' for line in lines]
    (other / "journal.jsonl").write_text("".join(texts))
    (other / "current").mkdir()  # not even a link
    activated(serving)
    with contextlib.suppress(Unfinished):
        serving.recover(boot=True)
    assert serving.running == OLD and serving.starts[-1] == OLD


def test_a_rollback_by_hand_that_was_killed_after_its_commit_still_rejects_what_it_left(
    serving: SimulatedHost,
) -> None:
    log = activated(serving, purpose=ROLLBACK, reason="users complain")
    log.write("commit", "done", release=NEW, verdict="pass")
    assert serving.recover() == ["chat: committed"]
    assert durable.read_json(serving.paths.rejected)[OLD]["reason"] == "users complain"
    assert serving.paths.linked(serving.paths.previous) == OLD


@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_recovery_rejects_the_release_that_was_judged_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: bool
) -> None:
    host = prepared(tmp_path, monkeypatch, 50.0)
    write = journals.Journal.write

    def die(log: journals.Journal, step: str, state: str, **fields: object) -> journals.Entry:
        entry = write(log, step, state, **fields)
        if step == "judge":
            host.dead = True
        return entry

    monkeypatch.setattr(journals.Journal, "write", die)
    with pytest.raises(Killed):
        host.switch()
    monkeypatch.setattr(journals.Journal, "write", write)
    host.recover(boot)
    assert host.running == OLD
    assert "tokens_per_s: worse" in durable.read_json(host.paths.rejected)[NEW]["reason"]
    assert "tokens_per_s: worse" in host.journal()[-1]["reason"]
    kept = host.paths.evidence / host.journal()[0]["tx"] / "journal.jsonl"
    assert journals.read(kept) == host.journal()


def test_a_recovery_that_finds_the_lock_held_says_so_and_does_not_call_it_done(
    serving: SimulatedHost,
) -> None:
    activated(serving)
    with (
        lock.exclusive(serving.paths.lock, "alice@control", "pruning"),
        pytest.raises(Unfinished, match="alice@control has held this service"),
    ):
        serving.recover()
    assert serving.recover() == ["chat: rolled_back"]


def test_an_old_release_that_hangs_in_its_start_is_not_waited_for_three_times(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.rates[NEW] = 50.0
    flows = serving._generation_problem
    stopped = serving.starts  # after the first start it never answers again
    monkeypatch.setattr(
        serving,
        "_generation_problem",
        lambda release: "no answer" if release == OLD and stopped else flows(release),
    )
    assert serving.switch(ready_timeout_s=0.1) == "restore_failed"
    assert serving.starts == [NEW, OLD, NEW]


@pytest.mark.parametrize("lost", [True, False], ids=["it lost its files", "it has all it needs"])
def test_what_serves_is_not_stopped_for_an_old_release_that_lost_its_files(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    activated(serving)
    serving.broken.add(OLD)
    monkeypatch.setattr(manifest, "quick_check", lambda path: ["gone"] if lost and path.name == OLD else [])
    assert serving.recover() == ["chat: restore_failed"]
    assert serving.starts == ([] if lost else [OLD] * 3 + [NEW])
    assert serving.running == NEW


def test_after_a_power_cut_an_old_release_that_lost_its_files_costs_one_start(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd's own, at boot; until its files are back the new release serves."""
    activated(serving)
    serving.broken.add(OLD)
    lost = ["gone"]
    monkeypatch.setattr(manifest, "quick_check", lambda path: lost if path.name == OLD else [])
    serving.recover(boot=True)
    assert serving.starts == [OLD, NEW] and serving.running == NEW and serving.outcome() is None
    lost.clear()
    serving.broken.clear()
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == OLD


def test_where_neither_release_can_be_started_the_record_says_so(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(unit: str) -> None:
        raise systemd.SystemdError("`systemctl start` exited with 203")

    with monkeypatch.context() as patch:
        patch.setattr(systemd, "start", fails)
        assert serving.switch() == "restore_failed"
        assert serving.failing == "`systemctl start` exited with 203" and serving.current == OLD
        assert serving.outcome() is None, "an end that left nothing serving is no end"
        assert serving.recover() == ["chat: restore_failed"]
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == OLD and serving.outcome() == "rolled_back"


@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_a_record_whose_end_was_written_last_gets_its_journal_later(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, boot: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "seal", refuse)
        with pytest.raises(OSError, match="Read-only"):
            serving.switch()
    serving.recover(boot)
    kept = serving.paths.evidence / serving.journal()[0]["tx"] / "journal.jsonl"
    assert journals.read(kept) == serving.journal()


def test_a_unit_between_a_crash_and_its_next_start_is_not_down(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["inactive", "activating"])
    monkeypatch.setattr(systemd, "show", lambda unit, *names: {"ActiveState": next(states, "active")})
    assert not Service(serving.paths, serving.said.append).down


def test_rollback_whose_child_processes_are_killed_is_tried_again(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    activated(serving)
    reload, killed = systemd.daemon_reload, iter([True])

    def once() -> None:
        if next(killed, False):
            raise systemd.SystemdError("`systemctl daemon-reload` exited with -9")
        reload()

    def by_a_child(release: object, files: object) -> None:
        raise NotReady("its user can't read what it needs: ")

    monkeypatch.setattr(systemd, "daemon_reload", once)
    monkeypatch.setattr(releases, "_readable", by_a_child)
    monkeypatch.setattr(serving, "_generation_problem", lambda release: "")
    assert serving.recover() == ["chat: rolled_back"]
    assert serving.running == serving.current == OLD


@pytest.mark.parametrize("problem", [OSError(errno.EMFILE, "Too many open files"), MemoryError()], ids=str)
def test_a_recovery_that_lacks_what_a_new_process_has_ends_and_one_that_does_not_goes_on(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    def wrapped(paths: object, say: object) -> bool:
        raise systemd.SystemdError("`systemctl start` could not be run") from problem

    tries: list[float] = []
    monkeypatch.setattr(time, "sleep", tries.append)
    monkeypatch.setattr(recovery, "_try_once", wrapped)
    with pytest.raises(systemd.SystemdError):
        recovery.insist(serving.paths, serving.said.append, tries=3)
    assert not tries
    monkeypatch.setattr(recovery, "_try_once", refuse)
    assert not recovery.insist(serving.paths, serving.said.append, tries=3)
    assert len(tries) == 2


def test_a_misspelt_service_or_a_wrong_root_is_no_recovery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the runbook has it typed at night: nothing found must not look like nothing left to do."""
    assert program.main(["--root", str(tmp_path), "recover", "chat"]) == 1
    assert f"no service chat below {tmp_path}; there is none" in capsys.readouterr().err
    (tmp_path / "chat" / "releases").mkdir(parents=True)
    assert program.main(["--root", str(tmp_path), "recover", "chta"]) == 1
    assert f"no service chta below {tmp_path}; there is chat" in capsys.readouterr().err
