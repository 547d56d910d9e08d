"""From one switch's journal and evidence files to what a page shows of it: steps, samples, metrics, flips.

Pure. Evidence that is missing or damaged is said, never guessed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..on_host.record import RecordError, check
from ..on_host.relative import answered, tokens_per_s, tpot, ttft
from ..operations._story import STEPS, tell
from .history import Switch, moment
from .plots import Interval, Span

Entry = dict[str, Any]
MS = 1000.0
VISIBLE = 0.004  # of the whole time: a shorter step is a hair on the picture, and stands in the story
LABELS = {"tokens_per_s": "tokens/s", "ttft_s": "first token", "tpot_s": "per token", "e2e_s": "whole answer"}


@dataclass(frozen=True)
class Samples:
    """One metric of one phase on both sides; `unit` is ms or tokens/s."""

    title: str
    unit: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """How much the median changed, as a share; None where a side is missing."""
        if not self.before or not self.after:
            return None
        return statistics.median(self.after) / statistics.median(self.before) - 1


@dataclass(frozen=True)
class Shown:
    """Everything that the page says about one switch."""

    switch: Switch
    spans: tuple[Span, ...]
    story: tuple[tuple[str, str], ...]  # seconds since the beginning, sentence
    away_s: float | None
    samples: tuple[Samples, ...] = ()
    metrics: tuple[dict[str, Any], ...] = ()
    intervals: tuple[Interval, ...] = ()
    reasons: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()
    graded: int = 0
    release: dict[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.switch.outcome in ("committed", "calibrated")

    @property
    def serves(self) -> str:
        """Model, commit and runtime of the release that was tried, as far as its evidence says."""
        checkpoint, runtime = self.release.get("checkpoint", {}), self.release.get("runtime", {})
        version = f"vLLM {runtime['version']}" if runtime.get("version") else ""
        parts = (checkpoint.get("repo", ""), checkpoint.get("commit", "")[:12], version)
        return ", ".join(part for part in parts if part)


def show(switch: Switch, told: dict[str, Any]) -> Shown:
    """One transaction as on_host/recall.py told it."""
    entries, files = told["entries"], told["evidence"]
    missing = [f"{name}.json: {why}" for name, why in told["left_out"].items()]
    before = _record(files.get("before"), "before", missing)
    after = _record(files.get("after"), "after", missing)
    verdict = files.get("verdict") or {}
    lost, gained, graded = flips(before, after)
    end = entries[-1] if entries[-1]["step"] == "end" else {}
    return Shown(
        switch=switch,
        spans=tuple(spans(entries)),
        story=tuple(story(entries)),
        away_s=away_s(entries),
        samples=tuple(samples(before, after)),
        metrics=tuple(verdict.get("metrics", ())),
        intervals=tuple(ratios(verdict.get("metrics", ()))),
        reasons=tuple(verdict.get("reasons", ())),
        lost=lost,
        gained=gained,
        graded=graded,
        release=files.get("release") or {},
        log=tuple(end.get("log", ())),
        missing=tuple(missing),
    )


def _record(value: Any, name: str, missing: list[str]) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        return check(value, name)
    except RecordError as error:
        missing.append(str(error))
        return None


def samples(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[Samples]:
    """First token, time per token and throughput of each phase, one value for each request or round."""
    sides = [
        {phase["name"]: phase for phase in record["phases"]} if record else {} for record in (before, after)
    ]
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        pair = [side.get(name) for side in sides]
        concurrency = next(phase["concurrency"] for phase in pair if phase)
        where = "1 stream" if concurrency == 1 else f"{concurrency} streams"
        for title, unit, values in (
            ("Time to first token", "ms", _first_tokens),
            ("Time per output token", "ms", _per_token),
            ("Throughput", "tokens/s", _rates),
        ):
            both = [tuple(values(phase)) if phase else () for phase in pair]
            if any(both):
                found.append(Samples(f"{title}, {where}", unit, both[0], both[1]))
    return found


def _first_tokens(phase: dict[str, Any]) -> list[float]:
    return [value * MS for value in map(ttft, answered(phase)) if value is not None]


def _per_token(phase: dict[str, Any]) -> list[float]:
    return [value * MS for value in map(tpot, answered(phase)) if value is not None]


def _rates(phase: dict[str, Any]) -> list[float]:
    """Tokens per second of each round; of the whole phase where it has no rounds."""
    rounds = [item for item in phase.get("rounds") or () if item["complete"] and item["duration_s"] > 0]
    if rounds:
        return [item["output_tokens"] / item["duration_s"] for item in rounds]
    return [tokens_per_s(phase)]


def ratios(metrics: Sequence[dict[str, Any]]) -> list[Interval]:
    """The metrics that were compared with the baseline and decided."""
    return [
        Interval(
            f"{LABELS.get(row['name'], row['name'])} {row['phase']}",
            row["ratio"],
            row["interval"][0],
            row["interval"][1],
            row["limit"],
            row["verdict"],
        )
        for row in metrics
        if row.get("interval")
        and row.get("ratio") is not None
        and row["limit"] is not None
        and row.get("decides")
    ]


def flips(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Graded prompts that were right before and wrong after, those the other way round, and how many were
    paired.
    """
    sides = [
        {item["prompt"]: item["passed"] for item in (record or {}).get("quality", ())}
        for record in (before, after)
    ]
    common = sorted(set(sides[0]) & set(sides[1]))
    lost = tuple(prompt for prompt in common if sides[0][prompt] and not sides[1][prompt])
    gained = tuple(prompt for prompt in common if sides[1][prompt] and not sides[0][prompt])
    return lost, gained, len(common)


