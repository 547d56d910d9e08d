"""Shows that two benchmark records measured the same things, before they are compared."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.record import Phase, Record
from ..state.values import RecordError


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
    # Where both records agree on the setting for the probe's texts, prompts of one name are equal.
    words = before.plan.words if before.plan else {}
    same_texts = bool(words) and after.plan is not None and words == after.plan.words
    for name, phase in phases.items():
        if phase.concurrency != others[name].concurrency:
            raise RecordError(
                f"phase {name!r} has concurrency {phase.concurrency} before and"
                f" {others[name].concurrency} after"
            )
        _check_prompts(phase, others[name], same_texts)


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
