"""Writes that survive a power cut: each is on the disk, whole, when the function returns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file in one step: a reader sees the old text or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
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


def point(link: Path, target: Path) -> None:
    """Make the link point to the target (relative to the link's folder) by one rename().

    A link that points there already is left alone: going back to it works on a disk that takes no writes, too.
    """
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and str(link.readlink()) == relative:
        return
    partial = link.with_name(f".{link.name}.partial")
    if partial.is_symlink():
        partial.unlink()
    partial.symlink_to(relative)
    partial.replace(link)
    sync_directory(link.parent)


def link_absolutely(link: Path, target: Path) -> None:
    """Have a link to the target, by its absolute path, unless there is one already."""
    if link.is_symlink() and link.readlink() == target:
        return
    link.symlink_to(target)
    sync_directory(link.parent)


def remove(link: Path) -> None:
    """Remove the link or file; nothing to do where it is gone already."""
    if link.is_symlink() or link.exists():
        link.unlink()
        sync_directory(link.parent)
