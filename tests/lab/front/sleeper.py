"""A light server that can sleep: a small ASGI server around the product's own middleware, and an engine whose
memory is a number in a file, on a card that all servers of the host share.

`sleeper.py NAME FOLDER`. CARD has a file for each server with what it uses, of 100. A server starts, serves
and wakes with 90 of them, and keeps 2 asleep. Where there is no room, a start ends with status 1 and a wake
fails. Words in CARD/faults-NAME are faults: sleep-fails, sleep-hangs, wake-fails, wrong, keeps-memory,
slow-requests, start-fails.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from pyinfra_vllm_standby import Standby

CARD = Path("/run/card")
ROOM, AWAKE, ASLEEP = 100, 90, 2
START_S, SLEEP_S, WAKE_S = 0.5, 0.1, 0.2
NAME, FOLDER = sys.argv[1], Path(sys.argv[2])


def fault(word):
    try:
        return word in (CARD / f"faults-{NAME}").read_text().split()
    except OSError:
        return False


def take(amount):
    """Use so much of the card, and no more than is there."""
    others = sum(int(file.read_text() or 0) for file in CARD.glob("used-*") if file.name != f"used-{NAME}")
    if others + amount > ROOM:
        raise RuntimeError("CUDA out of memory")
    (CARD / f"used-{NAME}").write_text(str(amount))


class Engine:
    """vLLM's engine, as far as the middleware knows it."""

    asleep = False

    async def sleep(self, level, mode):
        if fault("sleep-hangs"):
            await asyncio.sleep(3600)
        await asyncio.sleep(SLEEP_S)
        if fault("sleep-fails"):
            raise RuntimeError("Memory usage increased after sleeping.")
        self.asleep = True
        take(AWAKE if fault("keeps-memory") else ASLEEP)

    async def wake_up(self):
        await asyncio.sleep(WAKE_S)
        if fault("wake-fails"):
            raise RuntimeError("CUDA out of memory")
        take(AWAKE)
        self.asleep = False

    async def is_sleeping(self):
        return self.asleep


ENGINE = Engine()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await asyncio.Event().wait()
    while (await receive()).get("more_body"):
        pass
    if fault("slow-requests"):
        await asyncio.sleep(5)
    status, text = (500, "asleep") if ENGINE.asleep else (200, "wrong" if fault("wrong") else NAME)
    length = (b"content-length", str(len(text)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": text.encode()})


async def connection(application, reader, writer):
    """One HTTP/1.1 connection: requests with a length, answers with one."""
    keep = True
    try:
        while keep:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].split(b"\r\n")
            pairs = [line.partition(b":") for line in lines]
            headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
            method, target, _ = first.split(b" ")
            length = int(dict(headers).get(b"content-length", 0))
            messages = [
                {"type": "http.request", "body": await reader.readexactly(length), "more_body": False}
            ]
            keep = dict(headers).get(b"connection", b"").lower() != b"close"

            async def receive(messages=messages):
                if messages:
                    return messages.pop()
                await asyncio.sleep(3600)

            async def send(message):
                nonlocal keep
                if message["type"] == "http.response.start":
                    told = message["headers"]
                    keep = keep and (b"connection", b"close") not in told
                    lines = [b"HTTP/1.1 %d OK" % message["status"], *(b"%s: %s" % pair for pair in told)]
                    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
                else:
                    writer.write(message["body"])

            path, _, query = target.partition(b"?")
            scope = {"type": "http", "method": method.decode(), "path": path.decode(), "headers": headers}
            await application({**scope, "raw_path": path, "query_string": query}, receive, send)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    if fault("start-fails"):
        sys.exit(1)
    await asyncio.sleep(START_S)
    take(AWAKE)
    application = Standby(app)
    state = SimpleNamespace(engine_client=ENGINE)
    life = asyncio.ensure_future(
        application({"type": "lifespan", "app": SimpleNamespace(state=state)}, None, None)
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    await asyncio.start_unix_server(
        lambda reader, writer: connection(application, reader, writer), FOLDER / "api.sock", backlog=2048
    )
    await life


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except RuntimeError as error:
        sys.exit(str(error))
