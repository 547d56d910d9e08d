"""Have one checkpoint on this host: whole, verified against the lock file, readable by the service's user.

Runs as root in a transient systemd unit, from a request file that holds no secret (the Hub's token comes as a
systemd credential). Files that are right already are not fetched again: an interrupted download goes on, a
damaged file alone is replaced. A directory without `.complete` is never served from, and nothing outside this
checkpoint's own directory and its `.partial` neighbour is written.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable, cast

from ..state import durable, manifest, task
from ..state.status import Status
from . import pieces, swarm
from .download import Download, FetchError, LyingHub, Verified, Wanted
from .fetch_request import Request, read_request

STATUS_EVERY_S = 0.5
RATE_OVER_S = 20.0  # the rate shown is that of the last 20 s


def main(argv: list[str]) -> int:
    """Have the checkpoint that a request file names (see task.run)."""
    return task.run("fetch", argv, read_request, Progress, fetch)


def fetch(request: Request, status: Progress) -> None:
    """Bring the checkpoint to completion from whatever state it is in."""
    made, notes = _make_folders(request), list[str]()
    try:
        if request.part:
            _fetch_part(request, request.part, status)
            return
        if request.order and request.directory.is_dir():
            _serve(request, request.order, status)
        elif request.directory.is_dir():
            notes = _repair(request, status)
        else:
            _install(request, _gather(request, status, missing=list(request.files)))
    except LyingHub:
        if request.partial.is_dir():
            shutil.rmtree(request.partial)  # not worth resuming from: the disk is as it was
        raise
    finally:
        _leave_nothing_empty(request, made)
    status.done(f"complete: {request.total_bytes} bytes", bytes=request.total_bytes, notes=notes)


def _serve(request: Request, order: swarm.Order, status: Progress) -> None:
    """Share a checkpoint that was here before; one that is damaged is mended from the Hub first."""
    if wrong := manifest.quick_check(request.directory):
        raise FetchError(f"not shared, as it is not whole: {wrong[0]}")
    if not _is_verified(request):
        raise FetchError("not shared, as it was not verified to be what the lock states")
    if reason := swarm.Swarm(order, request.directory, request.files, status).serve():
        status.say("sharing", reason)  # it is here: those who lack it will say so


def _fetch_part(request: Request, part: swarm.Part, status: Progress) -> None:
    """This host's part for the other hosts: of a checkpoint that is complete, or else from the Hub."""
    if _is_verified(request):
        status.say("checking", f"hashing bytes {part.begin} to {part.end} of {request.purpose}")
        found = pieces.hashes(request.directory, request.files, part.begin, part.end, part.piece)
        status.done("its part is ready", pieces="".join(found))
        return
    request.tree.mkdir(mode=0o755, parents=True, exist_ok=True)
    request.parts.chmod(0o700)
    _bring_back(request)
    hashes = swarm.fetch_part(
        part, request.files, request.tree, request.source, request.parts, status.progress
    )
    status.done("its part is ready", pieces=hashes)


def _bring_back(request: Request) -> None:
    """Files of an interrupted download go into the tree that is shared; each is verified again in the end."""
    swarm.reclaim(request.tree, request.files)
    for file in request.files:
        here, there = request.partial / file.path, request.tree / file.path
        if here.is_file() and not here.is_symlink() and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            here.replace(there)


def _make_folders(request: Request) -> list[Path]:
    """The folders above the checkpoint; returns those that were not there, the innermost first.

    None below the root may be a link: what it points to is not ours.
    """
    made: list[Path] = []
    request.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in (request.root / "checkpoints", request.directory.parent):
        _refuse_link(folder)
        if not folder.is_dir():
            folder.mkdir(mode=0o755)
            made.insert(0, folder)
    for path in (request.directory, request.partial, request.parts, request.tree):
        _refuse_link(path)
    return made


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise FetchError(f"{path} is a symbolic link; nothing was written through it. Remove it.")


