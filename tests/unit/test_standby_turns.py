"""Two releases of a simulated host that are measured in turns: how many, what ends them, and one proven
release wherever it dies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standby_host import BACK, NEW, OLD, TO_NEW, StandbyHost, die_at_every, ends_right, prepared

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.gate import in_turns, turns
from pyinfra_vllm.on_host.switch import judging, rounds, standby
from pyinfra_vllm.on_host.switch.order import TRIAL


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandbyHost]:
    yield (made := prepared(tmp_path, monkeypatch))
    assert made.violations == []


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


@pytest.mark.parametrize(
    ("verdicts", "open_"),
    [(["pass", "pass"], False), (["inconclusive", "pass"], True), (["inconclusive", "fail"], False)],
)
def test_what_is_undecided_is_left_open_unless_something_has_failed(
    monkeypatch: pytest.MonkeyPatch, verdicts: list[str], open_: bool
) -> None:
    """One phase whose margin for each of two metrics decides."""
    told = iter(verdicts)
    finding = turns.Finding(0.0, 0.001, 30, 0.5, 8)
    monkeypatch.setattr(in_turns, "_all_limits", lambda *_: {("c1", "e2e_s"): 1, ("c1", "tokens_per_s"): 1})
    monkeypatch.setattr(turns, "judge", lambda *_: replace(finding, verdict=next(told)))
    assert in_turns.left_open(in_turns.InTurns([]), Criteria()) is open_


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


@pytest.mark.parametrize("who", [OLD, NEW])
def test_a_second_start_may_answer_otherwise_than_the_first(
    host: StandbyHost, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """As one that chose other kernels. Each of its wakes is held to its own start."""

    def answers(this: standby.Turns, side: str, key: str) -> str:
        release_id = this.releases[side].id
        return f"{release_id}, start {host.starts.count(release_id) if release_id == who else 0}"

    monkeypatch.setattr(standby.Turns, "_answers", answers)
    host.takes_turns = True
    assert host.switch(criteria={"restarts": 2}) == "committed"
    ends_right(host, NEW)
    assert host.starts == [NEW, NEW, OLD] and rounds_of(host)["starts"] == 2


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
