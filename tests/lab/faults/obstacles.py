"""Obstacles that pass by themselves: the port taken, no start succeeds, systemd doesn't answer or begins anew
all the time.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from .fault import RETRIED_S, SOON_S, Act, Fault, Passing, Scene
from .ground import NO_START, UNIT, Ground

PORT = 8000
PORT_S = (5, 60, 300)
START_S = (10, 25, 60, 110, 200, 400)
DROP_IN_S = (20, 110)
FROZEN_S = (5, 60, 300)
REEXEC_S = 20
DROP_IN = f"/etc/systemd/system/{UNIT}.d"

_TAKE_PORT = """
import socket, sys, time
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
end = time.monotonic() + 60
while True:
    try:
        taken.bind(("127.0.0.1", int(sys.argv[1])))
        break
    except OSError:
        if time.monotonic() > end:
            sys.exit(0)
        time.sleep(0.0005)
taken.listen()
time.sleep(float(sys.argv[2]))
"""


def take_port(seconds: float) -> Act:
    """A stranger waits for the port to be free, and keeps it for a while."""

    def strike(ground: Ground, scene: Scene) -> None:
        words = ("systemd-run", "--unit=stranger", "--collect", "--quiet", "python3", "-c", _TAKE_PORT)
        ground.inside(*words, str(PORT), str(seconds), check=False)

    return strike


def stranger_is_there(ground: Ground) -> bool:
    return bool(ground.groups("stranger.service"))


def leave_port(ground: Ground, scene: Scene) -> None:
    ground.inside("systemctl", "stop", "stranger.service", check=False)


def _port(seconds: float) -> Fault:
    title = f"port taken by another program for {seconds:.0f} s"
    limit_s = SOON_S if seconds < 10 else RETRIED_S
    return Fault(title, take_port(seconds), leave_port, stranger_is_there, limit_s=limit_s, lasts_s=seconds)


def _no_start(seconds: float) -> Fault:
    """As where a dying process still holds the GPU's memory: every start fails, and nothing else does."""
    passing = Passing()

    def strike(ground: Ground, scene: Scene) -> None:
        passing.begin(ground, seconds)
        path = ground.host.root / NO_START.lstrip("/")
        path.write_text(str(time.time() + seconds))
        path.chmod(0o644)

    limit_s = SOON_S if seconds < 10 else RETRIED_S
    title = f"no start succeeds for {seconds:.0f} s"
    return Fault(title, strike, goes_on=passing.goes_on, limit_s=limit_s, lasts_s=seconds)


def _drop_in(seconds: float) -> Fault:
    """A colleague's drop-in, whose check before each start fails for a while."""
    passing = Passing()

    def strike(ground: Ground, scene: Scene) -> None:
        passing.begin(ground, seconds)
        until = int(time.time() + seconds)
        check = f"[Service]\nExecStartPre=/bin/sh -c 'test $$(date +%%s) -ge {until}'\n"
        ground.inside("sh", "-c", f"mkdir -p {DROP_IN}; cat > {DROP_IN}/check.conf", stdin=check)
        ground.inside("systemctl", "daemon-reload", check=False)

    def mend(ground: Ground, scene: Scene) -> None:
        ground.inside("rm", "-rf", DROP_IN)
        ground.inside("systemctl", "daemon-reload")

    limit_s = SOON_S if seconds < 10 else RETRIED_S
    title = f"a colleague's drop-in fails every start for {seconds:.0f} s"
    return Fault(title, strike, mend, passing.goes_on, limit_s=limit_s, lasts_s=seconds)


def _frozen(seconds: float) -> Fault:
    """Systemd answers nobody, starts nothing and notices no end."""
    passing = Passing()

    def strike(ground: Ground, scene: Scene) -> None:
        leader = ground.leader()
        assert leader is not None
        passing.begin(ground, seconds)
        os.kill(leader, signal.SIGSTOP)
        threading.Timer(seconds, _wake, (leader,)).start()

    limit_s = SOON_S if seconds < 10 else RETRIED_S
    title = f"systemd does not answer for {seconds:.0f} s"
    return Fault(title, strike, goes_on=passing.goes_on, limit_s=limit_s, lasts_s=seconds)


def _wake(leader: int) -> None:
    try:
        os.kill(leader, signal.SIGCONT)
    except ProcessLookupError:
        return  # its host's power was cut meanwhile


def _reexec() -> Fault:
    passing = Passing()

    def strike(ground: Ground, scene: Scene) -> None:
        passing.begin(ground, REEXEC_S)
        script = f"echo $$; exec >/dev/null 2>&1; end=$(($(date +%s) + {REEXEC_S})); "
        script += "while [ $(date +%s) -lt $end ]; do systemctl daemon-reexec; sleep 0.2; done"
        ground.beside("sh", "-c", script)

    title = f"systemd is executed anew all the time, for {REEXEC_S} s"
    return Fault(title, strike, goes_on=passing.goes_on, limit_s=RETRIED_S, lasts_s=REEXEC_S)


OBSTACLES: dict[str, Fault] = {
    **{f"port-{seconds}": _port(seconds) for seconds in PORT_S},
    **{f"no-start-{seconds}": _no_start(seconds) for seconds in START_S},
    **{f"drop-in-{seconds}": _drop_in(seconds) for seconds in DROP_IN_S},
    **{f"frozen-{seconds}": _frozen(seconds) for seconds in FROZEN_S},
    "reexec": _reexec(),
}
