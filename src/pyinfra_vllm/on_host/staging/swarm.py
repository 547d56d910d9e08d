"""Shares a checkpoint with the other hosts of a rollout: a child process with libtorrent, watched here.

The child (`in_runtime/peer.py`) runs as a user of its own, who may write to one folder of the download and
nowhere else. A file from there is taken over only when nobody has it open for writing any more, and is
verified against the lock file like any other. A file that is missing or wrong is left
to the next source.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, cast

from ..state import durable
from ..state.paths import PEER_USER
from ..state.status import Status
from . import child, pieces
from .download import Download, FetchError, Source, Stretch, Verified, Wanted, Watch

QUIET_S = 30.0  # with no host connected that lacks something, sharing ends after so long
# A minute, and as long as all takes at 2 MiB/s, is the longest that reading what is here may take, and again
# that sharing may when all is here.
SHORTEST_S, SLOWEST = 60.0, 2 << 20
RECORD = "part.json"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """The bytes that this host fetches from the Hub for all: from `begin` to before `end`."""

    begin: int
    end: int
    piece: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or self.piece < pieces.SMALLEST_PIECE or self.begin % self.piece:
            raise ValueError(f"no part of a checkpoint: {self}")


@dataclass(frozen=True)
class Order:
    """Whom to share with, and the hash of each piece.

    peers: address and port of each other host; nobody else is talked to
    bytes_per_s: at most so many in each direction; None: no limit
    """

    python: str
    piece: int
    hashes: str
    address: str
    port: int
    peers: tuple[tuple[str, int], ...]
    bytes_per_s: int | None = None
    stall_s: float = 60.0
    min_bytes_per_s: float = 64 * 1024
    quiet_s: float = QUIET_S
    user: str = PEER_USER
    endpoint: str = "the swarm of the other hosts"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([0-9a-f]{40})+", self.hashes) or self.piece < pieces.SMALLEST_PIECE:
            raise ValueError("the hashes of the pieces are none")
        if not self.peers:
            raise ValueError("no other host to share with")


def python_with_libtorrent(pythons: Sequence[str]) -> str | None:
    """The first of these that can import it."""
    for python in pythons:
        with suppress(OSError, subprocess.SubprocessError):
            words = [python, "-I", "-c", "import libtorrent"]
            subprocess.run(words, check=True, capture_output=True, timeout=20)
            return python
    return None


def part_of(content: Mapping[str, Any]) -> Part:
    """The part in a request. Raises ValueError, TypeError or KeyError where it is none, as `order_of`."""
    return Part(*(_whole(content[name]) for name in ("begin", "end", "piece")))


def order_of(content: Mapping[str, Any]) -> Order:
    peers = tuple((str(address), _whole(port)) for address, port in content["peers"])
    for name in ("piece", "port"):
        _whole(content[name])
    return Order(**{**content, "peers": peers})


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"no whole number: {value!r}")
    return value


def fetch_part(
    part: Part, files: Sequence[Wanted], tree: Path, source: Source, parts: Path, progress: Progress
) -> str:
    """Have this host's part in `tree`, from the Hub, and return the hashes of its pieces.

    What an earlier run left is used where it still has the hashes that were noted then.
    """
    recorded = _recorded(parts / RECORD)
    if recorded.get("part") == vars(part) and recorded["hashes"] == _hashes(tree, files, part):
        return str(recorded["hashes"])
    sizes = {file.path: file.size for file in files}
    wanted = [
        Stretch(span.path, span.end - span.start, start=span.start)
        for span in pieces.spans(files, part.begin, part.end)
    ]

    def keep(file: Wanted, fetched: Path, _: str) -> None:
        _lay(cast(Stretch, file), fetched, tree / file.path, sizes[file.path])

    Download(source, parts, keep, progress).run(cast("list[Wanted]", wanted))
    hashes = "".join(pieces.hashes(tree, files, part.begin, part.end, part.piece))
    durable.write_json(parts / RECORD, {"part": vars(part), "hashes": hashes})
    return hashes


def _recorded(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "hashes" in content else {}


def _hashes(tree: Path, files: Sequence[Wanted], part: Part) -> str | None:
    try:
        return "".join(pieces.hashes(tree, files, part.begin, part.end, part.piece))
    except OSError:
        return None


def _lay(stretch: Stretch, fetched: Path, target: Path, size: int) -> None:
    """Put the bytes in their place of the file that is shared, which has its full size from the start."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b") as file, fetched.open("rb") as source:
        file.truncate(size)
        file.seek(stretch.start)
        shutil.copyfileobj(source, file, 8 << 20)
    fetched.unlink()


def keep_right(tree: Path, files: Sequence[Wanted], verified: Verified, status: Status) -> list[str]:
    """Hand on each file of the tree whose content is right; the paths of the others.

    Where the peers' user may still have it open for writing, a copy is handed on.
    """
    wrong = []
    for file in files:
        path, sha256 = tree / file.path, None
        if _taken_over(tree, file.path):
            status.say("checking", f"reading {file.path} ({file.size} bytes)")
            if _has_no_writer(path):
                sha256 = file.is_content_of(path)
            else:
                path, shared = tree.parent / "copy", path
                sha256 = file.copied(shared, path)
        if sha256 is None:
            wrong.append(file.path)
        else:
            verified(file, path, sha256)
    return wrong


