"""The view of one transaction, from journals of this and of earlier versions."""

from __future__ import annotations

from typing import Any

import pytest

from pyinfra_vllm.on_host.state import journal
from pyinfra_vllm.on_host.state.transactions import (
    RESTORE_FAILED,
    Step,
    Transaction,
    newest,
    took_s,
    transactions,
    without_service_s,
)

# As the first version wrote them: no purpose, limits, soak, or state of the old release.
OLDEST = b"""\
{"at":"2026-11-20T02:00:00.000+00:00","tx":"a","step":"begin","state":"done","from":"r1","to":"r2","operator":"ann"}
{"at":"2026-11-20T02:00:10.000+00:00","tx":"a","step":"activate","state":"intended","from":"r1","to":"r2"}
{"at":"2026-11-20T02:00:12.000+00:00","tx":"a","step":"activate","state":"done"}
{"at":"2026-11-20T02:00:12.000+00:00","tx":"a","step":"ready","state":"intended"}
{"at":"2026-11-20T02:01:12.000+00:00","tx":"a","step":"ready","state":"done","after_s":60.0}
{"at":"2026-11-20T02:03:00.000+00:00","tx":"a","step":"commit","state":"done","release":"r2"}
{"at":"2026-11-20T02:03:01.000+00:00","tx":"a","step":"end","state":"done","outcome":"committed","reason":"passed"}
{"at":"2026-11-20T02:03:09.000+00:00","tx":"a","step":"reported","state":"done"}
{"at":"2026-11-21T02:00:00.000+00:00","tx":"b","step":"begin","state":"done","from":"r2","to":"r3","operator":"bob"}
{"at":"2026-11-21T02:00:05.000+00:00","tx":"b","step":"activate","state":"inten"""


def entry(second: int, step: str, state: str, **fields: Any) -> dict[str, Any]:
    at = f"2026-11-20T02:{second // 60:02}:{second % 60:02}.000+00:00"
    return {"at": at, "tx": "t", "step": step, "state": state, **fields}


BEGIN = entry(0, "begin", "done", to="r2", **{"from": "r1"})


def test_journal_of_the_first_version_is_read(tmp_path: Any) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(OLDEST)
    first, second = transactions(journal.read(path))
    assert (first.tx, first.old, first.new, first.operator) == ("a", "r1", "r2", "ann")
    assert (first.purpose, first.why, first.overrides, first.log) == ("rollout", "", (), ())
    assert (first.outcome, first.reason, first.verdict) == ("committed", "passed", "")
    assert first.ended == "2026-11-20T02:03:01.000+00:00" and not first.recovered
    assert without_service_s(first.turns) == 62.0
    summary = first.as_dict()
    assert summary["kept"] and summary["reported"] and summary["from"] == "r1"
    assert (second.outcome, second.ended, second.reason, second.under_way) == (None, None, "", None)
    assert not second.as_dict()["reported"] and "ended" not in second.as_dict()


def test_an_end_after_a_trouble_that_was_reported_is_reported_by_the_next_run() -> None:
    failed, reported = entry(60, "restore", "failed", error="x"), entry(70, "reported", "done")
    end = entry(80, "end", "done", outcome="rolled_back", recovered=True)
    assert Transaction([BEGIN, failed, reported]).as_dict()["reported"]
    assert not Transaction([BEGIN, failed, reported, end]).as_dict()["reported"]
    assert Transaction([BEGIN, failed, reported, end, entry(90, "reported", "done")]).as_dict()["reported"]


def test_newest_of_no_entries_is_none() -> None:
    assert newest([]) is None
    assert newest([entry(0, "notify", "done")]) is None, "an entry before any begin"


def test_rollback_that_fails_is_no_end_until_the_recovery_writes_one() -> None:
    failed = entry(9, "restore", "failed", error="it does not start")
    entries = [BEGIN, entry(1, "activate", "intended"), entry(5, "restore", "intended"), failed]
    found = Transaction(entries)
    assert (found.outcome, found.reason, found.failing) == (
        RESTORE_FAILED,
        "it does not start",
        "it does not start",
    )
    assert found.end is None and found.as_dict()["outcome"] == RESTORE_FAILED
    again = Transaction([*entries, entry(20, "restore", "done")])
    assert again.failing is None
    ended = Transaction([*again.entries, entry(21, "end", "done", outcome="rolled_back", reason="slower")])
    assert (ended.outcome, ended.reason, ended.failing) == ("rolled_back", "slower", None)
    assert (ended.as_dict()["outcome"], ended.as_dict()["reason"]) == ("rolled_back", "slower")


def test_steps_have_their_times_state_and_limit() -> None:
    found = Transaction(
        [
            BEGIN,
            entry(1, "ready", "intended", limit_s=240),
            entry(2, "notify", "intended"),
            entry(3, "notify", "failed"),
        ]
    )
    ready, notify = found.steps
    assert found.under_way == ready == Step("ready", entry(1, "", "")["at"], None, "", 240)
    assert (notify.state, notify.ended) == ("failed", entry(3, "", "")["at"])


@pytest.mark.parametrize(
    ("turns", "ended", "seconds"),
    [
        ({}, None, None),
        ({"activate intended": 10}, None, None),
        ({"activate intended": 10}, 70, 60.0),
        ({"activate intended": 10, "ready done": 40}, None, 30.0),
        ({"activate intended": 10, "restore intended": 30, "restore done": 50}, None, 40.0),
        ({"activate intended": 10, "ready done": 40, "restore intended": 60, "restore done": 65}, None, 35.0),
        ({"activate intended": 10, "ready done": 40, "restore intended": 60}, None, 30.0),
        ({"activate intended": 10, "ready done": 40, "restore intended": 60}, 70, 40.0),
        ({"activate intended": 10, "ready done": 40, "restore done": 65}, None, 55.0),
        ({"activate intended": 10, "ready done": 5}, None, 0.0),
    ],
)
def test_seconds_without_service(turns: dict[str, int], ended: int | None, seconds: float | None) -> None:
    at = {name: entry(second, "", "")["at"] for name, second in turns.items()}
    end = entry(ended, "", "")["at"] if ended else None
    assert without_service_s(at, end) == seconds


def test_duration_of_a_step_that_did_not_come_is_zero() -> None:
    assert took_s({"ready done": BEGIN["at"]}, "ready intended", "ready done") == 0.0
