"""The invariants after any fault, judged from what `inside/look.py` saw of a host and from what its witness
heard.

Pure: it asks nobody, changes nothing and shares no code with the product. Each invariant is a function that
returns a sentence for everything that is wrong. `PROMISE` is about what serves and holds while the fault is
still there; `ORDER` is about what is left behind and what the record says, and holds once the host had room
to tidy up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .witness import Heard

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
RESULTS = ("committed", "rolled_back", "refused", "deferred", "interrupted", "calibrated")
KEEPS_OLD = ("rolled_back", "refused", "deferred", "interrupted", "calibrated")
UNTOUCHED = ("refused", "deferred", "interrupted")
RECOVERY_UNITS = ("pyinfra-vllm-recover",)  # they stay loaded, and look after the host now and then
CLOCKS_S = 1.0  # between what the host writes down and what the witness hears


@dataclass(frozen=True)
class Expected:
    """The state in which the case began.

    old, new: release ids; new is the one that was switched to
    voices: release id -> the tokens of its checkpoint
    mounts: of the host before the case
    true_clock: whether the times in the record are the witness's too
    """

    old: str
    new: str
    voices: dict[str, str]
    mounts: list[str]
    true_clock: bool = True


@dataclass(frozen=True)
class Answers:
    """The answers that the witness had since the order was given, oldest first; silences included."""

    heard: Sequence[Heard] = field(default_factory=tuple)

    @property
    def given(self) -> list[Heard]:
        return [heard for heard in self.heard if heard.text is not None]

    @property
    def last(self) -> Heard | None:
        """The last answer, where it was not followed by more than a moment's silence."""
        recent = [heard for heard in self.heard[-4:] if heard.text is not None]
        return recent[-1] if recent else None


def speakers(heard: Heard, case: Expected) -> set[str]:
    """Who may have given that answer.

    A server that does not say its release is known by its checkpoint's words: the real vLLM says its version.
    """
    said = {release for release, voice in case.voices.items() if voice == heard.text}
    anonymous = heard.release is None or heard.release.startswith("vllm-")
    return said if anonymous else said & {heard.release}


# What serves


def serves(look: Look, seen: Answers, case: Expected) -> list[str]:
    """A healthy server answers with the tokens of the old or the new release."""
    running = look["service"]["running"]
    if seen.last is None:
        return ["no tokens are generated"]
    if running not in (case.old, case.new):
        return [f"release {running} runs, which is neither the old one {case.old} nor the new one {case.new}"]
    if running not in speakers(seen.last, case):
        return [f"release {running} runs, and {seen.last.release} answers {seen.last.text!r}"]
    return []


def links_resolve(look: Look, seen: Answers, case: Expected) -> list[str]:
    service = look["service"]
    found = []
    if service["current"] is None or service["release"] != service["current"]:
        found.append(f"current ({service['current']}) does not lead to a release")
    if service["previous"] is not None and not look["previous_exists"]:
        found.append(f"previous ({service['previous']}) does not lead to a release")
    return found


def what_runs_is_current(look: Look, seen: Answers, case: Expected) -> list[str]:
    """While it goes back, `current` may be there already: then the record has no end, and a boot would
    complete it.
    """
    service = look["service"]
    going_back = _has(look, "restore.intended") and not _has(look, "end.done")
    if service["running"] == service["current"] or going_back:
        return []
    return [f"current says {service['current']}, and {service['running']} runs"]


def nobody_else_answers(look: Look, seen: Answers, case: Expected) -> list[str]:
    strange = [heard for heard in seen.given if not speakers(heard, case) & {case.old, case.new}]
    return [f"{heard.release} answered {heard.text!r}" for heard in strange[:1]]


# What is left behind


def lock_is_free(look: Look, seen: Answers, case: Expected) -> list[str]:
    held = look["service"]["lock"]
    return [] if held is None else [f"the lock is still held: {held}"]


def no_orphans(look: Look, seen: Answers, case: Expected) -> list[str]:
    """No process, mount or transient unit is left of the switch, nor of a server that was replaced."""
    found = [
        f"process {item['pid']} is left ({item['state']}): {item['command'][:120]}"
        for item in look["processes"]
        if _is_left(item, {look["service"]["running"], _sleeper(look)})
    ]
    found += [f"mount {path} is left" for path in sorted(set(look["mounts"]) - set(case.mounts))]
    units = [line.split()[0] for line in look["units"]]
    return found + [f"unit {name} is left" for name in units if not name.startswith(RECOVERY_UNITS)]


def _sleeper(look: Look) -> str | None:
    """The old release, where the record says that it sleeps on after the commit."""
    noted = [entry for entry in look["entries"] if entry["step"] == "standby-for"]
    return noted[-1]["release"] if noted and _has(look, "commit.done") else None


