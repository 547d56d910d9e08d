"""How long a switch and its rollback may take: from the host's own record, else as declared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from seen import summary
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm.answers import typed
from pyinfra_vllm.config import Overrides, Runtime, Service
from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.state import journal
from pyinfra_vllm.on_host.state.observed import Summary
from pyinfra_vllm.on_host.state.transactions import transactions
from pyinfra_vllm.rollout import opening, orders
from pyinfra_vllm.rollout.estimate import FACTOR, OUTLIER, Estimate, estimate, way_back
from pyinfra_vllm.window import WindowState

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
MEASURING = 12  # minutes: both sides up to three times the gate's default budget of 120 s
IN_TURNS = 2  # minutes: standby measures the new release alone, and then both for as long as the old one
BEGAN = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)


def service(**settings: Any) -> Service:
    made = {"name": "chat", "model": "org/model", "runtime": Runtime(version="0.33.0"), "port": 8000}
    return Service(**{**made, **settings})


def at(minutes: float) -> str:
    return (BEGAN + minutes * MINUTE).isoformat()


def committed(minutes: float, **values: Any) -> Summary:
    """A switch whose new release needed two minutes to start."""
    turns = {"activate intended": at(1), "ready done": at(3)}
    known = {"purpose": "rollout", "outcome": "committed", "from": OLD, "began": at(0), "ended": at(minutes)}
    return summary(**{**known, "turns": turns, **values})


def rolled_back(there: float, back: float) -> Summary:
    turns = {"restore intended": at(there), "restore done": at(there + back)}
    return committed(there + back + 1, outcome="rolled_back", turns=turns)


def minutes(found: Estimate) -> float:
    return found.length / MINUTE


def test_without_a_record_what_is_declared_counts_and_else_the_default() -> None:
    assert estimate(service(switch_estimate="30m")) == Estimate(30 * MINUTE, "declared")
    assert estimate(service()) == Estimate(45 * MINUTE, "the default")


def test_the_longest_way_there_and_the_longest_way_back_count_with_a_margin() -> None:
    history = [committed(8), rolled_back(there=6, back=4), committed(5)]
    found = estimate(service(), history)
    assert minutes(found) == pytest.approx((8 + 4) * FACTOR + MEASURING)
    assert found.source == "measured here in 3 switches"


def test_where_nothing_ever_went_back_the_start_of_the_new_release_stands_for_it() -> None:
    found = estimate(service(), [committed(8)])
    assert minutes(found) == pytest.approx((8 + 2) * FACTOR + MEASURING)
    assert found.source == "measured here in 1 switch"


def test_measuring_counts_with_the_most_that_the_gate_allows_however_soon_it_ended() -> None:
    measured = {"measure-before intended": at(0), "measure-before done": at(1)}
    measured |= {"measure-after intended": at(3), "measure-after done": at(5)}
    short = committed(8, turns={**committed(8).turns, **measured})
    gate = {"budget_s": 60, "max_budget_s": 90}
    assert minutes(estimate(service(gate=gate), [short])) == pytest.approx((8 - 3 + 2) * FACTOR + 3)
    kept = {**gate, "on_inconclusive": "keep"}  # doubt alone takes nothing back, so it is not measured away
    assert minutes(estimate(service(gate=kept), [short])) == pytest.approx((8 - 3 + 2) * FACTOR + 2)


def test_with_standby_both_are_measured_in_turns_besides() -> None:
    short = [committed(8)]
    plain = (8 + 2) * FACTOR
    assert minutes(estimate(service(standby=True), short)) == pytest.approx(plain + MEASURING + IN_TURNS)
    assert estimate(service(standby=True)) == Estimate((45 + IN_TURNS) * MINUTE, "the default")
    tight = service(standby=True, gate={"budget_s": 120, "max_budget_s": 150})
    assert minutes(estimate(tight, short)) == pytest.approx(plain + 7)  # 150 s, 120 s, 150 s in turns
    assert estimate(tight) == Estimate(47 * MINUTE, "the default")
    kept = service(standby=True, gate={"on_inconclusive": "keep"})
    assert minutes(estimate(kept, short)) == pytest.approx(plain + 6)
    assert estimate(kept) == Estimate(47 * MINUTE, "the default")


def test_second_starts_of_both_sides_count_as_starts() -> None:
    twice = service(standby=True, gate={"restarts": 2})
    known = minutes(estimate(twice, [committed(8)]))
    assert known == pytest.approx((8 + 2 + 2 * 2) * FACTOR + MEASURING + IN_TURNS)
    assert estimate(twice) == Estimate((45 + IN_TURNS + 2 * 15) * MINUTE, "the default")
    assert estimate(service(gate={"restarts": 2})) == estimate(service())  # without standby there are none


def test_default_is_what_it_was_without_standby() -> None:
    assert estimate(service(gate={"max_budget_s": 120})) == Estimate(45 * MINUTE, "the default")


def test_a_declared_estimate_is_never_changed_by_standby() -> None:
    tight = {"standby": True, "gate": {"max_budget_s": 120}}
    assert estimate(service(switch_estimate="4m", **tight)) == Estimate(4 * MINUTE, "declared")


def test_rounds_in_turns_of_the_record_are_measuring_and_get_no_margin() -> None:
    turns = {"turns intended": at(3), "turns done": at(6)}
    measured = committed(8, turns={**committed(8).turns, **turns})
    known = minutes(estimate(service(standby=True), [measured]))
    assert known == pytest.approx(7 * FACTOR + MEASURING + IN_TURNS)


def test_with_standby_a_way_back_counts_as_a_start_since_the_old_release_may_not_wake() -> None:
    turns = {**committed(8).turns, "restore intended": at(6), "restore done": at(6.05)}
    woken = committed(7, outcome="rolled_back", turns=turns)
    asleep = service(standby=True)
    assert minutes(estimate(asleep, [woken])) == pytest.approx((6 + 2) * FACTOR + MEASURING + IN_TURNS)
    assert way_back(asleep, [woken]) == 2 * FACTOR * MINUTE
    assert way_back(service(), [woken]) == 3 * SECOND * FACTOR


def test_measuring_ends_early_enough_to_go_back_before_the_window_closes() -> None:
    closes = datetime(2026, 11, 20, 5, 0, tzinfo=UTC)
    found = WindowState(True, closes, closes - 45 * MINUTE, (), "open")

    def left(history: list[Summary]) -> float:
        until = opening.measure_until(service(), found, history)
        assert until is not None
        return (closes.timestamp() - until) / 60

    assert left([]) == 45 / 3
    assert left([rolled_back(there=6, back=4)]) == pytest.approx(4 * FACTOR)
    assert opening.measure_until(service(), None) is None


def test_a_switch_ends_with_its_commit_and_not_with_its_soak() -> None:
    soaked = committed(8 + 120, turns={**committed(8).turns, "commit done": at(8)})
    assert estimate(service(gate={"soak_s": 7200}), [soaked]) == estimate(service(), [committed(8)])
    back = {"restore intended": at(8 + 120), "restore done": at(8 + 124)}
    found = estimate(service(), [committed(8 + 125, outcome="rolled_back", turns={**soaked.turns, **back})])
    assert minutes(found) == pytest.approx((8 + 4) * FACTOR + MEASURING)


def test_no_start_took_longer_than_a_start_may() -> None:
    """A longer one on record is of a clock that was set, or of a longer `ready_timeout_s`."""
    turns = {"activate intended": at(1), "ready done": at(1 + 240), "commit done": at(8 + 240)}
    found = estimate(service(ready_timeout_s=600), [committed(8 + 240, turns=turns)])
    assert minutes(found) == pytest.approx((8 + 2 * 10.5) * FACTOR + MEASURING)


@pytest.mark.parametrize("ordinary", [1, 2, 4])
def test_one_that_took_far_longer_than_the_others_counts_as_a_few_of_them(ordinary: int) -> None:
    history = [committed(8 + 240), *[committed(8)] * ordinary]
    assert minutes(estimate(service(), history)) == pytest.approx((OUTLIER * 8 + 2) * FACTOR + MEASURING)
    assert estimate(service(), history[::-1]) == estimate(service(), history)


def test_way_back_that_took_far_longer_than_a_start_counts_as_a_few_of_them() -> None:
    history = [rolled_back(there=6, back=200), committed(8)]
    assert way_back(service(), history) == OUTLIER * 2 * FACTOR * MINUTE


def after_the_last_stop(declared: Service, history: list[Summary]) -> timedelta:
    """The time before closing that is left to a switch which stops the old release as late as it may."""
    length = estimate(declared, history).length
    closes = BEGAN + timedelta(hours=9)
    found = WindowState(True, closes, closes - length, (), "open")
    return length - opening.baseline_s(declared, found) * SECOND


@pytest.mark.parametrize(
    ("history", "known"), [([committed(8)], 8 + 2), ([rolled_back(there=6, back=4)], 10)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gate": {"budget_s": 600}},
        {"gate": {"max_budget_s": 120}},
        {"gate": {"on_inconclusive": "keep"}},
        {"standby": True},
        {"standby": True, "gate": {"restarts": 2}},
        {"switch_estimate": "3h"},
        {"switch_estimate": "4m"},
    ],
)
def test_switch_that_stops_the_old_release_at_the_last_moment_ends_inside_the_window(
    settings: dict[str, Any], history: list[Summary], known: int
) -> None:
    """After the baseline there is time for the switch, for its rollback and for measuring the new release."""
    declared = service(**settings)
    baseline = declared.gate.criteria().longest_s * SECOND
    assert after_the_last_stop(declared, history) >= known * MINUTE + declared.measuring - baseline
    without = after_the_last_stop(declared, [])
    assert without >= estimate(declared).length / 2
    assert without >= estimate(declared).length - baseline


def test_without_a_closing_window_the_baseline_takes_nothing_from_it() -> None:
    assert opening.baseline_s(service(), None) == 0.0
    assert opening.baseline_s(service(), WindowState(True, None, None, (), "open")) == 0.0


def test_order_says_how_much_of_the_estimate_is_for_the_baseline() -> None:
    earlier = datetime.now(UTC) - timedelta(hours=1)
    window = {"cron": f"0 {earlier.hour} * * *", "duration": "9h", "timezone": "UTC"}

    def baseline_s(**settings: Any) -> float:
        return orders.rollout("/srv/pyinfra-vllm", service(**settings), "b", Overrides()).order.baseline_s

    assert baseline_s(window=window) == 360.0
    assert baseline_s(window=window, switch_estimate="4m") == 120.0
    assert baseline_s() == 0.0


def test_only_the_newest_count() -> None:
    history = [committed(100), *(committed(8) for _ in range(5))]
    assert minutes(estimate(service(), history)) == pytest.approx(10 * FACTOR + MEASURING)


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "rollback"},
        {"purpose": "calibration"},
        {"outcome": "refused"},
        {"outcome": "deferred"},
        {"outcome": None},
        {"from": None},
        {"recovered": True},
    ],
)
def test_recovered_and_unjudged_switches_do_not_count(other: dict[str, Any]) -> None:
    assert estimate(service(), [committed(8, **other)]).source == "the default"


def test_a_declared_estimate_is_the_least_and_a_longer_record_wins() -> None:
    declared = service(switch_estimate="30m")
    assert estimate(declared, [committed(2)]) == Estimate(30 * MINUTE, "declared")
    assert minutes(estimate(declared, [committed(28)])) == pytest.approx(30 * FACTOR + MEASURING)


def test_a_host_s_own_record_has_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimulatedHost(tmp_path, monkeypatch)
    host.install(OLD)
    host.stage(NEW)
    host.switch()
    host.rates[OLD] = 1.0
    host.switch(OLD)
    (first, second) = [typed(each.as_dict(), Summary, "it") for each in transactions(host.journal())]
    assert {"activate intended", "ready done"} <= set(first.turns)
    assert {"restore intended", "restore done"} <= set(second.turns)
    assert estimate(service(), [first, second]).source == "measured here in 2 switches"


def test_host_s_own_record_has_the_commit_before_its_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [BEGAN]

    def now() -> str:
        clock[0] += SECOND
        return clock[0].isoformat(timespec="milliseconds")

    def soaked(*_: Any, **__: Any) -> soak.Watched:
        clock[0] += timedelta(hours=2)
        return soak.Watched("pass", ["nothing wrong"], 7200.0, 1.0, 0.0, 0.0)

    host = SimulatedHost(tmp_path, monkeypatch)
    host.install(OLD)
    host.stage(NEW)
    monkeypatch.setattr(journal, "now", now)
    monkeypatch.setattr(soak, "soak", soaked)
    assert host.switch(criteria={"soak_s": 7200.0}) == "committed"
    (switch,) = [typed(each.as_dict(), Summary, "it") for each in transactions(host.journal())]
    assert minutes(estimate(service(), [switch])) < MEASURING + 5


SHORT = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}


def test_record_that_is_longer_than_every_opening_is_told_with_what_can_be_done() -> None:
    slow = [committed(110, turns={"activate intended": at(1), "ready done": at(21)})]
    told = opening.never(service(window=SHORT), Overrides(), BEGAN, slow)
    assert told.startswith(
        "its window is never open for longer than 3h, and a switch and its rollback may take 3h27m"
    )
    assert "measured here in 1 switch" in told and "switch_now=true" in told
    assert "switch_estimate" not in told, "which is the least in any case"
    assert not opening.never(service(window=SHORT), Overrides(switch_now=True), BEGAN, slow)
    assert not opening.never(service(window=SHORT), Overrides(), BEGAN, [committed(8)])
    assert not opening.never(service(), Overrides(), BEGAN, slow)


def test_the_operator_is_told_which_one_was_used() -> None:
    earlier = datetime.now(UTC) - timedelta(hours=1)
    found = service(window={"cron": f"0 {earlier.hour} * * *", "duration": "9h", "timezone": "UTC"})
    unknown = opening.explain(found, Overrides())
    assert "a switch and its rollback may take 45m (the default); last start" in unknown
    known = opening.explain(found, Overrides(), [committed(8)])
    assert "may take 27m (measured here in 1 switch); last start" in known
    late, early = (opening.opening(found, Overrides(), history) for history in ((), [committed(8)]))
    assert late and late.last_start and early and early.last_start
    assert early.last_start - late.last_start == 18 * MINUTE


def test_window_past_its_last_start_counts_as_closed() -> None:
    earlier = datetime.now(UTC) - timedelta(hours=1)
    window = {"cron": f"0 {earlier.hour} * * *", "duration": "9h", "timezone": "UTC"}

    def shut(**settings: Any) -> bool:
        return opening.shut(opening.opening(service(**settings), Overrides()))

    assert not shut()
    assert not shut(window=window)
    assert shut(window=window, switch_estimate="10h")
    assert shut(window={**window, "cron": f"0 {(earlier.hour + 5) % 24} * * *", "duration": "1h"})
