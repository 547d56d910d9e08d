"""Makes text from elsewhere safe to print: it must not steer the operator's terminal.

The one home of that rule. Every path to a person's eyes goes through it: pyinfra's log (hearing.py), tables,
lines and the report. JSON stays data: its own escapes are safe on a terminal.
"""

from __future__ import annotations

import re

LONGEST = 2000  # characters of one line; a longer one says how much was left out
LONGEST_LOGGED = 20_000  # pyinfra's debug log has whole programs in one line
# Invisible though Unicode does not call them control or format characters (Default_Ignorable_Code_Point, and
# blanks).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_COLOUR = re.compile(r"(\x1b\[(?:[01]|3[0-7])?(?:;(?:[01]|3[0-7]))*m)")  # what pyinfra itself writes
_BREAKS = re.compile(r"\r?\n|\t")


def printable(text: object, longest: int = LONGEST) -> str:
    """One line in which controls, escapes, bidi overrides and invisible characters are written out."""
    line = _BREAKS.sub(" ", str(text)[: 4 * longest])
    if not line.isprintable() or _INVISIBLE.search(line):
        line = "".join(map(_visible, line))
    whole = len(str(text))
    if whole <= longest and len(line) <= 4 * longest:
        return line
    return f"{line[:longest]}... ({whole} characters)"


def printable_lines(text: object, longest: int = LONGEST) -> str:
    """The same for a text of several lines, which keeps its line breaks."""
    return "\n".join(printable(line, longest) for line in str(text).split("\n"))


def printable_but_coloured(text: object) -> str:
    """The same for what pyinfra logs, which may set the eight plain colours and bold, and nothing else."""
    parts = _COLOUR.split(str(text))
    return "".join(
        part if number % 2 else printable_lines(part, LONGEST_LOGGED) for number, part in enumerate(parts)
    )


def _visible(character: str) -> str:
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    return ascii(character)[1:-1]
