"""Checks the files of a checkpoint directory on this host against its manifest.

`manifest.json` lists every file with its size, sha256 and modification time; `.complete` beside it is written
last. `changed` asks the file system only (milliseconds for any size); `sampled` reads small files whole and
places of large ones; `damaged` reads every byte. Nothing here repairs, downloads or deletes: `fetch` does.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar

from . import durable

SCHEMA = "pyinfra-vllm/manifest/1"
MANIFEST = "manifest.json"
MARKER = ".complete"
RESERVED = frozenset({MANIFEST, MARKER})
WRITTEN = "was written to after it was verified"

LONGEST_PATH = 1024  # bytes; Linux allows 4096 for the whole path, roots and commit included
LONGEST_NAME = 240  # bytes; Linux allows 255 for one component, a temporary suffix included
CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 20  # a spot check reads files up to this size whole: all but the weights
PLACES, PLACE_BYTES = 16, 1 << 20  # and of larger ones so many places of so many bytes

T = TypeVar("T")
U = TypeVar("U")


class ManifestError(Exception):
    """A manifest that is absent, unreadable or not a manifest: the checkpoint counts as incomplete."""


class Entry(NamedTuple):
    """One file: `path` relative to the checkpoint, size in bytes, content hash, mtime in nanoseconds.

    blob_sha1: the hash that git gives its content, where the lock states that one
    """

    path: str
    size: int
    sha256: str
    mtime_ns: int
    blob_sha1: str = ""

    def is_content_of(self, sha256: str | None, blob_sha1: str | None) -> bool:
        """Whether its content was shown to be what a lock file states by one of its hashes."""
        return self.sha256 == sha256 if sha256 else bool(blob_sha1) and self.blob_sha1 == blob_sha1


class Manifest(NamedTuple):
    """Every file of one checkpoint as it was when its content was last verified."""

    repo: str
    commit: str
    files: tuple[Entry, ...]

    @property
    def total_bytes(self) -> int:
        """The files' sizes together, in bytes."""
        return sum(entry.size for entry in self.files)


def unsafe(path: str) -> str | None:
    """Why a file name from a repository must not be used on a disk, or None.

    Names come from an untrusted Hub, through a lock file that people edit: anything that could leave the
    checkpoint's directory, hide in it, or mean something else on another system is refused.
    """
    if any(0xD800 <= ord(character) <= 0xDFFF for character in path):
        return "is not valid Unicode"  # asked first: nothing else can be asked of text that has no UTF-8
    if not path or len(path.encode("utf-8")) > LONGEST_PATH:
        return "is empty or too long"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "holds a control character"
    if not path.isprintable():
        return "holds a character that can't be seen or changes how the name is shown"
    if "\\" in path or ":" in path:
        return "holds a backslash or a colon (a path of another system)"
    if path.startswith("/"):
        return "is absolute"
    return _unsafe_part(path.split("/"))


def _unsafe_part(parts: list[str]) -> str | None:
    """Why one component of a path must not be used, or None."""
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty, '.' or '..' component"
    if any(part.startswith(".") for part in parts):
        return "has a hidden component"
    if any(part.startswith("-") for part in parts):
        return "has a component that a command would take for an option"
    if any(len(part.encode("utf-8")) > LONGEST_NAME for part in parts):
        return "has a component that is too long"
    if len(parts) == 1 and parts[0] in RESERVED:
        return "is a name this program keeps for itself"
    return None


def hash_file(path: Path, blob: bool = False) -> str:
    """The sha256 of a file's content in hex; with `blob` the sha1 that git gives it.

    The blob hash is sha1 over ``blob SIZE NUL content`` (git's object format); the Hub states it for files
    that are not kept in LFS.
    """
    import hashlib  # 4 ms, which a run that has nothing to read need not take of every host

    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        found = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size) if blob else hashlib.sha256()
        while size := file.readinto(buffer):
            found.update(memoryview(buffer)[:size])
    return found.hexdigest()


def describe(directory: Path, path: str, sha256: str, blob_sha1: str | None = None) -> Entry:
    """The entry of a file whose content was just verified to have these hashes."""
    status = (directory / path).lstat()
    return Entry(path, status.st_size, sha256, status.st_mtime_ns, blob_sha1 or "")


