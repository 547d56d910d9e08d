"""The page of a tuning: what was tried, the Pareto front, the winner's proof, and what it costs elsewhere.

Renders a journal (tuning/night.py); it asks no host and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from .. import tuned
from ..config.profiles import Compared
from ..tuning import night
from ..tuning.night import CURRENT, Line
from ..tuning.pareto import Front, Slo, Speed, front, phases, speed_in
from ..tuning.search import Done
from ..tuning.space import RuledOut
from . import plots
from .page import STYLE, environment, styled
from .plots import Interval, Place

TEMPLATE = "tuning.html.j2"
LESS_IS_BETTER = ("ttft_s", "tpot_s", "e2e_s")
WORDS = {
    "tokens_per_s": "tokens/s",
    "ttft_s": "first token",
    "tpot_s": "time per token",
    "e2e_s": "whole answer",
}


@dataclass(frozen=True)
class Tuned:
    """All that a page is made of.

    + changes: name -> the change of each candidate, as a person would declare it
    + done: the end of the search; None while it goes on, and `waits` says for what
    """

    host: str
    place: tuned.Place
    slo: Slo
    changes: Mapping[str, str]
    ruled_out: Sequence[RuledOut]
    lines: Sequence[Line]
    done: Done | None
    waits: str = ""


@dataclass(frozen=True)
class Row:
    """One tried configuration; a speed is None where it was never measured."""

    name: str
    changes: str
    looks: tuple[float, ...]
    own: Speed | None
    most: Speed | None
    place: str


def render(found: Tuned, at: datetime, zone: tzinfo | None = None) -> str:
    """The page.

    + at: when the journal was read (aware)
    + zone: of every time on the page; None: this machine's

    Raises night.Damaged for a journal that can't be read.
    """
    measured = night.speeds_of(found.lines)
    shown = front(measured, found.place.objective, found.slo)
    pairs = tuned.pairs_of(found.lines, _confirmed(found.lines))
    compared = tuned.comparisons(pairs) if len(pairs) > 1 else []
    return (
        environment(zone)
        .get_template(TEMPLATE)
        .render(
            style=styled(STYLE),
            found=found,
            at=at,
            headline=headline(found),
            rows=rows(found, measured, shown),
            picture=picture(found, measured, shown),
            proof=[_interval(each) for each in compared],
            pairs=[line for line in night.results(found.lines) if "pair" in line],
            costs=[each for each in compared if _interval(each).verdict == "fail"],
            words=WORDS,
        )
    )


def headline(found: Tuned) -> str:
    """The end in one sentence."""
    if found.done is None:
        return f"The search goes on: {found.waits}" if found.waits else "The search goes on"
    if found.done.winner and found.done.ratio and found.done.interval:
        low, high = found.done.interval
        return (
            f"{found.done.winner} is {found.done.ratio:.3f} times the current configuration"
            f" [{low:.3f}, {high:.3f}]"
        )
    return f"The current configuration stays: {found.done.why}"


def rows(found: Tuned, measured: Mapping[str, Sequence[Speed]], shown: Front) -> list[Row]:
    """One row for each configuration that was tried, in the order of the first look."""
    results = night.results(found.lines)
    names = list(dict.fromkeys(str(line.get("trial", line.get("pair"))) for line in results))
    made = []
    own_phase, most_phase = phases(measured.values(), found.place.objective) if measured else ("", "")
    for name in [CURRENT, *names] if results else []:
        own = [line for line in results if name in (line.get("trial"), line.get("pair"))]
        speeds = measured.get(name, ())
        made.append(
            Row(
                name=name,
                changes="" if name == CURRENT else found.changes.get(name, "several together"),
                looks=tuple(line.get("ratio", line.get("seen", 0.0)) for line in own if "trial" in line),
                own=speed_in(speeds, own_phase),
                most=speed_in(speeds, most_phase),
                place=_place(name, own, shown),
            )
        )
    return made


def picture(found: Tuned, measured: Mapping[str, Sequence[Speed]], shown: Front) -> str:
    """First token in the phase of the objective against tokens/s with the most requests at a time."""
    if not measured:
        return ""
    failed = {line.get("trial") for line in night.results(found.lines) if "failed" in line}
    own_phase, most_phase = phases(measured.values(), found.place.objective)
    points = []
    for name, speeds in measured.items():
        own, most = speed_in(speeds, own_phase), speed_in(speeds, most_phase)
        if own is None or most is None:
            continue
        kind = "current" if name == CURRENT else "on" if name in shown.on else "behind"
        kind = "missed" if name in shown.missed or name in failed else kind
        words = f"{name}: first token after {own.ttft_s:.3g} s, {most.tokens_per_s:.4g} tokens/s"
        points.append(Place(name, own.ttft_s, most.tokens_per_s, kind, words))
    return plots.pareto(
        f"first token at {own_phase}, seconds", f"tokens/s at {most_phase}", points, found.slo.max_ttft_s
    )


def _place(name: str, own: Sequence[Line], shown: Front) -> str:
    failed = [str(line["failed"]) for line in own if "failed" in line]
    if failed:
        return failed[-1]
    if name in shown.missed:
        return shown.missed[name]
    if name in shown.behind:
        return f"behind {shown.behind[name]}"
    return "on the front" if name in shown.on else ""


def _confirmed(lines: Sequence[Line]) -> str:
    return next((str(line["pair"]) for line in night.results(lines) if "pair" in line), "")


def _interval(each: Compared) -> Interval:
    low, high = each.interval
    verdict = "inconclusive"
    if low > 1 or high < 1:
        better = (low > 1) != (each.metric in LESS_IS_BETTER)
        verdict = "pass" if better else "fail"
    return Interval(f"{each.phase} {WORDS[each.metric]}", each.ratio, low, high, 1.0, verdict)


def changes(candidates: Sequence[Any]) -> dict[str, str]:
    """Name -> change of each candidate of a space."""
    return {each.name: each.changes for each in candidates}
