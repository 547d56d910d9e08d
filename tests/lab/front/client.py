"""A light client for tests of the front; prints what became of its requests as JSON.

`client.py rate PORT RATE SECONDS`   so many requests a second, each on a connection of its own
`client.py keep PORT STREAMS SECONDS`  one request after another on kept connections
`client.py hold PORT COUNT SECONDS`  that many connections at once, asked after so long
`client.py cost COUNT TARGET...`     microseconds of a request to each target in turns (port or path)
"""

import asyncio
import collections
import json
import socket
import statistics
import sys
import time

PATIENCE_S = 60.0
ONCE = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
AGAIN = ONCE.replace(b"Connection: close\r\n", b"")


class Asking(asyncio.Protocol):
    """One connection, and all that came before it was closed."""

    def __init__(self):
        self.got, self.done = b"", asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.got += data

    def connection_lost(self, error):
        if not self.done.done():
            self.done.set_result(self.got if error is None else repr(error).encode())


def told(got):
    head, _, who = got.partition(b"\r\n\r\n")
    return who.decode() if head.startswith(b"HTTP/1.1 200") and who else f"lost: {got[:60]!r}"


async def one(port, seen, waits, after_s=0.0):
    began = time.monotonic()
    try:
        transport, asking = await asyncio.get_running_loop().create_connection(Asking, "127.0.0.1", port)
        if after_s:
            await asyncio.sleep(after_s)
        transport.write(ONCE)
        seen[told(await asyncio.wait_for(asking.done, PATIENCE_S))] += 1
    except Exception as error:
        seen[f"lost: {error!r}"] += 1
    waits.append(time.monotonic() - began)


async def rate(port, wanted, seconds):
    seen, waits, tasks = collections.Counter(), [], []
    began = time.monotonic()
    for number in range(int(wanted * seconds)):
        early = began + number / wanted - time.monotonic()
        if early > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.ensure_future(one(port, seen, waits)))
        if number % 20 == 0:
            await asyncio.sleep(0)
    asked_s = time.monotonic() - began
    await asyncio.gather(*tasks)
    return {**summary(seen, waits), "per_s": round(len(tasks) / asked_s)}


async def keep(port, streams, seconds):
    """A connection that is closed between two requests is made anew, as every client does."""
    seen, waits, until = collections.Counter(), [], time.monotonic() + seconds

    async def stream():
        reader = writer = None
        while time.monotonic() < until:
            began, fresh = time.monotonic(), writer is None
            try:
                if fresh:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(AGAIN)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                seen[(await reader.readexactly(length)).decode()] += 1
                waits.append(time.monotonic() - began)
            except (OSError, asyncio.IncompleteReadError) as error:
                writer = None
                if fresh:
                    seen[f"lost: {error!r}"] += 1

    await asyncio.gather(*[stream() for _ in range(int(streams))])
    return summary(seen, waits)


async def hold(port, count, seconds):
    seen, waits = collections.Counter(), []
    await asyncio.gather(*[one(port, seen, waits, seconds) for _ in range(int(count))])
    return summary(seen, waits)


def summary(seen, waits):
    lost = {name: count for name, count in seen.items() if name.startswith("lost")}
    answered = {name: count for name, count in seen.items() if name not in lost}
    waits.sort()
    quantiles = {"median_s": waits[len(waits) // 2], "longest_s": waits[-1]}
    return {
        "answered": answered,
        "lost": lost,
        **{name: round(value, 5) for name, value in quantiles.items()},
    }


def connected(target):
    if target.isdigit():
        made = socket.create_connection(("127.0.0.1", int(target)))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    made.connect(target)
    return made


def cost(count, targets):
    """Median microseconds of a request on a kept connection, and on one of its own."""
    kept = {target: connected(target) for target in targets}
    found = {target: ([], []) for target in targets}
    for _ in range(count):
        for target in targets:
            began = time.perf_counter()
            kept[target].sendall(AGAIN)
            kept[target].recv(4096)
            found[target][0].append(time.perf_counter() - began)
            began = time.perf_counter()
            with connected(target) as fresh:
                fresh.sendall(ONCE)
                while fresh.recv(4096):
                    pass
            found[target][1].append(time.perf_counter() - began)
    return {
        target: {
            "kept_us": round(1e6 * statistics.median(one)),
            "fresh_us": round(1e6 * statistics.median(two)),
        }
        for target, (one, two) in found.items()
    }


if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if how == "cost":
        print(json.dumps(cost(int(rest[0]), rest[1:])))
    else:
        port, *numbers = rest
        act = {"rate": rate, "keep": keep, "hold": hold}[how]
        print(json.dumps(asyncio.run(act(int(port), *map(float, numbers)))))
