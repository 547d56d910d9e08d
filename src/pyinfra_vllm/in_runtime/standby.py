"""Lets a vLLM server sleep and wake without vLLM's development endpoints.

Runs in the runtime's Python, 3.10 or newer: `vllm serve --middleware pyinfra_vllm_standby.Standby` loads this
file from the release's folder. It knows the engine by `app.state.engine_client`, and does these things to it,
each asked for by one JSON line on the Unix socket that PYINFRA_VLLM_CONTROL names, answered by one JSON line,
for root alone:

    {"do": "state"}                  serving, draining, asleep, awake (clients still wait) or failed
    {"do": "sleep", "limit_s": 30}   lets requests in flight end, then sleeps; serves on where they don't end
    {"do": "wake", "limit_s": 60}    awake; only requests with the answer's `pass` are served until `serve`
    {"do": "serve"}                  clients are served
    {"do": "relay", "to": PATH}      clients that wait are served by the server at that Unix socket
    {"do": "end"}                    nobody waits any more (503), so that a stop takes no longer than today

Client requests wait while nobody is awake: so many, and so long, then 503 with Retry-After. Only what may use
the engine waits (POST and websockets): /health and /metrics answer at any time.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CONTROL = "PYINFRA_VLLM_CONTROL"  # the path of the control socket
HOLD, HOLD_S = "PYINFRA_VLLM_HOLD", "PYINFRA_VLLM_HOLD_S"  # how many requests wait, and how long each
MOST_HELD, LONGEST_HELD_S = 2048, 300.0
RETRY_AFTER_S = 5
AGAIN_S = 1.0  # until a server that is gone is tried again
ASK_S, SLEEP_S = 10.0, 60.0
PASS = b"x-pyinfra-vllm-pass"
ROOT = 0  # the user whose commands are carried out
SERVING, DRAINING, ASLEEP, AWAKE, FAILED = "serving", "draining", "asleep", "awake", "failed"
# Of one connection, not of the request (RFC 9110, 7.6.1); the length is told anew.
HOP_BY_HOP = (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
HEAD_BYTES, READ_BYTES = 1 << 16, 1 << 16

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The command was not carried out; the server goes on as it was."""


class Gone(Exception):
    """Nobody accepts connections at that Unix socket; nothing was read of the request."""


class Standby:
    """ASGI middleware: counts requests in flight, holds others while the engine sleeps, and obeys root."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.most_held = int(os.environ.get(HOLD, MOST_HELD))
        self.hold_s = float(os.environ.get(HOLD_S, LONGEST_HELD_S))
        self.state = SERVING
        self.slept = False  # since its start
        self.relay_to = ""
        self.ending = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.waiting: set[asyncio.Future[None]] = set()
        self.acting = asyncio.Lock()  # one command after another
        self.token = secrets.token_hex(16)
        self.engine: Any = None
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] != "POST":
            await self.app(scope, receive, self._closing(send))
        elif self.state == SERVING or self._passes(scope):
            await self._serve(self.app, scope, receive, send)
        else:
            await self._hold(scope, receive, send)

    # Requests

    async def _serve(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_flight += 1
        self.idle.clear()
        try:
            await app(scope, receive, self._closing(send))
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        until, gone = time.monotonic() + self.hold_s, ""
        while await self._is_released(until, gone):
            if self.state == SERVING:
                return await self._serve(self.app, scope, receive, send)
            gone = self.relay_to
            with suppress(Gone):
                return await self._serve(self._relay, scope, receive, send)
        await refuse(scope, self._closing(send))

    async def _is_released(self, until: float, gone: str) -> bool:
        """Whether it may go on, to this engine or to another server; False once it has waited too long.

        + gone: nobody was at this socket, which is tried again after a while
        """
        if len(self.waiting) >= self.most_held:
            return False
        while self.state != SERVING and self.relay_to in ("", gone):
            if self.ending:
                return False
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.add(waiter)
            left = max(0.0, until - time.monotonic())
            try:
                await asyncio.wait({waiter}, timeout=min(left, AGAIN_S) if self.relay_to else left)
            finally:
                self.waiting.discard(waiter)
            if not waiter.done():
                return bool(self.relay_to) and time.monotonic() < until
        return True

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse(scope, send)
        else:
            await relay(self.relay_to, scope, receive, send)

    def _passes(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == PASS]
        return self.state == AWAKE and any(hmac.compare_digest(value, self.token.encode()) for value in given)

    def _closing(self, send: Send) -> Send:
        """While this server does not serve, each answer ends its connection: the next may lead elsewhere."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and self.state != SERVING:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return told

    # Commands

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.engine = scope["app"].state.engine_client
        path = Path(os.environ[CONTROL])
        server = await asyncio.start_unix_server(self._answer, path)
        path.chmod(0o600)
        try:
            await self.app(scope, receive, send)
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command of root's; nobody else is answered. A command goes on without its caller."""
        if peer(writer.get_extra_info("socket")) == ROOT:
            try:
                command = json.loads(await asyncio.wait_for(reader.readline(), ASK_S))
                await self._act(**command)
                told: dict[str, Any] = {"ok": True}
            except Exception as error:
                told = {"ok": False, "error": str(error) or type(error).__name__}
            seen = {
                "state": self.state,
                "slept": self.slept,
                "in_flight": self.in_flight,
                "held": len(self.waiting),
                "relay": self.relay_to,
                "pass": self.token,
            }
            with suppress(OSError):
                writer.write(json.dumps({**told, **seen}).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _act(self, do: str, limit_s: float = SLEEP_S, to: str = "") -> None:
        if do == "state":
            return
        async with self.acting:
            if do == "sleep":
                await self._sleep(limit_s)
            elif do == "wake":
                await self._wake(limit_s)
            elif do == "serve":
                self._open()
            elif do == "relay":
                self._relay_all(to)
            elif do == "end":
                self.ending = True
                self._release()
            else:
                raise Refused(f"do is {do!r}, not state, sleep, wake, serve, relay or end")

    async def _sleep(self, limit_s: float) -> None:
        before = self.state
        if before == ASLEEP:
            return
        if before == FAILED:
            raise Refused("an earlier sleep or wake failed: the server must be restarted")
        self.state = DRAINING
        try:
            await asyncio.wait_for(self.idle.wait(), limit_s)
        except asyncio.TimeoutError:
            self._become(before)
            raise Refused(f"after {limit_s:g} s requests are still in flight: {self.in_flight}") from None
        # `wait`: what was begun without a connection (background responses) ends too.
        await self._engine_does(self.engine.sleep(level=1, mode="wait"), limit_s, asleep=True)

    async def _wake(self, limit_s: float) -> None:
        if self.state == FAILED:
            raise Refused("an earlier sleep or wake failed: the server must be restarted")
        if self.state == ASLEEP:
            await self._engine_does(self.engine.wake_up(), limit_s, asleep=False)

    async def _engine_does(self, act: Awaitable[object], limit_s: float, asleep: bool) -> None:
        """Sleep or wake the engine. A failure leaves its memory in an unknown state: `failed`."""
        try:
            await asyncio.wait_for(act, limit_s)
            if await asyncio.wait_for(self.engine.is_sleeping(), limit_s) is not asleep:
                raise Refused(f"the engine says that it is {'not ' if asleep else ''}asleep")
        except BaseException:
            self._become(FAILED)
            raise
        self.slept = True
        self._become(ASLEEP if asleep else AWAKE)

    def _open(self) -> None:
        if self.state not in (AWAKE, SERVING):
            raise Refused(f"the server is {self.state}")
        self.relay_to = ""
        self._become(SERVING)

    def _relay_all(self, to: str) -> None:
        if self.state == SERVING:
            raise Refused("the server is serving")
        self.relay_to = to
        self._release()

    def _become(self, state: str) -> None:
        self.state = state
        self._release()

    def _release(self) -> None:
        """Have each that waits look whether it may go on."""
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)


