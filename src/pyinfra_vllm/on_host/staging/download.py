"""Bytes from the Hub into part files: fetched by the runtime's own Hub client, which is watched here.

The Hub is not trusted: a file that grows past its locked size, a body that trickles, and content with another
hash all end in a FetchError. Nothing outside the directory of part files is written, and no checkpoint is
touched: `fetch` moves what was verified to where it belongs.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Protocol

from ..state import manifest
from ..state.task import TaskError
from . import child

PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
FINAL_STATUS = frozenset(range(400, 500)) - {408, 416, 425, 429}  # asking again will not help

COPIED_BYTES = 8 << 20  # at once


class FetchError(TaskError):
    """The checkpoint can't be had from this Hub now: the message is for the operator."""


class LyingHub(FetchError):
    """The Hub sent other content than the lock file states, twice: nothing unverified of it is kept."""


@dataclass(frozen=True)
class Wanted:
    """One file as the lock file states it: size in bytes, and one of the two content hashes."""

    path: str
    size: int
    sha256: str | None = None
    blob_sha1: str | None = None

    def is_content_of(self, path: Path) -> str | None:
        """The sha256 of the file's content if it is what the lock file states, else None."""
        if path.stat().st_size != self.size:
            return None
        if self.sha256 is None and manifest.hash_file(path, blob=True) != self.blob_sha1:
            return None
        sha256 = manifest.hash_file(path)
        return sha256 if self.sha256 in (None, sha256) else None

    def copied(self, source: Path, to: Path) -> str | None:
        """Copy a file that others may write to; its sha256 as `is_content_of`.

        Nothing is copied but a regular file of this size, and no more than that. A copy with other content is
        removed. Raises OSError, and leaves no copy then.
        """
        sha256 = None
        try:
            with open(source, "rb", opener=_at_once) as file:
                there = os.fstat(file.fileno())
                if not stat.S_ISREG(there.st_mode) or there.st_size != self.size:
                    return None
                with to.open("wb") as copy:
                    left = self.size
                    while left and (chunk := file.read(min(left, COPIED_BYTES))):
                        left -= copy.write(chunk)
            sha256 = self.is_content_of(to)
        finally:
            if sha256 is None:
                to.unlink(missing_ok=True)
        return sha256


@dataclass(frozen=True)
class Stretch(Wanted):
    """`size` bytes of a file from `start` on. Their hash is not known: the whole file's decides later."""

    start: int = 0

    def is_content_of(self, path: Path) -> str | None:
        return "" if path.stat().st_size == self.size else None


@dataclass(frozen=True)
class Source:
    """Where from and how: the Hub, the runtime whose client asks it, and how much patience it gets."""

    repo: str
    commit: str
    endpoint: str
    python: str
    token: str | None = field(default=None, repr=False)
    parallel: int = 4
    stall_s: float = 120.0
    min_bytes_per_s: float = 16 * 1024
    attempts: int = 4  # in vain; with the client's own retries about 40 s
    retry_s: float = 1.0


Verified = Callable[[Wanted, Path, str], None]
Progress = Callable[[int], None]


