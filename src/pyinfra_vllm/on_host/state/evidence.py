"""The record of one switch: what was released, what was measured, what was decided and what the log said."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import durable, journal
from .paths import ServicePaths

HOW_FAR = "~ "  # begins a line of progress that the next one replaces; every other line is news


class Evidence:
    """One folder per transaction (`tx` is its name), for root alone.

    It is written as the transaction goes, so that a killed one leaves what it knew.
    """

    def __init__(self, paths: ServicePaths, tx: str) -> None:
        self.paths = paths
        self.directory = _own(paths.evidence, tx)
        self.tx = self.directory.name
        self.progress = self.directory / "progress.log"

    def keep(self, name: str, value: Any) -> None:
        durable.write_json(self.directory / f"{name}.json", value)

    def keep_log(self, lines: list[str]) -> None:
        durable.write_text(self.directory / "service.log", "\n".join(lines) + "\n")

    def keep_release(self, release_id: str) -> None:
        documents = (self.paths.release(release_id) / "release.json", self.paths.rehearsal(release_id))
        for document in filter(Path.is_file, documents):
            durable.write_text(self.directory / document.name, document.read_text(encoding="utf-8"))

    def say(self, line: str) -> None:
        """Progress for whoever follows. Not fsynced, and told to the unit's own log where the disk is full:
        losing a line of it loses nothing, and a rollback must not fail on it.
        """
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = os.open(self.progress, flags, durable.PRIVATE)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{journal.now()} {line}\n")
        except OSError as error:
            print(f"{line} ({error})", file=sys.stderr, flush=True)

    def say_how_far(self, line: str) -> None:
        """How far the step is that is under way: shown while it lasts, kept for whoever asks afterwards."""
        self.say(HOW_FAR + line)

    def close(self, entries: list[journal.Entry]) -> None:
        seal(self.directory, entries)


def seal(directory: Path, entries: list[journal.Entry]) -> None:
    """Lay the transaction's journal beside what it measured, once it has ended."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    durable.write_text(directory / "journal.jsonl", "\n".join(lines) + "\n")


def _own(evidence: Path, tx: str) -> Path:
    """A new folder of that name, or the next free one: two switches can begin in one second."""
    evidence.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (tx, *(f"{tx}-{number}" for number in range(2, 1000))):
        with suppress(FileExistsError):
            (evidence / name).mkdir(mode=0o700)
            return evidence / name
    raise FileExistsError(f"{evidence} has too many folders named {tx}")
