"""Carries compiled kernels from the cache of one release into the next one's, and nothing else in it.

Compiling takes a GPU server a minute or two at the first start of each release. But a cache belongs to its
server, and one that was taken over could leave code in it for the next release. So root notes what is in a
cache when its release has generated its first tokens, and only files that still are what was noted are
copied; never one that Python could import.

The server may be at work in its cache all the while. So each folder on the way to a file is opened in its
turn, below the one before it: a link that takes the place of a folder leads nowhere.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..inspect.disk import MARGIN_BYTES
from ..state import durable
from .compile_cache import FACTORS

# What Python may import by its name, or reads at its start: generated code comes again with the compiled
# graph it belongs to.
IMPORTABLE = (".py", ".pyc", ".pth", ".egg-link")
MOST_FILES = 50_000
MOST_BYTES = 8 << 30
LIMIT_S = 30.0  # for noting, and for copying: whoever fills a cache must not hold up a switch
DEEPEST = 32  # folders below the cache; vLLM's, Triton's and Inductor's own are within ten
CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def note(cache: Path, to: Path) -> int:
    """Write down every file of the cache with its size and sha256; returns how many there are.

    Raises OSError.
    """
    until = time.monotonic() + LIMIT_S
    files: dict[str, list[Any]] = {}
    total = 0
    for name in _files(cache, until):
        found = read(cache, name, until)
        if found is None:
            continue
        total += found[1]
        if total > MOST_BYTES or len(files) >= MOST_FILES:
            break
        files[name] = list(found[:2])
    durable.write_json(to, {"files": files}, mode=durable.PRIVATE)
    return len(files)


def carry(noted: Path, old: Path, new: Path, user: str) -> tuple[int, int]:
    """Fill a new release's empty cache; returns how many files and bytes came. Raises OSError and ValueError.

    It is filled where only root may enter, and takes its place whole or not at all.
    """
    files = durable.read_json(noted, {}).get("files", {})
    if not files or any(new.iterdir()):
        return 0, 0
    partial = new.with_name(f".{new.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    total = sum(size for _, size in files.values())
    if shutil.disk_usage(new).free < total + MARGIN_BYTES:
        raise OSError(f"the disk has no room for {total >> 20} MiB and a margin of {MARGIN_BYTES >> 20} MiB")
    until = time.monotonic() + LIMIT_S
    try:
        partial.mkdir(mode=0o700)
        came = [
            size for name, (digest, size) in files.items() if _copy(old, name, partial, digest, size, until)
        ]
        account = pwd.getpwnam(user)
        for path in (partial, *partial.rglob("*")):  # nobody else can have put anything there
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        partial.rename(new)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(came), sum(came)


def _files(cache: Path, until: float) -> Iterator[str]:
    """Relative names of the regular files, links neither taken nor followed."""
    folders = [""]
    while folders and time.monotonic() < until:
        folder = folders.pop()
        try:
            for entry in _entries(cache, folder):
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders += [f"{name}/"] if name.count("/") < DEEPEST else []
                elif entry.is_file(follow_symlinks=False) and may_be_carried(entry.name):
                    yield name
        except OSError:  # gone, or a link by now
            continue


def may_be_carried(name: str) -> bool:
    """Whether it is a relative name without detours, of a file that the next release may have."""
    parts = name.split("/")
    return not {"", ".", ".."} & {*parts} and parts[-1] != FACTORS and not name.endswith(IMPORTABLE)


def _entries(cache: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    descriptor = _opened(cache, f"{folder}.", _DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            yield from entries
    finally:
        os.close(descriptor)


def _opened(cache: Path, name: str, flags: int) -> int:
    """A descriptor of what has this name below the cache, by no link. Raises OSError."""
    *folders, last = name.split("/")
    place = os.open(cache, _DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, _DIRECTORY, dir_fd=place)
            os.close(place)
            place = below
        return os.open(last, flags, dir_fd=place)
    finally:
        os.close(place)


def read(
    cache: Path, name: str, until: float, into: Any = None, most: int = MOST_BYTES
) -> tuple[str, int, os.stat_result] | None:
    """sha256, size and status of a regular file, copied `into` an open file.

    None for others, for one with more than `most` bytes, and where it takes too long.
    """
    try:
        descriptor = _opened(cache, name, _FILE)
    except OSError:  # gone, or a link by now
        return None
    there = os.fstat(descriptor)
    if not stat.S_ISREG(there.st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        digest, size = hashlib.sha256(), 0
        while chunk := file.read(CHUNK):
            size += len(chunk)
            if time.monotonic() > until or size > most:
                return None
            digest.update(chunk)
            if into is not None:
                into.write(chunk)
    return digest.hexdigest(), size, there


def _copy(cache: Path, name: str, to: Path, digest: str, size: int, until: float) -> bool:
    """Copy the file if its bytes are those that were noted; times stay, since build tools compare them."""
    if not may_be_carried(name):
        return False
    target = to / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with target.open("wb") as file:
        found = read(cache, name, until, file, size)
    if found is None or found[0] != digest:
        target.unlink()
        return False
    there = found[2]
    target.chmod(0o700 if there.st_mode & 0o100 else 0o600)
    os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
    return True
