"""The kernel holds the lock: a live holder is named, a dead one never blocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.state import observe
from pyinfra_vllm.on_host.state.lock import Held, exclusive

HOLDER = """
import sys, time
from pathlib import Path
from pyinfra_vllm.on_host.state.lock import exclusive
with exclusive(Path(sys.argv[1]), "alice@control", "the rollout of release b"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held_elsewhere(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_live_holder_is_named_with_its_time_and_purpose(
    tmp_path: Path, held_elsewhere: subprocess.Popen[str]
) -> None:
    with pytest.raises(Held) as caught, exclusive(tmp_path / "lock", "bob", "something else"):
        pytest.fail("a live lock was stolen")
    assert "alice@control has held this service since 20" in str(caught.value)
    assert "the rollout of release b" in str(caught.value)
    seen = observe.holder(tmp_path / "lock")
    assert seen is not None and (seen["holder"], seen["pid"]) == ("alice@control", held_elsewhere.pid)


def test_lock_of_an_ended_process_does_not_block(
    tmp_path: Path, held_elsewhere: subprocess.Popen[str]
) -> None:
    os.kill(held_elsewhere.pid, signal.SIGKILL)
    held_elsewhere.wait()
    assert observe.holder(tmp_path / "lock") is None
    with exclusive(tmp_path / "lock", "bob", "something else"):
        pass


def test_looking_takes_no_lock(tmp_path: Path) -> None:
    assert observe.holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    with exclusive(tmp_path / "lock", "bob", "x"):
        pass
    assert observe.holder(tmp_path / "lock") is None
