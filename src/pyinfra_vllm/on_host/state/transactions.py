"""A transaction as its journal tells it: the view that recovery, status, history, report and estimate share.

Nothing here reads a file or a clock. The entries are checked when the journal is read (journal.py); fields
that an older version did not write are None or empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Entry = Mapping[str, Any]

RESTORE_FAILED = "restore_failed"
ROLLOUT, CALIBRATION = "rollout", "calibration"
SLEEPS_ON = "standby-for"  # the entry that lets the old release sleep on after the commit
# The steps that show how long a switch and its rollback took, and how much of it was measuring.
TURNS = ("measure-before", "activate", "ready", "measure-after", "turns", "commit", "restore")


@dataclass(frozen=True)
class Step:
    """A step that was begun. Times are the journal's.

    ended: None while it is open
    state: done, failed or note, as its last entry says; empty while it is open
    """

    name: str
    began: str
    ended: str | None
    state: str
    limit_s: float | None


@dataclass(frozen=True)
class Transaction:
    """One transaction; the first of its entries is its `begin`."""

    entries: Sequence[Entry]

    def find(self, step: str, state: str) -> Entry | None:
        """The newest entry of that step and state."""
        found = [entry for entry in self.entries if entry["step"] == step and entry["state"] == state]
        return found[-1] if found else None

    @property
    def begin(self) -> Entry:
        return self.entries[0]

    @property
    def tx(self) -> str:
        return str(self.begin["tx"])

    @property
    def began(self) -> str:
        return str(self.begin["at"])

    @property
    def purpose(self) -> str:
        return str(self.begin.get("purpose", ROLLOUT))

    @property
    def operator(self) -> str:
        return str(self.begin.get("operator", ""))

    @property
    def why(self) -> str:
        """The operator's reason."""
        return str(self.begin.get("reason", ""))

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(self.begin.get("overrides", ()))

    @property
    def old(self) -> str | None:
        """The release that was current when it began."""
        return self.begin.get("from")

    @property
    def new(self) -> str:
        return str(self.begin.get("to", ""))

    @property
    def end(self) -> Entry | None:
        ends = [entry for entry in self.entries if entry["step"] == "end"]
        return ends[-1] if ends else None

    @property
    def ended(self) -> str | None:
        """When it ended; None while it is open."""
        return self.end["at"] if self.end else None

    @property
    def outcome(self) -> str | None:
        """None while it is open; RESTORE_FAILED while its rollback fails and is tried again."""
        if self.end:
            return str(self.end.get("outcome", "unknown"))
        return RESTORE_FAILED if self.find("restore", "failed") else None

    @property
    def reason(self) -> str:
        """The host's reason for the outcome."""
        if self.end:
            return str(self.end.get("reason", ""))
        return str((self.find("restore", "failed") or {}).get("error", ""))

    @property
    def verdict(self) -> str | None:
        return self.end.get("verdict", "") if self.end else ""

    @property
    def recovered(self) -> bool:
        """Whether a recovery ended it."""
        return bool(self.end and self.end.get("recovered"))

    @property
    def log(self) -> tuple[str, ...]:
        """Why a start failed, as the service's log says it."""
        return tuple(self.end.get("log", ())) if self.end else ()

    @property
    def failing(self) -> str | None:
        """Why the old release does not serve again, as it was found last; None where nothing was found."""
        if self.end or self.find("restore", "done"):
            return None
        failed = self.find("restore", "failed")
        return str(failed.get("error", "")) if failed else None

    @property
    def sleeper(self) -> Entry | None:
        """The `release` that may sleep on after the commit, `until` a time (Unix); None where none may."""
        noted = self.find(SLEEPS_ON, "note")
        over = self.find("soak", "done") or self.find("restore", "intended")
        return noted if noted and noted["release"] and not over else None

    @property
    def turns(self) -> dict[str, str]:
        """When each of TURNS began and ended, such as "restore intended" and "restore done"."""
        return {
            f"{entry['step']} {entry['state']}": entry["at"]
            for entry in self.entries
            if entry["step"] in TURNS and (entry["step"], entry["state"]) != ("restore", "failed")
        }

    @property
    def steps(self) -> list[Step]:
        """Every step that was begun, in that order."""
        found = []
        for place, entry in enumerate(self.entries):
            if entry["state"] == "intended":
                closing = (
                    later
                    for later in self.entries[place + 1 :]
                    if later["step"] == entry["step"] and later["state"] != "intended"
                )
                found.append(_step(entry, next(closing, None)))
        return found

    @property
    def under_way(self) -> Step | None:
        """The step that was begun last and has not ended."""
        unfinished = [step for step in self.steps if step.ended is None]
        return unfinished[-1] if unfinished else None

    def as_dict(self) -> dict[str, Any]:
        """The summary in `status`: the fields of its begin and its end, and what came between.

        `outcome` is None, and there is no `ended`, while it is open; `kept`: whether the new release was
        committed; `reported`: whether an operator has seen the end, or the trouble
        where there is none.
        """
        steps = [entry["step"] for entry in self.entries]
        since_end = steps[len(steps) - steps[::-1].index("end") :] if "end" in steps else steps
        end = {**self.end, "ended": self.ended} if self.end else {}
        failed = self.find("restore", "failed")
        trouble = {"outcome": RESTORE_FAILED, "reason": failed.get("error", "")} if failed else {}
        return {
            **self.begin,
            "began": self.began,
            "outcome": None,
            "kept": "commit" in steps,
            "turns": self.turns,
            **trouble,
            **end,
            "reported": "reported" in since_end,
        }


def _step(begun: Entry, closing: Entry | None) -> Step:
    limit_s = begun.get("limit_s")
    return Step(
        name=str(begun["step"]),
        began=str(begun["at"]),
        ended=str(closing["at"]) if closing else None,
        state=str(closing["state"]) if closing else "",
        limit_s=limit_s if isinstance(limit_s, (int, float)) else None,
    )


def transactions(entries: Iterable[Entry]) -> list[Transaction]:
    """Those that began, oldest first. Entries before a `begin` belong to none."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["step"] == "begin":
            found[entry["tx"]] = found.pop(entry["tx"], [])
        if entry["tx"] in found:
            found[entry["tx"]].append(entry)
    return [Transaction(own) for own in found.values()]


def newest(entries: Iterable[Entry]) -> Transaction | None:
    """The newest transaction; None where nothing was ever begun."""
    return next(reversed(transactions(entries)), None)


def took_s(turns: Mapping[str, str], first: str, last: str) -> float:
    """Seconds from one of a transaction's `turns` to another; 0 where one of them did not come."""
    return seconds_between(turns[first], turns[last]) if first in turns and last in turns else 0.0


def seconds_between(first: str, last: str) -> float:
    """Never below 0: a clock may have been set back."""
    return max(0.0, (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds())


def without_service_s(turns: Mapping[str, str], ended: str | None = None) -> float | None:
    """Seconds from the stop of the old release to the new one's first tokens; with a rollback, both ways.

    None where no release was stopped, or none served again.

    + ended: stands for the end of a rollback that a full disk kept out of the journal
    """
    stopped, ready = turns.get("activate intended"), turns.get("ready done")
    returned, back = turns.get("restore intended"), turns.get("restore done")
    if stopped is None:
        return None
    if ready and returned and (back or ended):  # it served in between, while it was measured
        return seconds_between(stopped, ready) + seconds_between(returned, str(back or ended))
    again = back or ready or ended
    return seconds_between(stopped, again) if again else None
