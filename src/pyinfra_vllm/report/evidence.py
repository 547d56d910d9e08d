"""Turns one switch's journal and evidence files into the parts of the page: steps, samples, metrics, flips.

Pure. Evidence that is missing or damaged is said, never guessed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.rollout.story import STEPS, tell

from ..answers import Entry, Metric, StagedRelease, ToldSwitch, Verdict
from ..on_host.bench.record import Phase, Record
from ..on_host.state.transactions import Transaction, seconds_between, without_service_s
from ..on_host.state.values import RecordError
from ..text import duration
from .changes import Change, changes, checkpoint, runtime
from .criteria import Criterion, criteria, title
from .history import Switch, moment
from .plots import Interval, Span
from .status import brief

MS = 1000.0
VISIBLE = 0.004  # of the whole time: a shorter step is a hair on the picture, and stands in the story
LABELS = {"tokens_per_s": "tokens/s", "ttft_s": "first token", "tpot_s": "per token", "e2e_s": "whole answer"}
FILES = {"old": "release.json of the release before"}  # the others are called as their evidence is


@dataclass(frozen=True)
class Samples:
    """One metric of one phase (`key`), with so many streams, on both sides; `unit` is ms or tokens/s."""

    title: str
    key: tuple[str, str]
    streams: float
    unit: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """Relative change of the median; None where a side is missing."""
        if not self.before or not self.after:
            return None
        return statistics.median(self.after) / statistics.median(self.before) - 1


@dataclass(frozen=True)
class Answered:
    """A graded answer that changed sides; its texts where they were kept (gate.keep_answers)."""

    prompt: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Shown:
    """The page's section about one switch.

    changes: None where the release before is not known
    memory_mib: of the fullest GPU with the new release, where the gate has a limit for it
    samples: those of failed criteria first
    """

    switch: Switch
    spans: tuple[Span, ...]
    story: tuple[tuple[str, str], ...]  # seconds since the beginning, sentence
    away_s: float | None
    changes: tuple[Change, ...] | None = None
    samples: tuple[Samples, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    intervals: tuple[Interval, ...] = ()
    reasons: tuple[str, ...] = ()
    lost: tuple[Answered, ...] = ()
    gained: tuple[Answered, ...] = ()
    graded: int = 0
    release: StagedRelease | None = None
    memory_mib: float | None = None
    log: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.switch.outcome in ("committed", "calibrated")

    @property
    def against(self) -> list[Criterion]:
        """The criteria for which the release went back: those that the host's reason names."""
        return [
            item for item in self.criteria if item.decides and item.told and item.told in self.switch.reason
        ]

    @property
    def reason(self) -> str:
        """The host's reason without the sentences of those criteria, which stand beside their numbers."""
        text = self.switch.reason
        for item in self.against:
            text = text.replace(item.told, "")
        rest = "; ".join(part for part in text.split("; ") if part)
        return brief(rest) if self.reasons else rest

    @property
    def remarks(self) -> list[str]:
        """The verdict's reasons without those sentences."""
        told = {item.told for item in self.against}
        return [text for text in self.reasons if text not in told]

    @property
    def proof(self) -> Samples | None:
        """The distribution that shows the first of them."""
        keys = [item.key for item in self.against[:1]]
        return next((item for item in self.samples if item.key in keys), None)

    @property
    def serves(self) -> str:
        """Model, commit and runtime of the release that was tried, as far as its evidence says."""
        if not self.release:
            return ""
        version = runtime(self.release)
        return ", ".join(filter(None, (checkpoint(self.release), f"vLLM {version}" if version else "")))


def show(switch: Switch, told: ToldSwitch) -> Shown:
    """The page's view of one switch."""
    found, files = Transaction(told["entries"]), told["evidence"]
    missing = [f"{FILES.get(name, f'{name}.json')}: {why}" for name, why in told["left_out"].items()]
    before = _record(files.get("before"), "before", missing)
    after = _record(files.get("after"), "after", missing)
    verdict: Verdict = files.get("verdict") or {}
    metrics = verdict.get("metrics", ())
    judged = criteria(metrics)
    order = [item.key for item in judged]
    lost, gained, graded = flips(before, after)
    away_s = without_service_s(found.turns)
    old, new = files.get("old"), files.get("release")
    return Shown(
        switch=switch,
        spans=tuple(spans(found)),
        story=tuple(story(told["entries"])),
        away_s=None if away_s is None else round(away_s, 1),
        changes=changes(old, new) if old and new else None,
        samples=tuple(_in_order(samples(before, after), order)),
        criteria=tuple(judged),
        intervals=tuple(ratios(metrics)),
        reasons=tuple(verdict.get("reasons", ())),
        lost=lost,
        gained=gained,
        graded=graded,
        release=new,
        memory_mib=next((row["after"] for row in metrics if row["name"] == "gpu_memory_mib"), None),
        log=found.log,
        missing=tuple(missing),
    )