def _is_left(process: dict[str, Any], wanted: set[str | None]) -> bool:
    """Ours and not one of a running service, whose unit has its release in its name with standby; the look
    itself and what systemd starts are neither.
    """
    if process["state"] in "Tt":
        return True
    if process["cgroup"].endswith("/pyinfra-vllm-recover-due.service"):
        return False
    if "on-host.pyz" in process["command"] or "pyinfra-vllm" in process["cgroup"]:
        return True
    own = ("/vllm-tiny.service", *(f"/vllm-tiny.{release}.service" for release in wanted))
    return "vllm serve" in process["command"] and not process["cgroup"].endswith(own)


def no_strange_files(look: Look, seen: Answers, case: Expected) -> list[str]:
    """Every file is one of the known ones; what an interrupted write left has a name that says so."""
    found = []
    for name in look["files"]:
        parts = name.split("/")
        if parts[0] != "tiny" or len(parts) == 1 or STAGING.search(name) or parts[1] in KNOWN_FOLDERS:
            continue
        if parts[1] not in KNOWN:
            found.append(f"the file {name} is left")
    return found


def units_are_in_place(look: Look, seen: Answers, case: Expected) -> list[str]:
    """Systemd finds the release's unit, and starts it at the next boot; but for a switch that was refused for
    that.
    """
    last = look["service"]["last"]
    if last is not None and last["outcome"] in UNTOUCHED:
        return []
    return [f"the unit's link is wrong: {name}" for name, right in look["links"].items() if not right]


def no_failed_unit(look: Look, seen: Answers, case: Expected) -> list[str]:
    """`systemctl --failed` lists nothing on a host on which all is well."""
    names = [line.split()[0] for line in look["failed"]]
    return [f"unit {name} is failed" for name in names if name.startswith(("pyinfra-vllm", "vllm-"))]


# What the record says


def record_has_an_end(look: Look, seen: Answers, case: Expected) -> list[str]:
    """The newest transaction has an outcome, and it is what the host shows and the product says."""
    last, running = look["service"]["last"], look["service"]["running"]
    if last is None or last["outcome"] not in RESULTS:
        return [f"the newest transaction has no good outcome: {last}"]
    found = []
    if last["outcome"] == "committed" and running != last["to"]:
        found.append(f"the record says {last['to']} was committed, and {running} runs")
    if last["outcome"] in KEEPS_OLD and running not in (None, last["from"]):
        found.append(f"the record says {last['outcome']}, so {last['from']} serves, and {running} runs")
    return found


def journal_is_whole(look: Look, seen: Answers, case: Expected) -> list[str]:
    """Nothing was committed without a verdict or a rollback order, nothing begins or ends twice."""
    last, entries, found = look["service"]["last"], look["entries"], []
    steps = [f"{entry['step']}.{entry['state']}" for entry in entries]
    committed = last is not None and last["outcome"] == "committed"
    if committed and "commit.done" not in steps:
        found.append("the record says committed, and the journal has no commit")
    if "commit.done" in steps and last["purpose"] == "rollout" and "judge.done" not in steps:
        found.append("it was committed without a verdict")
    if steps.count("begin.done") != 1 or steps.count("end.done") != 1:
        found.append(
            f"the transaction begins {steps.count('begin.done')} and ends {steps.count('end.done')} times"
        )
    return found


def evidence_is_closed(look: Look, seen: Answers, case: Expected) -> list[str]:
    """The evidence has the same journal, up to the end.

    On a full disk that has to wait for the next one who looks.
    """
    entries, closed = look["entries"], look["evidence"]["journal"]
    steps = [f"{entry['step']}.{entry['state']}" for entry in entries]
    upto = steps.index("end.done") + 1 if "end.done" in steps else len(steps)
    if closed is None:
        return ["the evidence has no journal"]
    return [] if closed == entries[:upto] else ["the evidence's journal is not the host's"]


def verdict_is_kept(look: Look, seen: Answers, case: Expected) -> list[str]:
    """A release found worse is rejected; one that was committed was measured against a baseline, and watched
    as was asked.
    """
    last, found = look["service"]["last"], []
    if last is None:
        return ["there is no transaction"]
    kept = look["evidence"]["kept"]
    rollout = last["outcome"] == "committed" and last["purpose"] == "rollout" and last["from"]
    steps = [f"{entry['step']}.{entry['state']}" for entry in look["entries"]]
    if rollout and "soak.intended" in steps and "soak.done" not in steps and "soak" not in last["reason"]:
        found.append(f"its soak was cut short, and nobody is told: {last['reason']}")
    judged = [entry for entry in look["entries"] if entry["step"] == "judge"]
    worse = bool(judged) and judged[-1]["verdict"] == "fail"
    if rollout and "before" not in kept and judged and judged[-1]["verdict"] == "pass":
        found.append("it was committed as proven, without a baseline")
    if worse and last["outcome"] == "rolled_back" and last["to"] not in look["service"]["rejected"]:
        found.append("it was found worse, and is not rejected")
    if worse and last["outcome"] == "committed":
        found.append("it was found worse, and committed")
    if judged and kept.get("verdict") and kept["verdict"]["verdict"] != judged[-1]["verdict"]:
        found.append(
            f"the journal's verdict is {judged[-1]['verdict']}, the evidence's {kept['verdict']['verdict']}"
        )
    return found


