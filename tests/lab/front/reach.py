"""Runs on a host as root: reaches goals with two light servers by the product's own program; prints its acts.

`reach.py GOAL...`; a goal is back, forward, keep, to-old or to-new. Each act is printed before it is done, as
the journal would have it. In the environment: BREAK is a command of the shell that is run before act number
BEFORE, or a moment after act number DURING has begun.
"""

import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path

from pyinfra_vllm.on_host.switch import pair
from pyinfra_vllm.on_host.switch.two_servers import Failed, Limits, Member, Stuck, TwoServers

RUN, CARD = Path("/run/vllm-chat"), Path("/run/card")
GOALS = {
    "back": pair.BACK,
    "forward": pair.FORWARD,
    "keep": pair.KEEP,
    "to-old": pair.TURN_TO_OLD,
    "to-new": pair.TURN_TO_NEW,
}
LIMITS = Limits(drain_s=2, wake_s=2, start_s=10, memory_s=2, stop_s=10, owed_s=5)
count = 0


class Connection(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def canary(name):
    def problem(api, key):
        connection = Connection(api)
        try:
            connection.request("POST", "/v1/completions", "", {"X-Pyinfra-Vllm-Pass": key})
            told = connection.getresponse().read()
            return "" if told == name.encode() else f"it answers {told}"
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()

    return problem


def running(name):
    return os.system(f"systemctl is-active --quiet vllm-chat.{name}.service") == 0


def room(who):
    """Whether the other one leaves room for it. The driver frees what ended processes used."""
    other = CARD / ("used-b" if who == pair.OLD else "used-a")
    if not running(other.name[5:]) and other.exists():
        other.write_text("0")
    return not other.exists() or int(other.read_text() or 0) <= 10


def lack(who):
    return "" if room(who) else "it is in use"


def note(act):
    global count
    if os.environ.get("BEFORE") == str(count):
        os.system(os.environ["BREAK"])
    check(act)
    if os.environ.get("DURING") == str(count):
        os.system(f"(sleep 0.05; {os.environ['BREAK']}) &")
    count += 1
    print(f"{act.do} {act.who}", flush=True)


def check(act):
    """Require before each act what must hold, asked of the card itself."""
    assert act.do not in ("wake", "start") or room(act.who), f"VIOLATION: {act.do} {act.who} without room"


def member(name):
    return Member(f"vllm-chat.{name}.service", RUN / name, canary(name))


two = TwoServers(member("a"), member("b"), RUN / "awake", lack, note, LIMITS)
for goal in sys.argv[1:]:
    began = time.monotonic()
    try:
        two.reach(GOALS[goal])
        print(f"reached {goal} in {time.monotonic() - began:.2f} s", flush=True)
    except (pair.Busy, Failed, Stuck) as reason:
        print(f"not {goal}: {type(reason).__name__}: {reason}", flush=True)
        break
print(json.dumps({who: two._server(who).state for who in (pair.OLD, pair.NEW)}))
