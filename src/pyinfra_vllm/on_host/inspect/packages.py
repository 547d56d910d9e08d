"""Whether what was installed into a venv is still there, by the lists that pip and uv leave. Reads only."""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
BYTE_CODE = "__pycache__/"  # Python writes it anew


@dataclass(frozen=True)
class Installed:
    """A file of a package, as its RECORD lists it (PEP 376, PEP 627)."""

    path: Path
    sha256: str  # URL-safe base64 without padding; empty where the list has none
    size: int | None


def problems(venv: Path, deep: bool = False, most: int = 5) -> list[str]:
    """Files that are missing or were emptied, the first `most` of them; with `deep` also changed ones.

    Without it a changed file is no problem: somebody may have a reason to change one.
    """
    found = []
    for file in _installed(venv):
        problem = _problem(file, deep)
        if problem:
            found.append(f"{file.path} {problem}")
            if len(found) == most:
                break
    return found


def _installed(venv: Path) -> Iterator[Installed]:
    for record in sorted(venv.glob("lib/python3*/site-packages/*.dist-info/RECORD")):
        packages = record.parents[1]
        with record.open(encoding="utf-8", newline="") as lines:
            for path, digest, size, *_ in (row for row in csv.reader(lines) if len(row) >= 3):
                if BYTE_CODE not in path:
                    sha256 = digest.partition("sha256=")[2]
                    yield Installed(packages / path, sha256, int(size) if size.isdigit() else None)


def _problem(file: Installed, deep: bool) -> str:
    try:
        size = file.path.stat().st_size
        if file.size and not size:
            return "is empty"
        if deep and file.sha256 and _digest(file.path) != file.sha256:
            return "has other content than was installed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return ""


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
