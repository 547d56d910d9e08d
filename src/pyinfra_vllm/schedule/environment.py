"""Whether the file with the timer's secrets is one that only its owner decides about.

Reads names and modes, never its content.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from ..errors import DeclarationError

OPTION = "--environment-file"


def checked(path: Path, account: str | None) -> Path:
    """The file's own path, links resolved.

    Raises DeclarationError for a file whose content others can decide or read.

    + account: who runs the timer; None: the account that asks
    """
    real = path.resolve()
    owners = {0, pwd.getpwnam(account).pw_uid if account else os.geteuid()}
    for problem in (_of_file(real, owners), *(_of_folder(folder, owners) for folder in real.parents)):
        if problem:
            raise DeclarationError(f"{OPTION} {path}: {problem}. No timer was written.")
    return real


def _of_file(path: Path, owners: set[int]) -> str:
    """Why this file can't hold secrets; empty where it can."""
    try:
        found = path.lstat()
    except OSError as error:
        return (
            f"it can't be looked at ({error.strerror}): make it, `install -m 600 /dev/null {path}`, and"
            " write NAME=VALUE lines"
        )
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file: name one"
    if found.st_uid not in owners:
        return (
            f"it belongs to the user with id {found.st_uid}, who could put anything into the rollout: `chown"
            f" root {path}`"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
        return (
            f"others may read or write it (mode {stat.S_IMODE(found.st_mode):04o}), and it has secrets:"
            f" `chmod 600 {path}`"
        )
    return ""


def _of_folder(path: Path, owners: set[int]) -> str:
    """Why somebody else could put another file into its place; empty where nobody can."""
    found = path.stat()
    if found.st_uid not in owners:
        return (
            f"the folder {path} belongs to the user with id {found.st_uid}, who could replace it: move it"
            " below /etc"
        )
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not found.st_mode & stat.S_ISVTX:
        return (
            f"others may write in {path} (mode {stat.S_IMODE(found.st_mode):04o}) and replace it: `chmod"
            f" go-w {path}`, or move it below /etc"
        )
    return ""
