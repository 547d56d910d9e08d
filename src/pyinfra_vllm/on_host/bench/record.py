"""A benchmark record: its types, how it is read, and how it is written.

Read strictly and once: a key that is missing or impossible is named, keys that nobody knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

from ..state.values import (
    LEAST_S,
    Check,
    RecordError,
    amount,
    at_least_one,
    count,
    counts,
    flag,
    list_of,
    mapping,
    number_at,
    optional,
    or_null,
    reasons,
    required,
    share,
    shown,
    text,
    word,
)
from .plan import Plan, phase_name

SCHEMA = "pyinfra-vllm/bench/1"
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
        _check(value, name)
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


# Checks


def _check(record: Any, name: str) -> None:
    if not isinstance(record, dict):
        raise RecordError(f"{name}: not a benchmark record but {type(record).__name__}")
    if required(record, "schema", name) != SCHEMA:
        raise RecordError(f"{name}.schema is {shown(record['schema'])}: this program reads {SCHEMA!r}")
    text(required(record, "model", name), f"{name}.model")
    optional(record, name, RECORD)
    phases = required(record, "phases", name)
    if not isinstance(phases, list) or not phases:
        raise RecordError(f"{name}.phases is empty: nothing was measured")
    seen = set()
    for number, phase in enumerate(phases):
        _check_phase(phase, f"{name}.phases[{number}]")
        if phase["name"] in seen:
            raise RecordError(f"{name}.phases[{number}].name: {phase['name']!r} is there twice")
        seen.add(phase["name"])
    _check_quality(record.get("quality", []), f"{name}.quality")
    _check_evaluations(record.get("evaluations", {}), f"{name}.evaluations")


def _check_phase(phase: Any, where: str) -> None:
    if not isinstance(phase, dict):
        raise RecordError(f"{where} is not a mapping")
    name = required(phase, "name", where)
    word(name, f"{where}.name")
    where = f"{where} ({name})"
    concurrency = number_at(phase, "concurrency", where)
    if concurrency < 1:
        raise RecordError(f"{where}.concurrency is {concurrency:g}: at least 1 is needed")
    if number_at(phase, "duration_s", where) < LEAST_S:
        raise RecordError(f"{where}.duration_s is {phase['duration_s']}: a phase takes time")
    optional(phase, where, PHASE)
    requests = required(phase, "requests", where)
    if not isinstance(requests, list) or not requests:
        raise RecordError(f"{where}.requests is empty: nothing was measured in this phase")
    for number, request in enumerate(requests):
        _check_request(request, f"{where}.requests[{number}]")


def _check_request(request: Any, where: str) -> None:
    if not isinstance(request, dict):
        raise RecordError(f"{where} is not a mapping")
    text(required(request, "prompt", where), f"{where}.prompt")
    flag(required(request, "ok", where), f"{where}.ok")
    optional(request, where, REQUEST)
    if not request["ok"]:
        return
    ttft, e2e = number_at(request, "ttft_s", where), number_at(request, "e2e_s", where)
    if ttft < LEAST_S:
        raise RecordError(f"{where}.ttft_s is {ttft:g}: a first token takes time")
    if e2e < ttft:
        raise RecordError(f"{where}.e2e_s is {e2e:g}, less than its ttft_s of {ttft:g}")
    if number_at(request, "input_tokens", where) < 0:
        raise RecordError(f"{where}.input_tokens is {request['input_tokens']}")
    if number_at(request, "output_tokens", where) < 1:
        raise RecordError(
            f"{where}.output_tokens is {request['output_tokens']}: an answer with zero tokens is not ok"
        )


def _check_quality(quality: Any, where: str) -> None:
    if not isinstance(quality, list):
        raise RecordError(f"{where} is not a list")
    for number, item in enumerate(quality):
        place = f"{where}[{number}]"
        if not isinstance(item, dict):
            raise RecordError(f"{place} is not a mapping")
        text(required(item, "prompt", place), f"{place}.prompt")
        flag(required(item, "passed", place), f"{place}.passed")
        optional(item, place, QUESTION)


def _check_evaluations(evaluations: Any, where: str) -> None:
    if not isinstance(evaluations, dict):
        raise RecordError(f"{where} is not a mapping")
    for name, score in evaluations.items():
        word(name, f"a name in {where}")
        if not isinstance(score, dict):
            raise RecordError(f"{where}.{name} is not a mapping")
        for key in ("value", *(key for key in ("stderr",) if key in score)):
            number_at(score, key, f"{where}.{name}")


def read_with_plan(value: Any, name: str) -> Record:
    """The record, once it is shown to be one that another can be measured like. Raises RecordError."""
    record = Record.read(value, name)
    plan = required(value, "plan", name)
    mapping(PLAN, needed=tuple(PLAN))(plan, f"{name}.plan")
    for phase in record.phases:
        required(plan["requests"], phase_name(phase.concurrency), f"{name}.plan.requests")
    return record


def check_pair(before: Record, after: Record) -> None:
    """Show that two records measured the same things. Raises RecordError naming what differs.

    One side may have done fewer of the same prompts: a slower server gets through fewer in its budget.
    """
    phases = {phase.name: phase for phase in before.phases}
    others = {phase.name: phase for phase in after.phases}
    for name, here, there in (
        *((name, "before", "after") for name in phases if name not in others),
        *((name, "after", "before") for name in others if name not in phases),
    ):
        raise RecordError(f"phase {name!r} is in the {here} record and not in the {there} record")
    same_texts = before.plan is not None and after.plan is not None and _same_texts(before.plan, after.plan)
    for name, phase in phases.items():
        if phase.concurrency != others[name].concurrency:
            raise RecordError(
                f"phase {name!r} has concurrency {phase.concurrency} before and"
                f" {others[name].concurrency} after"
            )
        _check_prompts(phase, others[name], same_texts)


def _same_texts(before: Plan, after: Plan) -> bool:
    """Where both records agree on the setting for the probe's texts, prompts of one name are equal."""
    return bool(before.words) and before.words == after.words


