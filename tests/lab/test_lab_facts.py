"""The questions asked of a host, each of them for real: the facts' own commands, systemd, the journal,
/proc.

A parsed answer typed in by hand shows how it is read, not that a host ever gives it. So every fact's command
runs here over SSH, and each function that reads what a tool or the kernel prints is called on a host where
the answer is known.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab
from pyinfra.api import FactBase

from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.facts.record import Record, Running
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.facts.service import Host as HostFact
from pyinfra_vllm.facts.service import Service, Services
from pyinfra_vllm.on_host.inspect.gpus import Found
from pyinfra_vllm.operations.util.archive import program_name

ROOT = "/srv/pyinfra-vllm"
UNIT = "vllm-tiny.service"
PROGRAM = f"""\
import json, sys, time
from pathlib import Path
sys.path.insert(0, "{ROOT}/bin/on-host.pyz")
from pyinfra_vllm.on_host.inspect import host as inspect_host
from pyinfra_vllm.on_host.server import sockets, systemd
from pyinfra_vllm.on_host.state import cgroup, observe
"""


@pytest.fixture(scope="module")
def serving(lab: Lab) -> Iterator[Host]:
    """A host that serves its first release."""
    environment = control.declared("a", **light_runtime.SETTINGS)
    with control.own_lock_file():
        (host,) = lab.add("asked")
        for command in (("pyinfra-vllm", "lock", control.INVENTORY), _deploy()):
            done = control.run(*command, env=environment)
            assert done.returncode == 0, done.stderr[-4000:]
        yield host
        lab.remove("asked")


def _deploy() -> tuple[str, ...]:
    return ("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", "asked")


def told(host: Host, fact: FactBase[Any], *arguments: Any) -> Any:
    """The fact's value of its own command, run by the host's shell as root."""
    command = fact.command(*arguments)
    text = command if isinstance(command, str) else command.get_raw_value()
    return fact.process(host.ssh(f"sh -c {shlex.quote(text)}").stdout.splitlines())


def inside(host: Host, *lines: str) -> Any:
    """The JSON that a program of these lines prints, with our host's program to import from."""
    return json.loads(host.ssh("python3 -", stdin=PROGRAM + "\n".join(lines) + "\n").stdout)


def main_pid(host: Host, unit: str = UNIT) -> int:
    return int(host.ssh(f"systemctl show -P MainPID {unit}").stdout)


def test_what_a_host_has_of_us(serving: Host) -> None:
    found = told(serving, HostFact(), ROOT, ("vllm", "nobody", "stranger"))
    assert found.users == {"vllm": True, "nobody": True, "stranger": False}
    assert found.program == program_name() and "recover --boot" in found.recovery_units
    version = serving.ssh("systemctl --version | head -n 1").stdout.split()[1]
    assert (found.systemd, found.platform) == (int(version), serving.ssh("uname -m").stdout.strip())
    assert tuple(found.python) >= (3, 9)


def test_services_and_what_they_run(serving: Host) -> None:
    assert told(serving, Services(), ROOT) == ["tiny"]
    assert told(serving, Services(), "/srv/nothing") == []
    found = told(serving, Service(), ROOT, "tiny")
    assert (found.active, found.sub, found.restarts) == ("active", "running", 0)
    assert found.running == found.current == found.release["id"] and found.previous is None
    assert found.staged == (found.current,) and found.lock is None
    (switch,) = found.history
    assert (switch.outcome, switch.new) == ("committed", found.current)
    assert told(serving, Running(), ROOT) == [found]
    (record,) = told(serving, Record(), ROOT, 5, 10**7)
    assert record["service"] == "tiny" and [each["tx"] for each in record["transactions"]] == [switch.tx]


def test_what_is_on_its_disk(serving: Host) -> None:
    (checkpoint,) = told(serving, Checkpoints(), ROOT)
    current = told(serving, Service(), ROOT, "tiny").current
    assert (checkpoint.state, checkpoint.referenced_by) == ("complete", [f"tiny/{current}"])
    assert checkpoint.bytes > 300_000
    filesystem = told(serving, Filesystem(), f"{ROOT}/not/there")
    free = int(serving.ssh("df --output=avail -B1 /srv | tail -n 1").stdout)
    assert (filesystem.path, filesystem.type, filesystem.read_only) == (ROOT, "overlay", False)
    assert abs(filesystem.free_bytes - free) < 2 * 10**9


def test_its_vllm_and_its_gpus(serving: Host) -> None:
    runtime = told(serving, Runtime(), str(light_runtime.PATH))
    assert (runtime.version, runtime.executable, runtime.problem) == ("0.32.0", True, None)
    assert "--disable-uvicorn-access-log" in runtime.flags and runtime.built is None
    assert runtime.compiled == 0.0, "nobody compiled the stub"
    assert told(serving, Gpus()) == Found((), None)