def spans(entries: Sequence[Entry]) -> list[Span]:
    """Each step that took a visible time, from its `intended` to its `done` or `failed`, else to the last
    entry.
    """
    start, last = moment(entries[0]["at"]), moment(entries[-1]["at"])
    found: list[Span] = []
    for place, entry in enumerate(entries):
        if entry["state"] != "intended":
            continue
        closing = next(
            (
                item
                for item in entries[place + 1 :]
                if item["step"] == entry["step"] and item["state"] != "intended"
            ),
            None,
        )
        began = moment(entry["at"])
        ended = moment(closing["at"]) if closing else last
        state = closing["state"] if closing else "cut"
        label = STEPS.get(entry["step"], str(entry["step"]))
        found.append(Span(label, (began - start).total_seconds(), (ended - began).total_seconds(), state))
    visible = (last - start).total_seconds() * VISIBLE
    return [span for span in found if span.took_s >= visible or span.state != "done"]


def story(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The lines of the operator's screen, with the seconds since the beginning; beginnings of steps are left
    out.
    """
    start = moment(entries[0]["at"])
    told = []
    for entry in entries:
        if entry["state"] != "intended":
            seconds = (moment(entry["at"]) - start).total_seconds()
            told += [(f"{seconds:.1f} s", text) for text in _told(entry)]
    return told


def _told(entry: Entry) -> list[str]:
    if entry["step"] == "judge":  # its metrics and reasons stand with the evidence
        entry = {**entry, "metrics": [], "reasons": []}
    return tell([entry], [])


def away_s(entries: Sequence[Entry]) -> float | None:
    """Seconds from the stop of what served until tokens flowed again; None where nothing was stopped or came
    back.
    """
    stopped = next(
        (entry for entry in entries if (entry["step"], entry["state"]) == ("activate", "intended")), None
    )
    if stopped is None:
        return None
    back = [entry for entry in entries if entry["state"] == "done" and entry["step"] in ("ready", "restore")]
    restored = [entry for entry in back if entry["step"] == "restore"]
    begun = [entry for entry in entries if (entry["step"], entry["state"]) == ("restore", "intended")]
    if not back:
        return None
    ready = [entry for entry in back if entry["step"] == "ready"]
    if ready and restored and begun:  # it served in between, while it was measured
        return _between(stopped, ready[0]) + _between(begun[0], restored[-1])
    return _between(stopped, back[-1])


def _between(first: Entry, last: Entry) -> float:
    return round((moment(last["at"]) - moment(first["at"])).total_seconds(), 1)
