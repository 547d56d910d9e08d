"""The promise, on a simulated host: whatever fails and whenever, the old release serves or the new, proven
one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.plan import Plan
from pyinfra_vllm.on_host.bench.record import Record, Round
from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.server import compile_cache, service, sockets, systemd
from pyinfra_vllm.on_host.state import durable, lock, manifest, observe
from pyinfra_vllm.on_host.state.transactions import transactions
from pyinfra_vllm.on_host.switch import base, rollback
from pyinfra_vllm.on_host.switch.order import ROLLBACK


def test_a_release_that_is_no_worse_is_kept(serving: SimulatedHost) -> None:
    assert serving.switch() == "committed"
    assert (serving.current, serving.running) == (NEW, NEW)
    assert serving.paths.linked(serving.paths.previous) == OLD
    steps = [entry["step"] for entry in serving.journal() if entry["state"] == "done"]
    assert steps == [
        "begin", "prove-way-back", "prove-way-forward", "measure-before", "window",
        "reserve-rollback", "activate", "ready", "kernel", "measure-after", "judge", "commit", "end",
    ]  # fmt: skip


def test_the_server_s_own_cache_is_recorded_beside_the_prediction(host: SimulatedHost) -> None:
    fit = {"kv_tokens": 4200, "max_concurrency": 4.1, "fits": True}
    host.install(OLD)
    host.stage(NEW, fit=fit, kernel=["Marlin"])
    assert host.switch() == "committed"
    (checked,) = [entry for entry in host.journal() if entry["step"] == "kernel" and entry["state"] == "done"]
    assert checked["kv_cache"] == {"predicted": fit, "measured": {"tokens": 4096}}
    assert (checked["verdict"], checked["kernels"]) == ("pass", ["Marlin"])


def test_a_worse_release_is_rolled_back_and_rejected(serving: SimulatedHost) -> None:
    serving.rates[NEW] = 50.0
    assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running) == (OLD, OLD)
    rejected = durable.read_json(serving.paths.rejected)
    assert list(rejected) == [NEW] and "tokens" in rejected[NEW]["reason"]
    tx = serving.journal()[0]["tx"]
    kept = {path.name for path in (serving.paths.evidence / tx).iterdir()}
    assert {
        "before.json",
        "after.json",
        "verdict.json",
        "release.json",
        "service.log",
        "journal.jsonl",
    } <= kept


def test_release_that_stops_answering_after_a_good_measurement_is_rolled_back(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = probe.measure

    def measured(*args: Any, **how: Any) -> Record:
        found = measure(*args, **how)
        if serving.running == NEW:
            serving.broken.add(NEW)
        return found

    monkeypatch.setattr(probe, "measure", measured)
    assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running) == (OLD, OLD)
    assert not any(entry["step"] == "commit" for entry in serving.journal())


def test_a_release_that_never_serves_is_rolled_back_with_its_log(serving: SimulatedHost) -> None:
    serving.broken.add(NEW)
    assert serving.switch() == "rolled_back"
    assert serving.running == OLD
    assert serving.journal()[-1]["log"] == ["Using MarlinLinearKernel for AutoAWQMarlinLinearMethod"]


REFUSED = ["vllm: error: unrecognized arguments: --no-such-flag"]
CROWDED = [
    "(EngineCore pid=7) Traceback (most recent call last):",
    '(EngineCore pid=7)   File "/opt/vllm/core.py", line 1, in run',
    "(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory.",
]


def test_release_that_can_never_start_is_given_up_at_its_first_crash(serving: SimulatedHost) -> None:
    serving.crashing[NEW] = REFUSED
    assert serving.switch() == "rolled_back"
    assert (serving.running, serving.starts) == (OLD, [NEW, OLD])
    end = serving.journal()[-1]
    assert end["reason"] == f"vLLM can't start: {REFUSED[0]}" and end["log"] == REFUSED
    assert durable.read_json(serving.paths.rejected)[NEW]["reason"] == end["reason"]


def test_release_whose_cause_may_pass_is_started_again_before_it_is_given_up(serving: SimulatedHost) -> None:
    serving.crashing[NEW] = CROWDED
    assert serving.switch() == "rolled_back"
    end = serving.journal()[-1]
    assert end["reason"].startswith(
        "vLLM ended by itself 3 times after its start: EngineCore: OutOfMemoryError"
    )
    assert end["log"][0] == "EngineCore: OutOfMemoryError: CUDA out of memory."
    assert end["log"][-1] == "torch.OutOfMemoryError: CUDA out of memory."


def test_old_release_is_never_given_up_at_its_first_crash(serving: SimulatedHost) -> None:
    """It was proven: whatever its log says, it has every start that the way back allows."""
    serving.rates[NEW] = 50.0
    serving.crashing[OLD] = REFUSED
    serving.running = NEW
    assert rollback.bring_up(service.Service(serving.paths, serving.said.append), OLD, 60.0)
    assert serving.starts == [OLD] * rollback.RESTORE_ATTEMPTS
    assert "3 times" in serving.said[-1]


def test_verdict_shows_numbers_and_no_log(serving: SimulatedHost) -> None:
    serving.rates[NEW] = 50.0
    assert serving.switch() == "rolled_back"
    assert "log" not in serving.journal()[-1]


def test_the_first_release_needs_no_baseline(host: SimulatedHost) -> None:
    host.stage(NEW)
    assert host.switch() == "committed"
    assert host.running == NEW
    assert not host.paths.previous.is_symlink()


def test_a_failed_first_release_leaves_nothing_behind(host: SimulatedHost) -> None:
    host.stage(NEW)
    host.broken.add(NEW)
    assert host.switch() == "rolled_back"
    assert (host.current, host.running) == (None, None)
    assert not host.paths.unit_link.is_symlink() and not host.paths.wants_link.is_symlink()


@pytest.mark.parametrize("damaged", [OLD, NEW])
def test_a_damaged_checkpoint_on_either_side_is_refused_before_anything_stops(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr(
        manifest, "quick_check", lambda path: ["model.safetensors is gone"] if path.name == damaged else []
    )
    assert serving.switch() == "refused"
    assert serving.starts == [] and serving.running == OLD
    assert "model.safetensors is gone" in serving.journal()[-1]["reason"]


def test_an_unknown_release_is_refused(serving: SimulatedHost) -> None:
    assert serving.switch("cccccccccccc") == "refused"
    assert serving.running == OLD


def test_old_release_that_is_down_stays_the_rollback_target(
    serving: SimulatedHost,
) -> None:
    serving.running = None
    assert serving.switch() == "committed"
    assert "baseline" in next(
        e for e in serving.journal() if e["step"] == "measure-before" and e["state"] == "done"
    )


@pytest.mark.thorough
def test_code_that_the_checkpoint_brings_is_told_in_the_journal_with_its_reason(host: SimulatedHost) -> None:
    host.stage(NEW, allow_code="read in ticket 7")
    assert host.switch() == "committed"
    told = [entry["allow_code"] for entry in host.journal() if "allow_code" in entry]
    assert told == ["read in ticket 7"]


def test_going_back_by_hand_asks_only_for_tokens_and_rejects_what_it_left(serving: SimulatedHost) -> None:
    serving.rates[OLD] = 200.0
    serving.rates[NEW] = 200.0
    serving.switch()
    serving.rates[OLD] = 1.0
    assert serving.switch(OLD, purpose=ROLLBACK, reason="users complain") == "committed"
    assert serving.running == OLD
    assert durable.read_json(serving.paths.rejected)[NEW]["reason"] == "users complain"
    assert serving.paths.linked(serving.paths.previous) == NEW


def test_when_the_old_release_will_not_come_back_the_worse_one_serves_and_says_so(
    serving: SimulatedHost,
) -> None:
    serving.rates[NEW] = 50.0
    serving.dies_when_stopped.add(OLD)
    assert serving.switch() == "restore_failed"
    assert (serving.current, serving.running) == (NEW, NEW)


def test_a_second_switch_is_refused_while_one_runs(serving: SimulatedHost) -> None:
    with (
        lock.exclusive(serving.paths.lock, "bob@control", "the rollout of release c"),
        pytest.raises(lock.Held, match="bob@control has held"),
    ):
        serving.switch()
    assert serving.journal() == []


def test_what_is_observed_agrees_with_what_happened(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.switch()
    monkeypatch.setattr(observe, "unit_state", lambda unit: {"ActiveState": "active", "MainPID": "0"})
    (seen,) = observe.observe(serving.paths.root, [])
    assert (seen["current"], seen["previous"], seen["last"]["outcome"]) == (NEW, OLD, "committed")
    assert seen["last"]["reported"] is False and seen["lock"] is None


def test_two_switches_to_one_release_within_one_second_keep_their_own_records(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 11, 21, 3, 0, tzinfo=tz)

    monkeypatch.setattr(base, "datetime", Stopped)
    for _ in range(3):
        assert serving.switch() == "committed"
    begun = [entry["tx"] for entry in serving.journal() if entry["step"] == "begin"]
    assert begun == [f"20261121T030000Z-{NEW}{again}" for again in ("", "-2", "-3")]
    assert [entry.name for entry in sorted(serving.paths.evidence.iterdir())] == begun
    assert len(transactions(serving.journal())) == 3


def soak_of(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    reasons = ["no token for 60 s with requests under way"]
    found = soak.Watched(verdict, reasons, 60.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(soak, "soak", lambda *args, **kwargs: found)


def test_release_that_fails_its_soak_is_rolled_back(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak_of(monkeypatch, "fail")
    assert serving.switch(criteria={"soak_s": 60.0}) == "rolled_back"
    assert (serving.current, serving.running) == (OLD, OLD)
    assert serving.paths.linked(serving.paths.previous) == NEW
    assert NEW in durable.read_json(serving.paths.rejected)
    serving.recover()
    assert serving.running == OLD


@pytest.mark.parametrize(
    ("verdict", "criteria"),
    [
        ("pass", {"soak_s": 60.0}),
        ("inconclusive", {"soak_s": 60.0}),
        ("fail", {"soak_s": 60.0, "soak_action": "alert"}),
    ],
)
def test_a_soak_that_passes_or_only_alerts_keeps_the_release(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, verdict: str, criteria: dict[str, object]
) -> None:
    soak_of(monkeypatch, verdict)
    assert serving.switch(criteria=criteria) == "committed"
    assert serving.running == NEW
    assert ("alert from the soak: " in serving.journal()[-1]["reason"]) == (verdict != "pass")


def test_a_unit_that_somebody_else_made_is_neither_stopped_nor_removed(host: SimulatedHost) -> None:
    host.stage(NEW)
    host.paths.unit_link.write_text("[Service]\nExecStart=/usr/local/bin/vllm serve\n")
    assert host.switch() == "refused"
    assert "was not made by pyinfra-vllm" in host.journal()[-1]["reason"]
    assert host.paths.unit_link.read_text().startswith("[Service]") and host.starts == []


def test_a_masked_unit_stays_masked(host: SimulatedHost) -> None:
    host.stage(NEW)
    host.paths.unit_link.symlink_to("/dev/null")
    assert host.switch() == "refused"
    assert host.paths.unit_link.readlink() == Path("/dev/null")


def test_a_baseline_is_waited_for_while_the_old_release_starts(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd has restarted it a moment ago: silent, and not dead."""
    silences = iter(["loading weights"] * 3)
    flows = serving._generation_problem
    monkeypatch.setattr(serving, "_generation_problem", lambda release: next(silences, "") or flows(release))
    serving.rates[NEW] = 10.0
    assert serving.switch() == "rolled_back"
    assert serving.running == OLD