def peer(connected: socket.socket) -> int:
    """The user at the other end of a Unix socket, as the kernel knows it."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1])


async def refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013})  # try again later (RFC 6455's registry)
        return
    error = {"message": "No server is awake. Try again soon.", "type": "service_unavailable", "code": 503}
    body = json.dumps({"error": error}).encode()
    headers = {"content-type": "application/json", "content-length": len(body), "retry-after": RETRY_AFTER_S}
    told = [(name.encode(), str(value).encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 503, "headers": told})
    await send({"type": "http.response.body", "body": body})


async def relay(path: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the request answered by the server at that Unix socket, token by token as it answers.

    An answer that ends too early raises an error, so that it ends too early for the client as well. Raises
    Gone where nobody is there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=HEAD_BYTES)
    except OSError as error:
        raise Gone from error
    try:
        await _exchange(reader, writer, scope, receive, send)
    finally:
        writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scope: Scope, receive: Receive, send: Send
) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    gone = asyncio.ensure_future(receive())
    gone.add_done_callback(lambda _: writer.close())  # the other server need not go on for nobody
    try:
        writer.write(_head(scope, len(body)) + body)
        status, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
        kept = [(name, value) for name, value in headers if name not in HOP_BY_HOP]
        await send({"type": "http.response.start", "status": status, "headers": kept})
        async for part in _body(reader, dict(headers)):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (OSError, asyncio.IncompleteReadError):
        if not gone.done():
            raise
    finally:
        gone.cancel()


def _head(scope: Scope, length: int) -> bytes:
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    kept = [pair for pair in scope["headers"] if pair[0] not in (*HOP_BY_HOP, b"content-length")]
    headers = [*kept, (b"content-length", str(length).encode()), (b"connection", b"close")]
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), target), *(b"%s: %s" % pair for pair in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _parsed(head: bytes) -> tuple[int, Headers]:
    first, *lines = head.strip().split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    return int(first.split()[1]), [(name.strip().lower(), value.strip()) for name, _, value in pairs]


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif b"content-length" in headers:
        left = int(headers[b"content-length"])
        while left:
            part = await reader.read(min(left, READ_BYTES))
            if not part:
                raise asyncio.IncompleteReadError(part, left)
            left -= len(part)
            yield part
    else:
        while part := await reader.read(READ_BYTES):
            yield part
