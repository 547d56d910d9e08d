"""Trends of each service by night: speed, time to first token, time without service.

Pure: from switches with their evidence. Nights without a switch were not measured, and have no point.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from ..text import duration, gpu_memory, latency, three_digits
from . import plots
from .criteria import streams
from .evidence import Samples, Shown
from .headline import WENT_BACK
from .history import moment
from .plots import Point

# Each number of a night: its name, and how it is written.
PICTURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens_per_s": ("tokens/s", lambda value: f"{three_digits(value)} tokens/s"),
    "ttft_ms": ("first token", lambda value: latency(value / 1000)),
    "memory_mib": ("GPU memory", gpu_memory),
    "away_s": ("time without service", duration),
}


@dataclass(frozen=True)
class Night:
    """The service after the switches of one night; `day` is that of the evening.

    tokens_per_s, ttft_ms, memory_mib: of the release that serves since; None where it was not measured
    away_s: seconds without service, of all switches of the night
    went_back: whether a release was tried that was not kept
    """

    day: date
    tokens_per_s: float | None
    ttft_ms: float | None
    memory_mib: float | None
    away_s: float
    went_back: bool


@dataclass(frozen=True)
class Trend:
    """The nights of one service, oldest first; `at` says with how many streams a metric was measured."""

    host: str
    service: str
    nights: tuple[Night, ...]
    at: dict[str, str]


def trends(shown: Iterable[Shown], zone: tzinfo | None = None) -> dict[tuple[str, str], Trend]:
    """(host, service) -> its nights.

    + zone: that a night is told in; None: this machine's
    """
    own: dict[tuple[str, str], list[Shown]] = {}
    for item in sorted(shown, key=lambda item: item.switch.began):
        own.setdefault((item.switch.host, item.switch.service), []).append(item)
    return {key: _trend(*key, items, zone) for key, items in own.items()}


def night_of(at: datetime, zone: tzinfo | None = None) -> date:
    """The day on which the night began: it lasts from noon to noon."""
    return (at.astimezone(zone).replace(tzinfo=None) - timedelta(hours=12)).date()


def span(found: Iterable[Trend]) -> tuple[date, date] | None:
    """The first and the last night of all of them."""
    days = [night.day for trend in found for night in trend.nights]
    return (min(days), max(days)) if days else None


def picture(trend: Trend, metric: str, about: tuple[date, date]) -> str:
    """One metric of the nights as a small plot.

    + metric: a number of `Night`
    + about: the first and the last night of the page, so that all plots share their axis
    """
    title, write = PICTURES[metric]
    points = [
        Point((night.day - about[0]).days, value, f"{night.day}: {write(value)}", night.went_back)
        for night in trend.nights
        if (value := getattr(night, metric)) is not None
    ]
    return plots.trend(title, points, (about[1] - about[0]).days, bars=metric == "away_s")


def pictured(found: Iterable[Trend]) -> dict[str, str]:
    """The metrics that any of them has a value of, each with its title."""
    nights = [night for trend in found for night in trend.nights]
    return {
        metric: title
        for metric, (title, _) in PICTURES.items()
        if any(getattr(night, metric) is not None for night in nights)
    }


def newest(trend: Trend, metric: str) -> str:
    """The newest value that was measured; empty where none was."""
    values = [value for night in trend.nights if (value := getattr(night, metric)) is not None]
    return PICTURES[metric][1](values[-1]) if values else ""


def _trend(host: str, service: str, items: list[Shown], zone: tzinfo | None) -> Trend:
    """Speeds of one load only, which the newest measurement decides: others are not comparable."""
    rate, first = _measured(items, "tokens_per_s", most=True), _measured(items, "ttft_s", most=False)
    nights: dict[date, list[Shown]] = {}
    for item in items:
        nights.setdefault(night_of(moment(item.switch.began), zone), []).append(item)
    return Trend(
        host,
        service,
        tuple(_night(day, own, rate, first) for day, own in nights.items()),
        {
            metric: streams(like.key[1])
            for metric, like in (("tokens_per_s", rate), ("ttft_ms", first))
            if like is not None
        },
    )


def _measured(items: list[Shown], metric: str, most: bool) -> Samples | None:
    """The newest measurement of the metric, with most or fewest streams."""
    for item in reversed(items):
        found = sorted((one for one in item.samples if one.key[0] == metric), key=lambda one: one.streams)
        if found:
            return found[-1 if most else 0]
    return None


def _night(day: date, items: list[Shown], rate: Samples | None, first: Samples | None) -> Night:
    return Night(
        day,
        _serving(items, rate),
        _serving(items, first),
        next((item.memory_mib for item in reversed(items) if item.good), None),
        sum(item.away_s or 0.0 for item in items),
        any(item.switch.outcome in WENT_BACK for item in items),
    )


def _serving(items: list[Shown], like: Samples | None) -> float | None:
    """The median of the release that serves after the newest measurement of the night."""
    if like is None:
        return None
    for item in reversed(items):
        for one in item.samples:
            values = one.after if item.good else one.before
            if one.key == like.key and values:
                return statistics.median(values)
    return None