def test_a_lost_link_is_not_a_first_installation(serving: SimulatedHost) -> None:
    serving.paths.current.unlink()
    serving.broken.add(NEW)
    assert serving.switch() == "rolled_back"
    assert (serving.current, serving.running) == (OLD, OLD)


@pytest.mark.parametrize("purpose", ["rollout", ROLLBACK])
def test_missing_rollback_target_does_not_block_when_the_old_release_is_down(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, purpose: str
) -> None:
    monkeypatch.setattr(manifest, "quick_check", lambda path: ["it is gone"] if path.name == OLD else [])
    serving.running = None
    assert serving.switch(purpose=purpose) == "committed"
    assert serving.running == NEW
    proof = next(e for e in serving.journal() if e["step"] == "prove-way-back" and e["state"] == "done")
    assert "could not be started again" in proof["nothing_to_lose"]


def test_a_port_taken_by_another_program_does_not_reject_the_release(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = ["nc (9)"]
    monkeypatch.setattr(
        sockets, "foreign_listeners", lambda port, unit: taken if serving.running == NEW else []
    )
    assert serving.switch() == "rolled_back"
    assert serving.running == OLD
    assert not durable.read_json(serving.paths.rejected, {})


def test_a_baseline_that_can_t_be_judged_is_found_out_before_anything_is_touched(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = probe.measure
    monkeypatch.setattr(probe, "measure", lambda *args, **how: replace(measure(*args, **how), phases=()))
    assert serving.switch() == "refused"
    assert "before.phases is empty" in serving.journal()[-1]["reason"]
    assert serving.running == OLD and serving.starts == []


PLAN = Plan(words={"s": 5}, output_tokens=32, rounds=1, requests={"c1": 24, "c8": 24})


def measured_by(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, each_s: float, old_uneven: bool = False
) -> list[tuple[str | None, dict[str, Any]]]:
    """Each measurement takes so long, and the new release is as fast as the old one and too
    uneven to tell.
    """
    simulated, calls = probe.measure, []
    spent: dict[str | None, float] = {}

    def measure(client: Any, settings: Any, **how: Any) -> Record:
        calls.append((serving.running, how))
        spent[serving.running] = spent.get(serving.running, 0.0) + each_s
        record = simulated(client, settings, **how)
        uneven = old_uneven or serving.running == NEW
        phases = tuple(
            replace(
                phase,
                rounds=(Round(0, 7.0, 768, complete=True),),
                requests=tuple(
                    replace(item, e2e_s=item.e2e_s * (1 if not uneven else 3 if n % 2 else 0.45), round=0)
                    for n, item in enumerate(phase.requests)
                ),
            )
            for phase in record.phases
        )
        return replace(record, phases=phases, plan=PLAN, spent_s=spent[serving.running])

    monkeypatch.setattr(probe, "measure", measure)
    return calls


class Clock:
    """The host's clock, which only measurements move: each until its deadline, or `budget_s` without one, and
    `over_s` more.
    """

    def __init__(self, serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, over_s: float = 0.2) -> None:
        self.now = self.began = 1_000_000.0
        self.baseline_at = self.began
        self.stopped: float | None = None
        measured_by(serving, monkeypatch, each_s=120.0, old_uneven=True)
        measure = probe.measure

        def slow(client: Any, settings: Any, **how: Any) -> Record:
            before = self.now
            self.now = how.get("deadline", before + settings.budget_s) + over_s
            if serving.running == OLD and how.get("extend") is None:
                self.baseline_at = before
            return replace(measure(client, settings, **how), spent_s=self.now - self.baseline_at)

        def start(*args: Any) -> Any:
            self.stopped = self.stopped or self.now
            return systemd_start(*args)

        systemd_start = systemd.start
        monkeypatch.setattr(probe, "measure", slow)
        monkeypatch.setattr(systemd, "start", start)
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_after_the_last_start_nothing_is_drained_or_measured(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(serving, monkeypatch)
    hooks = {"drain": {"argv": ["true"]}, "undrain": {"argv": ["true"]}}
    assert serving.switch(hooks=hooks, last_start=clock.now - 1, baseline_s=360.0) == "deferred"
    assert not {"drain", "measure-before", "undrain"} & {entry["step"] for entry in serving.journal()}
    assert clock.now == clock.began and serving.starts == []
    assert "the next run inside a window switches" in serving.journal()[-1]["reason"]


@pytest.mark.parametrize("left_s", [0.0, 5.0, 100.0, 239.0, 300.0, 1000.0])
def test_baseline_uses_up_its_own_part_of_the_estimate_and_not_the_last_start(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, left_s: float
) -> None:
    """However late it begins before its last start, and however long an uneven baseline is measured on."""
    clock = Clock(serving, monkeypatch)
    last_stop = clock.now + left_s + 360.0
    assert serving.switch(last_start=clock.now + left_s, baseline_s=360.0) != "deferred"
    assert clock.stopped is not None and clock.stopped <= last_stop


def test_old_release_that_was_silent_for_longer_than_the_estimate_knows_is_not_stopped_too_late(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(serving, monkeypatch, over_s=400.0)
    assert serving.switch(last_start=clock.now + 10.0, baseline_s=360.0) == "deferred"
    assert serving.starts == [] and serving.running == OLD


@pytest.mark.parametrize(
    ("order", "old", "new"),
    [
        ({}, 2, 3),  # three times the budget of 120 s: the old release until its rounds agree or it is over
        ({"criteria": {"max_budget_s": 120}}, 1, 1),
        ({"criteria": {"on_inconclusive": "keep"}}, 1, 1),
        (
            {"measure_until": 0.0},
            2,
            1,
        ),  # the window is about to close: no time beyond the budget, and time to go back
        ({"last_start": 60.0}, 2, 3),
        ({"last_start": 0.5}, 1, 3),
        ({"last_start": 0.5, "baseline_s": 360.0}, 2, 3),
        ({"last_start": 0.5, "baseline_s": 15.0}, 1, 3),  # which what ends late, and the canary, may take
    ],
)
def test_undecided_comparison_measures_both_sides_further_within_the_window(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch, order: dict[str, Any], old: int, new: int
) -> None:
    calls = measured_by(serving, monkeypatch, each_s=120.0)
    if "last_start" in order:
        order = {**order, "last_start": time.time() + order["last_start"]}
    kept = order.get("criteria", {}).get("on_inconclusive") == "keep"
    assert serving.switch(**order) == ("committed" if kept else "rolled_back")
    first, second = ([how for release, how in calls if release == name] for name in (OLD, NEW))
    assert (len(first), len(second)) == (old, new)
    assert all("extend" in how and "like" not in how for how in first[1:])
    assert all("like" in how for how in second) and all("extend" in how for how in second[1:])


def test_names_that_no_file_takes_do_not_keep_the_old_release_from_its_start(
    serving: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server names folders of its cache as it likes, also by bytes that are no text."""
    serving.rates[NEW] = 50.0
    monkeypatch.setattr(compile_cache, "forget_keys", lambda cache: [f"{cache}/\udcff: too many folders"])
    assert serving.switch() == "rolled_back"
    assert serving.running == serving.current == OLD
    (told,) = serving.paths.evidence.glob("*/progress.log")
    assert "cache/\\udcff: too many folders" in told.read_text()
