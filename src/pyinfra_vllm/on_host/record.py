"""Reads a benchmark record strictly: what is missing or impossible is named, whatever else is there is ignored."""

from __future__ import annotations

import math
from typing import Any

SCHEMA = "pyinfra-vllm/bench/1"


class RecordError(ValueError):
    """A record that can't be judged: the message names the record, the place and what is wrong with it."""


def check(record: Any, name: str) -> dict[str, Any]:
    """The record itself, once it is shown to have all that a comparison needs.

    + name: how messages call it (`before`, `after`, or its file)

    Raises RecordError.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{name}: not a benchmark record but {type(record).__name__}")
    if _get(record, "schema", name) != SCHEMA:
        raise RecordError(f"{name}.schema is {record['schema']!r}: this program reads {SCHEMA!r}")
    _get(record, "model", name)
    phases = _get(record, "phases", name)
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
    return record


def _check_phase(phase: Any, where: str) -> None:
    if not isinstance(phase, dict):
        raise RecordError(f"{where} is not a mapping")
    name = _get(phase, "name", where)
    if not isinstance(name, str):
        raise RecordError(f"{where}.name must be text, not {name!r}")
    where = f"{where} ({name})"
    concurrency = _number(phase, "concurrency", where)
    if concurrency < 1:
        raise RecordError(f"{where}.concurrency is {concurrency:g}: at least 1 is needed")
    if _number(phase, "duration_s", where) <= 0:
        raise RecordError(f"{where}.duration_s is {phase['duration_s']}: a phase takes time")
    requests = _get(phase, "requests", where)
    if not isinstance(requests, list) or not requests:
        raise RecordError(f"{where}.requests is empty: nothing was measured in this phase")
    for number, request in enumerate(requests):
        _check_request(request, f"{where}.requests[{number}]")


def _check_request(request: Any, where: str) -> None:
    if not isinstance(request, dict):
        raise RecordError(f"{where} is not a mapping")
    if not isinstance(_get(request, "prompt", where), str):
        raise RecordError(f"{where}.prompt must be text, not {request['prompt']!r}")
    if not isinstance(_get(request, "ok", where), bool):
        raise RecordError(f"{where}.ok must be true or false, not {request['ok']!r}")
    if not request["ok"]:
        return
    ttft, e2e = _number(request, "ttft_s", where), _number(request, "e2e_s", where)
    if ttft <= 0:
        raise RecordError(f"{where}.ttft_s is {ttft:g}: a first token takes time")
    if e2e < ttft:
        raise RecordError(f"{where}.e2e_s is {e2e:g}, less than its ttft_s of {ttft:g}")
    if _number(request, "input_tokens", where) < 0:
        raise RecordError(f"{where}.input_tokens is {request['input_tokens']}")
    if _number(request, "output_tokens", where) < 1:
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
        if not isinstance(_get(item, "prompt", place), str):
            raise RecordError(f"{place}.prompt must be text, not {item['prompt']!r}")
        if not isinstance(_get(item, "passed", place), bool):
            raise RecordError(f"{place}.passed must be true or false, not {item['passed']!r}")


def _check_evaluations(evaluations: Any, where: str) -> None:
    if not isinstance(evaluations, dict):
        raise RecordError(f"{where} is not a mapping")
    for name, score in evaluations.items():
        if not isinstance(score, dict):
            raise RecordError(f"{where}.{name} is not a mapping")
        for key in ("value", *(key for key in ("stderr",) if key in score)):
            _number(score, key, f"{where}.{name}")


def check_pair(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Show that two checked records measured the same things. Raises RecordError naming what differs.

    One side may have done fewer of the same prompts: a slower server gets through fewer in its budget.
    """
    phases = {phase["name"]: phase for phase in before["phases"]}
    others = {phase["name"]: phase for phase in after["phases"]}
    for name, here, there in (
        *((name, "before", "after") for name in phases if name not in others),
        *((name, "after", "before") for name in others if name not in phases),
    ):
        raise RecordError(f"phase {name!r} is in the {here} record and not in the {there} record")
    same_texts = _texts(before) is not None and _texts(before) == _texts(after)
    for name, phase in phases.items():
        if phase["concurrency"] != others[name]["concurrency"]:
            raise RecordError(
                f"phase {name!r} has concurrency {phase['concurrency']} before and {others[name]['concurrency']} after"
            )
        _check_prompts(name, phase["requests"], others[name]["requests"], same_texts)


def _check_prompts(
    phase: str, before: list[dict[str, Any]], after: list[dict[str, Any]], same_texts: bool
) -> None:
    inputs_before, inputs_after = _inputs(before), _inputs(after)
    if not inputs_before or not inputs_after:  # one side never answered: there is nothing to pair
        return
    names_before, names_after = {item["prompt"] for item in before}, {item["prompt"] for item in after}
    only_before, only_after = sorted(names_before - names_after), sorted(names_after - names_before)
    if only_before and only_after:
        raise RecordError(
            f"phase {phase!r}: mismatched prompts: {_listed(only_before)} only before, {_listed(only_after)} only after"
        )
    if same_texts:
        return
    for prompt in sorted(set(inputs_before) & set(inputs_after)):
        if inputs_before[prompt] != inputs_after[prompt]:
            raise RecordError(
                f"phase {phase!r}: mismatched prompts: {prompt!r} has {inputs_before[prompt]:g} input tokens before"
                f" and {inputs_after[prompt]:g} after"
            )


def _inputs(requests: list[dict[str, Any]]) -> dict[str, float]:
    return {item["prompt"]: item["input_tokens"] for item in requests if item["ok"]}


def _texts(record: dict[str, Any]) -> Any:
    """What decides the probe's texts: where both records have the same, equal names are equal texts."""
    plan = record.get("plan")
    return plan.get("words") if isinstance(plan, dict) else None


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _get(value: dict[str, Any], key: str, where: str) -> Any:
    if key not in value:
        raise RecordError(f"{where}.{key} is missing")
    return value[key]


def _number(value: dict[str, Any], key: str, where: str) -> float:
    found = _get(value, key, where)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise RecordError(f"{where}.{key} must be a number, not {found!r}")
    if not math.isfinite(found):
        raise RecordError(f"{where}.{key} is {found}: not a number one can compare")
    return float(found)
