"""The operator's screen: one line a host that moves in place on a terminal, elsewhere a line a minute at
most.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pyinfra_vllm.operations.util.screen import LINE_EVERY_S, Screen, Working, interactive
from pyinfra_vllm.text import clock

HOST: Any = SimpleNamespace(name="gpu1", print_prefix="[gpu1] ")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("pyinfra"), "info", said.append)
    return said


def test_without_a_terminal_waiting_is_a_line_a_minute(lines: list[str]) -> None:
    now = [0.0]
    screen = Screen(False, lambda: now[0])
    with screen.following(HOST) as show:
        for second in range(200):
            now[0] = float(second)
            show(Working("chat: wait for tokens", second, 240.0, "as before"))
    assert len(lines) == 200 // LINE_EVERY_S
    assert lines[0] == "[gpu1] chat: wait for tokens: 1:00 of 4:00, as before"


def test_what_a_host_says_can_not_steer_the_terminal(lines: list[str]) -> None:
    now = [0.0]
    with Screen(False, lambda: now[0]).following(HOST) as show:
        now[0] = LINE_EVERY_S
        show(Working("download org/model", 60, None, "\x1b[2Jgone\r"))
    assert len(lines) == 1 and "\x1b" not in lines[0] and "\r" not in lines[0]


def test_a_step_shorter_than_a_minute_says_nothing_without_a_terminal(lines: list[str]) -> None:
    now = [0.0]
    screen = Screen(False, lambda: now[0])
    for begun in (0.0, 50.0, 100.0):
        with screen.following(HOST) as show:
            now[0] = begun + 49
            show(Working("download org/model", 49))
    assert lines == []


LONG = "  c8 e2e_s: worse: 1 before, 2 after, the limit is 1.050"
WRAPPED = ["  c8 e2e_s: worse: 1 before, 2 after, the", "      limit is 1.050"]


@pytest.mark.parametrize(
    ("terminal", "columns", "told"), [(True, 58, WRAPPED), (True, 56, [LONG]), (False, 58, [LONG])]
)
def test_a_long_text_is_wrapped_on_a_terminal_that_is_wide_enough(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, columns: int, told: list[str]
) -> None:
    """The prefix has 13 columns and pyinfra's log 4, so 41 or 39 are left."""
    monkeypatch.setenv("COLUMNS", str(columns))
    prefix = "[\x1b[1mgpu1\x1b[0m] chat: "
    assert Screen(terminal).lines(prefix, LONG) == [prefix + line for line in told]


@pytest.mark.parametrize(
    ("environment", "terminal", "moves"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "CI": "true"}, True, False),
    ],
)
def test_lines_move_on_a_terminal_alone(environment: dict[str, str], terminal: bool, moves: bool) -> None:
    assert interactive(environment, terminal) is moves


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (7, "0:07"), (750, "12:30"), (3900, "1:05:00"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# In a real pseudo terminal, with pyinfra's own logging and spinner and three hosts in its greenlets.

PROGRAM = """
    import sys
    import pyinfra_cli.main, pyinfra_cli.log, pyinfra_cli  # as the command does: greenlets, click, logging
    import logging, signal, click, gevent, time
    from types import SimpleNamespace
    import pyinfra
    from pyinfra import logger
    from pyinfra.progress import progress_spinner
    import pyinfra.progress
    from pyinfra_vllm.operations.util.screen import SCREEN, Working

    pyinfra_cli.log.setup_logging(logging.INFO)
    pyinfra.progress.is_output_active = lambda: True

    def interrupted(number, frame):
        click.echo("Exiting upon user request!")
        sys.exit(0)

    signal.signal(signal.SIGINT, interrupted)

    def work(name):
        host = SimpleNamespace(name=name, print_prefix=f"[{name}] ")
        with SCREEN.following(host) as show:
            for second in range(int(sys.argv[1])):
                show(Working("chat: wait for tokens", second, 240.0, "[bold]far"))
                if second == 3:
                    logger.info(f"[{name}] news: " + "x" * 20)
                    click.echo(f"[{name}] on standard output")
                time.sleep(0.1)
        logger.info(f"[{name}] done")

    with progress_spinner({"a", "b"}) as progress:
        gevent.joinall([gevent.spawn(work, name) for name in ("gpu1", "gpu2", "gpu3")])
    logger.info("the end")
"""


class Terminal:
    """The rows on a terminal, by the escapes that rich writes: lines, up, erase, cursor on and off."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self.row = self.column = 0
        self.cursor = True
        self.coloured = False
        self.most = 0  # moving lines at one time
        self.scrolled: set[str] = set()

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]|\x1b", text):
            if part.startswith("\x1b["):
                self._control(part)
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            else:
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1
        self.most = max(self.most, sum("wait for tokens" in row for row in self.rows))

    def _control(self, part: str) -> None:
        if part.endswith("A"):
            self.row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            self.rows[self.row] = ""
        elif part == "\x1b[K":
            self.rows[self.row] = self.rows[self.row][: self.column]
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor = part.endswith("h")
        elif part.endswith("m"):
            self.coloured = self.coloured or re.search(r"[34]\d", part) is not None
        else:
            raise AssertionError(f"this test's terminal does not know {part!r}")

    @property
    def seen(self) -> list[str]:
        return [row.strip() for row in self.rows if row.strip()]


def on_a_terminal(seconds: int, interrupt_after_s: float | None = None, **environment: str) -> Terminal:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seconds)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # a person's terminal, also where these tests themselves run in CI
        env={**os.environ, "CI": "", "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    terminal = Terminal()
    began = None
    while True:
        try:
            text = os.read(ours, 65536).decode()
        except OSError:  # how a pseudo terminal says that nobody writes any more
            break
        terminal.feed(text)
        began = began or (time.monotonic() if "gpu3" in text else None)
        if interrupt_after_s is not None and began and time.monotonic() - began > interrupt_after_s:
            process.send_signal(signal.SIGINT)
            interrupt_after_s = None
    os.close(ours)
    process.wait(30)
    return terminal


@pytest.mark.thorough
def test_lines_move_in_place_and_news_scrolls_above_them() -> None:
    terminal = on_a_terminal(12)
    assert terminal.most == 3, "one line a host"
    assert terminal.cursor, "the cursor is back"
    for name in ("gpu1", "gpu2", "gpu3"):
        assert [row for row in terminal.seen if row.startswith(f"[{name}]")] == [
            f"[{name}] news: {'x' * 20}",
            f"[{name}] on standard output",
            f"[{name}] done",
        ]
    assert terminal.seen[-1] == "the end" and len(terminal.seen) == 10, terminal.seen


@pytest.mark.thorough
def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    terminal = on_a_terminal(300, interrupt_after_s=1.0)
    assert terminal.cursor and "Exiting upon user request!" in terminal.seen, terminal.seen
    assert not any("wait for tokens" in row for row in terminal.seen)


@pytest.mark.thorough
def test_no_color_is_respected() -> None:
    assert not on_a_terminal(6, NO_COLOR="1").coloured


@pytest.mark.thorough
def test_a_dumb_terminal_gets_plain_lines() -> None:
    terminal = on_a_terminal(6, TERM="dumb", PYINFRA_PROGRESS="off")
    assert terminal.most == 0 and len(terminal.seen) == 10
