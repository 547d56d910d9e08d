"""Which checkpoints are on this host, in what state, and which releases refer to them.

Reads only, and no content.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..state import manifest

PARTIAL = ".partial"


@dataclass(frozen=True)
class Stored:
    """A checkpoint directory.

    state: complete, damaged (it was complete, and the file system says it changed) or partial
    bytes: that it takes on the disk now
    referenced_by: the releases, as service/id, that serve from it
    files: by path the hashes (sha256, and git's where it was recorded) of what was verified and is unchanged
    """

    directory: str
    name: str
    commit: str
    state: str
    problems: list[str]
    bytes: int
    referenced_by: list[str]
    files: dict[str, list[str]] = field(default_factory=dict)


def checkpoints(root: Path) -> list[Stored]:
    """Every checkpoint directory below `root`, complete or not, sorted by directory."""
    references = referenced(root)
    found = []
    for directory in sorted((root / "checkpoints").glob("*/*")):
        commit = re.fullmatch(r"([0-9a-f]{40})(\.partial)?", directory.name)
        if commit and directory.is_dir() and not directory.is_symlink():
            complete = directory.with_name(commit.group(1))
            state, problems = _state(directory)
            found.append(
                Stored(
                    directory=str(directory),
                    name=directory.parent.name,
                    commit=commit.group(1),
                    state=state,
                    problems=problems,
                    bytes=used_bytes(directory),
                    referenced_by=references.get(os.path.realpath(complete), []),
                    files={
                        path: [*filter(None, (entry.sha256, entry.blob_sha1))]
                        for path, entry in manifest.unchanged(directory).items()
                    },
                )
            )
    return found


def _state(directory: Path) -> tuple[str, list[str]]:
    if directory.name.endswith(PARTIAL) or not manifest.is_marked(directory):
        return "partial", []
    problems = manifest.quick_check(directory)
    return "damaged" if problems else "complete", problems[:20]


def used_bytes(directory: Path) -> int:
    """The bytes that all files below take on the disk (a sparse or shared file counts what it occupies)."""
    total, folders = 0, [str(directory)]
    while folders:  # no recursion: a server can lay folders within folders in its cache without end
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a fetch that is under way renames its files
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def referenced(root: Path) -> dict[str, list[str]]:
    """Checkpoint directory to the releases that name it.

    A release that can't be read is an error, not no reference.
    """
    references: dict[str, list[str]] = {}
    for path in sorted(root.glob("*/releases/*/release.json")):
        directory = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]["directory"]
        name = f"{path.parts[-4]}/{path.parts[-2]}"
        references.setdefault(os.path.realpath(directory), []).append(name)
    return references


def main(argv: list[str]) -> int:
    json.dump(list(map(asdict, checkpoints(Path(argv[0])))), sys.stdout)
    return 0