def _check_prompts(before: Phase, after: Phase, same_texts: bool) -> None:
    inputs_before, inputs_after = (
        {request.prompt: request.input_tokens for request in phase.answered} for phase in (before, after)
    )
    if not inputs_before or not inputs_after:  # one side never answered: there is nothing to pair
        return
    names_before, names_after = ({request.prompt for request in phase.requests} for phase in (before, after))
    only_before, only_after = sorted(names_before - names_after), sorted(names_after - names_before)
    if only_before and only_after:
        raise RecordError(
            f"phase {before.name!r}: mismatched prompts: {_listed(only_before)} only before,"
            f" {_listed(only_after)} only after"
        )
    if same_texts:
        return
    for prompt in sorted(set(inputs_before) & set(inputs_after)):
        if inputs_before[prompt] != inputs_after[prompt]:
            raise RecordError(
                f"phase {before.name!r}: mismatched prompts: {prompt!r} has {inputs_before[prompt]:g} input"
                f" tokens before and {inputs_after[prompt]:g} after"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _round(value: Any, where: str) -> None:
    """A whole round with tokens is divided by its time."""
    known: dict[str, Check] = {
        "round": count,
        "duration_s": amount,
        "output_tokens": amount,
        "complete": flag,
    }
    mapping(known, needed=tuple(known))(value, where)
    if value["complete"] and value["output_tokens"] and value["duration_s"] < LEAST_S:
        raise RecordError(f"{where}.duration_s is {value['duration_s']}: a round takes time")


# The optional keys that somebody reads: the gate, the calibration, `bench --like`, the report.

FAILURE: dict[str, Check] = {"kind": text, "error": text}
REQUEST: dict[str, Check] = {"round": count, **FAILURE}
QUESTION: dict[str, Check] = {
    "sane": flag,
    "form": list_of(text),
    "ended": flag,
    "error": text,
    "error_kind": text,
}
LIKELIHOOD: dict[str, Check] = {
    "text": text,
    "bits_per_byte": amount,
    "language": text,
    "tokens": count,
    "pieces": list_of(amount),
}
PHASE: dict[str, Check] = {"rounds": list_of(_round), "cut": flag}
PLAN: dict[str, Check] = {
    "words": counts,
    "output_tokens": at_least_one,
    "rounds": at_least_one,
    "requests": counts,
}
RECORD: dict[str, Check] = {
    "server": mapping(),
    "plan": mapping(PLAN),
    "warm_up": mapping({"requests": count, "errors": list_of(mapping(FAILURE)), "steady": flag}),
    "client": mapping({"late_mean_s": amount}),
    "traffic": mapping({"other_share": share, "running_at_start": amount}),
    "likelihood": or_null(list_of(mapping(LIKELIHOOD, needed=("text", "bits_per_byte")))),
    "likelihood_missing": reasons,
    "asked_over": mapping({"endpoint": text, "refusal": text}),
    "quality_unanswered": count,
    "spent_s": amount,
}
