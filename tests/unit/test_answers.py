"""A host's answer that was tampered with is refused as that host's problem, or every reader can use it."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from seen import gpu
from simulated import NEW
from told import Teller

from pyinfra_vllm import answers
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.config import Rollout
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.record import Record, Running
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.service import Host, Service, Services
from pyinfra_vllm.on_host.doctor import Check
from pyinfra_vllm.on_host.inspect.gpus import Found
from pyinfra_vllm.on_host.server.logs import Told as Line
from pyinfra_vllm.on_host.state import observe
from pyinfra_vllm.operations.util import unit
from pyinfra_vllm.report.history import left_out, switches
from pyinfra_vllm.report.looking import Look, Wish
from pyinfra_vllm.report.page import render
from pyinfra_vllm.report.status import rows
from pyinfra_vllm.report.tables import show_history, show_status
from pyinfra_vllm.report.watching import lives, table
from pyinfra_vllm.rollout import story

FACTS = (Running, Record, Service, Host, Runtime, Checkpoints, Filesystem)
DEEP = "[" * 100_000 + "]" * 100_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
WISHES = (Wish("chat", "org/model", NEW, gpu="cpu"),)
NOW = datetime(2026, 11, 28, tzinfo=UTC)


class Told(dict[str, Any]):
    """Short where hypothesis shows it."""

    __repr__ = object.__repr__


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The answers of a host that rolled one release back and kept another."""
    with pytest.MonkeyPatch.context() as patch:
        teller = Teller(tmp_path_factory.mktemp("host"), patch)
        teller.host.stage(NEW)
        teller.host.rates[NEW] = 50.0
        teller.host.switch()
        look = teller.look()
        running = observe.observe(teller.host.paths.root, [])
    return Told(json.loads(json.dumps({"running": running, "record": list(look.record.values())})))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    if not path:
        return to
    made = copy.deepcopy(dict(value))
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return made


def look(told: dict[str, Any]) -> Look:
    running = Running().process([json.dumps(told["running"])])
    record = Record().process([json.dumps(told["record"])])
    assert running is not None and record is not None
    return Look(running, {service["service"]: service for service in record}, WISHES)


def read_by_all(found: Look) -> None:
    """Everything that is made of what a host told."""
    given = [Answer("w1", found), Answer("w2", problem="down")]
    screen = Console(file=io.StringIO(), width=200)
    show_status(screen, rows(given))
    show_history(screen, switches(given, NOW))
    json.dumps([row.as_dict() for row in rows(given)] + [item.as_dict() for item in switches(given)])
    left_out(given, NOW)
    screen.print(table(lives(given, Rollout(), NOW)))
    render("fleet", given, NOW)
    for service in found.record.values():
        for switch in service["transactions"]:
            story.tell(switch["entries"], [service["progress"]])


def test_valid_answer_is_accepted(told: dict[str, Any]) -> None:
    found = look(told)
    assert found.record, "else nothing is read"
    read_by_all(found)


@pytest.mark.thorough
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(number=st.integers(0, 10_000), value=JSON)
def test_whatever_is_changed_in_an_answer_is_refused_or_can_be_read(
    told: Told, number: int, value: Any
) -> None:
    known = list(places(told))[1:]
    lie = changed(told, known[number * 7919 % len(known)], value)
    try:
        found = look(lie)
    except HostError as error:
        assert "sent an invalid answer" in str(error) and len(str(error)) < 1000
        return
    read_by_all(found)


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize(
    "answer",
    [DEEP, '{"a":' * 50_000, "", "nonsense", "[[]]", "{}", "[null]", "NaN", '"text"', "1" * 5000, "[{}]",
    "\x1b[2J", "[1e999]", "true"],
)  # fmt: skip
def test_invalid_answer_is_a_host_error_for_every_fact(fact: Any, answer: str) -> None:
    with pytest.raises(HostError, match="sent an invalid answer"):
        fact().process([answer])


@pytest.mark.thorough
@settings(max_examples=100)
@given(value=JSON)
def test_no_json_is_another_error(value: Any) -> None:
    for fact in FACTS:
        try:
            fact().process([json.dumps(value)])
        except HostError as error:
            assert str(error).isprintable()


@given(st.lists(st.text()))
def test_invalid_folders_are_an_error(lines: list[str]) -> None:
    try:
        assert all("/" not in name for name in Services().process(lines))
    except HostError:
        return


@settings(max_examples=100)
@given(value=JSON)
def test_how_far_a_unit_is_can_be_described(value: Any) -> None:
    try:
        status = answers.read(json.dumps(value), answers.UnitStatus)
    except HostError:
        return
    assert isinstance(unit.describe(status), str)


@pytest.mark.parametrize(
    ("kind", "answer", "problem"),
    [
        (Found, {"problem": None}, "its answer.gpus is missing"),
        (Found, {"problem": None, "gpus": [{**asdict(gpu()), "processes": 1}]},
         r"gpus\[0\]\.processes must be a list"),
        (list[Check], [{"name": "x", "ok": 1, "detail": ""}], r"\[0\]\.ok must be true"),
        (answers.Removable, {"kind": "x", "path": "/x", "bytes": 1.5}, "bytes must be a whole number"),
        (answers.UnitStatus, {"rate": -1}, "rate must be 0 or more"),
        (list[Line], [{"at": "now", "unit": "x", "text": ""}], r"\[0\]\.at must be a number"),
    ],
)  # fmt: skip
def test_an_answer_is_checked_against_its_type(kind: Any, answer: Any, problem: str) -> None:
    with pytest.raises(HostError, match=problem):
        answers.read(json.dumps(answer), kind)


def test_a_host_with_petabytes_is_believed() -> None:
    """Sizes of file systems, checkpoints and downloads: a disk of 2 TB is nothing special."""
    told = {"mount": "/srv", "device": "/dev/md0", "read_only": False, "free_inodes": None}
    sizes = {"path": "/srv", "type": "xfs", "free_bytes": 10**15, "total_bytes": 8 * 10**15}
    assert Filesystem().process([json.dumps({**told, **sizes})])
    assert answers.read('{"state": "downloading", "total_bytes": 1.2e12}', answers.UnitStatus)


def test_keys_that_a_type_does_not_name_are_allowed() -> None:
    found = answers.read('{"kind": "x", "path": "/x", "bytes": 1, "new": []}', answers.Removable)
    assert found["bytes"] == 1


def test_invalid_evidence_does_not_hide_other_evidence(told: dict[str, Any], tmp_path: Path) -> None:
    lie = copy.deepcopy(dict(told))
    (switch,) = lie["record"][0]["transactions"]
    switch["evidence"]["verdict"] = {"metrics": [{"name": 5}]}
    switch["evidence"]["before"] = {"phases": 1}
    page = render("fleet", [Answer("w1", look(lie))], NOW)
    assert "Evidence left out: verdict.json: it can" in page and "rolled back" in page
