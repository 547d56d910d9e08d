"""The operator's screen while hosts work: on a terminal one line for each host that moves in place, elsewhere
at most a line a minute.

Events are logged by pyinfra's logger and scroll above these lines. Nothing here decides or asks.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import click
from pyinfra import logger
from pyinfra.api import Host
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pyinfra_vllm.printable import printable
from pyinfra_vllm.text import clock, wrapped

LINE_EVERY_S = 60.0
LOGS_INDENT = 4  # columns that pyinfra's log puts before each line
NARROWEST = 40  # columns for a text: beside a longer prefix it is not wrapped


@dataclass(frozen=True)
class Working:
    """The step that a host is at.

    `limit_s`: how long it may take at most; `detail`: how far it is, in its own words.
    """

    what: str
    elapsed_s: float
    limit_s: float | None = None
    detail: str = ""

    @property
    def times(self) -> str:
        limit = f" of {clock(self.limit_s)}" if self.limit_s is not None else ""
        return f"{clock(self.elapsed_s)}{limit}"

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.what}: {self.times}", self.detail)))


class Screen:
    """One for the whole run. pyinfra's greenlets take turns, and nothing here waits, so no lock is needed."""

    def __init__(self, interactive: bool, now: Callable[[], float] = time.monotonic) -> None:
        self.interactive = interactive
        self._now = now
        self._lines: dict[str, Working] = {}
        self._told: dict[str, float] = {}
        self._live: Live | None = None

    @contextmanager
    def following(self, host: Host) -> Iterator[Callable[[Working], None]]:
        """Show what the host is at while the block lasts, at each call of the yielded function."""
        self._told[host.name] = self._now()
        try:
            yield lambda working: self._show(host, working)
        finally:
            self._lines.pop(host.name, None)
            self._draw()

    def lines(self, prefix: str, text: str) -> list[str]:
        """A text for the log, each line behind the prefix: lines that fit a terminal; elsewhere one."""
        room = shutil.get_terminal_size().columns - LOGS_INDENT - len(click.unstyle(prefix))
        if not self.interactive or room < NARROWEST:
            return [prefix + text]
        indent = " " * (len(text) - len(text.lstrip()) + LOGS_INDENT)
        return [prefix + line for line in wrapped(text, room, "", indent)]

    def _show(self, host: Host, working: Working) -> None:
        if self.interactive:
            self._lines[host.name] = working
            self._draw()
        elif self._now() - self._told[host.name] >= LINE_EVERY_S:
            self._told[host.name] = self._now()
            logger.info(f"{host.print_prefix}{printable(str(working))}")

    def _draw(self) -> None:
        if not self._lines:
            self.close()
            return
        if self._live is None:
            # No thread refreshes it: each host is asked once a second, and that draws.
            console = Console(stderr=True)
            self._live = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._streams = sys.stdout, sys.stderr
            sys.stderr = _Above(console, sys.stderr)
            if sys.stdout.isatty():
                sys.stdout = _Above(console, sys.stdout)
        self._live.update(table(self._lines), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was; also at exit, after Ctrl-C."""
        if self._live is not None:
            live, self._live = self._live, None
            sys.stdout, sys.stderr = self._streams
            live.stop()


class _Above(io.TextIOBase):
    """A standard stream whose lines are printed above the moving ones.

    rich has its own, which says no encoding: click, through which pyinfra prints, then writes past it.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # where rich itself goes on writing
        self._console = console
        self._unended = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.rich_proxied_file.encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return self.rich_proxied_file.errors or "strict"

    def write(self, text: str) -> int:
        *lines, self._unended = (self._unended + text).split("\n")
        if lines:
            self._console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)
        return len(text)

    def isatty(self) -> bool:
        return self.rich_proxied_file.isatty()

    def fileno(self) -> int:
        return self.rich_proxied_file.fileno()


def table(lines: Mapping[str, Working]) -> Table:
    made = Table.grid(padding=(0, 2), expand=False)
    for name in ("host", "what", "times", "detail"):
        made.add_column(
            name, no_wrap=True, overflow="ellipsis", justify="right" if name == "times" else "left"
        )
    for host in sorted(lines):
        working = lines[host]
        # Text, not markup: brackets in what hosts say are theirs
        made.add_row(Text(host, style="bold"), *map(_shown, (working.what, working.times, working.detail)))
    return made


def _shown(said: str) -> Text:
    return Text(printable(said))


def interactive(environment: Mapping[str, str], is_terminal: bool) -> bool:
    """Whether lines may move: on a terminal that can, with a person before it."""
    return is_terminal and environment.get("TERM", "dumb") != "dumb" and not environment.get("CI")


SCREEN = Screen(interactive(os.environ, sys.stderr.isatty()))
if SCREEN.interactive:
    os.environ["PYINFRA_PROGRESS"] = "off"  # pyinfra's own moving line would write into ours
    atexit.register(SCREEN.close)
