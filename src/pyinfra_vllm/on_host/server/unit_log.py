"""A unit's log by the journal's own fields: which start a line belongs to; bounded, whatever is written.

A server's lines are not to be trusted: what a client sends is quoted in them. So a line ends where the
journal's entry ends, not where its text breaks, and of a start only what came before the server took requests
counts (`before_requests`).
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from ..state import running

LONGEST_LINE = 16_384  # characters; vLLM's own longest, its configuration, has about 4,000
HEAD_BYTES, TAIL_BYTES = 1 << 20, 3 << 20  # of a log that is kept: how it began and how it ended
LONGEST_ENTRY = 1 << 20  # bytes of JSON; an entry beyond that is no line of a log
LIMIT_S = 120.0
FIELDS = "MESSAGE,_PID,_SYSTEMD_INVOCATION_ID,INVOCATION_ID"
SYSTEMD_PID = "1"
SYNC_S = 10.0
# uvicorn's and vLLM's words, all of them after the engine has started and before a request is read.
ACCEPTS = re.compile(
    r"Started server process \[\d+\]|Waiting for application startup|Application startup complete|Uvicorn"
    r" running on"
    r"|Starting vLLM (?:API )?server (?:\d+ )?on "
)
_BREAKS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True)
class Line:
    """One entry of the journal.

    `start` is systemd's name for the start whose process wrote it, or of which systemd itself tells; empty
    where the entry has none. `at` is its Unix time; None where the entry has none.
    """

    text: str
    start: str = ""
    at: float | None = None


class LogError(Exception):
    """The journal could not be read; the message has journalctl's own words."""


def lines(unit: str, cursor: str | None, newest: int | None = None) -> Iterator[Line]:
    """The unit's lines after the mark, oldest first; with `newest` only so many of them. Raises LogError."""
    # `--after-cursor` would skip the unit's first entry where the marked one is another unit's (systemd 252).
    after = [f"--cursor={cursor}"] if cursor else []
    some = [f"--lines={newest}"] if newest else []
    command = [
        "journalctl",
        "--quiet",
        "--no-pager",
        f"--unit={running.own_name(unit)}",
        "--all",
        "--output=json",
    ]
    command += [f"--output-fields={FIELDS}", *some, *after]
    _sync()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        overdue = threading.Timer(LIMIT_S, child.kill)
        overdue.start()
        try:
            marked = re.compile(rb'"__CURSOR"\s*:\s*' + re.escape(json.dumps(cursor).encode()))
            for entry in _entries(cast("IO[bytes]", child.stdout)):
                if not marked.search(entry):
                    yield from parsed(entry)
            said = cast("IO[bytes]", child.stderr).read(2000).decode("utf-8", "replace").strip()
            status = child.wait()
            # It exits with 1 and no word where nothing matches, which is an answer too.
            if status < 0 or (status and said):
                raise LogError(f"`{' '.join(command)}` exited with {status}: {said}")
        finally:
            overdue.cancel()
            child.kill()


def _sync() -> None:
    """Have journald write what it was told before now. Where it does not answer, what it wrote is read."""
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["journalctl", "--sync"], capture_output=True, timeout=SYNC_S, check=False)


def _entries(stream: IO[bytes]) -> Iterator[bytes]:
    """Whole lines of bounded length; what is longer is left out."""
    skipping = False
    while piece := stream.readline(LONGEST_ENTRY):
        whole = piece.endswith(b"\n")
        if whole and not skipping:
            yield piece
        skipping = not whole


def parsed(entry: bytes) -> list[Line]:
    """The line in one entry of `journalctl --output=json`; none where it has none."""
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError):
        return []
    text = _text(value.get("MESSAGE")) if isinstance(value, dict) else None
    if text is None:
        return []
    start = value.get("INVOCATION_ID" if value.get("_PID") == SYSTEMD_PID else "_SYSTEMD_INVOCATION_ID")
    line = _BREAKS.sub(" ", text[: LONGEST_LINE + 1])
    cut = f"{line[:LONGEST_LINE]}... ({len(text)} characters)" if len(text) > LONGEST_LINE else line
    return [Line(cut, start if isinstance(start, str) else "", _time(value.get("__REALTIME_TIMESTAMP")))]


def _time(microseconds: Any) -> float | None:
    digits = isinstance(microseconds, str) and microseconds.isascii() and microseconds.isdigit()
    return int(microseconds) / 1e6 if digits else None


def _text(message: Any) -> str | None:
    """Journalctl writes bytes that are no plain text, such as escapes, as a list of numbers."""
    if isinstance(message, list):
        try:
            return bytes(message).decode("utf-8", "replace")
        except (TypeError, ValueError):
            return None
    return message if isinstance(message, str) else None


def before_requests(found: Iterable[Line], start: str) -> list[str]:
    """The lines of one start up to where its server takes requests: clients may have written the rest.

    + start: systemd's name for it (InvocationID); empty where systemd does not say: every line counts
    """
    kept: list[str] = []
    size = 0
    for line in found:
        if start and line.start != start:
            continue
        kept.append(line.text)
        size += len(line.text)
        if ACCEPTS.search(line.text) or size > HEAD_BYTES + TAIL_BYTES:
            break
    return kept


def bounded(found: Iterable[str]) -> list[str]:
    """How a log began and how it ended, with a line that says how much is left out between."""
    head: list[str] = []
    tail: deque[str] = deque()
    began = ended = left_out = 0
    for line in found:
        if began + len(line) <= HEAD_BYTES and not tail:
            head.append(line)
            began += len(line) + 1
            continue
        tail.append(line)
        ended += len(line) + 1
        while ended > TAIL_BYTES:
            ended -= len(tail.popleft()) + 1
            left_out += 1
    said = [f"... {left_out} lines left out: this log had more than is kept ..."] if left_out else []
    return [*head, *said, *tail]