class Swarm:
    """The other hosts as a source. `run` leaves in `verified` what came and is right."""

    def __init__(self, order: Order, tree: Path, all_files: Sequence[Wanted], status: Status) -> None:
        self.order = order
        self.tree = tree
        self.files = all_files
        self.status = status

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def longest_s(self) -> float:
        return SHORTEST_S + self.total / SLOWEST

    def run(self, todo: list[Wanted], verified: Verified, progress: Progress) -> str:
        """Fetch and share, then hand on each file whose content is right. Returns why others did not come."""
        self.tree.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.tree.parent.chmod(0o711)  # its user goes through, and sees nothing of the rest
        reason = self._take_part(complete=False, progress=progress)
        wrong = keep_right(self.tree, todo, verified, self.status)
        if wrong:
            return reason or f"{wrong[0]} has other content than the lock file states"
        if reason:
            self.status.say("sharing", f"all of it is here; {reason}")
        return ""

    def serve(self) -> str:
        """Share a checkpoint that is complete, until nobody told of lacks anything."""
        return self._take_part(complete=True, progress=lambda here: None)

    def _take_part(self, *, complete: bool, progress: Progress) -> str:
        """Why sharing ended before this host had everything; empty where it has."""
        watch, whole, garbage, listening = Watch(self.order), False, 0, True
        spoke = since = time.monotonic()  # since: it began, or this host had all
        try:
            with child.told(
                self.order.python,
                "peer.py",
                "libtorrent",
                self._told(complete=complete),
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
                cwd="/",
                **self._as_user(complete=complete),
            ) as events:
                for event in events:
                    now = time.monotonic()
                    if event is None:
                        if now - spoke > self.order.stall_s:
                            raise FetchError(f"the child that shares it said nothing for {now - spoke:.0f} s")
                        continue
                    spoke = now
                    if "error" in event:
                        return str(event["error"])[:400]
                    garbage = max(garbage, _number(event, "garbage"))
                    listening = event.get("listening") is not False
                    if event.get("whole") is True and not whole:
                        whole, since = True, now
                    if whole:
                        self.status.write("sharing", message=_sharing(event))
                        if now - since > self.longest_s + self.order.stall_s:  # it ends by itself before
                            raise FetchError(f"sharing did not end by itself for {now - since:.0f} s")
                        continue
                    here = min(_number(event, "bytes"), self.total)
                    progress(here)
                    if event.get("checking") is True and now - since < self.longest_s:
                        watch.restart()
                    watch.check(here)
        except FetchError as error:
            return str(error)
        finally:
            if garbage:
                self.status.say("sharing", f"{garbage} bytes of other content came from others; thrown away")
            if not listening:
                self.status.say("sharing", f"nobody can listen on {self.order.address}:{self.order.port}")
        return "" if whole else "the other hosts had not all of it"

    def _as_user(self, *, complete: bool) -> dict[str, Any]:
        """How to start the child as its user, to whom the tree is given; what is complete is only read."""
        if os.geteuid() != 0:
            return {}
        try:
            user = pwd.getpwnam(self.order.user)
        except KeyError:
            raise FetchError(f"this host has no user {self.order.user}, who talks to other hosts") from None
        if not complete:
            # root's first, whoever left them: then no link can take the place of a folder on the way
            here = [self.tree / file.path for file in self.files if _taken_over(self.tree, file.path)]
            folders = {self.tree / parent for file in self.files for parent in Path(file.path).parents}
            there = (folder for folder in folders if folder.is_dir() and not folder.is_symlink())
            for path in (*here, *sorted(there, key=lambda folder: -len(folder.parts))):
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _told(self, *, complete: bool) -> dict[str, object]:
        """The child's order."""
        return {
            "directory": str(self.tree.parent),
            "name": self.tree.name,
            "files": [{"path": file.path, "size": file.size} for file in self.files],
            "piece_bytes": self.order.piece,
            "pieces": self.order.hashes,
            "address": self.order.address,
            "port": self.order.port,
            "peers": self.order.peers,
            "bytes_per_s": self.order.bytes_per_s,
            "complete": complete,
            "quiet_s": self.order.quiet_s,
            "longest_s": self.longest_s,
        }


def _number(event: Mapping[str, object], name: str) -> int:
    """A number that the child tells; it listens to other hosts, so it is not believed to tell any."""
    value = event.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _sharing(event: Mapping[str, object]) -> str:
    lacking, connected = _number(event, "lacking"), _number(event, "connected")
    return f"has all of it; {lacking} of {connected} connected hosts still lack some"


def reclaim(tree: Path, files: Sequence[Wanted]) -> None:
    """Make root's what an earlier run left of these files; where anything leads elsewhere, all of it goes.

    The peers' user could leave links, files with a second name and pipes there, and root writes to it next.
    """
    try:
        for file in files:
            with suppress(FileNotFoundError):
                _take_over(tree, file.path)
    except OSError:
        shutil.rmtree(tree)


def _taken_over(tree: Path, path: str) -> bool:
    """Whether there is such a file; it is root's then (_take_over)."""
    try:
        _take_over(tree, path)
    except OSError:
        return False
    return True


def _take_over(tree: Path, path: str) -> None:
    """Make a file that the peers' user left root's, and the folders above it.

    Nobody else can open it for writing from then on. Each folder is opened in its turn, so that a link put in
    its place leads nowhere. Raises FileNotFoundError where it is not there, another OSError where it is not a
    file of one name, or a link is on the way.
    """
    folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _make_roots(folder, 0o755)
        *above, name = path.split("/")
        for part in above:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
            _make_roots(folder, 0o755)
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(f"{path} is not a file of one name")
        _make_roots(file, 0o644)
    finally:
        os.close(file)


def _make_roots(descriptor: int, mode: int) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, 0, 0)
    os.fchmod(descriptor, mode)


def _has_no_writer(path: Path) -> bool:
    """Whether no process has the file open for writing: the kernel gives a read lease only then."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # there is one, or this file system has no leases
        return False
    finally:
        os.close(file)
    return True
