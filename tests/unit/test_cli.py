"""The `pyinfra-vllm` command as a user calls it: output, exit codes, and what each word on the
line may be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from test_fleet import entry

from pyinfra_vllm import cli
from pyinfra_vllm.checkpoint import Lock
from pyinfra_vllm.errors import DeclarationError, HostError, RolloutError

NIGHT = ("--cron", "0 2 * * *", "--duration", "3h", "--timezone", "Europe/Berlin")
KEYS = ["open", "closes", "last_start", "next", "reason"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("inventory").mkdir()
    Path("group_data").mkdir()
    Path("inventory/prod.py").write_text('small = ["gpu-1.invalid"]\nbig = ["gpu-2.invalid"]\n')
    window = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}
    service = {"model": "acme/tiny", "runtime": {"version": "0.33.0"}, "port": 8000, "window": window}
    Path("group_data/all.py").write_text(f"services = {{'chat': {service!r}}}\n")
    return tmp_path


def test_a_closed_window_says_so_and_when_next(run: Any) -> None:
    ended = run("windows", *NIGHT, "--at", "2026-06-01T12:00:00+02:00", "--json")
    assert ended.code == 0
    assert list(ended.json) == KEYS
    assert ended.json["open"] is False and ended.json["closes"] is None and ended.json["last_start"] is None
    assert ended.json["next"] == [f"2026-06-0{day}T02:00:00+02:00" for day in range(2, 7)]


def test_an_open_window_says_until_when_and_how_late_it_is_not_too_late(run: Any) -> None:
    ended = run("windows", *NIGHT, "--switch-estimate", "1h", "--at", "2026-12-01T03:00", "--json")
    assert (ended.code, ended.json["open"]) == (0, True)
    assert ended.json["closes"] == "2026-12-01T05:00:00+01:00"
    assert ended.json["last_start"] == "2026-12-01T04:00:00+01:00"
    assert ended.json["next"][0] == "2026-12-02T02:00:00+01:00"


def test_a_duration_may_be_a_number_of_seconds(run: Any) -> None:
    night = ("--cron", "0 2 * * *", "--timezone", "Europe/Berlin", "--at", "2026-12-01T03:00", "--json")
    said = run("windows", *night, "--duration", "3h", "--switch-estimate", "10m")
    ended = run("windows", *night, "--duration", "10800", "--switch-estimate", "600")
    assert ended.code == 0 and ended.json == said.json


def test_for_people_it_is_said_in_words(run: Any) -> None:
    ended = run("windows", *NIGHT, "--at", "2026-12-01T04:30")
    assert ended.out.splitlines()[:4] == [
        "open until 2026-12-01 05:00 CET, but too late to begin: "
        "a switch and its rollback may take 45m (the default)",
        "closes      Tue 2026-12-01 05:00+01:00 (CET)",
        "last start  Tue 2026-12-01 04:15+01:00 (CET)",
        "next        Wed 2026-12-02 02:00+01:00 (CET)",
    ]


def test_exceptions_are_dates_ranges_and_calendars(run: Any, tmp_path: Path) -> None:
    calendar = tmp_path / "X.ICS"  # as some programs name it
    calendar.write_text(
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20260606\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    exceptions = ("--except", "2026-06-02", "--except", "2026-06-04..2026-06-05", "--except", str(calendar))
    ended = run("windows", *NIGHT, *exceptions, "--at", "2026-06-01T12:00", "--json")
    assert [text[:10] for text in ended.json["next"][:3]] == ["2026-06-03", "2026-06-07", "2026-06-08"]


@pytest.mark.thorough
def test_a_freeze_until_further_notice_is_an_exception(run: Any, project: Path) -> None:
    frozen = ("--except", "2026-12-24..9999-12-31", "--at", "2026-12-23T12:00", "--json")
    assert run("windows", *NIGHT, *frozen).json["next"] == []
    calendar = project / "freeze.Ics"
    calendar.write_text(
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20261224\nDTEND;VALUE=DATE:99991231\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    for exception in ("2026-12-24..9999-12-31", str(calendar)):
        window = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin", "except": [exception]}
        Path("group_data/small.py").write_text(f"services = {{'chat': {{'window': {window!r}}}}}\n")
        ended = run("windows", "--limit", "small", "--at", "2026-12-24T02:30", "--json")
        assert (ended.code, ended.json["open"], ended.json["next"]) == (0, False, []), ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cron", "0 25 * * *", "--duration", "3h", "--timezone", "UTC"), "'0 25 * * *'"),
        (("--cron", "0 2 * * *", "--duration", "long", "--timezone", "UTC"), "--duration 'long'"),
        (
            ("--cron", "0 2 * * *", "--duration", "3h", "--timezone", "Europe/Berln"),
            "did you mean Europe/Berlin?",
        ),
        ((*NIGHT, "--except", "christmas"), "--except 'christmas'"),
        ((*NIGHT, "--at", "now"), "--at 'now'"),
        (("--cron", "0 2 * * *", "--duration", "0", "--timezone", "UTC"), "more than nothing"),
        ((*NIGHT, "--at", "0001-01-01T00:00"), "--at '0001-01-01T00:00': must be in the years from 1970"),
        ((*NIGHT, "--at", "9999-12-31T23:00"), "--at '9999-12-31T23:00': must be in the years"),
        ((*NIGHT, "--switch-estimate", "99999999999d"), "--switch-estimate '99999999999d': a duration is at"),
        (("--cron", "0 2 * * *", "--duration", "99999999999d", "--timezone", "UTC"), "is at most 100 years"),
        (("--cron", "0 2 * * *"), "also needs --duration, --timezone"),
        ((*NIGHT, "inventory/prod.py"), "goes without INVENTORY"),
        (("--except", "2026-01-01"), "go with --cron"),
        (("inventory/none.py",), "There is no inventory"),
        (("--colour",), "No such option"),
    ],
)
def test_invalid_questions_end_with_2_and_an_empty_stdout(
    run: Any, arguments: tuple[str, ...], message: str
) -> None:
    ended = run("windows", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err and "Traceback" not in ended.err


def test_an_inventory_is_asked_for_its_services(run: Any, project: Path) -> None:
    ended = run("windows", "--at", "2026-06-01T03:00", "--json")
    assert (ended.code, list(ended.json), ended.json["open"]) == (0, KEYS, True)
    assert "a switch and its rollback may take 45m (the default)" in ended.json["reason"]
    assert "gpu-1.invalid/chat, gpu-2.invalid/chat:" in run("windows", "inventory/prod.py").out


def test_services_with_other_windows_are_told_apart(run: Any, project: Path) -> None:
    Path("group_data/big.py").write_text("services = {'chat': {'window': {'cron': '0 4 * * *'}}}\n")
    ended = run("windows", "--at", "2026-06-01T03:00", "--json")
    assert list(ended.json) == [*KEYS, "services"]
    assert ended.json["open"] is True and ended.json["closes"] == "2026-06-01T05:00:00+02:00"
    assert [item["open"] for item in ended.json["services"]] == [True, False]
    assert ended.json["services"][1]["services"] == ["gpu-2.invalid/chat"]
    assert list(run("windows", "--limit", "big", "--json").json) == KEYS


def test_an_inventory_without_services_is_an_error(run: Any, project: Path) -> None:
    Path("group_data/all.py").write_text("")
    assert run("windows").code == 2


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_there_and_takes_json(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None and command.name == name
    assert any("--json" in parameter.opts for parameter in command.params)
    assert command.help


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_that_reads_an_inventory_takes_further_group_data(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert "inventory" not in options or "--group-data" in options


def test_windows_are_those_of_further_group_data(run: Any, project: Path) -> None:
    Path("more").mkdir()
    Path("more/all.py").write_text("window = [{'cron': '0 4 * * *', 'duration': '3h', 'timezone': 'UTC'}]\n")
    service = {"model": "acme/tiny", "runtime": {"version": "0.33.0"}, "port": 8000}
    Path("group_data/all.py").write_text(f"services = {{'chat': {service!r}}}\n")
    ended = run("windows", "--group-data", "more", "--at", "2026-06-01T03:00", "--json")
    assert ended.json["next"][0] == "2026-06-01T04:00:00+00:00"
    assert run("windows", *NIGHT, "--group-data", "more").code == 2


def test_help_and_version_answer_without_the_commands(run: Any) -> None:
    assert all(name in run("--help").out for name in cli.COMMANDS)
    assert "Exit codes" in run("-h").out
    assert "pyinfra-vllm, version" in run("--version").out


def test_unknown_commands_are_a_usage_error(run: Any) -> None:
    ended = run("windos")
    assert (ended.code, ended.out) == (2, "") and "windos" in ended.err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (DeclarationError("told"), 2),
        (HostError("told"), 1),
        (RolloutError("told"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_failures_end_with_their_own_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise raised

    monkeypatch.setattr(type(cli.cli), "get_command", lambda *_: failing)
    ended = run("windows")
    assert (ended.code, ended.out) == (code, "")
    assert code == 130 or "told" in ended.err


def test_unexpected_error_is_one_line_with_own_exit_code(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise RecursionError("too\ndeep")

    monkeypatch.setattr(type(cli.cli), "get_command", lambda *_: failing)
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    ended = run("compare")
    assert (ended.code, ended.out, ended.err.count("\n")) == (70, "", 1)
    assert "RecursionError: too deep" in ended.err and "PYINFRA_VLLM_TRACEBACK=1" in ended.err
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    told = run("compare")
    assert told.code == 70 and "Traceback" in told.err and "in failing" in told.err


def test_a_command_that_can_not_even_be_imported_is_no_verdict(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ImportError("no module named x")

    monkeypatch.setattr(type(cli.cli), "get_command", broken)
    ended = run("compare")
    assert ended.code == 70 and "ImportError: no module named x" in ended.err


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_a_commands_own_exit_code_is_kept(run: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    for command in (
        click.Command("returns", callback=lambda: code),
        click.Command("exits", callback=lambda: sys.exit(code)),
        click.Command("leaves", callback=lambda: click.get_current_context().exit(code)),
    ):
        monkeypatch.setattr(type(cli.cli), "get_command", lambda *_, command=command: command)
        assert run("windows").code == code


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    [
        ("windows", *NIGHT, "--json"),
        ("resolve", "--model", "Qwen/Qwen3-14B-AWQ", "--gpu", "H200", "--runtime", "0.33.0"),
        ("--help",),
    ],
    ids=["json", "table", "help"],
)
def test_a_reader_that_has_gone_is_no_verdict(words: tuple[str, ...]) -> None:
    script = Path(sys.executable).parent / "pyinfra-vllm"
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        ended = subprocess.run([script, *words], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(theirs)
    assert (ended.returncode, ended.stderr) == (cli.NOBODY_READS, "")


@pytest.mark.thorough
@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_a_name_that_the_terminal_can_not_show_is_written_out(project: Path, encoding: str) -> None:
    Path("inventory/prod.py").write_text('small = ["\u5927.invalid"]\n')
    script = Path(sys.executable).parent / "pyinfra-vllm"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    told = subprocess.run([script, "status"], capture_output=True, env=environment, timeout=60)
    assert told.returncode == 1, told.stderr
    assert ("\u5927" if encoding == "utf-8" else "\\u5927") + ".invalid" in told.stdout.decode(encoding)


@pytest.mark.thorough
@pytest.mark.parametrize("without", ["", "1"])
def test_no_color_is_kept_to_on_a_terminal(project: Path, without: str) -> None:
    Lock([entry("acme/tiny")]).dump()
    ours, theirs = os.openpty()
    script = Path(sys.executable).parent / "pyinfra-vllm"
    environment = {**os.environ, "NO_COLOR": without, "TERM": "xterm"}
    subprocess.run([script, "plan"], stdout=theirs, stderr=subprocess.DEVNULL, env=environment, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"Refused" in shown and (b"\x1b" in shown) == (not without)


def test_an_error_of_lock_begins_as_that_of_every_command(run: Any, project: Path) -> None:
    for command in ("lock", "windows", "plan"):
        ended = run(command, "inventory/none.py")
        assert (ended.code, ended.out) == (2, "") and ended.err.startswith("Error: There is no inventory")


def test_a_report_of_no_inventory_writes_nothing(run: Any, project: Path) -> None:
    assert run("report", "inventory/none.py", "--out", "page").code == 2
    assert not Path("page").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("report", "--out", "page", "--newest", "0"), "'--newest': 0 is not in the range"),
        (("watch", "--every", "-1"), "'--every': -1.0 is not in the range"),
        (("watch", "--every", "nan"), "'--every': nan is not a number of seconds"),
    ],
)
def test_a_number_that_means_nothing_is_refused(
    run: Any, project: Path, words: tuple[str, ...], said: str
) -> None:
    ended = run(*words)
    assert (ended.code, ended.out) == (2, "") and said in ended.err


@pytest.mark.thorough
def test_the_installed_script_works() -> None:
    script = Path(sys.executable).parent / "pyinfra-vllm"
    ended = subprocess.run(
        [script, "windows", *NIGHT, "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert list(json.loads(ended.stdout)) == KEYS
