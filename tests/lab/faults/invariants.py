"""What must hold after any fault, judged from what `inside/look.py` saw of a host. Pure: it asks nobody and changes nothing.

Each invariant is a function that returns a sentence for everything that is wrong. `PROMISE` is about what serves and holds
while the fault is still there; `ORDER` is about what is left behind, and holds once the host had room to tidy up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Look = dict[str, Any]

# What lies in a service's directory, and the names under which a write may be found half done.
KNOWN = (
    "current",
    "previous",
    "journal.jsonl",
    "lock",
    "rejected.json",
    "noise.json",
    "prompts.jsonl",
    "releases",
)
KNOWN_FOLDERS = ("evidence", "cache")
STAGING = re.compile(r"(^|/)\.[^/]+\.partial(/|$)")
RESULTS = ("committed", "rolled_back", "refused", "deferred", "interrupted", "restore_failed")
KEEPS_OLD = ("rolled_back", "refused", "deferred", "interrupted")


@dataclass(frozen=True)
class Expected:
    """What the case began with.

    old, new: release ids; new is the one that was switched to
    voices: release id -> the tokens of its checkpoint
    mounts: of the host before the case
    """

    old: str
    new: str
    voices: dict[str, str]
    mounts: list[str]

    @property
    def proven(self) -> dict[str, str]:
        return {release: self.voices[release] for release in (self.old, self.new)}


def serves(look: Look, heard: str | None, case: Expected) -> list[str]:
    """A healthy server answers with the tokens of the old or the new release."""
    running = look["service"]["running"]
    if heard is None:
        return ["no tokens flow"]
    if running not in case.proven:
        return [f"release {running} runs, which is neither the old one {case.old} nor the new one {case.new}"]
    if heard != case.voices[running]:
        return [f"release {running} runs, and {heard!r} is not what its checkpoint says"]
    return []


def links_resolve(look: Look, heard: str | None, case: Expected) -> list[str]:
    service = look["service"]
    found = []
    if service["current"] is None or not service["release"] or service["release"]["id"] != service["current"]:
        found.append(f"current ({service['current']}) does not lead to a release")
    if service["previous"] is not None and not look["previous_exists"]:
        found.append(f"previous ({service['previous']}) does not lead to a release")
    return found


def what_runs_is_current(look: Look, heard: str | None, case: Expected) -> list[str]:
    service = look["service"]
    if service["running"] == service["current"]:
        return []
    return [f"current says {service['current']}, and {service['running']} runs"]


def lock_is_free(look: Look, heard: str | None, case: Expected) -> list[str]:
    held = look["service"]["lock"]
    return [] if held is None else [f"the lock is still held: {held}"]


def no_orphans(look: Look, heard: str | None, case: Expected) -> list[str]:
    """No process, mount or transient unit is left of the switch, nor of a server that was replaced."""
    found = [
        f"process {item['pid']} is left ({item['state']}): {item['command'][:120]}"
        for item in look["processes"]
        if _is_left(item)
    ]
    found += [f"mount {path} is left" for path in sorted(set(look["mounts"]) - set(case.mounts))]
    units = [line.split()[0] for line in look["units"]]
    return found + [f"unit {name} is left" for name in units if name != "pyinfra-vllm-recover.service"]


def _is_left(process: dict[str, Any]) -> bool:
    """Ours and not one of a running service; the look itself and what systemd starts are neither."""
    if process["state"] in "Tt":
        return True
    if "on-host.pyz" in process["command"] or "pyinfra-vllm" in process["cgroup"]:
        return True
    return "vllm serve" in process["command"] and not process["cgroup"].endswith("/vllm-tiny.service")


def no_strange_files(look: Look, heard: str | None, case: Expected) -> list[str]:
    """Every file is one of the known ones; what an interrupted write left has a name that says so."""
    found = []
    for name in look["files"]:
        parts = name.split("/")
        if parts[0] != "tiny" or len(parts) == 1 or STAGING.search(name) or parts[1] in KNOWN_FOLDERS:
            continue
        if parts[1] not in KNOWN:
            found.append(f"the file {name} is left")
    return found


def evidence_is_true(look: Look, heard: str | None, case: Expected) -> list[str]:
    """The newest transaction has an outcome, and it is what the host shows."""
    last, running = look["service"]["last"], look["service"]["running"]
    if last is None or last["outcome"] not in RESULTS:
        return [f"the newest transaction has no outcome: {last}"]
    found = []
    if last["outcome"] == "committed" and running != last["to"]:
        found.append(f"the record says {last['to']} was committed, and {running} runs")
    if last["outcome"] in KEEPS_OLD and running != last["from"]:
        found.append(f"the record says {last['outcome']}, so {last['from']} serves, and {running} runs")
    return found + _entries_are_true(look, last)


def _entries_are_true(look: Look, last: dict[str, Any]) -> list[str]:
    """Nothing was committed without a verdict or a rollback order, nothing twice; the evidence has the same journal."""
    entries, found = look["entries"], []
    steps = [f"{entry['step']}.{entry['state']}" for entry in entries]
    if last["outcome"] == "committed" and "commit.done" not in steps:
        found.append("the record says committed, and the journal has no commit")
    if "commit.done" in steps and last.get("purpose") == "rollout" and "judge.done" not in steps:
        found.append("it was committed without a verdict")
    if steps.count("begin.done") != 1 or steps.count("end.done") != 1:
        found.append(
            f"the transaction begins {steps.count('begin.done')} and ends {steps.count('end.done')} times"
        )
    closed = look["evidence"]["journal"]
    upto = steps.index("end.done") + 1 if "end.done" in steps else len(steps)
    if closed is not None and closed != entries[:upto]:
        found.append("the evidence's journal is not the host's")
    if closed is None:
        found.append("the evidence has no journal")
    if last["outcome"] == "committed" and last.get("purpose") == "rollout" and last.get("from"):
        found += [] if "before" in look["evidence"]["kept"] else ["it was committed without a baseline"]
    judged = [entry for entry in entries if entry["step"] == "judge"]
    worse = (
        judged and judged[-1]["verdict"] == "fail" and last["outcome"] in ("rolled_back", "restore_failed")
    )
    if worse and last["to"] not in look["service"]["rejected"]:
        found.append("it was found worse, and is not rejected")
    kept = look["evidence"]["kept"].get("verdict")
    if judged and kept and kept["verdict"] != judged[-1]["verdict"]:
        found.append(f"the journal's verdict is {judged[-1]['verdict']}, the evidence's {kept['verdict']}")
    return found


PROMISE = (serves, links_resolve, what_runs_is_current)
ORDER = (lock_is_free, no_orphans, no_strange_files, evidence_is_true)


def violated(
    look: Look, heard: str | None, case: Expected, which: tuple[Any, ...] = PROMISE + ORDER
) -> list[str]:
    """A sentence for each violation; an empty list where everything holds."""
    return [f"{check.__name__}: {line}" for check in which for line in check(look, heard, case)]
