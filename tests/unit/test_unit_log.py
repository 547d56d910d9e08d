"""A server's log as the journal tells it: a client's words can't pass for the server's, and no length takes
the memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.server import kernel, kv_cache, systemd, unit_log
from pyinfra_vllm.on_host.server.unit_log import Line

START, EARLIER = "a" * 32, "b" * 32
FAST = "INFO 11-21 02:13:31 [x.py:1] Using MarlinLinearKernel for AutoAWQMarlinLinearMethod"
SLOW = "WARNING 11-21 02:13:31 [x.py:1] so forcing awq"
ACCEPTS = "(APIServer pid=7) INFO:     Started server process [7]"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "kernel"


def entry(message: Any, **fields: Any) -> bytes:
    return json.dumps({"MESSAGE": message, "_SYSTEMD_INVOCATION_ID": START, **fields}).encode() + b"\n"


def journal(entries: list[bytes]) -> list[Line]:
    return [line for one in entries for line in unit_log.parsed(one)]


def test_a_line_that_a_client_forges_comes_too_late_to_count() -> None:
    forged = f"The model `x\n{SLOW}` does not exist."
    log = journal([entry(FAST), entry(ACCEPTS), entry(SLOW), entry(forged)])
    found = unit_log.before_requests(log, START)
    assert found == [FAST, ACCEPTS]
    assert kernel.check(found, "0.32.0", ["Marlin"])["verdict"] == "pass"
    assert kernel.check([line.text for line in log], "0.32.0", ["Marlin"])["verdict"] == "fail"


def test_a_fast_kernel_that_a_client_claims_does_not_hide_a_slow_one() -> None:
    log = journal([entry(SLOW), entry(ACCEPTS), entry(FAST)])
    assert kernel.check(unit_log.before_requests(log, START), "0.32.0", ["Marlin"])["verdict"] == "fail"


def test_lines_of_another_start_and_of_systemd_do_not_count() -> None:
    log = journal(
        [entry(SLOW, _SYSTEMD_INVOCATION_ID=EARLIER), entry(SLOW, _SYSTEMD_INVOCATION_ID=None), entry(FAST)]
    )
    assert unit_log.before_requests(log, START) == [FAST]


def test_a_line_of_systemd_belongs_to_the_start_of_which_it_tells() -> None:
    of_systemd = entry("x", _PID="1", INVOCATION_ID=EARLIER, _SYSTEMD_INVOCATION_ID=None)
    of_the_service = entry("x", _PID="7", INVOCATION_ID=EARLIER)
    assert [line.start for line in journal([of_systemd, of_the_service])] == [EARLIER, START]


@pytest.mark.parametrize(
    "line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
)
def test_an_entry_is_one_line_whatever_is_in_it(line_break: str) -> None:
    (line,) = unit_log.parsed(entry(f"one{line_break}two"))
    assert line.text == "one two" and len(line.text.splitlines()) == 1


def test_what_is_no_plain_text_comes_as_numbers() -> None:
    assert unit_log.parsed(entry([27, 91, 50, 74, 255]))[0].text == "\x1b[2J\ufffd"
    for nonsense in (None, 5, {}, [300], ["a"], [[]]):
        assert unit_log.parsed(entry(nonsense)) == []


@given(st.binary())
def test_no_bytes_are_more_than_lines(data: bytes) -> None:
    assert all(isinstance(line, Line) for line in unit_log.parsed(data))


def test_deep_json_is_no_line() -> None:
    assert unit_log.parsed(b'{"MESSAGE":' + b"[" * 100_000) == []


@pytest.mark.thorough
def test_four_thousand_long_lines_are_kept_as_two_ends() -> None:
    lines = (f"{number} {'x' * 48_000}" for number in range(4000))
    found = unit_log.bounded(line.text for text in lines for line in unit_log.parsed(entry(text)))
    size = sum(len(line.encode()) + 1 for line in found)
    assert size <= unit_log.HEAD_BYTES + unit_log.TAIL_BYTES + 200
    assert found[0].startswith("0 ") and found[0].endswith("(48002 characters)")
    assert found[-1].startswith("3999 ")
    assert [line for line in found if "lines left out: this log had more than is kept" in line]


def test_a_short_log_is_kept_whole() -> None:
    assert unit_log.bounded(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.log")), ids=lambda path: path.stem)
def test_recorded_logs_of_vllm_say_their_kernel_before_they_take_requests(path: Path) -> None:
    lines = path.read_text(errors="replace").splitlines()
    found = unit_log.before_requests([Line(line) for line in lines], "")
    whole, start = kernel.check(lines), kernel.check(found)
    assert (start["verdict"], start["kernels"]) == (whole["verdict"], whole["kernels"])
    assert kv_cache.measured([], found) == kv_cache.measured([], lines)


JOURNALCTL = """#!/usr/bin/env python3
import json, sys
for number in range(200_000):
    print(json.dumps({"MESSAGE": f"{number} " + "x" * 2000, "_SYSTEMD_INVOCATION_ID": "THIS_START"}))
"""


@pytest.mark.thorough
def test_the_journal_is_left_as_soon_as_the_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = JOURNALCTL.replace("for number", f"print({entry(ACCEPTS).decode()!r})\nfor number").replace(
        "THIS_START", START
    )
    (tmp_path / "journalctl").write_text(program)
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd, "show", lambda unit, *names: {"InvocationID": START})
    began = time.monotonic()
    assert systemd.log_of_start("vllm-chat.service", "s=1") == [ACCEPTS]
    assert time.monotonic() - began < 20


def test_a_journal_that_can_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "journalctl").write_text("#!/bin/sh\necho 'Failed to seek to cursor' >&2; exit 1\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(systemd.SystemdError, match="Failed to seek to cursor"):
        systemd.log_since("vllm-chat.service", "s=1")
    assert systemd.log_cursor() is None  # a start goes on without a mark
    subprocess.run(["true"], check=True)
