"""The middleware that lets a server sleep: nobody's request is lost, and nobody but root commands it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.in_runtime import standby
from pyinfra_vllm.in_runtime.standby import ASLEEP, AWAKE, DRAINING, FAILED, SERVING, Standby

Told = list[dict[str, Any]]
LEAST_PYTHON = (3, 10)


class Engine:
    """An engine as vLLM's API server knows it, which can fail."""

    def __init__(self) -> None:
        self.asleep = False
        self.calls: list[str] = []
        self.fails = ""
        self.lies = self.hangs = False

    async def sleep(self, level: int, mode: str) -> None:
        await self._does(f"sleep {level} {mode}", asleep=True)

    async def wake_up(self) -> None:
        await self._does("wake", asleep=False)

    async def _does(self, call: str, asleep: bool) -> None:
        self.calls.append(call)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.fails:
            raise RuntimeError(self.fails)
        self.asleep = asleep if not self.lies else not asleep

    async def is_sleeping(self) -> bool:
        return self.asleep


class Server:
    """A server with the middleware, asked as an ASGI server asks it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control.sock"
        os.environ[standby.CONTROL] = str(self.path)
        self.engine = Engine()
        self.answers = asyncio.Event()  # the engine's answers come when it is set
        self.answers.set()
        self.reached: list[str] = []
        self.standby = Standby(self.app)
        self._over = asyncio.Event()

    async def __aenter__(self) -> Server:
        scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(engine_client=self.engine))}
        self._life = asyncio.ensure_future(self.standby(scope, never, never))
        while not self.path.exists() or stat.S_IMODE(self.path.stat().st_mode) != 0o600:
            await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await self._life

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._over.wait()
            return
        assert not self.engine.asleep, "a request reached an engine that sleeps"
        self.reached.append(scope["path"])
        await self.answers.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"tokens"})

    async def ask(self, path: str = "/v1/completions", kind: str = "http", **scope: Any) -> Told:
        told: Told = []

        async def send(message: Any) -> None:
            told.append(message)

        whole = {"type": kind, "method": "POST", "path": path, "headers": [], **scope}
        await self.standby(whole, never, send)
        return told

    async def command(self, do: str, **rest: Any) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(json.dumps({"do": do, **rest}).encode() + b"\n")
        answer = await reader.readline()
        writer.close()
        return dict(json.loads(answer))


async def never(*_: Any) -> Any:
    raise AssertionError("nothing is read, and nothing is sent")


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(2000):
        if reached():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def run(story: Callable[[Server], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        async with Server(folder) as server:
            await story(server)

    asyncio.run(asyncio.wait_for(whole(), 20))


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "ROOT", os.getuid())
    monkeypatch.delenv(standby.HOLD, raising=False)
    monkeypatch.delenv(standby.HOLD_S, raising=False)


def status(told: Told) -> int:
    return int(told[0]["status"])


def closes(told: Told) -> bool:
    return (b"connection", b"close") in told[0]["headers"]


def test_awake_it_lets_everything_through_untouched(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        told = await server.ask()
        assert status(told) == 200 and not closes(told)
        assert (await server.command("state"))["state"] == SERVING

    run(story, tmp_path)


def test_asleep_a_request_waits_until_the_server_serves_again(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        slept = await server.command("sleep")
        assert (slept["ok"], slept["state"], server.engine.calls) == (True, ASLEEP, ["sleep 1 wait"])
        waiting = asyncio.ensure_future(server.ask())
        await until(lambda: len(server.standby.waiting) == 1)
        assert (await server.command("wake"))["state"] == AWAKE
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert (await server.command("serve"))["state"] == SERVING
        told = await waiting
        assert status(told) == 200 and not closes(told)
        assert len(server.standby.waiting) == server.standby.in_flight == 0

    run(story, tmp_path)


def test_requests_in_flight_end_before_it_sleeps_and_close_their_connection(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        server.answers.clear()
        running = asyncio.ensure_future(server.ask("/first"))
        await until(lambda: server.standby.in_flight == 1)
        sleeping = asyncio.ensure_future(server.command("sleep"))
        await until(lambda: server.standby.state == DRAINING)
        late = asyncio.ensure_future(server.ask("/second"))
        await until(lambda: len(server.standby.waiting) == 1)
        assert server.engine.calls == [] and (await server.command("state"))["in_flight"] == 1
        server.answers.set()
        assert closes(await running)
        assert (await sleeping)["state"] == ASLEEP
        assert server.reached == ["/first"] and not late.done()
        await server.command("wake")
        await server.command("serve")
        assert status(await late) == 200

    run(story, tmp_path)


def test_where_requests_do_not_end_in_time_it_serves_on(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        server.answers.clear()
        running = asyncio.ensure_future(server.ask())
        await until(lambda: server.standby.in_flight == 1)
        busy = await server.command("sleep", limit_s=0.05)
        assert (busy["ok"], busy["state"], server.engine.calls) == (False, SERVING, [])
        assert busy["error"] == "after 0.05 s requests are still in flight: 1"
        server.answers.set()
        assert not closes(await running)

    run(story, tmp_path)


def test_a_caller_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        server.answers.clear()
        running = asyncio.ensure_future(server.ask())
        await until(lambda: server.standby.in_flight == 1)
        _, writer = await asyncio.open_unix_connection(server.path)
        writer.write(b'{"do": "sleep"}\n')
        await until(lambda: server.standby.state == DRAINING)
        writer.close()
        server.answers.set()
        assert status(await running) == 200
        await until(lambda: server.standby.state == ASLEEP)
        assert server.standby.in_flight == 0

    run(story, tmp_path)


def test_only_who_has_the_pass_is_served_before_clients_are(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        await server.command("sleep")
        told = await server.command("wake")
        right = [(standby.PASS, told["pass"].encode())]
        assert status(await server.ask("/canary", headers=right)) == 200
        wrong = asyncio.ensure_future(server.ask("/guess", headers=[(standby.PASS, b"guess")]))
        await until(lambda: len(server.standby.waiting) == 1)
        assert server.reached == ["/canary"]
        await server.command("sleep")
        early = asyncio.ensure_future(server.ask("/early", headers=right))
        await until(lambda: len(server.standby.waiting) == 2)
        await server.command("wake")
        await server.command("serve")
        assert [status(each) for each in await asyncio.gather(wrong, early)] == [200, 200]

    run(story, tmp_path)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_who_waited_too_long_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv(standby.HOLD_S, "0.05")

    async def story(server: Server) -> None:
        await server.command("sleep")
        told = await server.ask(kind=kind)
        if kind == "websocket":
            assert told == [{"type": "websocket.close", "code": 1013}]
        else:
            assert status(told) == 503 and closes(told)
            assert (b"retry-after", b"5") in told[0]["headers"]
            assert json.loads(told[1]["body"])["error"]["code"] == 503
        assert len(server.standby.waiting) == 0

    run(story, tmp_path)


def test_no_more_requests_wait_than_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standby.HOLD, "3")

    async def story(server: Server) -> None:
        await server.command("sleep")
        waiting = [asyncio.ensure_future(server.ask()) for _ in range(3)]
        await until(lambda: len(server.standby.waiting) == 3)
        assert status(await server.ask()) == 503
        await server.command("wake")
        await server.command("serve")
        assert [status(told) for told in await asyncio.gather(*waiting)] == [200, 200, 200]

    run(story, tmp_path)


def test_health_and_metrics_are_answered_at_any_time(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        await server.command("sleep")
        server.engine.asleep = False  # the stub's own check is for requests that use the engine
        told = await server.ask("/health", method="GET")
        assert status(told) == 200 and closes(told)

    run(story, tmp_path)


@pytest.mark.parametrize("do", ["sleep", "wake"])
@pytest.mark.parametrize("fault", ["fails", "lies", "hangs"])
def test_after_a_failure_of_the_engine_only_a_restart_helps(tmp_path: Path, do: str, fault: str) -> None:
    async def story(server: Server) -> None:
        if do == "wake":
            await server.command("sleep")
        setattr(server.engine, fault, "out of memory")
        failed = await server.command(do, limit_s=0.1)
        assert (failed["ok"], failed["state"]) == (False, FAILED)
        assert fault != "fails" or failed["error"] == "out of memory"
        setattr(server.engine, fault, "")
        for again in ("sleep", "wake", "serve"):
            answer = await server.command(again)
            assert (answer["ok"], answer["state"]) == (False, FAILED)
        waiting = asyncio.ensure_future(server.ask())
        await until(lambda: len(server.standby.waiting) == 1)
        waiting.cancel()
        await until(lambda: len(server.standby.waiting) == 0)

    run(story, tmp_path)


def test_what_is_done_already_is_not_done_again(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        for do in ("serve", "wake", "sleep", "sleep", "wake", "wake", "serve", "serve"):
            assert (await server.command(do))["ok"]
        assert server.engine.calls == ["sleep 1 wait", "wake"]
        await server.command("sleep")
        assert (await server.command("serve"))["error"] == "the server is asleep"

    run(story, tmp_path)


def test_at_its_end_nobody_waits_any_more(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        await server.command("sleep")
        waiting = [asyncio.ensure_future(server.ask()) for _ in range(3)]
        await until(lambda: len(server.standby.waiting) == 3)
        assert (await server.command("end"))["state"] == ASLEEP
        assert [status(told) for told in await asyncio.gather(*waiting)] == [503, 503, 503]
        assert status(await server.ask()) == 503

    run(story, tmp_path)


def test_commands_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        server.answers.clear()
        running = asyncio.ensure_future(server.ask())
        await until(lambda: server.standby.in_flight == 1)
        sleeping = asyncio.ensure_future(server.command("sleep"))
        await until(lambda: server.standby.state == DRAINING)
        waking = asyncio.ensure_future(server.command("wake"))
        await asyncio.sleep(0.02)
        server.answers.set()
        assert (await sleeping)["ok"] and (await waking)["state"] == AWAKE
        assert server.engine.calls == ["sleep 1 wait", "wake"] and status(await running) == 200

    run(story, tmp_path)


def test_a_server_that_served_again_relays_to_nobody(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        await server.command("sleep")
        assert (await server.command("relay", to="/gone"))["relay"] == "/gone"
        await server.command("wake")
        assert (await server.command("serve"))["relay"] == ""
        await server.command("sleep")
        waiting = asyncio.ensure_future(server.ask())
        await until(lambda: len(server.standby.waiting) == 1)
        await server.command("wake")
        await server.command("serve")
        assert status(await waiting) == 200

    run(story, tmp_path)


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"{}\n", b'{"do": "reset"}\n', b'{"do": "sleep", "x": 1}\n', b"\xff"]
)
def test_a_damaged_command_does_nothing(tmp_path: Path, line: bytes) -> None:
    async def story(server: Server) -> None:
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(line)
        writer.write_eof()
        answer = json.loads(await reader.readline())
        writer.close()
        assert (answer["ok"], answer["state"], server.engine.calls) == (False, SERVING, [])

    run(story, tmp_path)


def test_nobody_but_root_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "ROOT", os.getuid() + 1)

    async def story(server: Server) -> None:
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(b'{"do": "sleep"}\n')
        with suppress(ConnectionResetError):  # its line was not even read
            assert await reader.read() == b""
        writer.close()
        assert server.standby.state == SERVING and server.engine.calls == []

    run(story, tmp_path)


def test_the_socket_is_gone_after_the_end(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        assert server.path.is_socket()

    run(story, tmp_path)
    assert not (tmp_path / "control.sock").exists()


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert standby.peer(here) == os.getuid()


def test_the_module_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "pyinfra_vllm_standby.py").write_text(Path(standby.__file__).read_text())
    words = [
        sys.executable,
        "-S",
        "-c",
        "import pyinfra_vllm_standby as found; print(found.Standby.__name__)",
    ]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "Standby\n"


# --- Whatever comes in whatever order ---

ACTS = st.lists(st.sampled_from(["ask", "sleep", "wake", "serve", "fail", "mend"]), max_size=14)


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(ACTS)
def test_no_request_reaches_a_sleeping_engine_and_all_are_answered(acts: list[str]) -> None:
    """The stub's app asserts that its engine is awake."""

    async def story(server: Server) -> None:
        asked = []
        for act in acts:
            if act == "ask":
                asked.append(asyncio.ensure_future(server.ask()))
                await asyncio.sleep(0)
            elif act in ("fail", "mend"):
                server.engine.fails = "out of memory" if act == "fail" else ""
            else:
                answer = await server.command(act)
                assert answer["state"] in (SERVING, ASLEEP, AWAKE, FAILED)
                assert (answer["state"] == ASLEEP) <= server.engine.asleep
                assert not (answer["state"] == SERVING and server.engine.asleep)
        server.engine.fails = ""
        if server.standby.state != FAILED:
            await server.command("wake")
            await server.command("serve")
            assert all(status(told) == 200 for told in await asyncio.gather(*asked))
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"standby-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    run(story, folder)


