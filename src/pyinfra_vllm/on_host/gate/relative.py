"""Compares two checked records phase by phase: each metric's ratio, interval and what these amount to.

Intervals are computed over rounds, because requests within a round are correlated; records without
rounds are compared request by request. Ratios are after / before; logarithms make them symmetric.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..bench.criteria import MOST_LOG, ONE_STREAM, Criteria, margin_for
from ..bench.record import Phase, Request, Round
from ..bench.stats import half_width, percentile
from .verdict import FAIL, INCONCLUSIVE, PASS, TAIL, Row, row

IMPOSSIBLE_TPOT_S = 0.0001  # 10,000 tokens/s in one stream
# Calibrated noise that makes a margin wider than this says more about the machine than any verdict could
# about a release.
TOO_NOISY = 0.5
LATE_SHARE = 0.05  # of a measured time that the probe's own lateness may explain and still be overlooked
# Failures that say nothing about how fast the server is: the answer can't be counted, or it was not asked at
# all.
NOT_JUDGED = ("no_usage", "not_asked", "grader")
# By how much more two runs of an unchanged service differ than their rounds tell, where that is enough to
# matter (benchmarks/gate/README.md). Calibration measures it; without one, a change must be so many half
# widths to be a failure.
UNSEEN = 2.0
# Rounds, one after another, that show how slow the old release gets by itself: a share of its rounds, so
# many at least, and by so many standard errors of their mean, for the slowest of several is never the mean.
STRETCH, LEAST_STRETCH, BEYOND_CHANCE = 0.25, 5, 3.0
# Medians agree where they differ by no more than this share of the margin, over so many prompts at least.
AGREE, AGREEING = 0.5, 10
LATENCIES = ("tpot_s", "ttft_s", "e2e_s")


def compare(
    before: Phase, after: Phase, criteria: Criteria, noise: Mapping[str, float], late_s: float
) -> list[Row]:
    """The relative metrics of one phase.

    Those with `decides` false are shown and never decide (docs/gate.md).

    + noise: metric -> how much worse, as a share, the second run of an unchanged service may be (calibration)
    + late_s: how late the probe's own threads ran, on the mean of the worse side
    """
    margin = criteria.margin(before.name, "tokens_per_s") or 0.0
    if not before.answered:
        never = {request.kind for request in before.requests} == {"not_asked"}
        return [_unknown(before, after, margin)] if never else []
    if not after.answered:
        return [_unanswered(before, after, margin)]
    rows = [_throughput(before, after, criteria, noise.get("tokens_per_s"), late_s)]
    for name in LATENCIES:
        found = _latency(name, before, after, criteria, noise.get(name), late_s)
        if found and name in ONE_STREAM and _in_one_piece(before, after):
            doubt = "whole answers arrive in one piece"
            found = replace(found, verdict=INCONCLUSIVE, doubt=doubt, hopeless=True, needed=None)
        if found:
            rows.append(found)
    rows.append(_tail(before, after, criteria.ttft_margin or 0.0))
    return rows


def _in_one_piece(before: Phase, after: Phase) -> bool:
    """Whether a side's tokens come faster than any model makes them: something holds answers back and lets
    them go at once, and how their time splits into a first token and the rest says nothing.
    """
    return any(_median(phase, "tpot_s", default=math.inf) < IMPOSSIBLE_TPOT_S for phase in (before, after))


def _unknown(before: Phase, after: Phase, margin: float) -> Row:
    """A phase that the baseline had no time for: undecided."""
    reason = before.requests[0].error or "not asked"
    note = f"phase {before.name}: {reason}, so there is nothing to compare with"
    limit = round(1 - margin, 6)
    return row("tokens_per_s", before.name, None, after.tokens_per_s, limit, INCONCLUSIVE, note)


def _unanswered(before: Phase, after: Phase, margin: float) -> Row:
    """A phase answered before and not at all after is worse, however many errors are allowed."""
    kinds = Counter(request.kind for request in after.requests)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    verdict = INCONCLUSIVE if set(kinds) <= set(NOT_JUDGED) else FAIL
    note = f"phase {before.name}: {len(before.answered)} requests answered before and none after ({counted})"
    limit = round(1 - margin, 6)
    return row("tokens_per_s", before.name, before.tokens_per_s, 0.0, limit, verdict, note)


def _throughput(before: Phase, after: Phase, criteria: Criteria, noise: float | None, late_s: float) -> Row:
    """More is better: the ratio may not fall below what is allowed."""
    rounds = _common_rounds(before, after)
    if rounds:
        then = sum(item.output_tokens for item, _ in rounds) / sum(item.duration_s for item, _ in rounds)
        now = sum(item.output_tokens for _, item in rounds) / sum(item.duration_s for _, item in rounds)
        logs = [math.log(late.tokens_per_s / early.tokens_per_s) for early, late in rounds]
    else:
        then, now = before.tokens_per_s, after.tokens_per_s
        pairs = _pairs(before, after, "e2e_s")
        logs = [-math.log(late / early) for early, late in pairs.values()]
        if pairs and _asked_less(before, after):  # other mixtures of prompts: only the shared ones compare
            now = then * sum(early for early, _ in pairs.values()) / sum(late for _, late in pairs.values())
    width, doubt = _widened(half_width(logs), late_s, min(_median(before, "e2e_s"), _median(after, "e2e_s")))
    change = math.log(now / then)
    row = _row("tokens_per_s", before.name, then, now, change, width, doubt)
    return _judged(row, change, width, criteria, then, noise, _slump("tokens_per_s", before, after))


def _latency(
    name: str,
    before: Phase,
    after: Phase,
    criteria: Criteria,
    noise: float | None,
    late_s: float,
) -> Row | None:
    """Less is better: the mean ratio of the same prompts may not rise above what is allowed."""
    pairs = _pairs(before, after, name)
    if not pairs:
        return None
    logs = {prompt: math.log(late / early) for prompt, (early, late) in pairs.items()}
    then = statistics.median(early for early, _ in pairs.values())
    now = statistics.median(late for _, late in pairs.values())
    whole = min(then, now)
    if name == "tpot_s":  # lateness meets the first and the last token, not each of them
        whole = min(_median(phase, "e2e_s") - _median(phase, "ttft_s") for phase in (before, after))
    typical = _by_round(logs, before, after)
    width, doubt = _widened(half_width(typical), late_s, whole)
    change = statistics.fmean(typical)
    row = _row(name, before.name, then, now, change, width, doubt)
    mean = math.exp(statistics.fmean(math.log(early) for early, _ in pairs.values()))
    judged = _judged(row, change, width, criteria, mean, noise, _slump(name, before, after))
    return _where_medians_agree(judged, list(logs.values()), criteria)


def _judged(
    row: Row,
    change: float,
    width: float,
    criteria: Criteria,
    typical: float,
    noise: float | None,
    slump: float,
) -> Row:
    """The row with its limit, its verdict and whether that decides.

    One that never decides is held against the general margin.

    + change, width: of the ratio's logarithm: the change, and the half width of its interval
    + typical: the value before, of the statistic that is compared, in the metric's own unit
    + noise: a share, as `compare` takes it; None where nothing was calibrated
    + slump: by how much the old release itself became slower for a while, as a logarithm
    """
    allowed = criteria.allowed(row.phase or "", row.name, typical)
    decides = allowed is not None
    if allowed is None:
        allowed = math.log1p(criteria.throughput_margin)
    worse = -1 if row.name == "tokens_per_s" else 1
    loss, bound = worse * change, max(allowed, math.log1p(noise or 0.0))
    limit = round(math.exp(worse * min(bound, MOST_LOG)), 6)
    found = replace(row, limit=limit, decides=decides, needed=margin_for(row.name, loss + width))
    if loss > bound and loss > width:
        if noise is None and loss <= UNSEEN * width:
            doubt = (
                "not calibrated, and two runs of an unchanged service may differ by more than their rounds"
                " tell"
            )
            return replace(found, doubt=found.doubt or doubt)
        if loss <= bound + slump * (UNSEEN if noise is None else 1.0):
            doubt = (
                f"the old release itself was {math.expm1(slump):.0%} slower for a while: this machine's speed"
                " varies as much"
            )
            return replace(found, doubt=found.doubt or doubt)
        return replace(found, verdict=FAIL)
    if noise is not None and noise > TOO_NOISY and bound > allowed:
        # Within noise that wide nearly anything would pass, so nothing does. A loss beyond the noise has
        # failed above.
        doubt = f"too noisy to judge: one run of the unchanged service may be {noise:.0%} worse than another"
        return replace(found, doubt=doubt, hopeless=True)
    return replace(found, verdict=PASS) if loss + width <= bound else found


def _slump(metric: str, before: Phase, after: Phase) -> float:
    """By how much the slowest stretch of the old release's rounds is worse than the compared, as a logarithm.

    A machine's speed changes over minutes, and the spread of consecutive rounds does not show that.
    """
    worse = -1 if metric == "tokens_per_s" else 1
    rounds = {number: worse * found for number, found in by_round(before, metric).items()}
    compared = [rounds[early.round] for early, _ in _common_rounds(before, after) if early.round in rounds]
    length = max(LEAST_STRETCH, round(STRETCH * len(rounds)))
    if not compared or len(rounds) < 2 * length:
        return 0.0
    values = list(rounds.values())
    stretches = [values[start : start + length] for start in range(len(values) - length + 1)]
    slump = max(map(statistics.fmean, stretches)) - statistics.fmean(compared)
    return slump if slump > BEYOND_CHANCE * statistics.stdev(values) / math.sqrt(length) else 0.0


def by_round(phase: Phase, metric: str) -> dict[int, float]:
    """Whole round -> the logarithm of the metric in it, in the order in which they were measured."""
    whole = _whole_rounds(phase)
    if metric == "tokens_per_s":
        return {number: math.log(item.tokens_per_s) for number, item in whole.items()}
    found: dict[int, list[float]] = {number: [] for number in whole}
    for request in phase.answered:
        seen = _value(request, metric)
        if request.round in found and seen is not None and seen > 0:
            found[request.round].append(math.log(seen))
    return {number: statistics.fmean(values) for number, values in found.items() if values}


def _where_medians_agree(row: Row, logs: list[float], criteria: Criteria) -> Row:
    """The row as a pass where the median request is as fast as before: few slow ones move a mean, and what
    they cost as a whole is in tokens/s.

    + logs: the logarithm of each prompt's ratio
    """
    margin = criteria.margin(row.phase or "", row.name)
    if row.verdict == PASS or not margin or row.doubt or len(logs) < AGREEING:
        return row
    agree = statistics.median(logs) <= AGREE * math.log1p(margin)
    return replace(row, verdict=PASS, by="median") if agree else row


def _widened(width: float, late_s: float, measured_s: float) -> tuple[float, str]:
    """The interval's half width, wider by what the probe's own lateness could explain if that is real."""
    share = late_s / max(measured_s, 1e-9)
    if share <= LATE_SHARE:
        return width, ""
    doubt = f"the probe itself was late by {late_s * 1000:.1f} ms, {share:.0%} of what it measured"
    return width + math.log1p(share), doubt


def _median(phase: Phase, metric: str, default: float = 0.0) -> float:
    values = [found for request in phase.answered if (found := _value(request, metric)) is not None]
    return statistics.median(values) if values else default


def _tail(before: Phase, after: Phase, margin: float) -> Row:
    """The slowest starts. A twentieth of the requests has no useful interval: informational."""
    then = percentile([request.ttft_s for request in before.answered], 0.95)
    now = percentile([request.ttft_s for request in after.answered], 0.95)
    row = _row(TAIL, before.name, then, now, math.log(now / then), math.inf)
    verdict = PASS if now <= then * (1 + margin) else INCONCLUSIVE
    return replace(row, limit=round(1 + margin, 6), verdict=verdict, decides=False)


def _row(
    name: str, phase: str, before: float, after: float, log_ratio: float, width: float, doubt: str = ""
) -> Row:
    """A compared row that is still to be judged. `width`: half of the interval of the ratio's logarithm."""
    known = width < MOST_LOG
    low, high = (math.exp(log_ratio + side * width) for side in ((-1, 1) if known else (0, 0)))
    return Row(
        name=name,
        phase=phase,
        before=round(before, 6),
        after=round(after, 6),
        limit=None,
        verdict=INCONCLUSIVE,
        ratio=round(math.exp(log_ratio), 6),
        interval=(round(low, 6), round(high, 6)) if known else None,
        repeatable=True,
        detectable=round(1 - math.exp(-width), 6) if known else None,
        doubt=doubt,
    )


