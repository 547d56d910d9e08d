"""The types of a host's `status`: written by observe.py, read once on the control machine.

Pure, and shared by both sides. Keys that are not named here are kept as they are: newer programs tell more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .values import count, flag, list_of, map_of, mapping, or_null, text, timestamp


@dataclass(frozen=True)
class Holder:
    """The holder of a service's lock; empty where it did not write itself down."""

    holder: str = ""
    since: str = ""
    purpose: str = ""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Holder:
        return cls(*(str(value.get(key, "")) for key in ("holder", "since", "purpose")))


@dataclass(frozen=True)
class Rejection:
    """The reason why a release is not tried again, and the gate that it failed."""

    at: str
    reason: str
    criteria: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Summary:
    """A transaction in a few values (transactions.py makes them). Times are ISO 8601 in UTC.

    old, new: the releases; `from` and `to` in the journal
    ended, outcome: None while it is open; an outcome without an end is a rollback that fails
    turns: when each of transactions.TURNS began and ended, such as "restore intended"
    kept: whether the new release was committed
    reported: whether an operator has seen the end
    """

    tx: str
    began: str
    ended: str | None = None
    purpose: str = "rollout"
    old: str | None = None
    new: str = ""
    operator: str = ""
    outcome: str | None = None
    reason: str = ""
    verdict: str | None = None
    turns: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    reported: bool = False
    recovered: bool = False

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Summary:
        """Of a checked mapping."""
        names = {"old": "from", "new": "to"}
        known = {name: names.get(name, name) for name in cls.__dataclass_fields__}
        return cls(**{name: value[key] for name, key in known.items() if key in value})


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
    unit: str = ""
    active: str | None = None
    sub: str | None = None
    since: str | None = None
    restarts: int = 0
    previous: str | None = None
    proven: str | None = None
    release: Any = None
    staged: tuple[str, ...] = ()
    rehearsed: tuple[str, ...] = ()
    rejected: Mapping[str, Rejection] = field(default_factory=dict)
    lock: Holder | None = None
    front_lost: bool = False
    history: tuple[Summary, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, value: Any, where: str) -> Observed:
        """The observation that a host sent. Raises RecordError naming the key."""
        CHECK(value, where)
        plain = ("service", "current", "running", "unit", "active", "sub", "since", "restarts", "previous")
        lock = value["lock"]
        return cls(
            **{key: value[key] for key in (*plain, "proven", "release", "front_lost") if key in value},
            staged=tuple(value["staged"]),
            rehearsed=tuple(value.get("rehearsed", ())),
            rejected={
                name: Rejection(one["at"], one["reason"], one.get("criteria"))
                for name, one in value["rejected"].items()
            },
            lock=None if lock is None else Holder.of(lock),
            history=tuple(map(Summary.of, value["history"])),
            document=value,
        )

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


_SUMMARY = mapping(
    {
        **dict.fromkeys(("tx", "to", "operator", "purpose", "reason"), text),
        **dict.fromkeys(("from", "outcome", "verdict"), or_null(text)),
        **dict.fromkeys(("began", "ended"), timestamp),
        **dict.fromkeys(("reported", "kept", "recovered"), flag),
        "turns": map_of(timestamp),
    },
    ("tx", "began", "outcome", "reported", "turns"),
)
CHECK = mapping(
    {
        **dict.fromkeys(("service", "unit"), text),
        **dict.fromkeys(
            ("active", "sub", "since", "current", "previous", "running", "proven"), or_null(text)
        ),
        "restarts": count,
        "front_lost": flag,
        "staged": list_of(text),
        "rehearsed": list_of(text),
        "rejected": map_of(
            mapping({"at": text, "reason": text, "criteria": or_null(mapping())}, ("at", "reason"))
        ),
        "lock": or_null(mapping(dict.fromkeys(("holder", "since", "purpose"), text))),
        "history": list_of(_SUMMARY),
    },
    ("service", "current", "running", "staged", "rejected", "lock", "history"),
)
