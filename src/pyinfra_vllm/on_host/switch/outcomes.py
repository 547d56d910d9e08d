"""Writes the end of a transaction to the disk: the link `previous` and the list of rejected releases."""

from __future__ import annotations

from typing import Any

from ..state import durable, journal
from ..state.paths import ServicePaths

BY_HAND = "rolled back by the operator"


def settle_commit(
    paths: ServicePaths, old_id: str | None, new_id: str, given_up: str | None, tx: str
) -> None:
    """Brings the links and lists in line with a commit.

    given_up: why the old release was left by hand, which rejects it; None where a rollout replaced it
    """
    if old_id and old_id != new_id:
        if paths.release(old_id).is_dir():
            durable.point(paths.previous, paths.release(old_id))
        if given_up:
            reject(paths, old_id, given_up, tx)
    accept(paths, new_id)


def reject(
    paths: ServicePaths, release_id: str, reason: str, tx: str, criteria: dict[str, Any] | None = None
) -> None:
    """Remember that the release was found worse: it is not tried again until something in it changes.

    + criteria: of the gate that it failed; where others are declared, it may be tried again
    """
    rejected = durable.read_json(paths.rejected, {})
    judged = {"criteria": criteria} if criteria else {}
    rejected[release_id] = {"at": journal.now(), "reason": reason, "tx": tx, **judged}
    durable.write_json(paths.rejected, rejected)


def accept(paths: ServicePaths, release_id: str) -> None:
    """A release that was proven after all is no longer rejected."""
    rejected = durable.read_json(paths.rejected, {})
    if rejected.pop(release_id, None):
        durable.write_json(paths.rejected, rejected)
