"""The status of a fleet: what runs, what differs from what should, and which hosts said nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from seen import seen
from simulated import NEW, OLD
from told import Teller, teller

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.commands.status import as_json, status
from pyinfra_vllm.on_host.state import lock
from pyinfra_vllm.report.looking import Wish
from pyinfra_vllm.report.status import drift, exit_code, flags_hash, rows
from pyinfra_vllm.report.tables import console, show_status

__all__ = ["teller"]


def wish(release: str | None = NEW, problem: str = "") -> tuple[Wish, ...]:
    return (Wish("chat", "org/model", release, problem),)


def test_a_host_that_runs_what_is_declared_has_no_drift(teller: Teller) -> None:
    teller.host.stage(NEW)
    teller.host.switch()
    (row,) = rows([teller.answer(wishes=wish())])
    assert (row.state, row.drift, row.release, row.declared) == ("ok", (), NEW, NEW)
    assert row.verdict == "committed (pass)"
    assert row.kernel == "Marlin"
    assert row.since == teller.look().running[0].history[-1].ended
    assert row.previous == OLD


def test_a_staged_release_and_a_rejected_one_are_told_apart(teller: Teller) -> None:
    teller.host.stage(NEW)
    (row,) = rows([teller.answer(wishes=wish())])
    assert row.drift == (f"declared {NEW} is staged, not yet switched to",)
    teller.host.rates[NEW] = 40.0
    teller.host.switch()
    (row,) = rows([teller.answer(wishes=wish())])
    assert row.verdict == "rolled_back (fail)"
    assert row.drift[0].startswith(f"declared {NEW} was rejected: ") and "tokens_per_s" in row.drift[0]
    assert row.release == OLD


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ({"current": None, "running": None}, ["no release is current", "declared x is not staged"]),
        ({"current": "x", "running": None}, ["not running (failed)"]),
        ({"current": "x", "running": "y"}, ["the process was started from y, current is x"]),
        ({"current": "y", "running": "y"}, ["declared x is not staged"]),
        ({"current": "x", "running": "x"}, []),
        (
            {"current": "x", "running": "x", "front_lost": True},
            ["its front leads to no server; the host mends that within two minutes"],
        ),
    ],
)
def test_each_kind_of_drift_has_its_sentence(observed: dict[str, Any], expected: list[str]) -> None:
    assert drift(seen(active="failed", **observed), Wish("chat", "org/model", "x")) == expected


def test_an_undeclared_service_is_drift_and_an_unreadable_declaration_is_not(teller: Teller) -> None:
    assert rows([teller.answer(wishes=())])[0].drift == ("runs here, and is not declared",)
    assert rows([teller.answer(wishes=None)])[0].state == "ok"


def test_a_service_that_was_never_staged_is_a_row(teller: Teller) -> None:
    wishes = (*wish(OLD), Wish("code", "org/coder", None, "no GPU fits"))
    _, row = rows([teller.answer(wishes=wishes)])
    assert (row.service, row.model, row.note) == (
        "code",
        "org/coder",
        "the declared release is unknown: no GPU fits",
    )
    assert row.drift == ("declared, and never staged on this host",)


def test_whoever_holds_the_lock_is_named(teller: Teller) -> None:
    with lock.exclusive(teller.host.paths.lock, "alice@laptop", "the rollout of release x"):
        (row,) = rows([teller.answer(wishes=wish(OLD))])
    assert row.state == "switching"
    assert row.switching.startswith("the rollout of release x by alice@laptop since 20")


def test_a_host_that_is_down_is_shown_and_the_others_too(teller: Teller) -> None:
    found = rows([Answer("gpu0", problem="not reached: timed out"), teller.answer(wishes=wish(OLD))])
    assert [(row.host, row.state) for row in found] == [("gpu0", "down"), ("gpu1", "ok")]
    assert exit_code(found) == 1 and exit_code(found[1:]) == 0
    told = as_json(found)["hosts"]
    assert told[0] == {"host": "gpu0", "problem": "not reached: timed out", "services": []}
    assert told[1]["services"][0]["current"] == OLD
    json.dumps(told)


def test_the_hash_is_of_the_flags_alone() -> None:
    flags = ["--port", "8000"]
    assert flags_hash(["/a/vllm", "serve", "/x", *flags]) == flags_hash(["/b/vllm", "serve", "/y", *flags])
    assert flags_hash(["vllm", *flags]) != flags_hash(["vllm", "--port", "8001"])


def test_colours_and_folding_are_for_terminals(teller: Teller) -> None:
    found = rows([Answer("gpu0", problem="x" * 300 + " [end]"), teller.answer(wishes=wish(OLD))])
    paper = io.StringIO()
    show_status(Console(file=paper, force_terminal=True, width=100), found)
    assert "\x1b[" in paper.getvalue()
    plain = console()
    with plain.capture() as captured:
        show_status(plain, found)
    lines = captured.get().splitlines()
    assert "\x1b" not in captured.get() and len(lines) == 3 and lines[1].rstrip().endswith("[end]")


# Through the real command, on this very machine as the host


@pytest.fixture
def here(teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory of this machine and one that does not answer; its declaration is broken on purpose."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    data = {"root": str(tmp_path), "services": {"chat": {"prot": 1}}}
    nobody = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "root": str(tmp_path)}
    text = f"here = [('@local', {data!r})]\naway = [('away', {nobody!r})]\n"
    inventory = work / f"{tmp_path.name}.py"  # pyinfra keeps what it once read of a path
    inventory.write_text(text)
    return inventory


def test_the_command_asks_every_host_and_survives_a_broken_declaration(here: Path) -> None:
    done = CliRunner().invoke(status, [str(here), "--json"], standalone_mode=False)
    assert done.exception is None, done.output
    assert done.return_value == 1
    told = {host["host"]: host for host in json.loads(done.stdout)["hosts"]}
    assert told["@local"]["services"][0]["current"] == OLD
    assert told["away"]["problem"].startswith("not reached: ")
    assert "prot" in done.stderr


def test_a_limit_leaves_the_others_unasked(here: Path) -> None:
    done = CliRunner().invoke(status, [str(here), "--limit", "here"], standalone_mode=False)
    assert done.return_value == 0
    assert "@local" in done.stdout and "away" not in done.stdout


def test_a_limit_that_matches_nothing_is_an_error(here: Path) -> None:
    done = CliRunner().invoke(status, [str(here), "--limit", "nobody"], standalone_mode=False)
    assert "matches no host" in str(done.exception)