def product_says_the_same(look: Look, seen: Answers, case: Expected) -> list[str]:
    said, service = look["status"], look["service"]
    if "error" in said:
        return [f"the product could not say how it is: {said['error']}"]
    found = [
        f"the product says {key} is {said[key]}, and it is {service[key]}"
        for key in ("running", "current")
        if said[key] != service[key]
    ]
    asleep = (said["asleep"] or {}).get("release")
    if asleep != (sleeps := _sleeps(look)):
        found.append(f"the product says {asleep} is asleep, and {sleeps} is")
    outcome = said["last"]["outcome"] if said["last"] else None
    if service["last"] and outcome != service["last"]["outcome"]:
        found.append(f"the product says {outcome}, and the journal {service['last']['outcome']}")
    return found


def _sleeps(look: Look) -> str | None:
    """The release of a second server."""
    sleeper = _sleeper(look)
    own = f"/vllm-tiny.{sleeper}.service"
    there = [item for item in look["processes"] if item["cgroup"].endswith(own)]
    return sleeper if there and sleeper != look["service"]["running"] else None


# What the witness heard


def record_is_what_was_heard(look: Look, seen: Answers, case: Expected) -> list[str]:
    """Who answers now is who the record says; who was never touched was never replaced, and nobody came
    before his entry.
    """
    last = look["service"]["last"]
    if last is None or last["outcome"] not in RESULTS:
        return []
    found = []
    serves = last["to"] if last["outcome"] == "committed" else last["from"]
    if seen.last is not None and serves not in speakers(seen.last, case):
        found.append(f"the record says {serves} serves, and {seen.last.release} answers {seen.last.text!r}")
    others = [heard for heard in seen.given if last["from"] not in speakers(heard, case)]
    if last["outcome"] in UNTOUCHED and others and not _has(look, "activate.intended"):
        found.append(f"the record says {last['outcome']}, and {others[0].release} answered meanwhile")
    if case.true_clock and last["purpose"] == "rollout":
        found += _too_early(look, others) + _too_late(look, seen, case)
    return found


def _too_early(look: Look, others: Sequence[Heard]) -> list[str]:
    """The new release answers only after the journal said that it is to be activated."""
    if not others or not _has(look, "activate.intended"):
        return []
    if others[0].time >= _time(look, "activate.intended") - CLOCKS_S:
        return []
    return [f"{others[0].release} answered before the journal says that it was activated"]


def _too_late(look: Look, seen: Answers, case: Expected) -> list[str]:
    """After the end that the record names, nobody but who it says is heard."""
    last = look["service"]["last"]
    if not _has(look, "end.done"):
        return []
    serves = last["to"] if last["outcome"] == "committed" else last["from"]
    ended = _time(look, "end.done") + CLOCKS_S
    late = [heard for heard in seen.given if heard.time > ended and serves not in speakers(heard, case)]
    return [f"{late[0].release} answered after the record says that {serves} serves"] if late else []


def _has(look: Look, point: str) -> bool:
    return any(f"{entry['step']}.{entry['state']}" == point for entry in look["entries"])


def _time(look: Look, point: str) -> float:
    found = [entry for entry in look["entries"] if f"{entry['step']}.{entry['state']}" == point]
    return datetime.fromisoformat(found[0]["at"]).timestamp()


PROMISE = (serves, links_resolve, what_runs_is_current, nobody_else_answers)
ORDER = (
    lock_is_free,
    no_orphans,
    no_strange_files,
    record_has_an_end,
    journal_is_whole,
    evidence_is_closed,
    verdict_is_kept,
    product_says_the_same,
    record_is_what_was_heard,
    units_are_in_place,
    no_failed_unit,
)


def violated(
    look: Look, seen: Answers, case: Expected, which: tuple[Any, ...] = PROMISE + ORDER
) -> list[str]:
    """A sentence for each violation; an empty list where everything holds."""
    return [f"{check.__name__}: {line}" for check in which for line in check(look, seen, case)]
