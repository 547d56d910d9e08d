"""Nothing of a lab stays behind, however it ends; and there is one at a time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import cgroups, leftovers
from lab.layout import LOCK

pytestmark = [pytest.mark.own_lab, pytest.mark.alone, pytest.mark.full]

# Ctrl-C reaches a program that a terminal started; what a script starts in the background has SIGINT ignored.
HOLD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from lab import session
from lab.disk import Disk
with session.lab(light=True) as lab:
    lab.add("one", "two", disks=[Disk("/srv", 32)])
    print("ready", flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lab of two hosts with a disk each."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(60)
    process.stdout.close()
    wait_unlocked()


def wait_unlocked(timeout: float = 30) -> None:
    """Until nobody holds the lab's lock: not the lab, and not the watchman who clears up after it."""
    deadline = time.monotonic() + timeout
    with LOCK.open("a") as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline, "the lab's lock is still held"
                time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(holder: subprocess.Popen[str], number: signal.Signals) -> None:
    groups = {"control groups"} if cgroups.hierarchies() else set()
    assert set(leftovers.find()) == {"processes", "mounts", "loop devices", "interfaces", "files"} | groups
    holder.send_signal(number)
    holder.wait(60)
    wait_unlocked()
    assert leftovers.find() == {}


def test_a_lab_killed_with_its_watchman_is_cleared_by_the_next(holder: subprocess.Popen[str]) -> None:
    (watchman,) = children(holder.pid, "lab.watch")
    os.kill(watchman, signal.SIGKILL)
    holder.kill()
    holder.wait(60)
    wait_unlocked()
    assert leftovers.find()
    subprocess.run([sys.executable, "-m", "lab", "down"], env=environment(), check=True, timeout=60)
    assert leftovers.find() == {}


def test_a_second_lab_is_refused_and_told_who_holds_the_first(holder: subprocess.Popen[str]) -> None:
    second = [sys.executable, "-m", "lab", "hold", "--light"]
    done = subprocess.run(second, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"another lab is running on this machine: process {holder.pid} since" in done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def children(pid: int, word: str) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes().decode()
            if parent == pid and word in command:
                found.append(int(stat.parent.name))
    return found
