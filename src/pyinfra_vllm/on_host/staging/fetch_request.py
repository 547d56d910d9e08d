"""The request to fetch a checkpoint: written by the control machine, read and checked here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..state import manifest
from ..state.status import RUN
from . import swarm
from .download import FetchError, Source, Wanted

CREDENTIAL = "hub-token"
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Request:
    """The files to fetch, the destination, and the file that shows the progress.

    part: the bytes to fetch from the Hub for all hosts of a swarm, and nothing else
    order: the swarm to fetch from, and to share with; then nobody else is asked
    shared: a folder of checkpoints that this host can read, asked before the Hub
    """

    root: Path
    source: Source
    files: tuple[Wanted, ...]
    status: Path
    lock: Path
    verify: bool = False
    part: swarm.Part | None = None
    order: swarm.Order | None = None
    shared: Path | None = None

    @property
    def directory(self) -> Path:
        return self.root / "checkpoints" / self.source.repo.replace("/", "--") / self.source.commit

    @property
    def partial(self) -> Path:
        return self.directory.with_name(self.source.commit + ".partial")

    @property
    def parts(self) -> Path:
        return self.partial / ".parts"

    @property
    def tree(self) -> Path:
        """The folder in which the hosts of a swarm share their pieces."""
        return self.parts / self.source.commit

    @property
    def purpose(self) -> str:
        return f"{self.source.repo} at {self.source.commit}"

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def read_request(path: Path) -> Request:
    """The request in a file.

    Raises FetchError for anything that could lead outside the checkpoint's directory.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        source = _source(content)
        files = tuple(_wanted(file) for file in content["files"])
        root = Path(content["root"])
        run = Path(content.get("run", RUN))
        key = str(content["key"])
        verify = bool(content.get("verify", False))
        part = swarm.part_of(content["part"]) if content.get("part") else None
        order = swarm.order_of(content["swarm"]) if content.get("swarm") else None
        shared = Path(content["shared"]) if content.get("shared") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())  # a key that nobody knows may hold a line break
        raise FetchError(f"{path} is no request to fetch: {type(error).__name__}: {why}") from error
    if not root.is_absolute() or ".." in root.parts:
        raise FetchError(f"root must be an absolute path, found {str(root)!r}")
    if shared and (not shared.is_absolute() or ".." in shared.parts):
        raise FetchError(f"shared must be an absolute path, found {str(shared)!r}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", key) or not files:
        raise FetchError(f"a request needs a plain key and at least one file, found key {key!r}")
    status, lock = run / f"fetch-{key}.json", run / f"fetch-{key}.lock"
    return Request(root, source, files, status, lock, verify, part, order, shared)


def _wanted(content: Mapping[str, Any]) -> Wanted:
    path, size = str(content["path"]), content["size"]
    if reason := manifest.unsafe(path):
        raise ValueError(f"the file name {path!r} {reason}; nothing was written")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{path} has the size {size!r}; nothing was written")
    sha256, blob_sha1 = content.get("sha256"), content.get("blob_sha1")
    if not _SHA256.fullmatch(str(sha256)) and not _COMMIT.fullmatch(str(blob_sha1)):
        raise ValueError(f"{path} has no content hash; nothing was written")
    return Wanted(path, size, sha256, blob_sha1)


def _source(content: Mapping[str, Any]) -> Source:
    repo, commit = str(content["repo"]), str(content["commit"])
    if not _REPOSITORY.fullmatch(repo) or not _COMMIT.fullmatch(commit):
        raise ValueError(f"no repository at a commit: {repo!r} at {commit!r}")
    given = {
        name: content[name]
        for name in ("parallel", "stall_s", "min_bytes_per_s", "attempts")
        if name in content
    }
    return Source(repo, commit, str(content["endpoint"]), str(content["python"]), _token(), **given)


def _token() -> str | None:
    """The Hub's token, from the credential that systemd hands to this unit alone."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, CREDENTIAL) if directory else None
    return path.read_text(encoding="utf-8").strip() or None if path and path.is_file() else None