def test_the_journal_is_read_from_a_mark_on(serving: Host) -> None:
    """Lines before the mark are another start's; bytes that are no text and lines of other
    units do no harm.
    """
    serving.ssh("systemd-run --wait --unit=talker sh -c 'echo before'")
    found = inside(
        serving,
        "import subprocess",
        "cursor = systemd.log_cursor()",
        "say = r\"echo after; printf 'caf\\351\\n'; echo last\"",
        "subprocess.run(['systemd-run', '--quiet', '--wait', '--unit=talker', 'sh', '-c', say], check=True)",
        (
            "subprocess.run(['systemd-run', '--quiet', '--wait', '--unit=other', 'echo', 'another unit'],"
            " check=True)"
        ),
        "subprocess.run(['journalctl', '--sync'], check=True)",
        (
            "json.dump([cursor, systemd.log_since('talker', cursor), systemd.log_since('talker', None)],"
            " sys.stdout)"
        ),
    )
    cursor, since, whole = found
    assert cursor.startswith("s=")
    assert "after" in since and "last" in since and "before" not in since
    assert "before" in whole and not any("another unit" in line for line in whole)


def test_the_first_line_after_a_mark_is_read(serving: Host) -> None:
    """The marked entry is another unit's, and the unit runs already: systemd says nothing before its line."""
    serving.ssh(
        "mkfifo /run/words; "
        "systemd-run --unit=reader sh -c 'while read word; do echo $word; done <> /run/words'"
    )
    found = inside(
        serving,
        "import subprocess",
        "def say(word):",
        "    seen = f'journalctl -q --sync && journalctl -q -u reader -o cat | grep -q {word}'",
        "    wait = f'timeout 20 sh -c \"until {seen}; do sleep 0.1; done\"'",
        "    subprocess.run(['sh', '-c', f'echo {word} > /run/words; {wait}'], check=True)",
        "say('before')",
        "other = ['systemd-run', '--quiet', '--wait', '--unit=other', 'echo', 'another unit']",
        "subprocess.run(other, check=True)",
        "subprocess.run(['journalctl', '--sync'], check=True)",
        "cursor = systemd.log_cursor()",
        "say('first'); say('second')",
        "subprocess.run(['journalctl', '--sync'], check=True)",
        "own = systemd.log_cursor()",
        "say('third')",
        "subprocess.run(['journalctl', '--sync'], check=True)",
        "json.dump([systemd.log_since('reader', mark) for mark in (cursor, own)], sys.stdout)",
    )
    assert found == [["first", "second", "third"], ["third"]]
    serving.ssh("systemctl stop reader")


def test_units_are_stopped_and_shown(serving: Host) -> None:
    serving.ssh("systemd-run --unit=failing sh -c 'exit 3'; sleep 0.5")
    found = inside(
        serving,
        "before = systemd.show('failing.service', 'ActiveState', 'Result', 'ExecMainStatus')",
        "systemd.stop('failing.service', 5)",
        "systemd.stop('never-there.service', 5)",
        "after = systemd.show('failing.service', 'ActiveState', 'LoadState')",
        "import subprocess",
        "subprocess.run(['systemd-run', '--quiet', '--unit=later', 'sleep', '60'], check=True)",
        "time.sleep(0.5)",
        "later = systemd.show('later.service', 'ActiveState')",
        "systemd.stop('later.service', 5)",
        "json.dump([before, after, later, systemd.show('later.service', 'LoadState')], sys.stdout)",
    )
    before, after, later, gone = found
    assert before == {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "3"}
    assert after["ActiveState"] == "failed", "only a start of ours forgives it"
    assert (later, gone) == ({"ActiveState": "active"}, {"LoadState": "not-found"})


def test_a_command_that_systemd_refuses_is_told_in_its_words(serving: Host) -> None:
    found = inside(
        serving,
        "try:",
        "    systemd.start('never-there.service')",
        "except systemd.SystemdError as error:",
        "    json.dump(str(error), sys.stdout)",
    )
    assert "`systemctl start never-there.service` exited with 5" in found and "not found" in found


def test_the_running_release_is_what_root_wrote_down_at_its_start(serving: Host) -> None:
    current = told(serving, Service(), ROOT, "tiny").current
    asked = (
        f"systemd.running_release('{UNIT}'), systemd.running_release('ssh.service'),"
        " systemd.running_release('no.service')"
    )
    assert inside(serving, f"json.dump([{asked}], sys.stdout)") == [current, None, None]


def test_processes_belong_to_the_units_that_systemd_started(serving: Host) -> None:
    serving.ssh("systemd-run --unit=beside sleep infinity")
    beside = main_pid(serving, "beside")
    pids = [main_pid(serving), beside, 1, 4194304]
    units = inside(
        serving, f"json.dump([cgroup.unit_of(Path('/proc', str(pid))) for pid in {pids}], sys.stdout)"
    )
    assert units == [UNIT, "beside.service", "init.scope", None]


def test_foreign_listeners_are_told_from_the_services_own(serving: Host) -> None:
    listen = "import socket, time; a = socket.create_server(('127.0.0.1', 8471)); time.sleep(600)"
    serving.ssh(f"systemd-run --unit=listener python3 -c {shlex.quote(listen)}; sleep 1")
    asked = (
        f"sockets.foreign_listeners(8000, '{UNIT}'), sockets.foreign_listeners(8471, '{UNIT}'),"
        " sockets.foreign_listeners(8471, 'listener.service')"
    )
    own, stranger, listener = inside(serving, f"json.dump([{asked}], sys.stdout)")
    assert own == listener == []
    assert stranger == [f"python3 (process {main_pid(serving, 'listener')})"]
