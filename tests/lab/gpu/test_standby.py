"""`standby: true`: equal releases are kept and slower ones go back, three times each, while ten clients a
second ask through the front. A host for each, so that they can run side by side on a card each.
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

GRAPHS = {"max-cudagraph-capture-size": 64}  # as many as the gate asks at once
GATE = {"budget_s": 30, "quality": False}  # random weights have no answers to lose
TIMES = 3
BACK_S = 3.0  # without a token on the way back, at most
# Of sleep mode, in tokens/s while it is awake, at most. The mean of the phases: two starts of one release
# differ by 0.8 % at one stream (docs/gate.md), which sleep mode has no part in.
COST = 0.01


MODELS = pytest.mark.parametrize("model", ["Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-32B-AWQ"])


@MODELS
def test_an_equal_release_is_kept_beside_the_one_that_sleeps(lab: Lab, model: str) -> None:
    with _story(lab, model, "kept") as story:
        story.install("first installation, without standby")
        plain = story.plain_restart("systemctl restart without standby").silent_s
        asleep = story.deploy("the same with standby", standby=True)
        story.ends(asleep, 0, "committed", "pass")
        story.facts["sleep_mode"] = cost = _ratios(story)
        mean = statistics.geometric_mean(cost.values())
        story.must(abs(mean - 1) <= COST, "sleep mode costs nothing while it is awake", mean, cost)
        for seen in _switches(story, plain, "an equal release", GRAPHS):
            story.ends(story.steps[-1], 0, "committed", "pass")
            story.must(seen["blocks"] >= 6, "there were enough rounds in turns for a verdict", seen["blocks"])


@MODELS
def test_a_slower_release_goes_back_to_the_one_that_sleeps(lab: Lab, model: str) -> None:
    with _story(lab, model, "back", standby=True) as story:
        story.install("first installation, with standby")
        old = looks.running(story.host, "chat")
        plain = story.plain_restart("systemctl restart", f"vllm-chat.{old}").silent_s
        for seen in _switches(story, plain, "a slower release", {**GRAPHS, "enforce-eager": True}):
            story.ends(story.steps[-1], 1, "rolled_back", "fail")
            story.serves(old)
            story.must("wake old" in seen["acts"], "the old release was woken", seen["acts"])
            story.must((seen["gap_back_s"] or 99) <= BACK_S, f"tokens are back within {BACK_S} s", seen)


@contextmanager
def _story(lab: Lab, model: str, ends: str, **settings: Any) -> Iterator[Story]:
    declared = {"chat": service(model, gate=GATE, flags=GRAPHS, **settings)}
    name = f"standby-{model.split('-')[1]}-{ends}"
    with host(lab, "standby", 1, [model]) as solo, Story(name, solo, declared, "chat") as story:
        yield story


def _switches(story: Story, plain: float, title: str, flags: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was seen of each of the switches, one after another."""
    story.facts["switches"] = told = []
    for number in range(1, TIMES + 1):
        # Another variable that nothing reads: another release, and equal but for the flags.
        environment = {**story.services["chat"]["environment"], "DESCRIPTION": f"{number}"}
        _, beside = story.deploy_beside_clients(
            f"{title}, {number} of {TIMES}", environment=environment, flags=flags
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
    turns = found.get("turns done", {})
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
        "turns": turns.get("turns"),
        "blocks": turns.get("blocks", 0),
        "asleep_mib": min(beside.card.used, default=None),
        "host_mib": beside.memory.most - beside.memory.before,
        "widths": _widths(story),
    }


def _widths(story: Story) -> dict[str, dict[str, float]]:
    """The width of each interval of the verdict, beside that of the same two records one after the other."""
    try:
        before, after = (Record.read(_kept(story, side), side) for side in ("before", "after"))
        told = {(row["phase"], row["name"]): row for row in _kept(story, "verdict")["metrics"]}
    except FileNotFoundError:
        return {}
    apart = gate.judge(before, after, Criteria.from_dict(GATE)).metrics
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
