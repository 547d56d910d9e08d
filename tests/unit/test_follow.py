"""A follower's knowledge of the step that is under way, from the journal alone."""

from __future__ import annotations

from typing import Any

from simulated import SimulatedHost

from pyinfra_vllm.on_host.state import follow
from pyinfra_vllm.on_host.state.transactions import Transaction

BEGUN = "2026-11-28T02:00:00.000+00:00"
NOW = "2026-11-28T02:01:30.500+00:00"


def entry(step: str, state: str, at: str = BEGUN, **fields: Any) -> dict[str, Any]:
    return {"at": at, "tx": "t", "step": step, "state": state, **fields}


def test_the_open_step_has_its_times() -> None:
    entries = [
        entry("begin", "done"),
        entry("activate", "intended"),
        entry("activate", "done"),
        entry("ready", "intended", limit_s=240.0),
    ]
    found = follow.under_way(Transaction(entries), NOW)
    assert found == {"name": "ready", "elapsed_s": 90.5, "limit_s": 240.0}


def test_a_step_without_a_limit_and_a_clock_that_was_set_back() -> None:
    assert follow.under_way(Transaction([entry("drain", "intended", NOW)]), BEGUN) == {
        "name": "drain",
        "elapsed_s": 0.0,
        "limit_s": None,
    }


def test_a_hook_inside_of_a_step_is_shown_while_it_runs() -> None:
    entries = [entry("restore", "intended"), entry("notify", "intended", NOW)]
    assert (follow.under_way(Transaction(entries), NOW) or {})["name"] == "notify"
    entries.append(entry("notify", "failed"))
    assert (follow.under_way(Transaction(entries), NOW) or {})["name"] == "restore"


def test_between_steps_nothing_is_under_way() -> None:
    assert follow.under_way(Transaction([entry("ready", "intended"), entry("ready", "failed")]), NOW) is None


def test_steps_that_wait_say_how_long_and_leave_no_lines_in_the_evidence(serving: SimulatedHost) -> None:
    assert serving.switch() == "committed"
    begun = [item for item in serving.journal() if item["state"] == "intended"]
    assert {item["step"] for item in begun if "limit_s" in item} == {
        "ready",
        "measure-before",
        "measure-after",
    }
    assert not list(serving.paths.evidence.glob("*/progress.log"))