def _at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe in its place does not hold that up."""
    return os.open(path, flags | os.O_NONBLOCK)


class Download:
    """One download of several files into `parts`. `verified` gets each file whose content is right, once."""

    def __init__(self, source: Source, parts: Path, verified: Verified, progress: Progress) -> None:
        self.source = source
        self.parts = parts
        self.verified = verified
        self.progress = progress
        self.strikes: dict[str, str] = {}
        self.watch = Watch(source)

    def run(self, files: list[Wanted]) -> None:
        """Have every file verified, or raise FetchError. Bytes that are here already are not sent again."""
        todo = {file.path: file for file in files}
        fruitless = 0
        while todo:
            files_before, bytes_before, struck = len(todo), self.bytes_here(todo), len(self.strikes)
            try:
                errors = self._round(todo)
            except LyingHub:
                for path in todo:
                    self.part(path).unlink(missing_ok=True)
                raise
            if not todo:
                return
            came = len(todo) < files_before or self.bytes_here(todo) > bytes_before
            fruitless = 0 if came or len(self.strikes) > struck else fruitless + 1
            if fruitless >= self.source.attempts:
                raise FetchError(self._gave_up(errors))
            time.sleep(min(30.0, self.source.retry_s * 2**fruitless))

    def _gave_up(self, errors: list[str]) -> str:
        return (
            f"{self.source.endpoint} could not be reached for {self.source.repo}: no byte came in "
            f"{self.source.attempts} attempts ({errors[-1] if errors else 'the client ended without a word'})"
        )

    def part(self, path: str) -> Path:
        """A file's part file: its name depends on the path alone, so any later run goes on with it."""
        return self.parts / (hashlib.sha256(path.encode()).hexdigest()[:32] + ".part")

    def bytes_here(self, files: dict[str, Wanted]) -> int:
        return sum(self._size(path) for path in files)

    def _size(self, path: str) -> int:
        try:
            return self.part(path).lstat().st_size
        except FileNotFoundError:
            return 0

    def _round(self, todo: dict[str, Wanted]) -> list[str]:
        """One child for all that is left.

        Returns what it complained of; raises for what no repetition mends.
        """
        errors: list[str] = []
        with child.told(
            self.source.python,
            "hub_client.py",
            "the Hub client",
            self._order(todo),
            env=self._environment(),
            cwd=self.parts,
        ) as events:
            for event in events:
                if event is None:
                    here = self.bytes_here(todo)
                    self.progress(here)
                    self._check_sizes(todo)
                    self.watch.check(here)
                    continue
                file = todo.get(event.get("path", ""))
                if file is None:
                    errors.append(str(event.get("error", event)))
                    if event.get("kind") == "client":
                        raise FetchError(errors[-1])
                elif event["ok"]:
                    if self._accept(file):
                        del todo[file.path]
                    self.watch.restart()
                else:
                    errors.append(f"{file.path}: {event['error']}")
                    self._judge(file, event)
        return errors

    def _check_sizes(self, todo: dict[str, Wanted]) -> None:
        """The client is held to the sizes by itself; this holds whatever else that runtime may run."""
        for path, file in todo.items():
            if self._size(path) > file.size:
                self.part(path).unlink()
                raise FetchError(f"{path} grew past its {file.size} bytes")

    def _accept(self, file: Wanted) -> bool:
        """Hand on a whole file with the right content; remove a wrong one and fetch it once more."""
        part = self.part(file.path)
        sha256 = file.is_content_of(part)
        if sha256 is None:
            self._strike(file, "has other content than the lock file states")
            return False
        self.verified(file, part, sha256)
        return True

    def _judge(self, file: Wanted, event: Mapping[str, Any]) -> None:
        """Raise for what asking again will not mend; begin anew what can't be resumed."""
        kind, status = event["kind"], event["status"]
        if kind == "disk":
            raise FetchError(f"{file.path} could not be written: {event['error']}")
        if kind == "http" and status in FINAL_STATUS:
            hint = " (check the token and the repository's terms)" if status in (401, 403) else ""
            raise FetchError(f"{self.source.endpoint} refuses {file.path}{hint}: {event['error']}")
        if kind == "unranged":
            raise FetchError(f"{self.source.endpoint} sends no parts of files: {file.path}")
        if kind == "oversized":
            self._strike(file, f"is longer than its {file.size} bytes")
        elif kind == "inconsistent" or status == 416:
            self._strike(file, f"has not its {file.size} bytes")

    def _strike(self, file: Wanted, reason: str) -> None:
        """Remove what came.

        The first time it may be a resumed part gone wrong; the second time it is the Hub.
        """
        self.part(file.path).unlink(missing_ok=True)
        self.watch.restart()
        if file.path in self.strikes:
            raise LyingHub(
                f"{file.path} from {self.source.endpoint} {reason}, twice. It was removed. Either the Hub is"
                " not to be trusted or the lock file is wrong: run `pyinfra-vllm lock --check`."
            )
        self.strikes[file.path] = reason

    def _order(self, todo: dict[str, Wanted]) -> dict[str, object]:
        return {
            "repo": self.source.repo,
            "commit": self.source.commit,
            "endpoint": self.source.endpoint,
            "token": self.source.token,
            "parallel": self.source.parallel,
            "files": [
                {"path": f.path, "size": f.size, "part": str(self.part(f.path)), **_stretch(f)}
                for f in todo.values()
            ],
        }

    def _environment(self) -> dict[str, str]:
        """The client's environment, reduced to the variables it needs; the token comes by standard input."""
        passed = {
            name: os.environ[name]
            for upper in PASSED_ON
            for name in (upper, upper.lower())
            if name in os.environ
        }
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.parts),
            "HF_HOME": str(self.parts / "client"),
            "HF_ENDPOINT": self.source.endpoint,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            **passed,
        }


def _stretch(file: Wanted) -> dict[str, int]:
    """The extra key of a request for a part of a file; none for a whole file."""
    return {"start": file.start} if isinstance(file, Stretch) else {}


class Patience(Protocol):
    """How slow a source may be, and how it is called."""

    @property
    def endpoint(self) -> str: ...

    @property
    def stall_s(self) -> float: ...

    @property
    def min_bytes_per_s(self) -> float: ...


class Watch:
    """Ends a download that trickles: too few bytes in the last `stall_s` seconds."""

    def __init__(self, source: Patience) -> None:
        self.source = source
        self.restart()

    def restart(self) -> None:
        """Forget what came before: a file was finished, or the time went into checking one."""
        self.seen: deque[tuple[float, int]] = deque()

    def check(self, here: int) -> None:
        now = time.monotonic()
        self.seen.append((now, here))
        while len(self.seen) > 1 and self.seen[1][0] <= now - self.source.stall_s:
            self.seen.popleft()
        since, then = self.seen[0]
        came = here - then
        if now - since >= self.source.stall_s and came < self.source.min_bytes_per_s * self.source.stall_s:
            raise FetchError(
                f"{self.source.endpoint} sent {came} bytes in {now - since:.0f} s: less than "
                f"{self.source.min_bytes_per_s:.0f} bytes/s. Run again to go on from there"
            )
