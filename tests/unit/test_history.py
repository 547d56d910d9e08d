"""The fleet's history: every switch once, in order, with who, why and what came of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner
from simulated import NEW, OLD
from told import Teller, teller

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.commands.history import history, since_when
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.state import recall
from pyinfra_vllm.on_host.switch import calibrating
from pyinfra_vllm.on_host.switch.order import CALIBRATION, ROLLBACK, Order
from pyinfra_vllm.report import looking
from pyinfra_vllm.report.history import left_out, moment, problems, switches
from pyinfra_vllm.report.page import render
from pyinfra_vllm.report.tables import why_of

__all__ = ["teller"]


@pytest.fixture
def eventful(teller: Teller) -> Teller:
    """A rollout that was kept, then a rollback by hand."""
    teller.host.stage(NEW)
    teller.host.switch(reason="ticket 42", overrides=("switch_now",))
    teller.host.switch(OLD, purpose=ROLLBACK, operator="bob", reason="answers are odd")
    return teller


def test_each_switch_says_who_what_why_and_how_it_ended(eventful: Teller) -> None:
    first, second = switches([eventful.answer()])
    assert (first.operator, first.old, first.new, first.outcome) == ("alice", OLD, NEW, "committed")
    assert (first.verdict, first.why, first.overrides) == ("pass", "ticket 42", ("switch_now",))
    assert (second.operator, second.purpose, second.old, second.new) == ("bob", "rollback", NEW, OLD)
    assert second.took_s is not None and second.took_s >= 0
    assert why_of(first).endswith("operator: ticket 42; overrides: switch_now")


def test_a_calibration_is_told_among_the_switches(teller: Teller) -> None:
    order = Order("chat", OLD, "carol", purpose=CALIBRATION, reason="new driver", runs=3)
    assert calibrating.calibrate(order, teller.host.paths) == "calibrated"
    (found,) = switches([teller.answer()])
    assert (found.operator, found.purpose, found.old, found.new) == ("carol", "calibration", OLD, OLD)
    assert found.outcome == "calibrated" and found.reason.startswith("3 runs; of two such runs")
    assert "calibration of aaaaaaaaaaaa by carol" in render("x", [teller.answer()], datetime.now(UTC))


def test_hosts_are_merged_by_time_and_those_that_said_nothing_are_named(eventful: Teller) -> None:
    answers = [eventful.answer("b"), Answer("c", problem="not reached"), eventful.answer("a")]
    found = switches(answers)
    assert [item.host for item in found] == ["a", "b", "a", "b"]
    assert [item.began for item in found] == sorted(item.began for item in found)
    assert problems(answers) == {"c": "not reached"}


def test_since_leaves_out_what_began_earlier(eventful: Teller) -> None:
    _, second = switches([eventful.answer()])
    assert switches([eventful.answer()], moment(second.began)) == [second]
    assert switches([eventful.answer()], datetime.now(UTC) + timedelta(hours=1)) == []


def test_what_is_left_out_is_counted_where_it_may_belong(eventful: Teller) -> None:
    both, newest = [eventful.answer(newest=0)], [eventful.answer(newest=1)]
    assert (len(switches(both)), left_out(both)) == (2, 0)
    assert (len(switches(newest)), left_out(newest)) == (1, 1)
    first, second = (moment(item.began) for item in switches(both))
    assert left_out(newest, first) == 1
    assert left_out(newest, second + timedelta(microseconds=1)) == 0
    assert left_out([Answer("c", problem="not reached")]) == 0


def test_a_switch_that_has_not_ended_is_under_way(eventful: Teller) -> None:
    look = eventful.look()
    told = look.record["chat"]["transactions"][-1]
    told["entries"] = [entry for entry in told["entries"] if entry["step"] != "end"]
    found = switches([Answer("gpu1", look)])[-1]
    assert (found.outcome, found.took_s, found.ended) == ("under way", None, "")


def test_without_evidence_nothing_large_is_sent(teller: Teller) -> None:
    teller.host.stage(NEW)
    teller.host.rates[NEW] = 10.0
    assert teller.host.switch() == "rolled_back"
    (told,) = recall.recall(teller.host.paths.root, 1, 0, [])
    (newest,) = told["transactions"]
    end = newest["entries"][-1]
    assert end["outcome"] == "rolled_back"
    assert newest["evidence"] == {} and "Marlin" in told["kernels"][NEW]["kernels"]
    ((known,),) = [service["transactions"] for service in recall.recall(teller.host.paths.root, 1, 10**7, [])]
    assert set(known["evidence"]) == {"verdict", "before", "after", "release", "old"}


def test_log_of_a_failed_start_is_sent_with_the_evidence_alone_and_its_cause_always(teller: Teller) -> None:
    refused = "vllm: error: unrecognized arguments: --no-such-flag"
    teller.host.stage(NEW)
    teller.host.crashing[NEW] = [refused]
    assert teller.host.switch() == "rolled_back"
    for max_bytes in (0, 10**7):
        ((told,),) = [
            item["transactions"] for item in recall.recall(teller.host.paths.root, 1, max_bytes, [])
        ]
        end = told["entries"][-1]
        assert refused in end["reason"] and end.get("log") == ([refused] if max_bytes else None)


def test_evidence_that_is_too_large_is_named_not_cut(eventful: Teller) -> None:
    (told,) = recall.recall(eventful.host.paths.root, 5, 9000, ["chat"])
    first = told["transactions"][0]
    assert "verdict" in first["evidence"] and set(first["left_out"]) >= {"before", "after"}
    assert "more than this request allows" in first["left_out"]["before"]


def test_torn_line_and_missing_journal_are_skipped(eventful: Teller, tmp_path: Path) -> None:
    journal = eventful.host.paths.journal
    journal.write_bytes(journal.read_bytes() + b'{"tx": "torn')
    assert len(switches([eventful.answer()])) == 2
    assert recall.recall(tmp_path / "nowhere", 5, 0, []) == []


def test_since_takes_a_date_a_time_and_how_long_ago() -> None:
    assert since_when(None) is None
    assert since_when("2026-11-20") == datetime(2026, 11, 20, tzinfo=UTC)
    assert since_when("2026-11-20T02:00+01:00") == datetime(2026, 11, 20, 1, tzinfo=UTC)
    ago = since_when("7d")
    assert ago is not None and abs(datetime.now(UTC) - timedelta(days=7) - ago) < timedelta(minutes=1)
    at = datetime(2026, 11, 20, 1, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert since_when("today", at) == datetime(2026, 11, 19, 23, tzinfo=UTC)
    assert since_when("yesterday", at) == datetime(2026, 11, 18, 23, tzinfo=UTC)
    after_summer = datetime(2026, 10, 26, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert since_when("yesterday", after_summer) == datetime(2026, 10, 24, 22, tzinfo=UTC)
    assert since_when("2w", at) == at - timedelta(days=14)
    for text in ("tomorrow", "99999999999d", "99999w"):
        with pytest.raises(DeclarationError, match=f"--since '{text}'"):
            since_when(text)


@pytest.mark.thorough
def test_the_command_prints_table_and_json(
    eventful: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inventory = tmp_path / "past.py"  # pyinfra keeps what it once read of a path
    inventory.write_text(f"here = [('@local', {{'root': {str(tmp_path)!r}}})]\n")
    done = CliRunner().invoke(history, [str(inventory), "--json"], standalone_mode=False)
    assert done.return_value == 0, done.output
    told = json.loads(done.stdout)
    assert [item["to"] for item in told["switches"]] == [NEW, OLD] and told["missing"] == {}
    table = CliRunner().invoke(history, [str(inventory)], standalone_mode=False).stdout.splitlines()
    assert len(table) == 3 and "answers are odd" in table[2]

    monkeypatch.setattr(looking, "NEWEST", 1)
    short = CliRunner().invoke(history, [str(inventory)], standalone_mode=False)
    assert len(short.stdout.splitlines()) == 2
    assert short.stderr.endswith("1 older switch not shown: --since or --newest does.\n")
    since = ("--since", "1d", "--json")
    whole = CliRunner().invoke(history, [str(inventory), *since], standalone_mode=False)
    assert len(json.loads(whole.stdout)["switches"]) == 2 and json.loads(whole.stdout)["left_out"] == 0
    some = CliRunner().invoke(history, [str(inventory), *since, "--newest", "1"], standalone_mode=False)
    assert len(json.loads(some.stdout)["switches"]) == 1 and json.loads(some.stdout)["left_out"] == 1
