"""`logs`: which start failed and why, a line for each entry by time, and nothing that steers the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.commands import logs as command
from pyinfra_vllm.on_host.server import logs, unit_log
from pyinfra_vllm.on_host.server.unit_log import Line
from pyinfra_vllm.report import journal

FIXTURES = Path(__file__).parents[1] / "fixtures" / "root_cause"
READY = "INFO 11-21 02:00:00 [api_server.py:1] Starting vLLM server on http://127.0.0.1:8000"


def start(name: str, fixture: str, at: float) -> list[Line]:
    return [Line(text, name, at) for text in (FIXTURES / fixture).read_text().splitlines()]


def test_the_newest_failed_start_is_named_with_its_time() -> None:
    lines = [*start("1", "unknown-flag.log", 100.0), *start("2", "quantization.log", 200.0)]
    found = logs.failed_start(lines)
    assert found is not None and found.at == 200.0
    assert "quantization" in found.text.lower() and found.traceback


def test_a_start_that_took_requests_is_none_that_failed() -> None:
    """A client's words stand in its log from then on, and might look like a cause."""
    served = [
        Line(READY, "2", 200.0),
        Line("Traceback (most recent call last):", "2", 201.0),
        Line("ValueError: forged", "2", 202.0),
    ]
    assert logs.failed_start(served) is None
    found = logs.failed_start([*start("1", "unknown-flag.log", 100.0), *served])
    assert found is not None and found.at == 100.0


def test_systemds_lines_belong_to_the_start_before_them() -> None:
    lines = [
        Line("vLLM begins", "1", 1.0),
        Line("vllm-chat.service: Failed to set up mount namespacing: No such file", "", 2.0),
    ]
    found = logs.failed_start(lines)
    assert found is not None and (found.at, found.process) == (1.0, "systemd")


def test_a_start_that_systemd_could_not_begin_is_no_part_of_the_one_that_served_before() -> None:
    """On a busy host journald reads the child's own line when the child is gone: only systemd's is left."""
    exited = "vllm-chat.service: Main process exited, code=exited, status=203/EXEC"
    found = logs.failed_start([Line(READY, "1", 1.0), Line(exited, "2", 2.0)])
    assert found is not None and (found.at, found.process) == (2.0, "systemd")


def test_the_units_are_merged_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat" / "releases").mkdir(parents=True)
    said = {
        "vllm-chat.service": [Line("third", "1", 3.0)],
        "pyinfra-vllm-switch-chat.service": [Line("first", "9", 1.0), Line("fourth", "9", 4.0)],
        "pyinfra-vllm-recover@chat.service": [Line("second", "8", 2.0)],
    }
    monkeypatch.setattr(unit_log, "lines", lambda unit, cursor, newest: iter(said[unit]))
    (found,) = logs.read(tmp_path, [], 10)
    assert [(line.unit, line.text) for line in found.lines] == [
        ("switch", "first"),
        ("recovery", "second"),
        ("service", "third"),
        ("switch", "fourth"),
    ]


def test_a_journal_that_can_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise unit_log.LogError("journalctl exited with 1: No journal files were opened")

    monkeypatch.setattr(unit_log, "lines", fail)
    (found,) = logs.read(tmp_path, ["chat"], 10)
    (told,) = journal.lines("gpu-1", [found])
    assert told.startswith(
        "gpu-1 chat: the journal can't be read: journalctl exited with 1: No journal files"
    )


def test_a_name_that_is_no_service_s_is_told_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"vllm-gone.service": [Line("last words", "1", 1.0)]}
    monkeypatch.setattr(unit_log, "lines", lambda unit, cursor, newest: iter(said.get(unit, [])))
    (found,) = logs.read(tmp_path, ["chta"], 10)
    assert found.problem == "no service has this name here; there is none"
    for name in ("chat", "embed"):
        (tmp_path / name / "releases").mkdir(parents=True)
    chat, gone, slip = logs.read(tmp_path, ["chat", "gone", "chta"], 10)
    assert (chat.problem, gone.problem) == ("", ""), "nothing was logged; the service is gone"
    assert slip.problem == "no service has this name here; there is chat, embed"


def test_the_entries_own_time_is_read() -> None:
    (line,) = unit_log.parsed(b'{"MESSAGE": "x", "__REALTIME_TIMESTAMP": "1700000000500000"}')
    assert line.at == 1700000000.5
    (line,) = unit_log.parsed(b'{"MESSAGE": "x", "__REALTIME_TIMESTAMP": "soon"}')
    assert line.at is None


TOLD = logs.ServiceLog(
    "chat",
    logs.FailedStart(1700000000.0, "EngineCore", "ValueError: \x1b[2Jgone", ["  File \x07"]),
    lines=(logs.Told(1700000001.5, "service", "\x1b]0;owned\x07 hello"),),
)


def test_the_root_cause_comes_first_and_all_of_it_is_printable() -> None:
    found = list(journal.lines("gpu-1", [TOLD]))
    assert (
        found[0]
        == "gpu-1 chat: the start of 2023-11-14 22:13:20Z failed: EngineCore: ValueError: \\x1b[2Jgone"
    )
    assert found[-1] == "2023-11-14 22:13:21Z  service   \\x1b]0;owned\\x07 hello"
    assert all(line.isprintable() for line in found)
    assert journal.moment(1e300) == journal.moment(None) == "an unknown time"


def test_json_has_all_of_it_and_a_host_that_is_down_exits_1(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run", lambda *arguments: Answer("gpu-1", [TOLD]))
    ended = run("logs", "gpu-1", "--json")
    services = json.loads(json.dumps([asdict(TOLD)]))
    assert (ended.code, ended.json) == (0, {"host": "gpu-1", "problem": "", "services": services})
    none = replace(TOLD, cause=None, lines=(), problem="no service has this name here; there is none")
    monkeypatch.setattr(command, "run", lambda *arguments: Answer("gpu-1", [none]))
    assert run("logs", "gpu-1", "nope").code == 1
    monkeypatch.setattr(command, "run", lambda *arguments: Answer("gpu-1", problem="not reached: \x1b[2J"))
    ended = run("logs", "gpu-1")
    assert (ended.code, ended.err) == (1, "gpu-1: not reached: \\x1b[2J\n")


def test_a_host_is_named_exactly(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hosts.py").write_text("hosts = ['gpu-1.invalid', 'gpu-2.invalid']\n")
    ended = run("logs", "gpu-*", "--inventory", "hosts.py")
    assert ended.code == 2 and "means gpu-1.invalid, gpu-2.invalid: name one" in ended.err
    assert run("logs", "nobody", "--inventory", "hosts.py").code == 2
