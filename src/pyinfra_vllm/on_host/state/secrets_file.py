"""Reads a release's `secrets.env` as systemd does: a variable a line, its value in double quotes."""

from __future__ import annotations

import re
from pathlib import Path

_ESCAPED = re.compile(r"\\(.)")


def read(path: Path) -> dict[str, str]:
    """Variables and their values; empty where there is no file. Holds secrets: never log it.

    A line ends at a line feed and nowhere else, and one that is not UTF-8 is ignored, as systemd does.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    pairs = (line.decode("utf-8").partition("=") for line in lines if _is_text(line))
    return {name: _ESCAPED.sub(r"\1", value[1:-1]) for name, equals, value in pairs if equals}


def _is_text(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