def _value(request: Request, metric: str) -> float | None:
    found: float | None = getattr(request, metric)
    return found


def _whole_rounds(phase: Phase) -> dict[int, Round]:
    """The whole rounds by number.

    One that was measured again, with the same prompts, counts with all its tokens and time.
    """
    found: dict[int, Round] = {}
    for item in phase.rounds:
        if item.complete and item.output_tokens > 0:
            known = found.get(item.round, Round(item.round, 0.0, 0, complete=True))
            duration_s, tokens = known.duration_s + item.duration_s, known.output_tokens + item.output_tokens
            found[item.round] = Round(item.round, duration_s, tokens, complete=True)
    return found


def _common_rounds(before: Phase, after: Phase) -> list[tuple[Round, Round]]:
    """Rounds that both sides finished: the same prompts under the same load. Nothing for fewer than two."""
    early, late = _whole_rounds(before), _whole_rounds(after)
    common = [(early[number], late[number]) for number in sorted(set(early) & set(late))]
    return common if len(common) > 1 else []


def _asked_less(before: Phase, after: Phase) -> bool:
    """Whether one side was asked only a part of the prompts.

    One that failed to answer was asked: its rate is what it is.
    """
    asked = [{request.prompt for request in phase.requests} for phase in (before, after)]
    return asked[0] != asked[1] and all(request.ok for request in (*before.requests, *after.requests))


def _pairs(before: Phase, after: Phase, metric: str) -> dict[str, tuple[float, float]]:
    """Prompt -> (before, after); a prompt asked several times counts with its mean."""
    early, late = _means(before, metric), _means(after, metric)
    return {prompt: (early[prompt], late[prompt]) for prompt in sorted(set(early) & set(late))}


def _means(phase: Phase, metric: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for request in phase.answered:
        found = _value(request, metric)
        if found is not None and found > 0:
            values.setdefault(request.prompt, []).append(found)
    return {prompt: statistics.fmean(found) for prompt, found in values.items()}


def _by_round(logs: Mapping[str, float], before: Phase, after: Phase) -> Sequence[float]:
    """The mean log ratio of each common round; each prompt's own where there are no rounds."""
    rounds: dict[int | None, list[float]] = {early.round: [] for early, _ in _common_rounds(before, after)}
    for request in before.answered:
        if request.round in rounds and request.prompt in logs:
            rounds[request.round].append(logs[request.prompt])
    means = [statistics.fmean(values) for values in rounds.values() if values]
    return means if len(means) > 1 else list(logs.values())
