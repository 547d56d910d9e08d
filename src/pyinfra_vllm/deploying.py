"""Runs the project's deploy.py by pyinfra, with the words that a person would type."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import DeclarationError

DEPLOY = "deploy.py"

Run = Callable[[Sequence[str]], int]


def command(
    inventory: str, limit: Sequence[str], group_data: Sequence[str], data: Mapping[str, object]
) -> list[str]:
    """The command line. Raises DeclarationError where deploy.py or pyinfra is missing.

    + data: what holds for this run only, as `--data`
    """
    need_deploy()
    limits = [word for host in limit for word in ("--limit", host)]
    beyond = [word for path in group_data for word in ("--group-data", path)]
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in data.items()}
    given = [word for name, value in values.items() for word in ("--data", f"{name}={value}")]
    return [_program("pyinfra"), inventory, DEPLOY, "-y", *limits, *beyond, *given]


def need_deploy() -> None:
    """Raise DeclarationError outside of a project's directory."""
    if not Path(DEPLOY).is_file():
        raise DeclarationError(f"There is no {DEPLOY} in {Path.cwd()}: run in the project's directory.")


def run(words: Sequence[str]) -> int:
    """Its exit code, 1 where a signal ended it. Its output is progress, not our result: it goes to stderr,
    and under systemd to the journal.
    """
    code = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
    return code if code >= 0 else 1


def _program(name: str) -> str:
    """The program of this very environment, else whatever PATH has."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise DeclarationError(f"{name} is neither beside {sys.executable} nor in PATH; install it there.")
    return found
