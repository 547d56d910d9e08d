"""Words of a host or a server, on their way to a terminal: every character shows, and none of them steers."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api import output
from rich.console import Console

from pyinfra_vllm import hearing
from pyinfra_vllm.asking import Answer
from pyinfra_vllm.errors import one_line
from pyinfra_vllm.printable import LONGEST, printable, printable_but_coloured, printable_lines
from pyinfra_vllm.report.page import environment
from pyinfra_vllm.report.plots import Span, timeline
from pyinfra_vllm.report.status import Row, rows
from pyinfra_vllm.report.tables import show_status

# Clears the screen, sets the title, answers back, hides text, turns its direction round, moves to the line's
# beginning.
HOSTILE = (
    "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x1b[6n", "\x1b[8mhidden", "\u202egnp.exe", "a\u200bb",
    "\r\x1b[K> ok", "\x08\x08", "\ufeff",
    "\u2066", "\U000e0041", "\x00", "\x7f", "\u2028", "\u3164", "\x1bP+q544e\x1b\\", "\x0b\x0c",
)  # fmt: skip


def steers(text: str) -> list[str]:
    """The characters of a text that do anything but show themselves."""
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


@given(st.text(st.characters()))
def test_any_text_is_printable(text: str) -> None:
    assert steers(printable(text)) == []
    assert set(steers(printable_lines(text))) <= {"\n"}
    assert steers(one_line(text)) == []
    printable(text).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_written_out(text: str) -> None:
    assert steers(printable(f"before{text}after")) == []
    assert printable(f"before{text}after").startswith("before")
    assert len(printable(text)) > len(text.strip("\n")) or text == "\u2028"


def test_text_of_people_stays_as_it_is() -> None:
    for text in ("Grüße aus 東京: ±5 % → “fine”", "combining e\u0301", "émoji 🚀"):
        assert printable(text) == text
    assert printable("two\nlines\tof it\r\n") == "two lines of it "


def test_a_long_line_is_cut_and_says_so() -> None:
    shown = printable("x" * 5_000_000)
    assert len(shown) < LONGEST + 40 and shown.endswith("... (5000000 characters)")
    assert len(printable("\x1b" * 5_000_000)) < 5 * LONGEST


def test_pyinfra_keeps_its_colours_and_gets_no_others() -> None:
    assert (
        printable_but_coloured("[\x1b[1mw1\x1b[0m] \x1b[31mno\x1b[0m")
        == "[\x1b[1mw1\x1b[0m] \x1b[31mno\x1b[0m"
    )
    for text in ("\x1b[8m", "\x1b[2J", "\x1b[38;5;16m", "\x1b[41m", "\x1b[1;8m"):
        assert "\x1b" not in printable_but_coloured(f"a{text}b")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    told = io.StringIO()
    logger = logging.getLogger("pyinfra")
    handler = logging.StreamHandler(told)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(output, "_echo", lambda message, **how: told.write(f"{message}\n"))
    hearing.guard()
    hearing.guard()
    return told


@pytest.mark.parametrize("text", HOSTILE)
def test_what_pyinfra_logs_and_echoes_is_printable(logged: io.StringIO, text: str) -> None:
    logging.getLogger("pyinfra").error(f"[w1] {text}")
    logging.getLogger("pyinfra").error("[w1] %s", text)
    output.echo(f"[w1] {text}", err=True)
    assert set(steers(logged.getvalue())) == {"\n"}
    assert logged.getvalue().count("[w1]") == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_and_the_page_show_what_a_host_said(text: str) -> None:
    row = Row("w1", f"[bold]{text}", model=text, problem=text, state="down")
    screen = io.StringIO()
    show_status(Console(file=screen, width=300, force_terminal=True, color_system=None), [row])
    assert set(steers(screen.getvalue())) <= {"\n"}
    page = environment().from_string("<p>{{ it }}</p>{{ spans | timeline }}")
    drawn = page.render(it=f"<b>{text}", spans=[Span(f"<b>{text}", 0.0, 1.0, text)])
    assert set(steers(drawn)) <= {"\n"} and "<b>" not in drawn
    assert steers(timeline([Span(text, 0.0, 1.0, "done")])) == []
    (told,) = rows([Answer("w1", problem=text)])
    assert json.loads(json.dumps(told.as_dict()))["problem"] == text  # JSON stays data
