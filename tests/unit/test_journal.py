"""The journal survives being torn anywhere, and says what was intended before it says what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.state import journal
from pyinfra_vllm.on_host.state.journal import Journal
from pyinfra_vllm.on_host.state.transactions import newest, transactions


def test_a_step_is_written_before_its_body_runs(tmp_path: Path) -> None:
    log = Journal(tmp_path / "journal.jsonl", "t1")
    with log.step("activate", **{"from": "a"}, to="b") as result:
        assert [(e["step"], e["state"]) for e in log.entries()] == [("activate", "intended")]
        result["took_s"] = 3
    assert [(e["state"], e.get("to"), e.get("took_s")) for e in log.entries()] == [
        ("intended", "b", None),
        ("done", None, 3),
    ]


def test_a_failing_step_is_recorded_and_raised(tmp_path: Path) -> None:
    log = Journal(tmp_path / "journal.jsonl", "t1")
    with pytest.raises(OSError, match="disk full"), log.step("stage"):
        raise OSError("disk full")
    assert log.entries()[-1] | {"at": ""} == {
        "at": "",
        "tx": "t1",
        "step": "stage",
        "state": "failed",
        "error": "disk full",
    }


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "none") == []
    assert newest(journal.read(tmp_path / "none")) is None


def test_newest_transaction_is_the_last_that_began(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for tx in ("t1", "t2"):
        Journal(path, tx).write("begin", "done")
    Journal(path, "t1").write("reported", "done")
    assert [found.tx for found in transactions(journal.read(path))][-1] == "t2"


@given(cut=st.integers(min_value=0, max_value=400), text=st.text(max_size=40))
def test_a_journal_cut_anywhere_keeps_every_whole_entry_and_can_be_written_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, text: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    log = Journal(path, "t1")
    for number in range(3):
        log.write("begin", "done", number=number, text=text)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    survived = len([line for line in whole[:cut].split(b"\n") if line and line in whole.split(b"\n")])
    log.write("end", "done")
    numbers = [entry["number"] for entry in log.entries() if "number" in entry]
    assert numbers == list(range(survived))
    assert log.entries()[-1]["step"] == "end"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    path.write_bytes(content)
    assert isinstance(journal.read(path), list)
    assert newest(journal.read(path)) is None or content


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, None),
        ({"news": [1]}, None),
        ({"from": None, "log": ["x"]}, None),
        ({"at": "2026-11-20T02:00:00"}, "at"),
        ({"at": "yesterday"}, "at"),
        ({"tx": "../other"}, "tx"),
        ({"step": None}, "step"),
        ({"step": "activate", "state": "intended", "from": None}, "to"),
        ({"reason": 5}, "reason"),
        ({"verdict": []}, "verdict"),
        ({"log": ["x", 1]}, "log"),
    ],
)
def test_the_wrong_key_of_an_entry_is_named_and_the_line_is_skipped(
    tmp_path: Path, change: dict[str, Any], key: str | None
) -> None:
    entry = {"at": "2026-11-20T02:00:00+00:00", "tx": "t", "step": "end", "state": "done", **change}
    assert journal.wrong_key(entry) == key
    (tmp_path / "j").write_text(json.dumps(entry) + "\n")
    assert journal.read(tmp_path / "j") == ([entry] if key is None else [])