def write(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all, and have it on the disk before returning."""
    files = [entry._asdict() for entry in manifest.files]
    content = {"schema": SCHEMA, "repo": manifest.repo, "commit": manifest.commit, "files": files}
    durable.write_json(directory / MANIFEST, content, durable.PUBLIC)


def read(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory. Raises ManifestError when it can't be used."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(_entry(entry) for entry in content["files"])
        if content["schema"] != SCHEMA:
            raise ManifestError(f"{path} has the schema {content['schema']!r}, expected {SCHEMA!r}")
        return Manifest(str(content["repo"]), str(content["commit"]), files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} can't be used: {type(error).__name__}: {error}") from error


def _entry(content: dict[str, Any]) -> Entry:
    entry = Entry(
        str(content["path"]),
        int(content["size"]),
        str(content["sha256"]),
        int(content["mtime_ns"]),
        str(content.get("blob_sha1", "")),  # manifests of version 0.1 have none
    )
    if reason := unsafe(entry.path):
        raise ManifestError(f"the file name {entry.path!r} {reason}")
    return entry


def is_marked(directory: Path) -> bool:
    """Whether the completion marker is there: every file was verified once, and the directory was on disk."""
    return (directory / MARKER).is_file()


def mark(directory: Path) -> None:
    """Write the completion marker, the last step of every fetch."""
    durable.write_text(directory / MARKER, "", durable.PUBLIC)


def unmark(directory: Path) -> None:
    """Take the completion marker away before anything in the directory changes."""
    (directory / MARKER).unlink(missing_ok=True)
    durable.sync_directory(directory)


def changed(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Files that the file system says are not what was verified: path to the reason. Reads no content."""
    found = {}
    for entry in manifest.files:
        if reason := _change(directory / entry.path, entry):
            found[entry.path] = reason
    return found


def unchanged(directory: Path) -> dict[str, Entry]:
    """By path the files that the file system says are what was verified; {} without a manifest."""
    try:
        recorded = read(directory)
    except ManifestError:
        return {}
    other = changed(directory, recorded)
    return {entry.path: entry for entry in recorded.files if entry.path not in other}


def _change(path: Path, entry: Entry) -> str | None:
    try:
        status = path.lstat()
    except OSError as error:
        return f"is missing ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != entry.size:
        return f"has {status.st_size} bytes, expected {entry.size}"
    if status.st_mtime_ns != entry.mtime_ns:
        return WRITTEN
    if not status.st_mode & stat.S_IROTH:
        return "can't be read by the service's user"
    return None


def damaged(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Files whose content is not what was verified: path to the reason. Reads every byte of every file."""
    found = changed(directory, manifest)
    read = [entry for entry in manifest.files if found.get(entry.path) in (None, WRITTEN)]
    for entry, reason in zip(read, side_by_side(lambda entry: _other_content(directory, entry), read)):
        found.pop(entry.path, None)  # a new modification time alone is no damage
        if reason:
            found[entry.path] = reason
    return found


def side_by_side(act: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
    """The results in the order of the items. Hashing and reading leave the other threads at work."""
    from concurrent.futures import ThreadPoolExecutor  # by few callers of this module

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(act, items)


def _other_content(directory: Path, entry: Entry) -> str | None:
    sha256 = hash_file(directory / entry.path)
    return f"has other content than verified (sha256 {sha256[:12]}…)" if sha256 != entry.sha256 else None


def sampled(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Like `changed`, and reads small files whole and some places of large ones, to find a failing disk."""
    found = changed(directory, manifest)
    for entry in manifest.files:
        if entry.path not in found and (reason := _sample(directory, entry)):
            found[entry.path] = reason
    return found


def _sample(directory: Path, entry: Entry) -> str | None:
    from random import randrange  # by few callers of this module

    try:
        if entry.size <= WHOLE_BYTES:
            return _other_content(directory, entry)
        with (directory / entry.path).open("rb") as file:
            for _ in range(PLACES):
                file.seek(randrange(entry.size - PLACE_BYTES))
                file.read(PLACE_BYTES)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def quick_check(directory: Path) -> list[str]:
    """Why a checkpoint directory can't be served from, as sentences; empty when it can.

    Asks the file system only.
    """
    return _check(directory, changed)


def spot_check(directory: Path) -> list[str]:
    """Like `quick_check`, and reads a sample: seconds for any size, most of the weights unread."""
    return _check(directory, sampled)


def full_check(directory: Path) -> list[str]:
    """Like `quick_check`, and reads every byte: finds also what a failing disk changed silently."""
    return _check(directory, damaged)


def _check(directory: Path, find: Callable[[Path, Manifest], dict[str, str]]) -> list[str]:
    if not is_marked(directory):
        return [f"{directory} is not complete: it has no {MARKER}"]
    try:
        manifest = read(directory)
    except ManifestError as error:
        return [str(error)]
    return [f"{directory / path} {reason}" for path, reason in sorted(find(directory, manifest).items())]


def sync_files(directory: Path, paths: Sequence[str]) -> None:
    """Have the content of files, and the directories that name them, on the disk."""
    for path in paths:
        descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in sorted({(directory / path).parent for path in paths} | {directory}):
        durable.sync_directory(folder)
