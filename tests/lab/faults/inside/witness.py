"""Asks a host's server for tokens several times a second and writes down who answered when, by a clock of its
own.

A process of its own on this machine, in the host's network: it sees what a client on the host would see, and
outlives the host's power cuts. Standard input has the numbers of the host's supervisor, a line each time the
power is switched on. Every line of the record is one question: [monotonic seconds, Unix time, the answer's
text or null, its release or null]. It shares no code with the product.
"""

import ctypes
import http.client
import json
import os
import select
import sys
import time
from pathlib import Path

QUESTION = "What is the capital of Japan?"  # the one that the lab's real models answer for sure
EVERY_S = 0.25
ANSWER_S = 2.0
NEW_NET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def first_process(supervisor):
    """The host's first process as this machine numbers it; None where there is none."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except OSError:
        return None
    return children[0] if children else None


def network(leader):
    """The network that a process is in, by its name in the kernel; a booting host's first process is in ours
    for a moment.
    """
    try:
        return str(Path(f"/proc/{leader}/ns/net").readlink())
    except OSError:
        return None


def enter(leader):
    try:
        descriptor = os.open(f"/proc/{leader}/ns/net", os.O_RDONLY)
    except OSError:
        return False
    try:
        return _libc.setns(descriptor, NEW_NET) == 0
    finally:
        os.close(descriptor)


def ask(port, model):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "max_tokens": 3, "temperature": 0}
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = json.loads(connection.getresponse().read())
        text = str(answer["choices"][0]["message"]["content"]).strip() or None
        return text, answer.get("system_fingerprint") if text else None
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return None, None
    finally:
        connection.close()


def main(record, port, model):
    supervisor, inside = None, None
    with Path(record).open("a", buffering=1) as file:
        while True:
            if select.select([sys.stdin], [], [], EVERY_S)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                supervisor = line.strip()
                continue
            leader = first_process(supervisor)
            there = network(leader) if leader else None
            if there != inside:
                inside = there if there is not None and enter(leader) else None
            text, release = ask(port, model) if inside is not None else (None, None)
            file.write(json.dumps([time.monotonic(), time.time(), text, release]) + "\n")


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
