"""Decides which files a user may access, as root from owners, modes and access lists.

Nothing is run as that user to find out: the server could stop or take over such a process.
"""

from __future__ import annotations

import os
import pwd
import struct
from collections.abc import Iterator
from pathlib import Path

READ, WRITE, ENTER = 4, 2, 1
EXECUTE = ENTER
_ACCESS_LIST = "system.posix_acl_access"
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id; after four bytes of version (linux/posix_acl_xattr.h)
_OWNER, _USER, _GROUP_OWNER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

Entry = tuple[int, int, int]


class Account:
    """One user of this host. Raises KeyError where there is none of that name."""

    def __init__(self, name: str) -> None:
        found = pwd.getpwnam(name)
        self.name, self.uid = name, found.pw_uid
        self.groups = frozenset(os.getgrouplist(name, found.pw_gid))
        self._entered: dict[Path, bool] = {}

    def hindrance(self, path: Path, wanted: int = READ) -> str:
        """Why this user can't do that with the file; empty where it can. Follows links, as opening does."""
        try:
            for folder in _on_the_way(path):
                if not self._enters(folder):
                    return f"{path}: {self.name} may not enter {folder}"
            return "" if self.may(path, wanted) else f"{path}: Permission denied"
        except OSError as error:
            return f"{path}: {error.strerror}"

    def may(self, path: Path, wanted: int) -> bool:
        """Whether owner, mode and access list of this very file allow it, whatever is above it.

        Raises OSError.
        """
        if self.uid == 0:
            return True
        found = path.stat()
        entries = _access_list(path) or [
            (_OWNER, found.st_mode >> 6 & 7, 0),
            (_GROUP_OWNER, found.st_mode >> 3 & 7, 0),
            (_OTHER, found.st_mode & 7, 0),
        ]
        return any(
            allowed & wanted == wanted for allowed in self._deciding(entries, found.st_uid, found.st_gid)
        )

    def _deciding(self, entries: list[Entry], owner: int, group: int) -> list[int]:
        """The permissions of the entries that decide for this user (acl(5): the first kind that matches)."""
        mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), 7)
        named = [allowed & mask for tag, allowed, number in entries if tag == _USER and number == self.uid]
        groups = [
            allowed & mask
            for tag, allowed, number in entries
            if (tag == _GROUP_OWNER and group in self.groups) or (tag == _GROUP and number in self.groups)
        ]
        if owner == self.uid:
            return [allowed for tag, allowed, _ in entries if tag == _OWNER]
        return named or groups or [allowed for tag, allowed, _ in entries if tag == _OTHER]

    def _enters(self, folder: Path) -> bool:
        if folder not in self._entered:
            self._entered[folder] = self.may(folder, ENTER)
        return self._entered[folder]


def _on_the_way(path: Path) -> Iterator[Path]:
    """Every folder that is gone through to reach the file, by the names given and by where links lead."""
    yield from reversed(path.parents)
    real = path.resolve(strict=True)
    if real != path:
        yield from reversed(real.parents)


def _access_list(path: Path) -> list[Entry]:
    try:
        raw = os.getxattr(path, _ACCESS_LIST)
    except OSError:  # it has none, or its file system knows none
        return []
    return [_ENTRY.unpack_from(raw, at) for at in range(4, len(raw) - _ENTRY.size + 1, _ENTRY.size)]
