"""Links that survive: pointed by one rename, and left alone where they point there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinfra_vllm.on_host.state import durable


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        durable.point(tmp_path / "current", tmp_path / name)
        assert (tmp_path / "current").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "current"]


def test_a_link_that_points_there_already_needs_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that turned read-only the way back to what is current must still be there."""
    (tmp_path / "a").mkdir()
    durable.point(tmp_path / "current", tmp_path / "a")

    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("symlink_to", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    durable.point(tmp_path / "current", tmp_path / "a")
