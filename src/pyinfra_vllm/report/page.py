"""The report: one HTML file that carries everything it needs, and loads nothing.

Renders status, history and evidence; it asks no host and judges nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, tzinfo
from functools import partial
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ..asking import Answer
from ..printable import printable_lines
from ..text import duration, sentence
from . import plots
from .evidence import Shown, show
from .headline import by_severity, headline, period, went_back, worst
from .history import left_out, local, problems, switches
from .looking import Look
from .status import OK, Row, memory_of, rows, word
from .tables import reasons_of
from .trends import newest, picture, pictured, span, trends

TEMPLATE, STYLE = "page.html.j2", "page.css"
# Switches whose details are open at first, of the newest.
OPEN = 1
LOOK, BACK = "look", "back"  # the filters, as page.css knows them


def render(
    title: str,
    answers: Sequence[Answer[Look]],
    at: datetime,
    declaration: str = "",
    *,
    since: datetime | None = None,
    zone: tzinfo | None = None,
) -> str:
    """The page.

    + title: the fleet's name, as a rule the inventory's path
    + at: when the hosts were asked (aware)
    + declaration: why drift from the declaration is not shown; empty when it is
    + since: where the headline's period begins; None: last night
    + zone: of every time on the page; None: this machine's
    """
    found, shown = rows(answers), shown_switches(answers)
    told = [item.switch for item in shown]
    about = period(at, zone, since)
    back = went_back(item for item in told if item in about)
    found_trends, marks = trends(shown, zone), _marks(found, back)
    return (
        environment(zone)
        .get_template(TEMPLATE)
        .render(
            title=title,
            headline=headline(found, told, about, declared=not declaration),
            period=about,
            left_out=left_out(answers, about.began),
            style=styled(STYLE),
            rows=by_severity(found, back),
            places={(row.host, row.service): number for number, row in enumerate(found)},
            newest_of={(item.host, item.service): n for n, item in reversed(list(enumerate(told)))},
            marks=marks,
            counts=Counter(mark for own in marks.values() for mark in own),
            services=sorted({row.service for row in found if row.service} | {item.service for item in told}),
            memory=_memory(answers),
            shown=shown,
            trends=found_trends,
            span=span(found_trends.values()),
            pictured=pictured(found_trends.values()),
            newest=newest,
            picture=lambda *what: Markup(picture(*what)),
            open_first=OPEN,
            missing=problems(answers),
            declaration=declaration,
        )
    )


def styled(name: str) -> Markup:
    """One of our own style sheets."""
    return Markup(_text(name))


def _marks(found: Sequence[Row], back: set[str]) -> dict[str, list[str]]:
    """Host -> the filters that show it, beside the one that shows all."""
    return {
        host: [LOOK] * (word(row) != OK or host in back) + [BACK] * (host in back)
        for host, row in worst(found).items()
    }


def _memory(answers: Sequence[Answer[Look]]) -> dict[tuple[str, str], str]:
    """(host, service) -> the GPU memory in use."""
    return {
        (answer.host, observed.service): memory_of(observed.service, answer.value.gpus)
        for answer in answers
        if answer.value is not None
        for observed in answer.value.running
    }


def shown_switches(answers: Sequence[Answer[Look]]) -> list[Shown]:
    """Every switch with its evidence, the newest first."""
    told = {
        (answer.host, service["service"], item["tx"]): item
        for answer in answers
        if answer.value is not None
        for service in answer.value.record.values()
        for item in service["transactions"]
    }
    return [show(item, told[item.host, item.service, item.tx]) for item in reversed(switches(answers))]


def environment(zone: tzinfo | None = None) -> jinja2.Environment:
    """Templates of this package: every expression is made printable and escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        word=word,
        reasons_of=reasons_of,
        local=partial(local, zone=zone),
        duration=duration,
        sentence=sentence,
        markup=_drawn(lambda made: made),
        distribution=_drawn(lambda it: plots.distribution(it.title, it.unit, it.before, it.after)),
        intervals=_drawn(plots.intervals),
        timeline=_drawn(plots.timeline),
    )
    return environment


def _printable(value: Any) -> Any:
    """An expression's value before it is escaped: hosts' text made printable, our markup as it is."""
    return printable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _drawn(draw: Any) -> Any:
    """A filter whose markup is ours: plots escape every text that they carry."""
    return lambda value: Markup(draw(value))


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
