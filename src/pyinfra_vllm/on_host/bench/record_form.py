"""The keys of a benchmark record's JSON, each with its check. Unknown keys are ignored."""

from __future__ import annotations

from typing import Any

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
    named,
    number_at,
    optional,
    or_null,
    required,
    share,
    shown,
    text,
    word,
)

SCHEMA = "pyinfra-vllm/bench/1"


def check(record: Any, name: str) -> None:
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
    "likelihood_missing": named(text),
    "asked_over": mapping({"endpoint": text, "refusal": text}),
    "quality_unanswered": count,
    "spent_s": amount,
}
