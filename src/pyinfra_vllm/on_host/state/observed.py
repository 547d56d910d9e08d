"""The types of a host's `status`: written by observe.py, read once on the control machine (answers.py).

Keys that are not named here are allowed: newer programs tell more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from .values import timestamp

Time = Annotated[str, timestamp]  # ISO 8601 in UTC


@dataclass(frozen=True)
class Holder:
    """The holder of a service's lock; empty where it did not write itself down."""

    holder: str = ""
    since: str = ""
    purpose: str = ""


@dataclass(frozen=True)
class Rejection:
    """The reason why a release is not tried again, and the gate that it failed."""

    at: str
    reason: str
    criteria: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asleep:
    """A release that sleeps beside the one that serves, and can be woken until then."""

    release: str
    until: Time


@dataclass(frozen=True)
class Summary:
    """A transaction in a few values (transactions.py makes them).

    ended, outcome: None while it is open; an outcome without an end is a rollback that fails
    reported: whether an operator has seen the end
    turns: when each of transactions.TURNS began and ended, such as "restore intended"
    old, new: the releases
    kept: whether the new release was committed
    """

    tx: str
    began: Time
    outcome: str | None
    reported: bool
    turns: dict[str, Time]
    ended: Time | None = None
    purpose: str = "rollout"
    old: str | None = field(default=None, metadata={"key": "from"})
    new: str = field(default="", metadata={"key": "to"})
    operator: str = ""
    reason: str = ""
    verdict: str | None = None
    kept: bool = False
    recovered: bool = False


@dataclass(frozen=True)
class Observed:
    """One service of a host.

    release: the document of the current release (answers.StagedRelease); None where there is none
    staged, rehearsed: ids of releases; those that their vLLM accepted, or could not be asked about
    lock: None where nothing holds it
    proven: the release that was committed last, and not taken back since
    front_lost: outside of a switch, whether the front does not lead to the release that runs
    """

    service: str
    current: str | None
    running: str | None
    staged: tuple[str, ...]
    rejected: dict[str, Rejection]
    lock: Holder | None
    history: tuple[Summary, ...]
    unit: str = ""
    active: str | None = None
    sub: str | None = None
    since: str | None = None
    restarts: int = 0
    previous: str | None = None
    proven: str | None = None
    release: Any = None
    rehearsed: tuple[str, ...] = ()
    front_lost: bool = False
    asleep: Asleep | None = None

    @property
    def last(self) -> Summary | None:
        return self.history[-1] if self.history else None

    def runs(self, release_id: str | None) -> bool:
        """Whether that very release is current, was proven, and started the running process."""
        return release_id is not None and {self.current, self.running, self.proven} == {release_id}

    def rejection(self, release_id: str, criteria: Mapping[str, Any]) -> Rejection | None:
        """Why the release is not tried again; None where it may be, also because its gate is another one now.

        + criteria: what is declared now (`Criteria.as_dict`)
        """
        found = self.rejected.get(release_id)
        judged_by = (found.criteria if found else None) or {}
        # A file has another name on the host; settings that the gate did not have then say nothing.
        changed = any(
            criteria.get(key) != value for key, value in judged_by.items() if key != "quality_prompts"
        )
        return None if changed else found