# --- Relaying to the server that is awake ---


async def other(path: Path, head: bytes, *parts: bytes) -> tuple[asyncio.AbstractServer, list[bytes]]:
    """A server at a Unix socket that says these bytes and closes; what it was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        asked.append(request + await reader.readexactly(length))
        writer.write(head + b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    return await asyncio.start_unix_server(answer, path), asked


def relayed(folder: Path, head: bytes, *parts: bytes) -> tuple[Told, list[bytes], BaseException | None]:
    """The relay's answer to a client, the requests to the other server, and the error at the end."""
    told: Told = []

    async def send(message: Any) -> None:
        told.append(dict(message))

    async def story() -> tuple[list[bytes], BaseException | None]:
        server, asked = await other(folder / "api.sock", head, *parts)
        messages = [
            {"type": "http.request", "body": b'{"a"', "more_body": True},
            {"type": "http.request", "body": b":1}"},
        ]

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(3600)

        scope = {
            "type": "http", "method": "POST", "raw_path": b"/v1/completions", "query_string": b"x=%20",
            "headers": [(b"host", b"h"), (b"authorization", b"Bearer k"), (b"transfer-encoding", b"chunked")],
        }  # fmt: skip
        try:
            await asyncio.wait_for(standby.relay(str(folder / "api.sock"), scope, receive, send), 5)
            return asked, None
        except Exception as error:
            return asked, error
        finally:
            server.close()

    asked, error = asyncio.run(story())
    return told, asked, error


