"""`standby: true`: equal releases are kept and slower ones go back, three times each, while ten clients a
second ask through the front. A host for each part, so that they can run side by side on a card each.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from lab.session import Lab

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import gate

from . import looks
from .story import Beside, Story, host, service

SMALL, LARGE = "Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-32B-AWQ"
GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once
GATE = {"budget_s": 30, "quality": False}  # random weights have no answers to lose
# A verdict in turns needs six blocks within three times the budget: a block took 17 s on the small model.
# The large one has the default budget.
DEFAULT: dict[str, Any] = {"quality": False}
IN_TURNS = {SMALL: {"budget_s": 40, "quality": False}, LARGE: DEFAULT}
# Switches of a host: a story of the large model has to fit into half an hour.
KEPT = [(SMALL, "kept", 3), (LARGE, "kept", 2), (LARGE, "kept-again", 1)]
BACK = 3
BACK_S = 3.0  # without a token on the way back, at most
# Of sleep mode, in tokens/s while it is awake, at most. The mean of the phases: two starts of one release
# differ by 0.8 % at one stream (docs/gate.md), which sleep mode has no part in.
COST = 0.01


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_sleep_mode_costs_nothing_while_it_is_awake(lab: Lab, model: str) -> None:
    """And equal releases are compared in turns where nobody else asks: benchmarks/turns draws from that."""
    with _story(lab, model, "cost", GATE) as story:
        story.install("first installation, without standby")
        story.plain_restart("systemctl restart without standby")
        asleep = story.deploy("the same with standby", standby=True)
        story.ends(asleep, 0, "committed", "pass")
        story.facts["sleep_mode"] = cost = _ratios(story)
        mean = statistics.geometric_mean(cost.values())
        story.must(abs(mean - 1) <= COST, "sleep mode costs nothing while it is awake", mean, cost)
        environment = {**story.services["chat"]["environment"], "DESCRIPTION": "equal"}
        equal = story.deploy("an equal release, in turns", environment=environment, gate=DEFAULT)
        story.ends(equal, 0, "committed", "pass")
        story.facts["quiet"] = _turns(story) | {"widths": _widths(story)}


@pytest.mark.parametrize(("model", "name", "switches"), KEPT)
def test_an_equal_release_is_kept_beside_the_one_that_sleeps(
    lab: Lab, model: str, name: str, switches: int
) -> None:
    with _story(lab, model, name, IN_TURNS[model], standby=True) as story:
        for seen in _switches(story, switches, "an equal release", GRAPHS):
            story.ends(story.steps[-1], 0, "committed", "pass")
            story.must(seen["blocks"] >= 6, "there were enough rounds in turns for a verdict", seen["blocks"])


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_a_slower_release_goes_back_to_the_one_that_sleeps(lab: Lab, model: str) -> None:
    with _story(lab, model, "back", GATE, standby=True) as story:
        for seen in _switches(story, BACK, "a slower release", {**GRAPHS, "enforce-eager": True}):
            story.ends(story.steps[-1], 1, "rolled_back", "fail")
            story.serves(story.facts["first"])
            story.must("wake old" in seen["acts"], "the old release was woken", seen["acts"])
            story.must((seen["gap_back_s"] or 99) <= BACK_S, f"tokens are back within {BACK_S} s", seen)


@contextmanager
def _story(lab: Lab, model: str, name: str, wanted: dict[str, Any], **settings: Any) -> Iterator[Story]:
    declared = {"chat": service(model, gate=wanted, flags=GRAPHS, **settings)}
    named = f"standby-{model.split('-')[1]}-{name}"
    with host(lab, "standby", 1, [model]) as solo, Story(named, solo, declared, "chat") as story:
        yield story


def _switches(story: Story, count: int, title: str, flags: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Install, restart, then make so many switches beside clients; yields the measurements of each."""
    story.install("first installation, with standby")
    story.facts["first"] = first = looks.running(story.host, "chat")
    plain = story.plain_restart("systemctl restart", f"vllm-chat.{first}").silent_s
    story.facts["switches"] = told = []
    for number in range(1, count + 1):
        # Another variable that nothing reads: another release, and equal but for the flags.
        environment = {**story.services["chat"]["environment"], "DESCRIPTION": f"{number}"}
        _, beside = story.deploy_beside_clients(
            f"{title}, {number} of {count}", environment=environment, flags=flags
        )
        told.append(seen := _seen(story, beside) | {"plain_restart_s": plain})
        story.must(seen["refused"] == [], "no client was refused", seen["refused"])
        story.must(seen["acts"].count("start old") == 0, "the old release was never started", seen["acts"])
        yield seen


def _seen(story: Story, beside: Beside) -> dict[str, Any]:
    """The measurements of the newest switch. Wrong answers after a wake would have led to a start of that
    release, which `acts` would have.
    """
    entries = looks.newest_entries(story.host, "chat")
    at = {
        f"{entry['step']} {entry['state']}": datetime.fromisoformat(entry["at"]).timestamp()
        for entry in entries
    }
    found = {f"{entry['step']} {entry['state']}": entry for entry in entries}
    clients = beside.clients
    asked = at.get("restore intended")
    return {
        "acts": [f"{entry['act']} {entry['who']}" for entry in entries if entry["step"] == "turn"],
        "answered": len(clients.answered),
        "refused": clients.refused[:5],
        # While the new release starts nobody has the card; afterwards a turn is all that clients see.
        "gap_start_s": round(clients.longest_gap_s(at["activate intended"], at["ready done"]), 2),
        "gap_turns_s": round(clients.longest_gap_s(at["ready done"], asked or at["end done"]), 2),
        "gap_back_s": round(clients.longest_gap_s(asked, at["end done"] + 2), 2) if asked else None,
        "back_s": found["restore done"]["after_s"] if asked else None,
        **_turns(story),
        "asleep_mib": min(beside.card.used, default=None),
        "host_mib": beside.memory.most - beside.memory.before,
        "widths": _widths(story),
    }


def _turns(story: Story) -> dict[str, Any]:
    """How often the servers changed, and how many blocks there were."""
    entries = looks.newest_entries(story.host, "chat")
    found = next((each for each in entries if (each["step"], each["state"]) == ("turns", "done")), {})
    return {"turns": found.get("turns"), "blocks": found.get("blocks", 0)}


def _widths(story: Story) -> dict[str, dict[str, float]]:
    """The width of each interval of the verdict, beside that of the same two records one after the other."""
    try:
        before, after = (Record.read(_kept(story, side), side) for side in ("before", "after"))
        told = {(row["phase"], row["name"]): row for row in _kept(story, "verdict")["metrics"]}
    except FileNotFoundError:
        return {}
    apart = gate.judge(before, after, Criteria.from_dict(story.services["chat"]["gate"])).metrics
    found = {}
    for row in apart:
        turns = told.get((row.phase, row.name), {}).get("interval")
        if row.interval and turns and row.decides:
            ends = {"apart": row.interval, "turns": turns}
            found[f"{row.phase} {row.name}"] = {
                how: round(high - low, 4) for how, (low, high) in ends.items()
            }
    return found


def _ratios(story: Story) -> dict[str, float]:
    """Of each phase of the newest verdict, tokens/s after by tokens/s before."""
    rows = _kept(story, "verdict")["metrics"]
    return {row["phase"]: row["ratio"] for row in rows if row["name"] == "tokens_per_s"}


def _kept(story: Story, name: str) -> dict[str, Any]:
    """A file of the newest switch's evidence. Raises FileNotFoundError."""
    file = story.place / f"{len(story.steps):02d}-chat-{name}.json"
    return dict(json.loads(file.read_text()))
