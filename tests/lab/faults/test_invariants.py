"""The checker can fail: a host in order passes, and each thing that may be wrong with it is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from .invariants import Answers, Expected, violated
from .witness import Heard

pytestmark = pytest.mark.full

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
CASE = Expected(OLD, NEW, {OLD: "one two", NEW: "sun moon"}, ["/", "/srv"])
BEGIN = {"tx": "t", "step": "begin", "state": "done", "from": OLD, "to": NEW, "purpose": "rollout"}


def step(name: str, second: int, state: str = "done", **fields: Any) -> dict[str, Any]:
    return {
        "tx": "t",
        "at": f"2026-11-28T03:00:{second:02}.000+00:00",
        "step": name,
        "state": state,
        **fields,
    }


def heard(second: float, text: str | None, release: str | None = None) -> Heard:
    return Heard(second, datetime(2026, 11, 28, 3, tzinfo=UTC).timestamp() + second, text, release)


def by_turns() -> Answers:
    """The old release answers, nobody does while the new one starts, and then it does."""
    old = [heard(second, "one two", OLD) for second in range(10)]
    new = [heard(second, "sun moon", NEW) for second in range(13, 24)]
    return Answers([*old, heard(11, None), heard(12, None), *new])


def host_in_order() -> dict[str, Any]:
    entries = [
        BEGIN,
        step("activate", 10, "intended"),
        step("judge", 15, verdict="pass"),
        step("commit", 16),
        step("end", 20, outcome="committed"),
    ]
    return {
        "service": {
            "current": NEW,
            "running": NEW,
            "previous": OLD,
            "release": NEW,
            "lock": None,
            "rejected": [],
            "last": {**BEGIN, "outcome": "committed", "reason": "2 criteria passed"},
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
        "links": {"unit": True, "at boot": True},
        "failed": ["systemd-logind.service loaded failed failed"],
        "status": {"running": NEW, "current": NEW, "last": {"outcome": "committed"}, "asleep": None},
        "units": ["pyinfra-vllm-recover.service loaded active exited"],
        "files": [
            "tiny/journal.jsonl",
            "tiny/.current.partial",
            "tiny/evidence/t/verdict.json",
            "bin/on-host.pyz",
        ],
    }


def test_a_host_in_order_passes() -> None:
    assert violated(host_in_order(), by_turns(), CASE) == []


def asleep(look: dict[str, Any]) -> None:
    """The old release's server is there beside the new one's, as the record says."""
    noted = step("standby-for", 17, "note", release=OLD, until=1e10)
    for entries in (look["entries"], look["evidence"]["journal"]):
        entries.insert(4, noted)
    look["processes"].append(orphan(command="vllm serve m", cgroup=f"/system.slice/vllm-tiny.{OLD}.service"))
    look["status"]["asleep"] = {"release": OLD}


def test_a_release_that_sleeps_on_is_no_orphan() -> None:
    look = host_in_order()
    asleep(look)
    assert violated(look, by_turns(), CASE) == []
    look["status"]["asleep"] = None
    (untold,) = violated(look, by_turns(), CASE)
    assert f"the product says None is asleep, and {OLD} is" in untold
    for entries in (look["entries"], look["evidence"]["journal"]):
        entries[4]["release"] = None
    assert "process 7 is left" in str(violated(look, by_turns(), CASE))


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
    "no outcome": (lambda look: look["service"]["last"].update(outcome=None), "no good outcome"),
    "false outcome": (
        lambda look: look["service"]["last"].update(outcome="rolled_back"),
        "so aaaaaaaaaaaa serves",
    ),
    "commit without a verdict": (lambda look: look["entries"].pop(2), "committed without a verdict"),
    "committed twice over": (lambda look: look["entries"].append(step("end", 21)), "ends 2 times"),
    "other evidence": (lambda look: look["evidence"]["journal"].pop(), "the evidence's journal"),
    "no journal in the evidence": (
        lambda look: look["evidence"].update(journal=None),
        "the evidence has no journal",
    ),
    "no baseline": (
        lambda look: look["evidence"]["kept"].pop("before"),
        "committed as proven, without a baseline",
    ),
    "worse, and wanted still": (
        lambda look: (
            look["entries"][2].update(verdict="fail"),
            look["service"]["last"].update(outcome="rolled_back"),
        ),
        "is not rejected",
    ),
    "other verdict": (
        lambda look: look["evidence"]["kept"]["verdict"].update(verdict="fail"),
        "the evidence's fail",
    ),
    "worse, and kept": (lambda look: look["entries"][2].update(verdict="fail"), "found worse, and committed"),
    "cut short": (
        lambda look: look["entries"].insert(4, step("soak", 17, "intended")),
        "its soak was cut short",
    ),
    "no unit": (lambda look: look["links"].update(unit=False), "link is wrong: unit"),
    "not at boot": (lambda look: look["links"].update({"at boot": False}), "link is wrong: at boot"),
    "alarm": (
        lambda look: look["failed"].append("pyinfra-vllm-recover.service loaded failed failed"),
        "recover.service is failed",
    ),
    "says another": (lambda look: look["status"].update(running=OLD), "the product says running is"),
    "says another end": (lambda look: look["status"].update(last={"outcome": None}), "the product says None"),
    "touched, and denied": (
        lambda look: (
            look["entries"].pop(1),
            look["service"]["last"].update({"outcome": "refused", "from": OLD}),
        ),
        f"refused, and {NEW} answered meanwhile",
    ),
    "activated before it was written": (
        lambda look: look["entries"][1].update(at="2026-11-28T03:00:18.000+00:00"),
        "before the journal says",
    ),
}


@pytest.mark.parametrize(("breaks", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_found(breaks: Callable[[dict[str, Any]], object], says: str) -> None:
    look = host_in_order()
    breaks(look)
    found = violated(look, by_turns(), CASE)
    assert any(says in line for line in found), found


HEARD: dict[str, tuple[list[Heard], str]] = {
    "silence": ([heard(second, None) for second in range(24, 30)], "no tokens are generated"),
    "the old one": ([heard(30, "one two", OLD)], f"{NEW} runs, and {OLD} answers"),
    "the other's words": ([heard(30, "one two", NEW)], f"{NEW} runs, and {NEW} answers 'one two'"),
    "a stranger": ([heard(30, "red blue", "c" * 12), heard(31, "sun moon", NEW)], "answered 'red blue'"),
    "the old one after the end": (
        [heard(25, "one two", OLD), heard(26, "sun moon", NEW)],
        f"{OLD} answered after the record says that {NEW} serves",
    ),
}


@pytest.mark.parametrize(("more", "says"), HEARD.values(), ids=HEARD)
def test_what_the_witness_heard_is_compared(more: list[Heard], says: str) -> None:
    found = violated(host_in_order(), Answers([*by_turns().heard, *more]), CASE)
    assert any(says in line for line in found), found


@pytest.mark.parametrize("name", [None, "vllm-0.32.0-cb113caa"], ids=["the stub", "the real vLLM"])
def test_a_server_that_does_not_name_its_release_is_known_by_its_words(name: str | None) -> None:
    nameless = Answers([item._replace(release=name) for item in by_turns().heard])
    assert violated(host_in_order(), nameless, CASE) == []
