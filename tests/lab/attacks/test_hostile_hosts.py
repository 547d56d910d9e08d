"""One of three hosts lies: whatever its programs say, the others are asked, rolled out and shown, and no
terminal obeys it.

Light hosts; the liar's `python3` (and what else we ask there) is a stand-in that its own root put first in
the PATH.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

LIAR, OTHERS = "liar", ("honest1", "honest2")
LIMIT = tuple(word for name in (*OTHERS, LIAR) for word in ("--limit", name))
PLACE = "/usr/local/bin"
# What pyinfra and rich write themselves: bold, dim, italic and the plain colours.
STYLE = re.compile(r"\x1b\[(?:(?:[0-4]|2[234]|3[0-79]|9[0-7])(?:;(?=\d))?)*m")
# Clears the screen, sets the title, has the terminal answer, hides text, turns its direction round, goes to
# the line's start.
NASTY = "\x1b[2J\x1b]0;owned\x07\x1b[6n\x1b[8mhidden\u202egnp\u200b\x9b31m\rfake: committed"
LIES = {
    "deep": "head -c 300000 /dev/zero | tr '\\0' '['",
    "mistyped": """echo '[{"service": 5, "current": {"a": [[]]}, "transactions": "none", "lock": 1}]'""",
    "nothing": "true",
    "endless": "yes '[1,'",
    "no text": "head -c 100000 /dev/urandom",
    "escapes": "printf '\\033[2J\\033]0;owned\\007\\r\\302\\233' ; printf '\\033[2Jno\\r' >&2; exit 3",
}


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[dict[str, Host]]:
    with control.own_lock_file():
        added = lab.add(*OTHERS, LIAR)
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=declared(release))
            assert done.returncode == 0, done.stderr
        done = control.deploy(*LIMIT, env=declared("a"))
        assert done.returncode == 0, done.stdout + done.stderr
        yield {host.name: host for host in added}
        lab.remove(*OTHERS, LIAR)


@pytest.fixture
def honest_again(hosts: dict[str, Host]) -> Iterator[None]:
    yield
    hosts[LIAR].ssh(
        f"rm -f {PLACE}/python3 {PLACE}/uname {PLACE}/nvidia-smi {PLACE}/systemctl {PLACE}/systemd-run"
    )


def declared(release: str, **settings: object) -> dict[str, str]:
    return control.declared(release, **{**light_runtime.SETTINGS, **settings})


def lie(host: Host, program: str, words: str) -> None:
    """Put a stand-in before the host's own program, as its root can."""
    text = f"#!/bin/sh\n{words}\n"
    host.ssh(f"cat > {PLACE}/{program} && chmod 755 {PLACE}/{program}", stdin=text)