def text(told: Told) -> bytes:
    return b"".join(message.get("body", b"") for message in told[1:])


def test_a_relayed_request_is_the_same_request(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Id: 7\r\nConnection: close"
    told, (asked,), error = relayed(tmp_path, head, b"tok", b"ens")
    assert error is None and status(told) == 200 and text(told) == b"tokens"
    assert told[0]["headers"] == [(b"content-length", b"6"), (b"x-id", b"7")]
    assert told[-1] == {"type": "http.response.body", "body": b""}
    lines = asked.split(b"\r\n")
    assert lines[0] == b"POST /v1/completions?x=%20 HTTP/1.1"
    assert lines[1:5] == [b"host: h", b"authorization: Bearer k", b"content-length: 7", b"connection: close"]
    assert lines[-1] == b'{"a":1}'


def test_a_relayed_stream_comes_part_by_part(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream"
    told, _, error = relayed(tmp_path, head, b"5\r\ndata:\r\n", b"A;x=y\r\n 1\r\n\r\nabcd\r\n0\r\n\r\n")
    assert error is None and [message.get("body") for message in told[1:]] == [
        b"data:",
        b" 1\r\n\r\nabcd",
        b"",
    ]
    assert told[0]["headers"] == [(b"content-type", b"text/event-stream")]


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", [b"5\r\nab"]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", [b"2\r\nab\r\n"]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9", [b"ab"]),
    ],
)
def test_an_answer_that_ends_too_early_has_no_end(tmp_path: Path, head: bytes, parts: list[bytes]) -> None:
    told, _, error = relayed(tmp_path, head, *parts)
    assert isinstance(error, asyncio.IncompleteReadError)
    assert all(message["type"] == "http.response.start" or message["more_body"] for message in told)