def _record(value: Any, name: str, missing: list[str]) -> Record | None:
    if value is None:
        return None
    try:
        return Record.read(value, name)
    except RecordError as error:
        missing.append(str(error))
        return None


def samples(before: Record | None, after: Record | None) -> list[Samples]:
    """First token, time per token and throughput of each phase, one value for each request or round."""
    sides = [{phase.name: phase for phase in record.phases} if record else {} for record in (before, after)]
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        pair = [side.get(name) for side in sides]
        streams = next(phase.concurrency for phase in pair if phase)
        for metric, unit, values in (
            ("ttft_s", "ms", _first_tokens),
            ("tpot_s", "ms", _per_token),
            ("tokens_per_s", "tokens/s", _rates),
        ):
            both = [tuple(values(phase)) if phase else () for phase in pair]
            if any(both):
                found.append(Samples(title(metric, name), (metric, name), streams, unit, both[0], both[1]))
    return found


def _in_order(found: list[Samples], order: list[tuple[str, str]]) -> list[Samples]:
    """Samples in the order of the criteria; those without a criterion come last."""
    place = {key: number for number, key in reversed(list(enumerate(order)))}
    return sorted(found, key=lambda item: place.get(item.key, len(order)))


def _first_tokens(phase: Phase) -> list[float]:
    return [request.ttft_s * MS for request in phase.answered]


def _per_token(phase: Phase) -> list[float]:
    return [value * MS for request in phase.answered if (value := request.tpot_s) is not None]


def _rates(phase: Phase) -> list[float]:
    """Tokens per second of each round; of the whole phase where it has no rounds."""
    rounds = [item.tokens_per_s for item in phase.rounds if item.complete and item.duration_s > 0]
    return rounds or [phase.tokens_per_s]


def ratios(metrics: Sequence[Metric]) -> list[Interval]:
    """The metrics that were compared with the baseline and decided."""
    return [
        Interval(
            f"{LABELS.get(row['name'], row['name'])} {row['phase']}",
            row["ratio"],
            interval[0],
            interval[1],
            row["limit"],
            row["verdict"],
        )
        for row in metrics
        if (interval := row.get("interval"))
        and row["ratio"] is not None
        and row["limit"] is not None
        and row["decides"]
    ]


def flips(
    before: Record | None, after: Record | None
) -> tuple[tuple[Answered, ...], tuple[Answered, ...], int]:
    """Graded prompts right before and wrong after, those the other way round, and how many were paired."""
    then, now = (
        {item.prompt: item for item in (record.quality if record else ())} for record in (before, after)
    )
    flipped: dict[bool, list[Answered]] = {True: [], False: []}
    common = sorted(set(then) & set(now))
    for prompt in common:
        early, late = then[prompt], now[prompt]
        if early.passed != late.passed:
            flipped[early.passed].append(Answered(prompt, early.answer or "", late.answer or ""))
    return tuple(flipped[True]), tuple(flipped[False]), len(common)


def spans(found: Transaction) -> list[Span]:
    """Each step that took a visible time, from `intended` to `done` or `failed`, else to the last entry."""
    last = found.entries[-1]["at"]
    whole = seconds_between(found.began, last)
    drawn = [
        Span(
            STEPS.get(step.name, step.name),
            seconds_between(found.began, step.began),
            seconds_between(step.began, step.ended or last),
            step.state or "cut",
        )
        for step in found.steps
    ]
    return [span for span in drawn if span.took_s >= whole * VISIBLE or span.state != "done"]


def story(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The lines of the operator's screen with seconds since the beginning, without beginnings of steps."""
    start = moment(entries[0]["at"])
    told = []
    for entry in entries:
        if entry["state"] != "intended":
            seconds = (moment(entry["at"]) - start).total_seconds()
            told += [(duration(seconds), text) for text in _told(entry)]
    return told


def _told(entry: Entry) -> list[str]:
    if entry["step"] == "judge":  # its metrics and reasons stand with the evidence
        entry = {**entry, "metrics": [], "reasons": []}
    return tell([entry], [])
