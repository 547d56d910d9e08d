"""Judges quality: which graded answers were lost between two records, and whether that can be chance."""

from __future__ import annotations

from typing import Any

from .absolute import row
from .criteria import Criteria
from .relative import FAIL, INCONCLUSIVE, PASS
from .stats import chance

SIGNIFICANT = 0.05
SANE_SHARE = 0.5  # a broken quantization makes nearly all answers insane; a weak model at most a few
SHARED = 0.9  # of the questions that were answered before: with fewer of them answered after, too much was not seen
RAISE = "raise budget_s where the questions need more time"
Record = dict[str, Any]
Row = dict[str, Any]


def rows(before: Record | None, after: Record, criteria: Criteria) -> list[Row]:
    """The rungs that were measured, and those that should have been; none where quality is off or nothing was asked."""
    if not criteria.quality:
        return []
    found = []
    sane, passed = _answers_of(after, "sane"), _answers_of(after, "passed")
    early = _answers_of(before or {}, "passed")
    if sane:
        found.append(_sanity(sane, _answers_of(before or {}, "ended"), _answers_of(after, "ended")))
    elif before is None and not passed and _unanswered(after):
        found.append(_silent(_unanswered(after)))
    if early:
        found.append(_answers(early, passed, criteria.quality_drop_points))
    if _asked_over(before or {}) == "chat" and _asked_over(after) == "completions":
        found.append(_chat_lost(after["asked_over"]))
    if before is not None and before.get("likelihood"):
        found.append(_likelihood(before["likelihood"], after.get("likelihood"), criteria.likelihood_margin))
    return found


def notes(before: Record | None, after: Record, criteria: Criteria) -> list[str]:
    """What quality was not judged by, and why: never a criterion, always a reason."""
    if not criteria.quality or before is None:
        return []
    early, unanswered = _answers_of(before, "passed"), _unanswered(before)
    if early and unanswered:
        return [
            f"{unanswered} of {len(early) + unanswered} questions were not answered in time before: {RAISE}"
        ]
    if not early and (unanswered or _answers_of(after, "passed") or _unanswered(after)):
        return [
            f"no question was answered before, so no answer can be lost: quality was not compared ({RAISE})"
        ]
    return []


def _answers_of(record: Record, key: str) -> dict[str, bool]:
    """Prompt -> whether its answer is sane or right. An older record without the key has none."""
    return {item["prompt"]: item[key] for item in record.get("quality") or [] if key in item}


def _unanswered(record: Record) -> int:
    """How many questions were not answered in time. An older record, or another program's, does not count them."""
    return int(record.get("quality_unanswered", 0))


def _silent(unanswered: int) -> Row:
    """A model that answers prompts of any kind and no question may hang on them."""
    note = f"none of {unanswered} questions was answered in time: {RAISE}"
    return row("sane_share", None, None, None, SANE_SHARE, INCONCLUSIVE, note)


def _asked_over(record: Record) -> str:
    """The endpoint that the questions were asked over. An older record, or another program's, does not say."""
    return str(record.get("asked_over", {}).get("endpoint", ""))


def _chat_lost(asked_over: dict[str, str]) -> Row:
    """Plain completions may all be right: whoever uses this service over chat gets nothing."""
    refusal = asked_over.get("refusal", "no reason given")
    note = f"the chat endpoint answered before and refuses now ({refusal}); the questions were asked as plain completions"
    return row("chat", None, None, None, None, FAIL, note)


def _sanity(sane: dict[str, bool], ended_before: dict[str, bool], ended: dict[str, bool]) -> Row:
    """Needs no baseline: a model that mostly says nothing, repeats itself or writes character salad is broken.

    With one, an answer that ended by itself and now runs on until it is cut is not sane either. Some models never end,
    so that alone says nothing.
    """
    runaway = {prompt for prompt, good in ended.items() if not good and ended_before.get(prompt)}
    good = sum(1 for prompt, is_sane in sane.items() if is_sane and prompt not in runaway)
    share = good / len(sane)
    verdict = PASS if share >= SANE_SHARE else FAIL
    note = f"{good} of {len(sane)} answers are sane (not empty, no loops, no character salad)"
    if runaway:
        note += f"; {len(runaway)} ran on until they were cut, and ended by themselves before"
    if verdict == FAIL:
        note += f"; at least {SANE_SHARE:.0%} must be"
    return row("sane_share", None, None, round(share, 4), SANE_SHARE, verdict, note)


def _likelihood(before: list[dict[str, Any]], after: list[dict[str, Any]] | None, margin: float) -> Row:
    """Bits per byte of the same fixed texts: deterministic, so no interval; more bits is a worse model."""
    then = {item["text"]: item["bits_per_byte"] for item in before}
    now = {item["text"]: item["bits_per_byte"] for item in after or ()}
    common = sorted(set(then) & set(now))
    if not common:
        note = "the likelihood of the fixed texts was measured before and not after: shown, never decisive"
        return {**row("bits_per_byte", None, None, None, margin, INCONCLUSIVE, note), "decides": False}
    early = sum(then[text] for text in common) / len(common)
    late = sum(now[text] for text in common) / len(common)
    worse = late > early * (1 + margin)
    note = (
        f"{early:.3f} bits per byte of the fixed texts before, {late:.3f} after; allowed is {margin:.0%} more"
    )
    return row("bits_per_byte", None, round(early, 5), round(late, 5), margin, FAIL if worse else PASS, note)


def _answers(before: dict[str, bool], after: dict[str, bool], limit: float) -> Row:
    """McNemar in pairs: only answers that changed sides say anything, and only of questions that both sides answered."""
    common = sorted(set(before) & set(after))
    if not common:
        note = f"none of the {len(before)} questions that were answered before was answered after: {RAISE}"
        return row("quality_points", None, None, None, -limit, INCONCLUSIVE, note)
    lost = sum(1 for prompt in common if before[prompt] and not after[prompt])
    gained = sum(1 for prompt in common if after[prompt] and not before[prompt])
    total = len(common)
    then = 100 * sum(before[prompt] for prompt in common) / total
    now = 100 * sum(after[prompt] for prompt in common) / total
    probability = chance(lost, gained)
    verdict = PASS
    note = f"{then:.0f} of 100 answers right before, {now:.0f} after ({lost} lost, {gained} gained, of {len(common)})"
    if then - now > limit:
        verdict = FAIL if probability < SIGNIFICANT else INCONCLUSIVE
        note += f"; allowed is a drop of {limit:g} points, and chance alone would do this with p = {probability:.3g}"
    elif then == now == 0:
        note = "no answer was right before, so there was nothing to lose: these prompts say nothing about this model"
    if verdict == PASS and total < SHARED * len(before):
        verdict = INCONCLUSIVE
        note = f"only {total} of the {len(before)} questions that were answered before were answered after: {RAISE}"
    return row("quality_points", None, round(then, 2), round(now, 2), -limit, verdict, note)
