"""Judges quality from two records: likelihood of fixed texts, lost answers, and the form of answers.

Each is a criterion of its own, because each sees other damage: weights that were rounded badly cost bits, a
wrong chat template costs no bits and breaks the form, and only questions see missing knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..bench import likelihood
from ..bench.criteria import Criteria
from ..bench.questions import FURTHER
from ..bench.record import AskedOver, Likelihood, Record
from ..bench.stats import chance, detectable_drop
from .verdict import FAIL, INCONCLUSIVE, PASS, Row, row

SIGNIFICANT = 0.05
SIGNIFICANT_FORM = 0.01  # five kinds of defects are looked for, so each must be less likely by chance
FORM_POINTS = 5.0  # percentage points of answers that may get a defect
RELATIVE_DROP = 0.2  # of the answers that were right before
SANE_SHARE = 0.5  # a broken quantization makes nearly all answers degenerate; a weak model at most a few
# of the questions that were answered before: with fewer of them answered after, too much was not seen
SHARED = 0.9
ENOUGH = 50  # graded answers, for the least share of right ones to say something
RAN_ON = "ran on until it was cut"
# Of the answers that ended by themselves before. A server that doesn't know its end token cuts all of them; a
# good model of another quantization, a third of them (SmolLM2-135M, AWQ group 64 -> 32, 67 of 199).
RAN_ON_SHARE = 0.5
ENGLISH = "en"
RAISE = "raise budget_s where the questions need more time"


def rows(before: Record | None, after: Record, criteria: Criteria) -> list[Row]:
    """The criteria measured, and those that should have been; none where quality is off or not asked."""
    if not criteria.quality:
        return []
    bits = _likelihood_rows(before, after, criteria)
    found = []
    sane, passed = _answers_of(after, "sane"), _answers_of(after, "passed")
    early = _answers_of(before, "passed")
    if sane:
        found.append(_degenerate(sane, _answers_of(before, "ended"), _answers_of(after, "ended")))
    elif before is None and not passed and after.quality_unanswered:
        found.append(_nothing_answered(after.quality_unanswered))
    found += _form(before, after)
    if early:
        bits_agree = any(item.name == "bits_per_byte" and item.verdict == PASS for item in bits)
        found.append(_answers(early, passed, criteria.quality_drop_points, bits_agree))
    else:
        found += _least_right(passed, criteria.min_right_share)
    ways = [record.asked_over if record else None for record in (before, after)]
    if ways[0] and ways[1] and (ways[0].endpoint, ways[1].endpoint) == ("chat", "completions"):
        found.append(_chat_lost(ways[1]))
    return found + bits


def notes(before: Record | None, after: Record, criteria: Criteria) -> list[str]:
    """The quality checks that could not be used, and why: reasons, never criteria."""
    if not criteria.quality:
        return []
    found = _likelihood_notes(before, after)
    if before is None:
        return found
    early, unanswered = _answers_of(before, "passed"), before.quality_unanswered or 0
    if early and unanswered:
        found.append(
            f"{unanswered} of {len(early) + unanswered} questions were not answered in time before: {RAISE}"
        )
    elif not early and (unanswered or _answers_of(after, "passed") or after.quality_unanswered):
        found.append(
            f"no question was answered before, so no answer can be lost: quality was not compared ({RAISE})"
        )
    return found


def _answers_of(record: Record | None, key: str) -> dict[str, bool]:
    """Prompt -> whether its answer is sane or right. An older record without the key has none."""
    found = ((item.prompt, getattr(item, key)) for item in (record.quality if record else ()))
    return {prompt: value for prompt, value in found if value is not None}


def _nothing_answered(unanswered: int) -> Row:
    """A model that answers prompts of any kind and no question may hang on them."""
    note = f"none of {unanswered} questions was answered in time: {RAISE}"
    return row("sane_share", None, None, None, SANE_SHARE, INCONCLUSIVE, note)


def _chat_lost(asked_over: AskedOver) -> Row:
    """Fail where chat gets no answers although plain completions do."""
    refusal = asked_over.refusal or "no reason given"
    note = (
        f"the chat endpoint answered before and refuses now ({refusal}); the questions were asked as plain"
        " completions"
    )
    return row("chat", None, None, None, None, FAIL, note)


# Form


def _degenerate(sane: dict[str, bool], ended_before: dict[str, bool], ended: dict[str, bool]) -> Row:
    """Fail a model whose answers are mostly degenerate: blank, repeating or noise. Needs no baseline.

    With a baseline, an answer that ended by itself before and now runs into the token limit counts, too;
    without one it does not, since some models never end an answer.
    """
    runaway = {prompt for prompt, good in ended.items() if not good and ended_before.get(prompt)}
    good = sum(1 for prompt, is_sane in sane.items() if is_sane and prompt not in runaway)
    share = good / len(sane)
    verdict = PASS if share >= SANE_SHARE else FAIL
    note = f"{good} of {len(sane)} answers are not degenerate (not blank, no loops, no noise)"
    if runaway:
        note += f"; {len(runaway)} ran on until they were cut, and ended by themselves before"
    if verdict == FAIL:
        note += f"; at least {SANE_SHARE:.0%} must be"
    return row("sane_share", None, None, round(share, 4), SANE_SHARE, verdict, note)


def _form(before: Record | None, after: Record) -> list[Row]:
    """Defects that more answers have than before, kind by kind and answer by answer (McNemar)."""
    early, late = _defects(before), _defects(after)
    common = sorted(set(early) & set(late))
    if not common:
        return []
    problems = [
        problem
        for kind in sorted(set().union(*early.values(), *late.values()))
        if (problem := _more_defects(kind, [(early[prompt], late[prompt]) for prompt in common]))
    ]
    shares = [100 * sum(1 for prompt in common if not side[prompt]) / len(common) for side in (early, late)]
    note = f"{shares[0]:.0f} of 100 answers without a defect of form before, {shares[1]:.0f} after"
    note = "; ".join([note, *problems])
    return [row("form", None, shares[0], shares[1], None, FAIL if problems else PASS, note)]


def _defects(record: Record | None) -> dict[str, set[str]]:
    """Prompt -> the defects in the form of its answer. An older record does not tell."""
    return {
        item.prompt: {*item.form, *((RAN_ON,) if item.ended is False else ())}
        for item in (record.quality if record else ())
        if item.form is not None
    }


def _more_defects(kind: str, pairs: list[tuple[set[str], set[str]]]) -> str:
    worse = sum(1 for then, now in pairs if kind in now and kind not in then)
    better = sum(1 for then, now in pairs if kind in then and kind not in now)
    if 100 * (worse - better) <= FORM_POINTS * len(pairs) or chance(worse, better) >= SIGNIFICANT_FORM:
        return ""
    if kind == RAN_ON and worse <= RAN_ON_SHARE * sum(1 for then, _ in pairs if kind not in then):
        return ""
    return f"{worse} of {len(pairs)} answers have a new defect ({kind}), {better} have lost it"


# Questions


def _least_right(passed: dict[str, bool], least: float) -> list[Row]:
    """First installation, without a baseline: fail where next to no answer is right."""
    if len(passed) < ENOUGH:
        return []
    right = sum(passed.values())
    verdict = PASS if right >= least * len(passed) else FAIL
    note = f"{right} of {len(passed)} answers are right; gate.min_right_share asks for {least:.0%}"
    return [row("right_share", None, None, round(right / len(passed), 4), least, verdict, note)]


def _answers(before: dict[str, bool], after: dict[str, bool], limit: float, bits_agree: bool) -> Row:
    """McNemar's test over the questions that both sides answered: it counts the answers that changed."""
    asked = [prompt for prompt in before if not prompt.startswith(FURTHER)]
    common = sorted(set(before) & set(after))
    if not common:
        note = f"none of the {len(before)} questions that were answered before was answered after: {RAISE}"
        return row("quality_points", None, None, None, -limit, INCONCLUSIVE, note)
    verdict, then, now, note = _drop([(before[p], after[p]) for p in common], limit, bits_agree)
    shared = sum(1 for prompt in asked if prompt in after)
    if verdict == PASS and shared < SHARED * len(asked):
        verdict = INCONCLUSIVE
        note = (
            f"only {shared} of the {len(asked)} questions that were answered before were answered after:"
            f" {RAISE}"
        )
    return row("quality_points", None, round(then, 2), round(now, 2), -limit, verdict, note)


