"""Installed on a host under test: stops whoever has just written the journal entry that the test waits for.

Python loads it at its start (`fault_points.pth`), so the product runs unchanged, from the command line it
always has. An entry counts as written once the journal was fsynced, as it does for the product. Armed is one
point: the entry of a step (the first or a later one), or the entry that comes after so many others. A test
may ask for the process's clock to step there instead: hosts of the lab share this machine's clock, so it
can't be the host's own.
"""

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path("/var/lib/faults")
_fsync = os.fsync
_time = time.time


def fsync(descriptor):
    _fsync(descriptor)
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    if path.name == "journal.jsonl" and (FOLDER / "armed").exists():
        _look_at(json.loads(path.read_bytes().splitlines()[-1]))


def _look_at(entry):
    armed = json.loads((FOLDER / "armed").read_text())
    if (
        entry["step"] == "interrupted"
    ):  # written while systemd stops the process: stopping it there delays a shutdown
        return
    if armed.get("skip"):
        (FOLDER / "armed").write_text(json.dumps({**armed, "skip": armed["skip"] - 1}))
        return
    if armed["point"] not in ("any", f"{entry['step']}.{entry['state']}"):
        return
    if armed.get("nth", 1) > 1:
        (FOLDER / "armed").write_text(json.dumps({**armed, "nth": armed["nth"] - 1}))
        return
    if armed.get("after"):
        (FOLDER / "armed").write_text(
            json.dumps({**armed, "point": "any", "skip": armed["after"] - 1, "after": 0})
        )
        return
    (FOLDER / "armed").unlink()
    if armed.get("clock_s"):
        _step_clock(armed["clock_s"])
    (FOLDER / "reached").write_text(str(os.getpid()))
    if not armed.get("clock_s"):
        os.kill(os.getpid(), signal.SIGSTOP)


def _step_clock(seconds):
    """Every way in which the program on the host asks what time it is; the monotonic clock has no steps."""

    class Stepped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(_time() + seconds, tz)

    time.time = lambda: _time() + seconds
    for name in list(sys.modules):
        if name.startswith("pyinfra_vllm.on_host") and hasattr(sys.modules[name], "datetime"):
            sys.modules[name].datetime = Stepped


os.fsync = fsync
