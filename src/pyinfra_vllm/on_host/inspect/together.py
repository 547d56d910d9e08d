"""Answers several questions of facts in one call. Reads only."""

from __future__ import annotations

import importlib
import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any


def answer(words: list[str]) -> str | None:
    """The output of main() of a module of on_host, named by [MODULE, ARGUMENT ...].

    None where it fails: asked alone, it tells the reason.
    """
    said = io.StringIO()
    try:
        module: Any = importlib.import_module(f"...{words[0]}", __name__)
        with redirect_stdout(said):
            status = module.main(words[1:])
    except Exception:
        return None
    return said.getvalue() if status == 0 else None


def main(argv: list[str]) -> int:
    """Prints a JSON list of answers. The argument is a JSON list of questions, each a list of words."""
    json.dump([answer(words) for words in json.loads(argv[0])], sys.stdout)
    return 0