def _leave_nothing_empty(request: Request, made: list[Path]) -> None:
    """After a failure that kept no byte worth resuming from, the disk is as it was."""
    parts = request.parts
    if parts.is_dir():
        shutil.rmtree(parts / "client", ignore_errors=True)
        for part in parts.glob("*.part"):
            if part.stat().st_size == 0:
                part.unlink()
    for folder in (parts, request.partial, *made):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _gather(request: Request, status: Progress, missing: list[Wanted]) -> dict[str, manifest.Entry]:
    """Have every missing file, verified, in the partial directory."""
    request.parts.mkdir(mode=0o700, parents=True, exist_ok=True)
    request.partial.chmod(0o755)
    if request.order:
        _bring_back(request)
    have = survey(request.partial, missing, status, thorough=False)
    status.verified = request.total_bytes - sum(file.size for file in missing if file.path not in have)

    def keep(file: Wanted, part: Path, sha256: str) -> None:
        target = request.partial / file.path
        _make_readable_parents(request.partial, file.path)
        _make_readable(part)
        part.replace(target)
        manifest.sync_files(request.partial, [file.path])
        have[file.path] = manifest.describe(request.partial, file.path, sha256, file.blob_sha1)
        _record(request.partial, request, have)
        status.verified += file.size

    for bring in _sources(request, status):
        if todo := [file for file in missing if file.path not in have]:
            bring(todo, keep)
    return have


Bring = Callable[[list[Wanted], Verified], None]


def _sources(request: Request, status: Progress) -> Iterator[Bring]:
    """Where files come from, in turn: each hands on what is right; the last brings the rest or raises."""
    if request.shared and not request.order:
        yield functools.partial(_copy, request, status)
    if request.order:
        yield functools.partial(_from_others, request, request.order, status)
    else:
        if request.tree.is_dir():
            yield functools.partial(_from_tree, request, status)
        yield functools.partial(_from_hub, request, status)


def _copy(request: Request, status: Progress, todo: list[Wanted], keep: Verified) -> None:
    """From a shared file system: copied, then verified. The next source brings what is missing or wrong."""
    folder = cast(Path, request.shared) / request.directory.parent.name / request.source.commit
    for file in todo:
        part = request.parts / "copy"
        try:
            status.say("copying", f"{folder / file.path} ({file.size} bytes)")
            sha256 = file.copied(folder / file.path, part)
        except OSError as error:
            status.say("copying", f"{folder / file.path} can't be had: {error.strerror}")
            continue
        if sha256 is None:
            status.say("copying", f"{folder / file.path} has other content than the lock file states")
        else:
            keep(file, part, sha256)


def _from_others(
    request: Request, order: swarm.Order, status: Progress, todo: list[Wanted], keep: Verified
) -> None:
    reason = swarm.Swarm(order, request.tree, request.files, status).run(todo, keep, status.progress)
    if reason:
        raise FetchError(f"not all of it came from the other hosts: {reason}")


def _from_tree(request: Request, status: Progress, todo: list[Wanted], keep: Verified) -> None:
    """Keep the whole files of an earlier run's sharing, and remove the pieces of others."""
    swarm.keep_right(request.tree, todo, keep, status)
    shutil.rmtree(request.tree)


def _from_hub(request: Request, status: Progress, todo: list[Wanted], keep: Verified) -> None:
    Download(request.source, request.parts, keep, status.progress).run(todo)


def survey(
    directory: Path, files: list[Wanted], status: Progress, *, thorough: bool
) -> dict[str, manifest.Entry]:
    """Those of `files` with the right content in `directory`.

    By the manifest, where it holds and has the hash that the lock states; else the file is read.
    """
    known = {} if thorough else manifest.unchanged(directory)
    right, unread = {}, []
    for file in files:
        entry = known.get(file.path)
        if entry is not None and entry.is_content_of(file.sha256, file.blob_sha1):
            right[file.path] = entry
        else:
            unread.append(file)
    for file, found in zip(unread, manifest.side_by_side(lambda file: _verified(directory, file), unread)):
        if found:
            status.say("checking", f"read {file.path} ({file.size} bytes)")
            right[file.path] = found
    return right


def _verified(directory: Path, file: Wanted) -> manifest.Entry | None:
    """The entry of a file that is there, in folders that are no links, with the right content; else None."""
    path = directory
    for part in file.path.split("/"):
        if path.is_symlink():
            return None
        path = path / part
    if not path.is_file() or path.is_symlink():
        return None
    sha256 = file.is_content_of(path)
    if sha256 is None:
        return None
    _make_readable(path)
    return manifest.describe(directory, file.path, sha256, file.blob_sha1)


