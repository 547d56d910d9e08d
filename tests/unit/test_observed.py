"""The observed state of a host: read once, with an error that names the key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from seen import AT, document, seen, switched

from pyinfra_vllm import answers
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.record import Running
from pyinfra_vllm.facts.service import Service
from pyinfra_vllm.on_host.state.observed import Holder, Observed, Rejection, Summary

NEVER_SERVED = (
    '[{"service": "chat", "unit": "vllm-chat.service", "current": null, "running": null, "staged": [],'
    ' "rejected": {}, "lock": null, "last": null, "history": []}]'
)


def test_a_service_that_never_served() -> None:
    fact = Service()
    assert fact.requires_command("/srv/pyinfra-vllm", "chat") == "python3"
    found = fact.process([NEVER_SERVED])
    assert found == Observed(
        service="chat",
        current=None,
        running=None,
        staged=(),
        rejected={},
        lock=None,
        history=(),
        unit="vllm-chat.service",
    )
    assert found is not None and found.last is None and not found.runs(None)
    assert Running().process([NEVER_SERVED]) == [found]


def test_every_field_has_its_type() -> None:
    switch = switched(ended=AT, outcome="committed", to="r2", kept=True, **{"from": "r1"})
    rejected = {"r3": {"at": AT, "reason": "slower"}}
    found = seen(current="r2", running="r2", proven="r2", rejected=rejected, lock={}, history=[switch])
    assert found.runs("r2") and not found.runs("r1")
    assert found.last == Summary("t", AT, "committed", False, {}, ended=AT, old="r1", new="r2", kept=True)
    assert found.rejected == {"r3": Rejection(AT, "slower")} and found.lock == Holder()


def test_answer_of_an_earlier_version_is_read() -> None:
    """It had no `rehearsed`, `kept` or `recovered`, and a rejection no `criteria`."""
    old = document(history=[switched(to="r2", operator="ann")])
    assert {"rehearsed", "restarts", "active"}.isdisjoint(old)
    (found,) = answers.observed([old])
    assert found.rehearsed == () and found.restarts == 0 and found.active is None
    assert found.history[0].operator == "ann" and not found.history[0].kept


def test_keys_of_a_newer_version_are_allowed() -> None:
    assert answers.observed([document(news=1)]) == [seen()]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"current": 5}, r"its answer\[0\]\.current must be text"),
        ({"staged": [1]}, r"staged\[0\] must be text"),
        ({"restarts": -1}, "restarts must be a whole number"),
        ({"rejected": {"x": {"at": ""}}}, r"rejected\.'x'\.reason is missing"),
        ({"lock": {"holder": 1}}, r"lock\.holder must be text"),
        ({"history": [{"tx": "t"}]}, r"history\[0\]\.began is missing"),
        ({"history": [switched(began="yesterday")]}, r"history\[0\]\.began must be a time"),
        ({"history": [switched(turns={"ready done": "later"})]}, r"turns\.'ready done' must be a time"),
        ({"release": {"id": "x"}}, r"release\.argv is missing"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(HostError, match=problem):
        answers.observed(json.loads(json.dumps([document(**change)])))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(HostError, match=r"its answer\[0\]\.staged is missing"):
        answers.observed([{key: value for key, value in document().items() if key != "staged"}])


def test_rejection_under_another_gate_does_not_count() -> None:
    found = seen(
        rejected={"x": {"at": AT, "reason": "slower", "criteria": {"margin": 1, "quality_prompts": "a"}}}
    )
    assert found.rejection("x", {"margin": 1, "quality_prompts": "b"}) is not None
    assert found.rejection("x", {"margin": 2}) is None
    assert found.rejection("y", {}) is None
