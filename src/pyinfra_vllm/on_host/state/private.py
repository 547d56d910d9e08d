"""At installation, makes files private to root that an earlier version left readable for everybody."""

from __future__ import annotations

from pathlib import Path

from . import durable, lock
from .paths import UNITS, ServicePaths, services
from .status import RUN


def tighten(root: Path, units: Path = UNITS, run: Path = RUN) -> None:
    """Records, log tails, answers and locks. Safe at any time and any number of times."""
    if run.is_dir():
        run.chmod(0o700)
    for path in (lock.storage(run), *(paths.lock for paths in services(root, units))):
        lock.tighten(path)
    for paths in services(root, units):
        for path in _records(paths):
            if not path.is_symlink():
                path.chmod(0o700 if path.is_dir() else durable.PRIVATE)


def _records(paths: ServicePaths) -> list[Path]:
    """The files with log tails, answers, reasons and hooks; a folder comes before its content."""
    files = [paths.journal, paths.rejected, paths.noise, paths.hooks]
    folders = [paths.evidence, *sorted(paths.evidence.rglob("*"))] if paths.evidence.is_dir() else []
    return [path for path in files if path.exists()] + folders
