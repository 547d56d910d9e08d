"""The checker can fail: a host in order passes, and each thing that may be wrong with it is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from .invariants import Expected, violated

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
CASE = Expected(OLD, NEW, {OLD: "one two", NEW: "sun moon"}, ["/", "/srv"])
BEGIN = {"tx": "t", "step": "begin", "state": "done", "from": OLD, "to": NEW, "purpose": "rollout"}


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"tx": "t", "step": name, "state": "done", **fields}


def host_in_order() -> dict[str, Any]:
    entries = [BEGIN, step("judge", verdict="pass"), step("commit"), step("end", outcome="committed")]
    return {
        "service": {
            "current": NEW,
            "running": NEW,
            "previous": OLD,
            "release": {"id": NEW},
            "lock": None,
            "rejected": {},
            "last": {**BEGIN, "outcome": "committed"},
        },
        "entries": entries,
        "evidence": {
            "kept": {"before": {}, "verdict": {"verdict": "pass"}},
            "journal": copy.deepcopy(entries),
        },
        "previous_exists": True,
        "processes": [
            {"pid": 1, "state": "S", "command": "/sbin/init", "cgroup": "/init.scope"},
            {"pid": 9, "state": "S", "command": "vllm serve m", "cgroup": "/system.slice/vllm-tiny.service"},
        ],
        "mounts": ["/", "/srv"],
        "units": ["pyinfra-vllm-recover.service loaded active exited"],
        "files": [
            "tiny/journal.jsonl",
            "tiny/.current.partial",
            "tiny/evidence/t/verdict.json",
            "bin/on-host.pyz",
        ],
    }


def test_a_host_in_order_passes() -> None:
    assert violated(host_in_order(), "sun moon", CASE) == []


def orphan(**fields: Any) -> dict[str, Any]:
    return {"pid": 7, "state": "S", "command": "x", "cgroup": "/system.slice/x.service", **fields}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a stranger's release": (lambda look: look["service"].update(running="c" * 12), "neither the old one"),
    "another runs": (lambda look: look["service"].update(running=OLD), "current says"),
    "current leads nowhere": (
        lambda look: look["service"].update(release=None),
        "does not lead to a release",
    ),
    "previous leads nowhere": (lambda look: look.update(previous_exists=False), "does not lead to a release"),
    "lock held": (lambda look: look["service"].update(lock={"holder": "x"}), "lock is still held"),
    "stopped process": (lambda look: look["processes"].append(orphan(state="T")), "process 7 is left"),
    "transaction left": (
        lambda look: look["processes"].append(orphan(command="python3 on-host.pyz")),
        "is left",
    ),
    "server left": (
        lambda look: look["processes"].append(orphan(command="vllm serve m")),
        "process 7 is left",
    ),
    "mount left": (lambda look: look["mounts"].append("/mnt"), "mount /mnt is left"),
    "unit left": (
        lambda look: look["units"].append("pyinfra-vllm-switch-tiny.service loaded failed"),
        "unit pyinfra",
    ),
    "file left": (lambda look: look["files"].append("tiny/payload.json"), "file tiny/payload.json is left"),
    "no outcome": (lambda look: look["service"]["last"].update(outcome=None), "no outcome"),
    "false outcome": (
        lambda look: look["service"]["last"].update(outcome="rolled_back"),
        "so aaaaaaaaaaaa serves",
    ),
    "commit without a verdict": (lambda look: look["entries"].pop(1), "committed without a verdict"),
    "committed twice over": (lambda look: look["entries"].append(step("end")), "ends 2 times"),
    "other evidence": (lambda look: look["evidence"]["journal"].pop(), "the evidence's journal"),
    "no journal in the evidence": (
        lambda look: look["evidence"].update(journal=None),
        "the evidence has no journal",
    ),
    "no baseline": (lambda look: look["evidence"]["kept"].pop("before"), "committed without a baseline"),
    "worse, and wanted still": (
        lambda look: (
            look["entries"][1].update(verdict="fail"),
            look["service"]["last"].update(outcome="rolled_back"),
        ),
        "is not rejected",
    ),
    "other verdict": (
        lambda look: look["evidence"]["kept"]["verdict"].update(verdict="fail"),
        "the evidence's fail",
    ),
}


@pytest.mark.parametrize(("breaks", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_found(breaks: Callable[[dict[str, Any]], object], says: str) -> None:
    look = host_in_order()
    breaks(look)
    assert any(says in line for line in violated(look, "sun moon", CASE)), violated(look, "sun moon", CASE)


@pytest.mark.parametrize(
    ("heard", "says"), [(None, "no tokens flow"), ("one two", "not what its checkpoint says")]
)
def test_wrong_tokens_are_found(heard: str | None, says: str) -> None:
    assert any(says in line for line in violated(host_in_order(), heard, CASE))
