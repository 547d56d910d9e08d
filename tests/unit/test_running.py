"""Which release runs is what root wrote down at this very start; the process itself is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinfra_vllm.on_host.state import running

UNIT = "vllm-chat.service"
NOW, BEFORE = "c" * 32, "d" * 32
SHOWN = {"MainPID": "7", "InvocationID": NOW, "Environment": "A=b PYINFRA_VLLM_RELEASE=bbbbbbbbbbbb C=d"}


@pytest.mark.parametrize(
    ("written", "release", "certain"),
    [
        (f"{NOW} aaaaaaaaaaaa\n", "aaaaaaaaaaaa", "aaaaaaaaaaaa"),
        (
            f"{BEFORE} aaaaaaaaaaaa\n",
            "bbbbbbbbbbbb",
            None,
        ),  # of another start: what systemd has loaded counts
        (None, "bbbbbbbbbbbb", None),
        ("", "bbbbbbbbbbbb", None),
        ("one two three\n", "bbbbbbbbbbbb", None),
    ],
)
def test_what_was_written_at_this_start_counts(
    tmp_path: Path, written: str | None, release: str, certain: str | None
) -> None:
    if written is not None:
        (tmp_path / UNIT).write_text(written)
    assert running.release(UNIT, SHOWN, tmp_path) == release
    assert running.written_down(UNIT, SHOWN, tmp_path) == certain


def test_a_unit_that_runs_nothing_runs_no_release(tmp_path: Path) -> None:
    (tmp_path / UNIT).write_text(f"{NOW} aaaaaaaaaaaa\n")
    assert running.release(UNIT, {**SHOWN, "MainPID": "0"}, tmp_path) is None


def test_start_without_an_invocation_id_counts_as_unknown(tmp_path: Path) -> None:
    (tmp_path / UNIT).write_text(" aaaaaaaaaaaa\n")
    assert running.written_down(UNIT, {**SHOWN, "InvocationID": ""}, tmp_path) is None
