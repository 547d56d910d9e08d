"""Writes that survive a power cut: each is on the disk, whole, when the function returns."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

PRIVATE, PUBLIC = 0o600, 0o644  # for root alone; for everybody to read
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: blocks beyond the end of the file, whose size stays what it is
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Replace the file in one step: a reader sees the old text or the new, never a part."""
    partial = _partial(path)
    data = text.encode("utf-8")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT, mode)  # not truncated: its blocks may be reserved
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.ftruncate(file.fileno(), len(data))
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def reserve_replacement(path: Path, size: int) -> None:
    """Reserve an inode and `size` bytes for the next `write_text` of the file."""
    reserve(_partial(path), size)


def release_replacement(path: Path) -> None:
    """Give back what `reserve_replacement` took, where no write needed it."""
    with suppress(FileNotFoundError):
        _partial(path).unlink()


def reserve(path: Path, size: int) -> None:
    """Reserve disk space for the next `size` bytes appended to the file.

    Raises OSError where there is no room.

    A file system that can't reserve anything (EOPNOTSUPP) is no obstacle: there it is as before.
    """
    import ctypes  # by few callers of this module

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        allocate = ctypes.CDLL(None, use_errno=True).fallocate
        end = os.fstat(descriptor).st_size
        if allocate(descriptor, _KEEP_SIZE, ctypes.c_int64(end), ctypes.c_int64(size)):
            number = ctypes.get_errno()
            if number not in _CANNOT_RESERVE:
                raise OSError(number, os.strerror(number), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def write_json(path: Path, value: Any, mode: int = PRIVATE) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", mode)


def read_json(path: Path, default: Any = None) -> Any:
    """The file's value; the default where there is no file. A damaged file is a ValueError that names it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return default
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): move it away to go on") from error


def point(link: Path, target: Path, keep: bool = False) -> None:
    """Make the link point to the target (relative to the link's folder) by one rename().

    A link that points there already is left alone: going back to it works on a disk that takes no writes,
    too. Where `prepare` has laid symlinks ready, pointing to and fro among their targets needs no free inode.

    keep: lay the link that is replaced ready again, for the next turn
    """
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and str(link.readlink()) == relative:
        return
    ready = _lay_ready(link, target)
    if keep and link.is_symlink():
        with suppress(OSError):  # the same inode under a second name, ready for the next turn
            os.link(link, _ready(link, link.readlink()), follow_symlinks=False)
    ready.replace(link)
    sync_directory(link.parent)


def prepare(link: Path, *targets: Path) -> None:
    """Lay a symlink to each target ready, so that `point` is nothing but a rename()."""
    for target in targets:
        _lay_ready(link, target)
    sync_directory(link.parent)


def tidy(link: Path) -> None:
    """Remove the symlinks that `prepare` and `point` laid ready."""
    for ready in link.parent.glob(f".{link.name}.*.partial"):
        ready.unlink()


def _lay_ready(link: Path, target: Path) -> Path:
    ready, relative = _ready(link, target), os.path.relpath(target, link.parent)
    if ready.is_symlink() and str(ready.readlink()) != relative:
        ready.unlink()
    if not ready.is_symlink():
        ready.symlink_to(relative)
    return ready


def _ready(link: Path, target: Path) -> Path:
    return link.with_name(f".{link.name}.{target.name}.partial")


def link_absolutely(link: Path, target: Path) -> None:
    """Have a link to the target, by its absolute path; one that leads elsewhere is replaced in one step."""
    if leads(link, target):
        return
    ready = _partial(link)
    ready.unlink(missing_ok=True)
    ready.symlink_to(target)
    ready.replace(link)
    sync_directory(link.parent)


def leads(link: Path, target: Path) -> bool:
    """Whether it is a link to exactly that path."""
    return link.is_symlink() and link.readlink() == target


def remove(link: Path) -> None:
    """Remove the link or file; nothing to do where it is gone already."""
    if link.is_symlink() or link.exists():
        link.unlink()
        sync_directory(link.parent)
