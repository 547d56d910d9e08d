"""Another Python that runs a module of `in_runtime/`: one line of JSON in, lines of JSON out.

It may be any Python of the host, and may talk to other machines: its output is read with bounds, and nothing
here waits for it without one.
"""

from __future__ import annotations

import json
import os
import pkgutil
import queue
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Callable, cast

POLL_S = 0.2
ORDER_S = 60.0  # for a child to read its order: a pipe holds 64 KiB, an order may have more
LONGEST_LINE, MOST_LINES = 1 << 16, 10_000  # bytes of one line, and lines that wait to be read

Event = dict[str, Any]


@contextmanager
def told(
    python: str, module: str, name: str, order: Mapping[str, Any], **options: Any
) -> Iterator[Iterator[Event | None]]:
    """The events of a child, and a None every POLL_S, whatever it does. It is killed when the block is left.

    Its standard input stays open until then: the end of it tells the child that we are gone. That it can't be
    started, or failed, is an event with `error` and `kind`: "client" where trying again would not help.

    name: of the child, for messages
    options: of subprocess.Popen
    """
    code = (pkgutil.get_data("pyinfra_vllm.in_runtime", module) or b"").decode()
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen([python, "-I", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, **options)
    except OSError as error:
        yield iter([_failed("client", f"{name}: {python} can't be started: {error}")])
        return
    stdin = cast("IO[bytes]", child.stdin)
    lines: queue.Queue[bytes | None] = queue.Queue(MOST_LINES)
    last_words: deque[bytes] = deque(maxlen=15)
    _reading(child.stdout, lines.put)
    said = _reading(child.stderr, last_words.append)
    try:
        if _took(stdin, json.dumps(order).encode() + b"\n"):
            yield _events(child, name, lines, said, last_words)
        else:
            yield iter([_failed("client", f"{name} did not read its order for {ORDER_S:.0f} s")])
    finally:
        child.kill()
        stdin.close()
        child.wait()


def _failed(kind: str, error: str) -> Event:
    return {"path": "", "kind": kind, "error": error}


def _took(stdin: IO[bytes], order: bytes) -> bool:
    """Whether the child reads its order within ORDER_S.

    Past the file's own buffer, so that closing it never waits for the rest to be read.
    """
    os.set_blocking(stdin.fileno(), False)
    until = time.monotonic() + ORDER_S
    with suppress(BrokenPipeError):  # it ended at once: its own last words say why
        while order:
            if not select.select([], [stdin], [], max(0.0, until - time.monotonic()))[1]:
                return False
            order = order[os.write(stdin.fileno(), order) :]
    return True


def _events(
    child: subprocess.Popen[bytes],
    name: str,
    lines: queue.Queue[bytes | None],
    said: threading.Thread,
    last_words: deque[bytes],
) -> Iterator[Event | None]:
    ticked = time.monotonic()
    while True:
        if time.monotonic() - ticked >= POLL_S:
            ticked = time.monotonic()
            yield None
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if line is None:
            break
        yield _event(line)
    while child.poll() is None:  # it closed its output first, and may live on
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_S)
            break
        yield None
    said.join(POLL_S * 5)
    if child.returncode != 0:
        words = b" ".join(word for word in last_words if word).decode(errors="replace")
        # By itself it ends with 0 whatever others do: this is a Python in which it can't work. A signal may
        # pass.
        kind = "client" if child.returncode > 0 else "killed"
        yield _failed(kind, f"{name} ended with {child.returncode}: {words[-400:].strip()}")


def _event(line: bytes) -> Event:
    """One line of the child; what another program of that runtime printed is kept as an error's words."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {"path": "", "error": line.decode(errors="replace")[:400]}
    return event if isinstance(event, dict) else {"path": "", "error": str(event)[:400]}


def _reading(stream: Any, take: Callable[[Any], None]) -> threading.Thread:
    """A thread that passes lines on until the stream ends, then a None.

    It closes the stream itself: closed by another thread, it fails in the middle of a line.
    """

    def read() -> None:
        with stream:
            for line in iter(lambda: stream.readline(LONGEST_LINE), b""):
                take(line.strip())
        take(None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
