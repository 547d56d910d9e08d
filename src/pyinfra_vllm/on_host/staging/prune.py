"""Frees what nothing on this host needs any more: shows it first, deletes it when told to.

Kept are the releases that run, ran before or wait to be switched to, what the operator pins, and whatever a
kept release refers to. Everything else that this program brought goes: releases, checkpoints, runtimes,
downloads that were given up. A thing is renamed to a name that nobody looks for before its content is
removed, so after a crash it is there whole or not at all, and the next prune removes the rest. Nothing is
followed through a link, and nothing outside the root is touched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..inspect.checkpoints import PARTIAL, used_bytes
from ..inspect.runtime import BUILDING, CACHE, RECORD
from ..server import release as releases
from ..server.hooks import RELEASE
from ..state import durable, journal, lock
from ..state.paths import ServicePaths, services
from ..state.status import RUN
from ..state.transactions import newest as newest_transaction

GONE = ".pruned"  # what is on its way out is called `.NAME.pruned`, beside where it was
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Keep:
    """The names that the control machine wants kept.

    releases: as service/id; checkpoints: as org--name/commit; runtimes: directory names
    """

    releases: frozenset[str] = frozenset()
    checkpoints: frozenset[str] = frozenset()
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Item:
    """A thing that can go (release, checkpoint, runtime, download, leftover) and its bytes on the disk."""

    kind: str
    path: Path
    bytes: int


def prune(root: Path, keep: Keep, operator: str, run: Path = RUN) -> list[Item]:
    """Delete what `prunable` lists, and return it. Raises lock.Held, with nothing touched, where a switch, a
    download or an installation is under way.
    """
    with ExitStack() as locks:
        locks.enter_context(lock.exclusive(lock.storage(run), operator, "pruning"))
        for paths in services(root):
            locks.enter_context(lock.exclusive(paths.lock, operator, "pruning"))
        items = prunable(root, keep)
        for item in items:
            remove(item.path)
    return items


def prunable(root: Path, keep: Keep) -> list[Item]:
    """The items that may be removed, releases first.

    Changes nothing. Raises NotReady for a release that can't be read: it may need anything.
    """
    found, kept = [], []
    for paths in services(root):
        stays = _stays(paths, keep)
        ours = [] if paths.directory.is_symlink() else _folders(paths.releases)
        for directory in sorted(paths.releases.iterdir()):
            if directory.name in stays or directory not in ours:
                kept.append(releases.load(paths, directory.name))
            else:
                found.append(_item("leftover" if directory.name.startswith(".") else "release", directory))
    checkpoints = {release.checkpoint.resolve() for release in kept}
    runtimes = {Path(release.document["runtime"]["path"]).resolve() for release in kept}
    found += _checkpoints(root / "checkpoints", checkpoints, keep.checkpoints)
    found += _runtimes(root / "runtimes", runtimes, keep.runtimes)
    return found


def _stays(paths: ServicePaths, keep: Keep) -> set[str | None]:
    """The releases of a service that must stay: in use, the rollback target, both ends of an open switch,
    the one whose secrets its hooks take, waiting, pinned.
    """
    stays = {paths.linked(paths.current), paths.linked(paths.previous)}
    last = newest_transaction(journal.read(paths.journal))
    if last is not None and last.end is None:
        stays |= {entry.get(name) for entry in last.entries for name in ("from", "to")}
    stays.add(_named_by_hooks(paths))
    staged = [path for path in _folders(paths.releases) if not path.name.startswith(".")]
    newest = max(staged, key=lambda path: path.stat().st_mtime_ns, default=None)
    stays.add(newest.name if newest else None)
    return stays | {name.partition("/")[2] for name in keep.releases if name.startswith(f"{paths.name}/")}


def _named_by_hooks(paths: ServicePaths) -> str | None:
    """The release whose secrets the hooks take, also in the recovery of another one."""
    try:
        declared = durable.read_json(paths.hooks, {})
    except ValueError as error:
        raise releases.NotReady(str(error)) from error
    return declared.get(RELEASE) if isinstance(declared, dict) else None


def _checkpoints(place: Path, referenced: set[Path], pinned: frozenset[str]) -> Iterator[Item]:
    for repository in _folders(place):
        for directory in _folders(repository):
            commit = directory.name.removesuffix(PARTIAL)
            complete = repository / commit
            if directory.name.startswith(".") and directory.name.endswith(GONE):
                yield _item("leftover", directory)
            elif _COMMIT.fullmatch(commit) and not (
                complete.resolve() in referenced or f"{repository.name}/{commit}" in pinned
            ):
                yield _item("download" if directory.name.endswith(PARTIAL) else "checkpoint", directory)


def _runtimes(place: Path, referenced: set[Path], pinned: frozenset[str]) -> Iterator[Item]:
    for directory in _folders(place):
        name, resolved = directory.name, directory.resolve()
        if name in pinned or any(resolved == path or resolved in path.parents for path in referenced):
            continue  # whatever it is called: `runtime.path` may lie anywhere
        # The cache of an installation that was killed, or what a prune left.
        if name.startswith(CACHE) or (name.startswith(".") and name.endswith(GONE)):
            yield _item("leftover", directory)
        elif (directory / RECORD).is_file() or (directory / BUILDING).is_file():
            yield _item("runtime", directory)


def _folders(place: Path) -> list[Path]:
    """The directories in `place`, sorted; none where it is a link, as what that points to is not ours."""
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink())


def _item(kind: str, directory: Path) -> Item:
    return Item(kind, directory, used_bytes(directory))


def remove(directory: Path) -> None:
    """Make it disappear in one step, then free its space; and an empty folder above a checkpoint."""
    doomed = directory
    if not directory.name.endswith(GONE):
        doomed = directory.with_name(f".{directory.name.lstrip('.')}{GONE}")
        if doomed.exists():
            _free(doomed)
        directory.rename(doomed)
        durable.sync_directory(directory.parent)
    _free(doomed)
    if directory.parent.parent.name == "checkpoints" and not any(directory.parent.iterdir()):
        directory.parent.rmdir()


def _free(directory: Path) -> None:
    """Remove it with all that is in it, and follow no link. Raises OSError."""
    try:
        shutil.rmtree(directory)
    except (RecursionError, OSError):
        # Folders within folders beyond Python's limits, as a server can lay them in its cache.
        done = subprocess.run(
            ["rm", "-rf", "--one-file-system", "--", str(directory)], capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"{directory} could not be removed: {done.stderr.strip()[-300:]}") from None
