"""The promise with standby, on a simulated host: whatever fails and whenever, one proven release serves, and
no server ever gets the card's memory while another has it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standby_host import NEW, OLD, Killed, StandbyHost

from pyinfra_vllm.answers import typed
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.on_host import doctor
from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.gate import in_turns, soak, turns
from pyinfra_vllm.on_host.server import control, service, systemd
from pyinfra_vllm.on_host.state import durable, observe, paths, running
from pyinfra_vllm.on_host.state.lock import exclusive
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.switch import calibrating, judging, recovery, rounds, standby
from pyinfra_vllm.on_host.switch.order import CALIBRATION, ROLLBACK, TRIAL, Order
from pyinfra_vllm.report.looking import Look
from pyinfra_vllm.report.status import rows
from pyinfra_vllm.report.tables import reasons_of

TO_NEW = [
    "sleep old", "start new", "canary new", "sleep new", "lead new", "wake new", "canary new", "serve new",
    "relay old",
]  # fmt: skip
BACK = ["lead old", "sleep new", "wake old", "canary old", "serve old", "relay new", "stop new"]


def prepared(root: Path, patch: pytest.MonkeyPatch, rate: float = 100.0) -> StandbyHost:
    host = StandbyHost(root, patch)
    host.install(OLD)
    host.stage(NEW)
    host.rates[NEW] = rate
    host.calls.clear()
    return host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandbyHost]:
    yield (made := prepared(tmp_path, monkeypatch))
    assert made.violations == []


def ends_right(host: StandbyHost, release_id: str, at: object = "") -> None:
    """This release is current, serves alone, and clients are led to it."""
    assert host.servers == {release_id: "serving"}, at
    assert (host.current, host.leads_to, host.listening) == (release_id, release_id, True), at
    assert list(host.paths.server_units()) == [release_id], at
    assert host.paths.unit_link.readlink().name == f"vllm-chat.{release_id}.service", at
    assert host.violations == [], at


def test_a_release_that_is_no_worse_is_kept_and_the_old_one_stopped(host: StandbyHost) -> None:
    assert host.switch() == "committed"
    assert host.acts() == [*TO_NEW, "stop old"] and host.starts == [NEW]
    ends_right(host, NEW)
    steps = [entry["step"] for entry in host.journal() if entry["state"] == "done"]
    assert steps == [
        "begin", "prove-way-back", "prove-way-forward", "measure-before", "canary", "window",
        "reserve-rollback", "canary", "activate", "ready", "kernel", "measure-after", "judge", "point",
        "commit", "end",
    ]  # fmt: skip


def test_a_worse_release_is_left_without_a_start_of_the_old_one(host: StandbyHost) -> None:
    host.rates[NEW] = 50.0
    assert host.switch() == "rolled_back"
    assert host.acts() == [*TO_NEW, *BACK] and host.starts == [NEW]
    ends_right(host, OLD)
    assert "tokens" in durable.read_json(host.paths.rejected)[NEW]["reason"]


def test_a_release_that_never_serves_is_rejected_and_the_old_one_woken(host: StandbyHost) -> None:
    host.broken.add(NEW)
    assert host.switch() == "rolled_back"
    assert set(host.starts) == {NEW}
    ends_right(host, OLD)
    assert NEW in durable.read_json(host.paths.rejected)


# What fails, of whom; whether the old release has to be started, and whether the new one stays.
FAULTS = [
    (OLD, "sleep", [NEW], NEW),
    (OLD, "busy", [], OLD),
    (OLD, "memory", [NEW], NEW),
    (OLD, "wake", [NEW, OLD], OLD),
    (NEW, "sleep", [NEW], OLD),
    (NEW, "busy", [NEW], OLD),
    (NEW, "memory", [NEW], OLD),
]


@pytest.mark.parametrize(("who", "fault", "starts", "stays"), FAULTS)
def test_whatever_fails_one_proven_release_serves(
    host: StandbyHost, who: str, fault: str, starts: list[str], stays: str
) -> None:
    host.faults.add((who, fault))
    if who == NEW or fault == "wake":
        host.rates[NEW] = 50.0
    assert host.switch() == ("committed" if stays == NEW else "rolled_back")
    ends_right(host, stays)
    assert [one for one in host.starts if one == OLD] == [one for one in starts if one == OLD]


def test_a_new_release_that_answers_otherwise_after_its_first_wake_goes_back(host: StandbyHost) -> None:
    host.wrong.add(NEW)
    assert host.switch() == "rolled_back"
    assert host.starts == [NEW] and "stop new" in host.acts()
    ends_right(host, OLD)


def test_an_old_release_that_answers_otherwise_after_its_wake_is_started_anew(host: StandbyHost) -> None:
    host.rates[NEW] = 50.0
    host.wrong.add(OLD)
    assert host.switch() == "rolled_back"
    assert host.starts == [NEW, OLD]
    ends_right(host, OLD)


def verdict(host: StandbyHost) -> dict[str, Any]:
    (found,) = [entry for entry in host.journal() if entry["step"] == "judge"]
    return found


def rounds_of(host: StandbyHost) -> dict[str, Any]:
    (found,) = [e for e in host.journal() if e["step"] == "turns" and e["state"] == "done"]
    return found


def test_both_are_measured_in_turns_and_the_verdict_says_how_many(host: StandbyHost) -> None:
    host.takes_turns = True
    assert host.switch() == "committed"
    ends_right(host, NEW)
    assert rounds_of(host)["blocks"] == 6 and 12 <= rounds_of(host)["turns"] <= 19
    assert any(
        text.startswith(f"measured in {rounds_of(host)['turns']} turns") for text in verdict(host)["reasons"]
    )
    for block in range(6):
        asked = host.rounds[4 * block : 4 * block + 4]
        assert [who for who, _ in asked] in ([OLD, NEW, NEW, OLD], [NEW, OLD, OLD, NEW])
        assert sorted(number for _, number in asked) == [2 * block, 2 * block, 2 * block + 1, 2 * block + 1]
    assert host.starts == [NEW]  # every turn is a sleep and a wake
    kept = json.loads((host.paths.evidence / verdict(host)["tx"] / "turns.json").read_text())
    assert len(kept["blocks"]) == 6 and kept["blocks"][0][0]["values"]["c1 tokens_per_s"] < 0


def test_a_baseline_that_varies_is_not_measured_on_where_it_takes_turns(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[bool] = []
    measure = judging.Judging._measure

    def counted(this: judging.Judging, *words: Any, **how: Any) -> Any:
        measured.append("extend" in how)
        return measure(this, *words, **how)

    monkeypatch.setattr(judging.Judging, "_measure", counted)
    monkeypatch.setattr(judging.precision, "settled", lambda *_: False)
    monkeypatch.setattr(judging.precision, "left_s", lambda *_: 100.0)
    host.takes_turns = True
    assert host.switch() == "committed"
    assert measured == [False, False]  # before and after


@pytest.mark.parametrize(("rate", "outcome"), [(100.0, "committed"), (92.0, "rolled_back")])
def test_a_machine_that_slows_down_is_no_difference_between_the_two(
    host: StandbyHost, rate: float, outcome: str
) -> None:
    host.takes_turns, host.drift, host.rates[NEW] = True, 0.98, rate
    assert host.switch() == outcome
    ends_right(host, NEW if outcome == "committed" else OLD)
    (row,) = [
        row for row in verdict(host)["metrics"] if (row["phase"], row["name"]) == ("c8", "tokens_per_s")
    ]
    assert row["ratio"] == pytest.approx(rate / 100, abs=0.01) and row["by"] == "turns, 6 blocks"


def test_what_is_worse_beyond_doubt_goes_back_without_turns(host: StandbyHost) -> None:
    host.takes_turns, host.rates[NEW] = True, 50.0
    assert host.switch() == "rolled_back"
    assert host.rounds == [] and host.acts() == [*TO_NEW, *BACK]
    ends_right(host, OLD)


def test_where_requests_do_not_end_the_two_are_judged_one_after_the_other(host: StandbyHost) -> None:
    host.takes_turns = True
    host.faults.add((NEW, "busy"))
    assert host.switch() == "committed"
    ends_right(host, NEW)
    assert "requests" in rounds_of(host)["because"]
    assert rounds_of(host)["blocks"] == 0
    assert told_of_turns(host).startswith("not judged in turns: 0 blocks of four rounds were measured, ")
    assert rounds_of(host)["because"] in told_of_turns(host)


def told_of_turns(host: StandbyHost) -> str:
    (found,) = [text for text in verdict(host)["reasons"] if " turns: " in text]
    return str(found)


@pytest.mark.parametrize(
    ("criteria", "left_s", "why"),
    [
        ({}, 10_000.0, "(a block took 0 s: gate.budget_s = 1 has room for them)"),
        ({"max_budget_s": 300.0}, 10_000.0, "(a block took 0 s: gate.max_budget_s = 1 has room for them)"),
        ({"on_inconclusive": "keep"}, 10_000.0, "(a block took 0 s: gate.budget_s = 1 has room for them)"),
        ({}, 60.0, "(the window had no time for more)"),
    ],
)
def test_too_few_blocks_are_told_with_the_setting_that_has_room_for_them(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch, criteria: dict[str, Any], left_s: float, why: str
) -> None:
    monkeypatch.setattr(rounds, "MOST_BLOCKS", 5)
    host.takes_turns = True
    assert host.switch(criteria=criteria, measure_until=time.time() + left_s) == "committed"
    assert "5 blocks" in told_of_turns(host) and why in told_of_turns(host)
    assert not any("turns" in str(row.get("by")) for row in verdict(host)["metrics"])


@pytest.mark.parametrize("fault", ["sleep", "wake", "memory"])
def test_a_new_release_that_fails_in_a_turn_goes_back(host: StandbyHost, fault: str) -> None:
    host.takes_turns = True
    host.faults.add((NEW, fault))
    assert host.switch() == "rolled_back"
    ends_right(host, OLD)


def test_an_old_release_that_has_to_be_started_in_a_turn_is_another_start(host: StandbyHost) -> None:
    host.takes_turns = True
    host.wrong.add(OLD)
    assert host.switch() == "committed"
    ends_right(host, NEW)
    assert host.starts == [NEW, OLD]
    assert rounds_of(host)["because"] == "the old release had to be started in a turn"


def test_two_starts_of_each_side_are_measured_where_that_is_asked_for(host: StandbyHost) -> None:
    host.takes_turns = True
    assert host.switch(criteria={"restarts": 2}) == "committed"
    ends_right(host, NEW)
    assert host.starts == [NEW, NEW, OLD]
    assert (rounds_of(host)["blocks"], rounds_of(host)["starts"]) == (12, 2)
    assert any("12 blocks of four rounds and 2 starts" in text for text in verdict(host)["reasons"])
    kept = json.loads((host.paths.evidence / verdict(host)["tx"] / "turns.json").read_text())
    assert [{side["start"] for side in block} for block in kept["blocks"]] == [{0}] * 6 + [{1}] * 6


def test_starts_that_differ_are_in_the_interval(host: StandbyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[set[tuple[int, int]]] = []

    def judge(blocks: list[turns.Block], *known: Any) -> turns.Finding:
        judged.append({block.pair for block in blocks})
        return turns.Finding(0.0, 0.001, 30, 0.5, len(blocks), "pass")

    host.takes_turns = True
    monkeypatch.setattr(in_turns.turns, "judge", judge)
    host.switch(criteria={"restarts": 2})
    assert judged and all(pairs == {(0, 0), (1, 1)} for pairs in judged)


def test_without_time_for_second_starts_one_start_of_each_is_measured(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.takes_turns = True
    monkeypatch.setattr(judging.Judging, "_start_s", lambda this: 60.0)
    soon = time.time() + 100.0
    assert host.switch(criteria={"restarts": 2}, measure_until=soon) == "committed"
    assert host.starts == [NEW] and rounds_of(host)["starts"] == 1
    assert rounds_of(host)["because"] == "there was no time left for second starts"


@pytest.mark.parametrize("who", [OLD, NEW])
def test_a_second_start_that_fails_leaves_one_proven_release(host: StandbyHost, who: str) -> None:
    host.takes_turns = True
    host.breaks_at_start[who] = 2 if who == NEW else 1
    outcome = host.switch(criteria={"restarts": 2})
    # The old release ran before this switch began. Where it does not start again, the new one is judged by
    # what was measured, and stays.
    assert outcome == ("rolled_back" if who == NEW else "committed")
    ends_right(host, OLD if who == NEW else NEW)
    if who == OLD:
        assert "does not serve after its second start" in rounds_of(host)["because"]


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_some_calls_around_second_starts_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: bool
) -> None:
    die_at_every(31, tmp_path, monkeypatch, 92.0, boot, takes_turns=True, criteria={"restarts": 2})


def test_a_trial_takes_turns_too(host: StandbyHost) -> None:
    host.takes_turns = True
    assert host.switch(purpose=TRIAL) == "tried"
    assert rounds_of(host)["blocks"] == 6
    ends_right(host, OLD)


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
def test_death_at_some_calls_of_a_measurement_in_turns_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: bool
) -> None:
    die_at_every(29, tmp_path, monkeypatch, 92.0, boot, takes_turns=True)


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [100.0, 92.0], ids=["no worse", "worse"])
def test_death_at_more_calls_of_a_measurement_in_turns_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    die_at_every(11, tmp_path, monkeypatch, rate, boot=False, takes_turns=True)


def count_calls(
    root: Path, monkeypatch: pytest.MonkeyPatch, rate: float, takes_turns: bool = False, **order: Any
) -> int:
    with monkeypatch.context() as patch:
        host = prepared(root, patch, rate)
        host.takes_turns = takes_turns
        host.switch(**order)
        return len(host.calls)


@pytest.mark.thorough
def test_death_at_some_calls_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at_every(11, tmp_path, monkeypatch, 50.0, boot=False)


@pytest.mark.thorough
@pytest.mark.parametrize("boot", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("rate", [100.0, 50.0], ids=["no worse", "worse"])
def test_death_at_any_call_leaves_one_proven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, boot: bool
) -> None:
    die_at_every(1, tmp_path, monkeypatch, rate, boot)


def die_at_every(
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    boot: bool,
    takes_turns: bool = False,
    **order: Any,
) -> None:
    total = count_calls(tmp_path / "dry", monkeypatch, rate, takes_turns, **order)
    assert total > 100
    for moment in range(0, total, step):
        with monkeypatch.context() as patch:
            host = prepared(tmp_path / f"{moment}", patch, rate)
            host.die_at, host.takes_turns = moment, takes_turns
            with contextlib.suppress(Killed):
                host.switch(**order)
            host.recover(boot)
            committed = any(entry["step"] == "commit" for entry in host.journal())
            ends_right(
                host, NEW if committed else OLD, f"dead at {moment}: {host.calls[moment : moment + 1]}"
            )
            begun, ended = (
                [entry for entry in host.journal() if entry["step"] == step] for step in ("begin", "end")
            )
            assert len(begun) == len(ended), f"dead at {moment}: the journal has no end"
            seen = (dict(host.servers), len(host.journal()))
            host.recover()
            assert (host.servers, len(host.journal())) == seen, f"dead at {moment}: recovered twice"


@pytest.mark.thorough
def test_a_disk_that_fills_at_any_write_keeps_no_unproven_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate, takes_turns in ((100.0, False), (50.0, False), (100.0, True)):
        total = count_calls(tmp_path / f"dry-{rate}-{takes_turns}", monkeypatch, rate, takes_turns)
        for moment in range(0, total, 23 if takes_turns else 1):
            with monkeypatch.context() as patch:
                host = prepared(tmp_path / f"{rate}-{takes_turns}-{moment}", patch, rate)
                host.disk_full_at, host.takes_turns = moment, takes_turns
                with contextlib.suppress(OSError):
                    host.switch()
                assert host.running is not None, f"full at {moment}: nobody serves"
                host.disk_full_at = None
                host.recover()
                ends_right(host, NEW if host.outcome() == "committed" else OLD, f"full at {moment}")


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


GIB = 1 << 20  # in the units of /proc/meminfo


@pytest.mark.parametrize(
    ("version", "available", "because"),
    [
        (251, 500, "systemd is 251, 252 or newer is needed"),
        (
            257,
            130,
            "80 GiB of host memory may be needed for the weights of releases that sleep, and 30 GiB are free"
            " beyond the 10% that must stay free",
        ),
        (252, 181, ""),
    ],
)
def test_a_host_that_can_t_have_it_says_why(
    host: StandbyHost,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: int,
    available: int,
    because: str,
) -> None:
    for name in (OLD, NEW):
        path = host.paths.release(name) / "release.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "fit": {"weights_bytes": 20 << 30}}))
    memory = tmp_path / "meminfo"
    memory.write_text(f"MemTotal: {1000 * GIB} kB\nMemAvailable: {available * GIB} kB\n")
    monkeypatch.setattr(standby, "MEMINFO", memory)
    monkeypatch.setattr(systemd, "version", lambda: version)
    assert host.switch() == "committed"
    (said,) = [entry for entry in host.journal() if entry["step"] == "standby"]
    assert (said["because"], said["standby"]) == (because, not because)
    assert bool(host.acts()) == (not because)


def test_without_standby_the_journal_has_no_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.install(OLD, standby=False)
    host.stage(NEW, standby=False)
    assert host.switch() == "committed"
    assert not {"standby", "canary", "turn", "point"} & {entry["step"] for entry in host.journal()}


def test_nobody_waits_for_a_server_that_is_stopped(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    tell = control.Control.tell
    monkeypatch.setattr(
        control.Control,
        "tell",
        lambda this, do, *rest, **words: told.append(do) or tell(this, do, *rest, **words),
    )
    host.switch()
    assert "end" in told


def test_a_first_release_that_fails_leaves_no_front_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = StandbyHost(tmp_path, monkeypatch)
    host.stage(NEW)
    host.broken.add(NEW)
    assert host.switch() == "rolled_back"
    assert (host.current, host.servers, host.listening) == (None, {}, False)
    assert list(host.paths.units.glob("**/vllm-*")) == []


@pytest.mark.parametrize(
    ("used", "slept_with", "room"),
    [
        (8_000, None, True),  # vLLM asks for 90 of 100 GB at its start
        (12_000, None, False),
        (12_000, 88_000, True),  # a wake needs no more than the server had
        (13_000, 88_000, False),
        (None, None, False),
    ],
)
def test_room_is_what_a_start_or_a_wake_needs(used: int | None, slept_with: int | None, room: bool) -> None:
    card = SimpleNamespace(memory_mib=100_000, used_mib=used, instance=None)
    release = SimpleNamespace(argv=["serve", "--gpu-memory-utilization", "0.9"], gpus=None)
    assert standby._has_room(card, release, slept_with) is room  # type: ignore[arg-type]


# standby_for: the old release sleeps on after the commit


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
