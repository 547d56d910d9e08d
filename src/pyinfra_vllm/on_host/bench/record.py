"""A benchmark record: its types, how it is read, and how it is written.

Read strictly and once: a key that is missing or impossible is named, keys that nobody knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

from ..state.values import mapping, required
from .plan import Plan, phase_name
from .record_form import PLAN, SCHEMA, check

T = TypeVar("T")
Scores = Mapping[str, Mapping[str, float]]  # TASK/METRIC -> value, and stderr where it has one


@dataclass(frozen=True)
class Request:
    """One request; a failed one has a kind and an error in place of times and tokens.

    at_s: when it was sent, in its round
    """

    prompt: str
    ok: bool
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    kind: str = "error"
    error: str = ""
    at_s: float | None = None
    round: int | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    def as_dict(self) -> dict[str, object]:
        said = ("ttft_s", "e2e_s", "input_tokens", "output_tokens") if self.ok else ("kind", "error")
        return _written(self, "prompt", "at_s", "ok", *said, "round")


@dataclass(frozen=True)
class Round:
    """The sums of one round, of the answered requests; `complete`: the deadline did not cut it."""

    round: int
    duration_s: float
    output_tokens: float
    complete: bool

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.duration_s


@dataclass(frozen=True)
class Phase:
    """The requests at one number of streams. `cut`: its time was over before its rounds were."""

    name: str
    concurrency: int
    duration_s: float
    requests: tuple[Request, ...]
    rounds: tuple[Round, ...] = ()
    cut: bool | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Phase:
        requests = tuple(_made(Request, item) for item in value["requests"])
        rounds = tuple(_made(Round, item) for item in value.get("rounds", ()))
        return _made(cls, value, requests=requests, rounds=rounds)

    @cached_property
    def answered(self) -> tuple[Request, ...]:
        return tuple(request for request in self.requests if request.ok)

    @cached_property
    def tokens_per_s(self) -> float:
        """Output tokens of answered requests per second of the phase."""
        return sum(request.output_tokens for request in self.answered) / self.duration_s

    def as_dict(self) -> dict[str, object]:
        requests = [request.as_dict() for request in self.requests]
        lists = {"requests": requests, "rounds": [_written(item) for item in self.rounds]}
        return {**_written(self, "name", "concurrency", "duration_s"), **lists, **_written(self, "cut")}


@dataclass(frozen=True)
class Graded:
    """A question's answer. None: not known, as the question was not answered, or its grader failed.

    answer: its text, where texts are kept
    form: its defects of form
    ended: whether it ended by itself
    """

    prompt: str
    passed: bool
    kind: str | None = None
    answer: str | None = None
    sane: bool | None = None
    form: tuple[str, ...] | None = None
    ended: bool | None = None
    error: str | None = None
    error_kind: str | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Graded:
        return _made(cls, value, **({"form": tuple(value["form"])} if "form" in value else {}))

    def as_dict(self) -> dict[str, object]:
        return _written(
            self, "prompt", "kind", "passed", "answer", "sane", "form", "ended", "error", "error_kind"
        )


@dataclass(frozen=True)
class Likelihood:
    """The bits of a fixed text: per byte, and of each piece."""

    text: str
    bits_per_byte: float
    language: str | None = None
    tokens: int | None = None
    pieces: tuple[float, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Likelihood:
        return _made(cls, value, pieces=tuple(value.get("pieces", ())))

    def as_dict(self) -> dict[str, object]:
        return _written(self, "text", "language", "bits_per_byte", "tokens", "pieces")


@dataclass(frozen=True)
class WarmUp:
    """The requests before the first round. `steady`: its last two passes agreed."""

    requests: int = 0
    errors: tuple[Request, ...] = ()
    steady: bool = True

    def as_dict(self) -> dict[str, object]:
        errors = [request.as_dict() for request in self.errors]
        return {"requests": self.requests, "errors": errors, "steady": self.steady}


@dataclass(frozen=True)
class Costs:
    """The probe's own costs, in seconds: processor time, and how late its threads woke up."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    late_median_s: float = 0.0
    late_mean_s: float = 0.0
    late_p99_s: float = 0.0
    scheduling: str | None = None