def on_terminal(*argv: str, env: Mapping[str, str], timeout: float = 300) -> tuple[int, str]:
    """Run a command on a terminal of its own: its exit code, and every byte that reached the terminal.

    CI=1 keeps our own moving lines away, which steer the cursor as they must: here every such byte would be a
    host's.
    """
    ours, theirs = pty.openpty()
    surroundings = control.environment(
        {**env, "PYINFRA_PROGRESS": "off", "TERM": "xterm-256color", "CI": "1"}
    )
    del surroundings["NO_COLOR"]
    with subprocess.Popen(
        argv, cwd=control.project(), env=surroundings, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        told = bytearray()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # nobody writes to it any more
                break
            told += piece
            if not piece:
                break
        os.close(ours)
        return process.wait(30), told.decode("utf-8", "surrogateescape")


def steering(told: str) -> list[str]:
    """The characters of a terminal's input that are neither text, line ends nor plain styles."""
    plain = STYLE.sub("", told).replace("\r\n", "").replace("\n", "").replace("\t", "")
    return sorted(
        {char for char in plain if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    )


def asked(command: str, *more: str) -> tuple[str, ...]:
    return ("pyinfra-vllm", command, control.INVENTORY, *LIMIT, *more)


@pytest.mark.parametrize("name", LIES)
def test_invalid_answer_of_a_host_is_one_line_and_the_others_are_shown(
    hosts: dict[str, Host], honest_again: None, name: str, tmp_path: Path
) -> None:
    lie(hosts[LIAR], "python3", LIES[name])
    env = declared("a")
    code, told = on_terminal(*asked("status"), env=env)
    assert code == 1, told
    assert steering(told) == []
    done = control.run(*asked("status", "--json"), env=env)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found = {host["host"]: host for host in json.loads(done.stdout)["hosts"]}
    assert done.returncode == 1 and found[LIAR]["problem"] and "\n" not in found[LIAR]["problem"]
    assert all(not found[other]["problem"] and found[other]["services"] for other in OTHERS)
    code, told = on_terminal(*asked("history"), env=env)
    assert (code, steering(told)) == (1, []), told
    assert all(other in told for other in OTHERS)
    code, told = on_terminal(*asked("report", "--out", str(tmp_path)), env=env)
    assert (code, steering(told)) == (1, []), told
    page = (tmp_path / "index.html").read_text()
    assert f"<b>{LIAR}</b> could not be asked" in page and all(other in page for other in OTHERS)
    code, told = on_terminal(*asked("schedule", "--tick", "--dry"), env=env)
    assert (code, steering(told)) == (1, []), told
    assert f"{LIAR} tiny: unknown" in told


def test_rollout_goes_on_past_a_host_with_invalid_answers(hosts: dict[str, Host], honest_again: None) -> None:
    """Three kinds of lies, in one rollout each; the honest hosts serve the new release after the first."""
    for number, name in enumerate(("mistyped", "deep", "escapes")):
        lie(hosts[LIAR], "python3", LIES[name])
        env = declared("b" if number % 2 == 0 else "a")
        code, told = on_terminal(
            "pyinfra", control.INVENTORY, "deploy.py", "-y", *LIMIT, env=env, timeout=500
        )
        assert steering(told) == []
        assert code == 1, told[-4000:]
        for other in OTHERS:
            assert re.search(rf"{other} .*(committed|unchanged)", STYLE.sub("", told)), told[-4000:]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("nvidia-smi", f"printf '0, GPU-1, {NASTY!r}, 80000, 1, 9.0, Enabled\\n--processes--\\n'"),
        ("nvidia-smi", "printf 'no,\\n\\033[2J'"),
        ("systemd-run", "printf '\\033[2J\\rno' >&2; exit 1"),
        ("systemctl", "printf 'MainPID=\\033[2J\\nNRestarts=x\\nActiveState=\\302\\233\\n'"),
    ],
)
def test_what_other_programs_of_a_host_say_steers_no_terminal(
    hosts: dict[str, Host], honest_again: None, program: str, words: str
) -> None:
    lie(hosts[LIAR], program, words)
    env = declared("b", environment={"VLLM_CPU_KVCACHE_SPACE": "1", "LIGHT_NOTHING": program})
    for argv in (
        ("pyinfra", control.INVENTORY, "deploy.py", "-y", "-vvv", "--limit", LIAR),
        asked("status"),
    ):
        _, told = on_terminal(*argv, env=env)
        assert steering(told) == []
        assert "Not started" not in told, told


def test_what_stands_in_a_hosts_records_steers_no_terminal_and_no_page(
    hosts: dict[str, Host], tmp_path: Path
) -> None:
    entry = {"at": "2026-11-28T05:00:00.000+00:00", "tx": "20261128T050000Z-nasty", "state": "done"}
    begin = {
        **entry,
        "step": "begin",
        "from": NASTY,
        "to": NASTY,
        "operator": NASTY,
        "purpose": NASTY,
        "reason": NASTY,
    }
    end = {
        **entry,
        "step": "end",
        "outcome": NASTY,
        "reason": NASTY * 500,
        "log": [NASTY, "<script>alert(1)</script>"],
    }
    lines = "".join(json.dumps(each) + "\n" for each in (begin, end))
    place = "/srv/pyinfra-vllm/tiny"
    hosts[LIAR].ssh(f"cat >> {place}/journal.jsonl", stdin=lines)
    hosts[LIAR].ssh(f"cat > {place}/rejected.json", stdin=json.dumps({NASTY: {"at": NASTY, "reason": NASTY}}))
    env = declared("a")
    for command in ("status", "history"):
        _, told = on_terminal(*asked(command), env=env)
        assert steering(told) == [], command
    on_terminal(*asked("report", "--out", str(tmp_path)), env=env)
    page = (tmp_path / "index.html").read_text()
    assert steering(page) == [] and "<script>" not in page and "\\x1b[2J" in page
    _, told = on_terminal("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", LIAR, env=env)
    assert steering(told) == [] and "since the last run" in told
    done = control.run(*asked("history", "--json"), env=env)
    assert NASTY in {switch["operator"] for switch in json.loads(done.stdout)["switches"]}  # JSON stays data
