"""`python -m lab packages | image | prepare | up | down | status | demo | gpu | carry`: the lab from a shell.

`up` leaves it running in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import carried, gpus, leftovers, lock, prerequisites, session
from . import demo as story
from . import image as base_image
from .layout import RUN, STATE
from .shell import LabError, last_lines, say

LOG = RUN / "up.log"


def names(count: int) -> list[str]:
    return ["solo"] if count == 1 else [f"h{number:02d}" for number in range(1, count + 1)]


def prepare(options: argparse.Namespace) -> int:
    """Build what the cache lacks; `--light` leaves out the real vLLM and its checkpoints."""
    session.prepare(options.light)
    return 0


def image(options: argparse.Namespace) -> int:
    """Build the hosts' base image alone; it needs nothing but the Python that is here."""
    prerequisites.ensure()
    base_image.base()
    return 0


def packages(options: argparse.Namespace) -> int:
    """Install the Debian packages that the lab needs; `--browser` adds what only its tests need."""
    prerequisites.ensure(browser=options.browser)
    return 0


def hold(options: argparse.Namespace) -> int:
    """Keep a lab until SIGTERM or Ctrl-C."""
    with session.lab(*names(options.hosts), light=options.light):
        while True:
            signal.pause()


def up(options: argparse.Namespace) -> int:
    session.prepare(options.light)
    RUN.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "lab",
        "hold",
        "--hosts",
        str(options.hosts),
        *(["--light"] if options.light else []),
    ]
    with LOG.open("wb") as log:
        holder = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while not (state := _state()) or state["pid"] != holder.pid or len(state["hosts"]) < options.hosts:
        if holder.poll() is not None:
            raise LabError(f"the lab did not start:\n{last_lines(LOG.read_text())}")
        time.sleep(0.1)
    print(json.dumps(state, indent=1))
    return 0


def down(options: argparse.Namespace) -> int:
    state = _state()
    if state and leftovers.alive(state["pid"]):
        leftovers.signal_if_there(state["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 120
        while leftovers.alive(state["pid"]):
            if time.monotonic() > deadline:
                raise LabError(f"the lab (process {state['pid']}) does not end; see {LOG}")
            time.sleep(0.1)
    with lock.acquire():
        leftovers.remove()
    say("no lab is running, nothing of one is left")
    return 0


def status(options: argparse.Namespace) -> int:
    print(json.dumps({"state": _state(), "on this machine": leftovers.find()}, indent=1))
    return 0


def demo(options: argparse.Namespace) -> int:
    return story.tell()


def gpu(options: argparse.Namespace) -> int:
    """Say what keeps this machine from serving on its GPUs in a lab; nothing where all is there."""
    missing = gpus.missing()
    for name in gpus.names():
        print(name)
    for problem in missing:
        print(f"lab: no stories on GPUs here: {problem}", file=sys.stderr)
    return int(bool(missing))


def carry(options: argparse.Namespace) -> int:
    """Fetch into --into the Debian packages for a machine without registries (carried.py)."""
    carried.fetch(options.into)
    return 0


def _state() -> dict[str, Any]:
    """The state that the running lab wrote; empty when there is none."""
    state: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}
    return state


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command in (packages, image, prepare, up, hold, down, status, demo, gpu, carry):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument("--hosts", type=int, default=1, help="how many hosts to boot")
        sub.add_argument("--light", action="store_true", help="without the real vLLM and its checkpoints")
        sub.add_argument("--into", type=Path, default=Path("debs"), help="directory for what is carried")
        sub.add_argument(
            "--browser", action="store_true", help="with the browser that a test opens the report in"
        )
    options = parser.parse_args()
    os.umask(0o022)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    try:
        return int(options.command(options))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
