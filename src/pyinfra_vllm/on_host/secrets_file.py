"""Reads a service's `secrets.env` as systemd does: a variable a line, its value in double quotes."""

from __future__ import annotations

import re
from pathlib import Path

_ESCAPED = re.compile(r"\\(.)")


def read(path: Path) -> dict[str, str]:
    """Variables and their values; empty where there is no file. Holds secrets: never log it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name: _ESCAPED.sub(r"\1", value[1:-1]) for name, equals, value in pairs if equals}