@dataclass(frozen=True)
class Traffic:
    """The tokens that the server counted, and those of others beside the probe's own.

    known: false for a server without counters
    """

    known: bool = True
    tokens: float = 0.0
    running_at_start: float = 0.0
    other_prompt_tokens: float = 0.0
    other_output_tokens: float = 0.0
    other_share: float | None = None
    preemptions: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return _written(self) if self.known else {"known": False}


@dataclass(frozen=True)
class AskedOver:
    """The endpoint that questions were asked over, and why not over chat."""

    endpoint: str = ""
    refusal: str | None = None


@dataclass(frozen=True)
class Record:
    """A measurement of one server.

    plan: none where nothing was answered, and in records of other programs
    likelihood_missing: text -> why it has no likelihood
    quality_unanswered: questions that were not answered in time
    spent_s: of the budget
    """

    model: str
    server: Mapping[str, object]
    phases: tuple[Phase, ...]
    quality: tuple[Graded, ...] = ()
    engine: str | None = None
    warm_up: WarmUp | None = None
    client: Costs | None = None
    traffic: Traffic | None = None
    plan: Plan | None = None
    likelihood: tuple[Likelihood, ...] | None = None
    likelihood_missing: Mapping[str, str] | None = None
    asked_over: AskedOver | None = None
    quality_unanswered: int | None = None
    spent_s: float | None = None
    evaluations: Scores | None = None

    @classmethod
    def read(cls, value: Any, name: str) -> Record:
        """The record, once it is shown to have all that a comparison needs.

        + name: how messages call it (`before`, `after`, or its file)

        Raises RecordError.
        """
        check(value, name)
        parts: dict[str, Any] = {
            "server": value.get("server", {}),
            "phases": tuple(map(Phase.of, value["phases"])),
            "quality": tuple(map(Graded.of, value.get("quality", ()))),
        }
        if value.get("likelihood") is not None:
            parts["likelihood"] = tuple(map(Likelihood.of, value["likelihood"]))
        for key, kind in (("client", Costs), ("traffic", Traffic), ("asked_over", AskedOver), ("plan", Plan)):
            if key in value:
                parts[key] = _made(kind, value[key])
        if "warm_up" in value:
            found = value["warm_up"].get("errors", ())
            errors = tuple(_made(Request, {"prompt": "", **item, "ok": False}) for item in found)
            parts["warm_up"] = _made(WarmUp, value["warm_up"], errors=errors)
        return _made(cls, value, **parts)

    @property
    def other_share(self) -> float | None:
        """The share of others in the tokens that the server counted; None where it did not tell."""
        return self.traffic.other_share if self.traffic else None

    def as_dict(self) -> dict[str, object]:
        """The record as its JSON has it."""
        quality = [item.as_dict() for item in self.quality]
        made: dict[str, object] = {"schema": SCHEMA, **_written(self, "model", "server", "engine")}
        made |= {"phases": [phase.as_dict() for phase in self.phases], "quality": quality}
        for key in ("warm_up", "client", "traffic", "plan", "likelihood", "asked_over"):
            part = getattr(self, key)
            if isinstance(part, tuple):
                made[key] = [item.as_dict() for item in part]
                made |= _written(self, "likelihood_missing")
            elif part is not None:
                made[key] = part.as_dict() if hasattr(part, "as_dict") else _written(part)
        return {**made, **_written(self, "quality_unanswered", "spent_s", "evaluations")}


def _made(kind: type[T], value: Mapping[str, Any], **parts: Any) -> T:
    """A checked mapping as its type: keys that it does not know are ignored."""
    known = (item.name for item in fields(kind))  # type: ignore[arg-type]
    return kind(**{**{key: value[key] for key in known if key in value}, **parts})


def _written(value: object, *keys: str) -> dict[str, object]:
    """Those fields that are known, in this order; all of them where none are named."""
    names = keys or tuple(item.name for item in fields(value))  # type: ignore[arg-type]
    found = ((key, getattr(value, key)) for key in names)
    return {key: list(one) if isinstance(one, tuple) else one for key, one in found if one is not None}


def read_with_plan(value: Any, name: str) -> Record:
    """The record, once it is shown to be one that another can be measured like. Raises RecordError."""
    record = Record.read(value, name)
    plan = required(value, "plan", name)
    mapping(PLAN, needed=tuple(PLAN))(plan, f"{name}.plan")
    for phase in record.phases:
        required(plan["requests"], phase_name(phase.concurrency), f"{name}.plan.requests")
    return record
