"""Which checkpoints are on this host, in what state, and which releases refer to them.

Reads only, and no content.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..state import manifest

PARTIAL = ".partial"


def checkpoints(root: Path) -> list[dict[str, Any]]:
    """Every checkpoint directory below `root`, complete or not, sorted by directory.

    `state` is complete, damaged (it was complete, and the file system says it changed) or partial. `bytes` is
    what it takes on the disk now. `referenced_by` lists the releases, as service/id, that serve from it.
    """
    references = referenced(root)
    found = []
    for directory in sorted((root / "checkpoints").glob("*/*")):
        commit = re.fullmatch(r"([0-9a-f]{40})(\.partial)?", directory.name)
        if commit and directory.is_dir() and not directory.is_symlink():
            complete = directory.with_name(commit.group(1))
            found.append(
                {
                    "directory": str(directory),
                    "name": directory.parent.name,
                    "commit": commit.group(1),
                    **_state(directory),
                    "bytes": used_bytes(directory),
                    "referenced_by": references.get(os.path.realpath(complete), []),
                }
            )
    return found


def _state(directory: Path) -> dict[str, Any]:
    if directory.name.endswith(PARTIAL) or not manifest.is_marked(directory):
        return {"state": "partial", "problems": []}
    problems = manifest.quick_check(directory)
    return {"state": "damaged" if problems else "complete", "problems": problems[:20]}


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
    json.dump(checkpoints(Path(argv[0])), sys.stdout)
    return 0
