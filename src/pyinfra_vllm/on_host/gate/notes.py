"""Informational notes on two measurements: lines for the reasons, which decide nothing."""

from __future__ import annotations

from ..bench.record import Record

SHORT = 16  # tokens of an answer, most of whose time may be its first token
UNKNOWN_MODEL = "?"  # of a record that another program made


def of(record: Record, when: str) -> list[str]:
    """The notes on one side.

    + when: ` before` or ` after`, or nothing where there is one side only
    """
    found = []
    running = int(record.traffic.running_at_start) if record.traffic else 0
    if running:
        found.append(f"{running} requests of others were under way when the measurement{when} began")
    if record.warm_up and not record.warm_up.steady:
        found.append(f"the warm-up{when} had not become steady when its time was over")
    return found


def of_pair(before: Record, after: Record) -> list[str]:
    """The notes on the two sides of a comparison."""
    return [
        *_models(before.model, after.model),
        *_short_answers(before),
        *_one_side_s_traffic(before, after),
        *of(before, " before"),
        *of(after, " after"),
    ]


def _models(before: str, after: str) -> list[str]:
    if before == after or UNKNOWN_MODEL in (before, after):
        return []
    return [f"two models were measured: {before} before and {after} after"]


def _short_answers(record: Record) -> list[str]:
    """A budget that is small for a server is spent on many short answers."""
    tokens = record.plan.output_tokens if record.plan else 0
    if not 0 < tokens <= SHORT:
        return []
    return [
        f"answers of {tokens} tokens were asked for, as the budget had no room for longer ones: first tokens"
        " weigh more in tokens/s than in ordinary use; a larger gate.budget_s measures longer answers"
    ]


def _one_side_s_traffic(before: Record, after: Record) -> list[str]:
    """Said only where one side knows: a server without counters has none on either side."""
    known = [record.other_share is not None for record in (before, after)]
    if known[0] == known[1]:
        return []
    side = "before" if known[0] else "after"
    return [f"other traffic is known of the measurement {side} only, so nobody can tell whether it differed"]