def _repair(request: Request, status: Progress) -> list[str]:
    """A directory that is there: replace what is not right in it, and nothing else.

    Returns sentences for the operator. Releases of the same commit serve from the same directory. So files
    that this lock does not name stay, and one that is whole but was verified by another lock stays marked
    until all that differs is here.
    """
    before = manifest.unchanged(request.directory)
    right = survey(request.directory, list(request.files), status, thorough=request.verify)
    missing = [file for file in request.files if file.path not in right]
    kept = _not_named(request, before)
    if missing:
        if manifest.quick_check(request.directory) or any(_was_right(file, before) for file in missing):
            manifest.unmark(request.directory)
        fetched = _gather(request, status, missing)
        manifest.unmark(request.directory)
        for file in missing:
            _make_readable_parents(request.directory, file.path)
            (request.partial / file.path).replace(request.directory / file.path)
            right[file.path] = fetched[file.path]
        manifest.sync_files(request.directory, [file.path for file in missing])
    entries = {**kept, **right}
    if not manifest.is_marked(request.directory) or entries != _recorded(request.directory):
        _record(request.directory, request, entries)
        manifest.mark(request.directory)
    if request.partial.is_dir():
        shutil.rmtree(request.partial)
    other = [file.path for file in missing if file.path in before and not _was_right(file, before)]
    return [
        *_notes(
            other,
            "replaced, as the lock states other content (a server that runs keeps the old until"
            " it is restarted)",
        ),
        *_notes(list(kept), "kept, though the lock does not name it: a release may need it"),
    ]


def _is_verified(request: Request) -> bool:
    """Whether the directory is whole, and was verified to be what this lock states."""
    known = manifest.unchanged(request.directory)
    return manifest.is_marked(request.directory) and all(_was_right(file, known) for file in request.files)


def _was_right(file: Wanted, known: Mapping[str, manifest.Entry]) -> bool:
    return file.path in known and known[file.path].is_content_of(file.sha256, file.blob_sha1)


def _not_named(request: Request, known: Mapping[str, manifest.Entry]) -> dict[str, manifest.Entry]:
    """Files of another lock of this commit that are whole; a damaged one can't be mended by this lock."""
    others = known.keys() - {file.path for file in request.files}
    found = manifest.Manifest("", "", tuple(known[path] for path in sorted(others)))
    damaged = manifest.damaged(request.directory, found) if request.verify else {}
    return {entry.path: entry for entry in found.files if entry.path not in damaged}


def _notes(paths: list[str], what: str) -> list[str]:
    return [f"{', '.join(paths)}: {what}"] if paths else []


def _recorded(directory: Path) -> dict[str, manifest.Entry] | None:
    try:
        return {entry.path: entry for entry in manifest.read(directory).files}
    except manifest.ManifestError:
        return None


def _record(directory: Path, request: Request, entries: dict[str, manifest.Entry]) -> None:
    ordered = tuple(entries[path] for path in sorted(entries))
    manifest.write(directory, manifest.Manifest(request.source.repo, request.source.commit, ordered))


def _install(request: Request, entries: dict[str, manifest.Entry]) -> None:
    """All is in the partial directory: give it the checkpoint's name in one step; the marker comes last."""
    shutil.rmtree(request.parts)
    wanted = {file.path for file in request.files} | manifest.RESERVED
    for path in request.partial.rglob("*"):
        if not path.is_dir() and str(path.relative_to(request.partial)) not in wanted:
            path.unlink()
    _record(request.partial, request, entries)
    request.partial.rename(request.directory)
    durable.sync_directory(request.directory.parent)
    manifest.mark(request.directory)


def _make_readable_parents(directory: Path, path: str) -> None:
    """The folders of a file inside a checkpoint, open to the service's user.

    A link in their place is an error.
    """
    for part in path.split("/")[:-1]:
        directory = directory / part
        _refuse_link(directory)
        directory.mkdir(mode=0o755, exist_ok=True)
        directory.chmod(0o755)


def _make_readable(path: Path) -> None:
    """Owned by root and readable by all: the client writes 0600, which the service's user can't read."""
    if os.geteuid() == 0:
        os.chown(path, 0, 0)
    if stat.S_IMODE(path.stat().st_mode) != 0o644:
        path.chmod(0o644)


class Progress(Status):
    """How many bytes of the checkpoint are here, how fast they come and how long the rest will take."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.status)
        self.total = request.total_bytes
        self.verified = 0  # bytes of files whose content is right
        self.seen: deque[tuple[float, int]] = deque()

    def progress(self, coming: int) -> None:
        """`coming` bytes of files that are not whole yet are on the disk."""
        now, here = time.monotonic(), self.verified + coming
        if self.seen and now - self.seen[-1][0] < STATUS_EVERY_S:
            return
        self.seen.append((now, here))
        while now - self.seen[0][0] > RATE_OVER_S:
            self.seen.popleft()
        since, then = self.seen[0]
        rate = max(0.0, (here - then) / (now - since)) if now > since else 0.0
        eta_s = (self.total - here) / rate if rate > 0 else None
        self.write("downloading", bytes=here, total_bytes=self.total, rate=rate, eta_s=eta_s)