def _drop(pairs: list[tuple[bool, bool]], limit: float, bits_agree: bool) -> tuple[str, float, float, str]:
    """Verdict, percent right before and after, and why."""
    total = len(pairs)
    lost = sum(1 for then, now in pairs if then and not now)
    gained = sum(1 for then, now in pairs if now and not then)
    right = sum(then for then, _ in pairs)
    then, now = 100 * right / total, 100 * (right - lost + gained) / total
    note = (
        f"{then:.0f} of 100 answers right before, {now:.0f} after ({lost} lost, {gained} gained, of {total})"
    )
    if chance(right, 0) >= SIGNIFICANT:
        note += (
            f"; only {right} were right before: too few to lose, these questions say nothing about this model"
        )
        return PASS, then, now, note
    probability = chance(lost, gained)
    too_many, too_large_a_part = then - now > limit, lost - gained > RELATIVE_DROP * right
    if (too_many or too_large_a_part) and probability < SIGNIFICANT:
        allowed = f"{limit:g} points" if too_many else f"{RELATIVE_DROP:.0%} of what was right"
        return FAIL, then, now, f"{note}; allowed is a drop of {allowed}, and p is {probability:.3g}"
    if too_many and not bits_agree:
        note += (
            f"; allowed is a drop of {limit:g} points, and chance alone would do this with p ="
            f" {probability:.3g}"
        )
        return INCONCLUSIVE, then, now, note
    seen = detectable_drop(total, (lost + gained) / total)
    return (
        PASS,
        then,
        now,
        f"{note}; a drop of {100 * seen:.0f} points would have been seen four times of five",
    )


