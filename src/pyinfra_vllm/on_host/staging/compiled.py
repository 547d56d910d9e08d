"""Gives the compile cache of a release to other hosts, and takes one from another host.

A GPU server compiles for a minute or two at the first start of a release. The hosts of a wave start what the
canary has compiled, so they can have its cache. Only what root noted at the canary's first tokens is given
(carried_cache.py), and only to a host whose code would come out the same: `machine`.

It travels as one archive, in pieces, by way of the control machine. It waits in a folder of root's
until the switch fills the release's empty cache with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from ..inspect import gpus, nvidia
from ..server import carried_cache
from ..state import durable
from ..state.paths import ServicePaths

MOST_BYTES = 512 << 20  # of one cache: it goes to each host over SSH
MOST_LISTED = 32 << 20  # bytes of the list: 50,000 files with names of some hundred letters
PIECE = 8 << 20
LIMIT_S = 60.0
CPUINFO = Path("/proc/cpuinfo")
FILES = "files"
LISTED = "cache.json"  # the archive's list of its files, as carried_cache.py notes them


class Unusable(Exception):
    """The cache can't be given or taken; the server compiles for itself."""


def machine() -> str:
    """Names what compiled code depends on beside the release: processor, C library, cards and their driver.

    Inductor compiles for the very processor ("native"), and its key does not tell one from another.
    """
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines()
    pairs = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    processor = [pairs.get(key) for key in ("model name", "flags", "Features", "CPU implementer", "CPU part")]
    try:
        cards = sorted({(card.name, card.compute_capability, card.driver) for card in gpus.gpus()}, key=str)
    except nvidia.NoAnswer:
        cards = []
    found = [platform.machine(), platform.libc_ver(), processor, cards]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def pack(paths: ServicePaths, release_id: str) -> dict[str, Any]:
    """Lay the archive of a release's cache ready; returns its sha256, and how many bytes and files it has.

    Raises Unusable where nothing was noted, or too much.
    """
    listed = durable.read_json(paths.noted_cache(release_id), {}).get("files", {})
    if not listed:
        raise Unusable("no compile cache was noted")
    total = sum(size for _, size in listed.values())
    if total > MOST_BYTES:
        raise Unusable(f"the compile cache has {total >> 20} MiB, and {MOST_BYTES >> 20} are given at most")
    packed = _archive(paths, release_id)
    until = time.monotonic() + LIMIT_S
    with _private(packed) as file, tarfile.open(fileobj=file, mode="w") as archive:
        given = dict(_added(archive, paths.own_cache(release_id), listed, until))
        _add(archive, LISTED, json.dumps({"files": given}).encode())
    if not given:
        packed.unlink()
        raise Unusable("no file of the compile cache is what was noted")
    with packed.open("rb") as file:
        digest = _sha256(file)
    return {"sha256": digest, "bytes": packed.stat().st_size, "files": len(given)}


def piece(paths: ServicePaths, release_id: str, number: int) -> str:
    """The archive's bytes from `number` times PIECE on, at most PIECE of them, in base64. Raises OSError."""
    with _archive(paths, release_id).open("rb") as file:
        file.seek(number * PIECE)
        return base64.b64encode(file.read(PIECE)).decode()


def forget(paths: ServicePaths, release_id: str) -> None:
    """Remove the archive."""
    _archive(paths, release_id).unlink(missing_ok=True)


def wanted(paths: ServicePaths, release_id: str) -> bool:
    """Whether a cache is of use: the release is staged, and its own is empty."""
    cache = paths.own_cache(release_id)
    return cache.is_dir() and not any(cache.iterdir())


def expect(paths: ServicePaths, release_id: str) -> Path:
    """An empty folder of root's for the pieces, which are named by their numbers."""
    pieces = _pieces(paths, release_id)
    shutil.rmtree(paths.carried_cache(release_id), ignore_errors=True)
    pieces.mkdir(mode=0o700, parents=True)
    return pieces


def take(paths: ServicePaths, release_id: str, sha256: str, donor: str) -> int:
    """Unpack the pieces for the next switch to the release; returns the number of files.

    Raises Unusable where they are not the archive of that sum, or no such archive, and leaves nothing then.
    """
    folder, pieces = paths.carried_cache(release_id), _pieces(paths, release_id)
    try:
        whole = folder / "archive"
        with _private(whole) as file:
            for part in sorted(pieces.iterdir()):
                file.write(part.read_bytes())
        with whole.open("rb") as file:
            if _sha256(file) != sha256:
                raise Unusable("the compile cache did not arrive as it was sent")
        files = _unpack(whole, folder / FILES)
        shutil.rmtree(pieces)
        whole.unlink()
        durable.write_json(folder / LISTED, {"files": files, "from": donor})
    except Exception as error:  # another host made the archive: tarfile and json fail at one in many ways
        shutil.rmtree(folder, ignore_errors=True)
        raise Unusable(str(error) or type(error).__name__) from error
    return len(files)


def _archive(paths: ServicePaths, release_id: str) -> Path:
    return paths.release(release_id) / "cache.tar"


def _pieces(paths: ServicePaths, release_id: str) -> Path:
    return paths.carried_cache(release_id) / "pieces"


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, durable.PRIVATE), "wb")


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(carried_cache.CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _added(
    archive: tarfile.TarFile, cache: Path, listed: dict[str, list[Any]], until: float
) -> Iterator[tuple[str, list[Any]]]:
    """Adds the files that still are what was noted; yields their names, sums and sizes."""
    for name, (digest, size) in listed.items():
        with tempfile.TemporaryFile() as copy:
            found = carried_cache.read(cache, name, until, copy, size)
            if found is None or found[0] != digest:
                continue
            member = tarfile.TarInfo(f"{FILES}/{name}")
            member.size, member.mode, member.mtime = size, found[2].st_mode & 0o777, int(found[2].st_mtime)
            copy.seek(0)
            archive.addfile(member, copy)
        yield name, [digest, size]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, file)


def _unpack(whole: Path, to: Path) -> dict[str, list[Any]]:
    """Unpack the files of the list; returns those that came, with their sums and sizes.

    Nothing but regular files, nothing twice, and not more than may be given: the archive is another host's,
    and a compressed or sparse one of some kilobytes could fill the disk.
    """
    files: dict[str, list[Any]] = {}
    total = 0
    with tarfile.open(whole, "r:") as archive:
        members = [member for member in islice(archive, carried_cache.MOST_FILES + 1) if _is_plain(member)]
        listed = _listed(archive, members)
        for member in members:
            name = member.name.removeprefix(f"{FILES}/")
            if name == member.name or name not in listed or name in files:
                continue
            total += member.size
            if total > MOST_BYTES:
                raise Unusable(f"the compile cache has more than {MOST_BYTES >> 20} MiB")
            target = to / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _private(target) as file:
                shutil.copyfileobj(cast("IO[bytes]", archive.extractfile(member)), file)
            target.chmod(0o700 if member.mode & 0o100 else 0o600)
            os.utime(target, (member.mtime, member.mtime))
            files[name] = [listed[name], member.size]
    return files


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether it is a regular file with all its bytes in the archive."""
    return member.isreg() and not member.issparse()


def _listed(archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, str]:
    """The sums of the files in the archive's list, of those that may be carried."""
    told = next((member for member in members if member.name == LISTED), None)
    if told is None or told.size > MOST_LISTED:
        raise Unusable("the compile cache comes without a list that can be read")
    files = json.load(cast("IO[bytes]", archive.extractfile(told)))["files"]
    return {name: str(digest) for name, (digest, _) in files.items() if carried_cache.may_be_carried(name)}