def test_the_other_servers_error_is_the_clients(tmp_path: Path) -> None:
    told, _, error = relayed(tmp_path, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2", b"{}")
    assert error is None and status(told) == 401 and text(told) == b"{}"


def test_those_who_wait_are_answered_by_the_server_that_is_awake(tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
        awake, asked = await other(tmp_path / "api.sock", head, b"other")
        assert "is serving" in (await server.command("relay", to=str(tmp_path / "api.sock")))["error"]
        await server.command("sleep")
        there = {"raw_path": b"/p", "query_string": b""}
        messages = [{"type": "http.request", "body": b"{}"}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(3600)

        told: Told = []

        async def send(message: Any) -> None:
            told.append(message)

        scope = {"type": "http", "method": "POST", "path": "/p", "headers": [], **there}
        waiting = asyncio.ensure_future(server.standby(scope, receive, send))
        await until(lambda: len(server.standby.waiting) == 1)
        assert (await server.command("relay", to=str(tmp_path / "api.sock")))["ok"]
        await waiting
        assert status(told) == 200 and closes(told) and text(told) == b"other" and len(asked) == 1
        assert server.engine.asleep and server.reached == []
        awake.close()

    run(story, tmp_path)


Ask = Callable[[], Awaitable[Told]]


def gone(story: Callable[[Server, Ask], Awaitable[None]], folder: Path) -> None:
    """Run a story of a server that sleeps and was told to relay to one that is not there any more."""

    async def whole(server: Server) -> None:
        await server.command("sleep")
        await server.command("relay", to=str(folder / "api.sock"))

        async def ask() -> Told:
            told: Told = []
            messages = [{"type": "http.request", "body": b"{}"}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await asyncio.sleep(3600)

            async def send(message: Any) -> None:
                told.append(message)

            scope = {"type": "http", "method": "POST", "path": "/p", "raw_path": b"/p", "query_string": b""}
            await server.standby({**scope, "headers": []}, receive, send)
            assert bool(messages) == (status(told) == 503 or text(told) == b"tokens")  # for who answers
            return told

        await story(server, ask)
        assert server.standby.in_flight == len(server.standby.waiting) == 0

    run(whole, folder)


def test_where_the_other_server_is_gone_a_request_waits_for_its_own(tmp_path: Path) -> None:
    async def story(server: Server, ask: Ask) -> None:
        waiting = asyncio.ensure_future(ask())
        await until(lambda: len(server.standby.waiting) == 1)
        await server.command("wake")
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await server.command("serve")
        assert status(await waiting) == 200 and server.reached == ["/p"]

    gone(story, tmp_path)


def test_a_request_that_waits_is_answered_by_the_other_server_when_it_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "AGAIN_S", 0.02)

    async def story(server: Server, ask: Ask) -> None:
        waiting = asyncio.ensure_future(ask())
        await until(lambda: len(server.standby.waiting) == 1)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
        awake, asked = await other(tmp_path / "api.sock", head, b"other")
        assert text(await waiting) == b"other" and len(asked) == 1 and server.reached == []
        awake.close()

    gone(story, tmp_path)


def test_nobody_waits_longer_for_a_server_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "AGAIN_S", 0.02)
    monkeypatch.setenv(standby.HOLD_S, "0.1")

    async def story(server: Server, ask: Ask) -> None:
        assert status(await ask()) == 503
        server.standby.hold_s = 60.0
        waiting = asyncio.ensure_future(ask())
        await until(lambda: len(server.standby.waiting) == 1)
        await server.command("end")
        assert status(await waiting) == 503

    gone(story, tmp_path)


def test_the_other_server_does_not_go_on_for_a_client_that_went_away(tmp_path: Path) -> None:
    async def story() -> None:
        ended = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await writer.drain()
            assert await reader.read() == b""
            ended.set()
            writer.close()

        server = await asyncio.start_unix_server(answer, tmp_path / "api.sock")
        went = asyncio.Event()
        messages = [{"type": "http.request", "body": b""}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await went.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body") == b"a":
                went.set()

        scope = {"type": "http", "method": "POST", "raw_path": b"/", "query_string": b"", "headers": []}
        await standby.relay(str(tmp_path / "api.sock"), scope, receive, send)
        await ended.wait()
        server.close()

    asyncio.run(asyncio.wait_for(story(), 5))