# Likelihood


def _likelihood_rows(before: Record | None, after: Record, criteria: Criteria) -> list[Row]:
    early, late = (before.likelihood if before else None) or (), after.likelihood or ()
    if early:
        return [_more_bits(early, late, after.likelihood_missing or {}, criteria.likelihood_margin)]
    return [] if criteria.max_bits_per_byte is None else _english(late, criteria.max_bits_per_byte)


def _more_bits(
    before: Sequence[Likelihood], after: Sequence[Likelihood], missing: Mapping[str, str], margin: float
) -> Row:
    """No worse where the whole interval is within the margin; worse where it is not and excludes 1."""
    compared = likelihood.compare(before, after)
    measured = {item.text for item in after}
    gaps = [item.text for item in before if item.text not in measured]
    name, limit = "bits_per_byte", round(1 + margin, 6)
    if compared is None:
        note = f"the likelihood of the fixed texts was measured before and not after: {_why(gaps, missing)}"
        return row(name, None, None, None, limit, INCONCLUSIVE, note)
    then, now = (_mean_bits(side, measured & {item.text for item in before}) for side in (before, after))
    low, high = compared.low, compared.high
    note = _in_words(compared, margin)
    if compared.ratio > limit if high is None else high > limit:
        verdict = FAIL if low is None or low > 1 else INCONCLUSIVE
    elif gaps:
        verdict = INCONCLUSIVE
        note += f"; not measured after: {_why(gaps, missing)}"
    else:
        verdict = PASS
    interval = None if low is None or high is None else (round(low, 6), round(high, 6))
    made = row(name, None, round(then, 5), round(now, 5), limit, verdict, note)
    return replace(made, ratio=round(compared.ratio, 6), interval=interval)


def _in_words(compared: likelihood.Comparison, margin: float) -> str:
    interval = ""
    if compared.low is not None and compared.high is not None:
        interval = f" [{compared.low - 1:+.1%}, {compared.high - 1:+.1%}]"
    perplexity = f", perplexity {compared.perplexity - 1:+.1%}" if compared.perplexity is not None else ""
    ratio = compared.perplexity_of(margin)
    stands_for = f", a perplexity of {ratio - 1:+.0%}" if ratio is not None else ""
    allowed = f"allowed is {margin:+.0%}{stands_for}"
    return f"the fixed texts cost {compared.ratio - 1:+.1%} bits{interval}{perplexity}; {allowed}"


def _mean_bits(side: Iterable[Likelihood], texts: set[str]) -> float:
    found = [item.bits_per_byte for item in side if item.text in texts]
    return sum(found) / len(found)


def _why(texts: list[str], missing: Mapping[str, str]) -> str:
    return "; ".join(f"{text} ({missing.get(text, 'no reason given')})" for text in texts)


def _english(after: Sequence[Likelihood], limit: float) -> list[Row]:
    bits = likelihood.bits_in(after, ENGLISH)
    if bits is None:
        return []
    note = f"English text costs {bits:.2f} bits per byte; gate.max_bits_per_byte allows {limit:g}"
    verdict = PASS if bits <= limit else FAIL
    return [row("bits_per_byte_en", None, None, round(bits, 5), limit, verdict, note)]


def _likelihood_notes(before: Record | None, after: Record) -> list[str]:
    """Which texts have no likelihood on the side that decides whether they are compared at all."""
    side, when = (after, "") if before is None else (before, " before")
    missing = side.likelihood_missing or {}
    if not missing:
        return []
    reasons = sorted(set(missing.values()))
    shown = "; ".join(reasons[:2])
    return [f"no likelihood of {len(missing)} texts{when}, so they were not compared: {shown}"]
