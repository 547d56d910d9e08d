"""Talks to one OpenAI-compatible server and times its answers at the socket.

Never retries, never waits past its time limit, and never keeps a connection: each request is one observation.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Callable
from urllib.parse import SplitResult, urlsplit

from .stream import (
    ClientError,
    Dropped,
    Events,
    Garbage,
    HttpError,
    NoTokens,
    NoUsage,
    Refused,
    Streamed,
    TimedOut,
    TooLong,
    parsed,
    read_stream,
    shortened,
    words,
)
from .timed_socket import TimedSocket

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "Client",
    "ClientError",
    "Dropped",
    "Garbage",
    "HttpError",
    "NoTokens",
    "NoUsage",
    "Refused",
    "Streamed",
    "TimedOut",
    "TooLong",
]

DEFAULT_TIMEOUT_S = 60.0
READ_BYTES = 1 << 16
ERROR_BYTES = 2000
LARGEST_BODY = 8 << 20  # vLLM's /metrics has under 300 kB, an answer of prompt_logprobs about 1 MB
# Of a stream: vLLM sends one event of about 250 bytes a token, then usage and the end.
STREAM_BYTES, TOKEN_BYTES = 1 << 18, 1 << 12
STREAM_LINES, TOKEN_LINES = 256, 4
LONGEST_SAMPLE = 1 << 16  # one line of /metrics
LARGEST_VALUE = 1e15
# A prompt's tokens are at least a byte each, beside what a chat template puts around them.
TEMPLATE_TOKENS = 4096
METRIC = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?\s+(\S+)")
# Until Python 3.9 a socket's timeout is not a TimeoutError.
TIMEOUTS = (TimeoutError, socket.timeout)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Client:
    """One server and one model.

    + url: base of the server (`http://127.0.0.1:8000`); a trailing `/v1` is accepted
    + model: the name that the server serves it under
    + api_key: sent as a bearer token; never part of a message
    + timeout_s: limit of one request, from connecting to its last byte
    + listener: who listens where the server is to be, or a ClientError; asked before and after each
        connection is made, and nothing is sent where the answers differ
    + unix: the server's Unix socket, where it has one: connections are made there, and not to the URL's host
    + prove: raises a ClientError where a connection that was just made leads to somebody else
    + headers: sent with each request

    Raises ValueError for what is not the URL of a server.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        listener: Callable[[], object] = lambda: None,
        unix: Path | None = None,
        prove: Callable[[socket.socket], object] = lambda connected: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parts, port = _parts(url)
        self.secure = parts.scheme == "https"
        self.host = str(parts.hostname)
        self.port = port or (443 if self.secure else 80)
        path = parts.path.rstrip("/")
        self.base = path[: -len("/v1")] if path.endswith("/v1") else path
        self.model = model
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._listener = listener
        self._unix = unix
        self._prove = prove
        self._own_headers = dict(headers or {})
        self._live: set[socket.socket] = set()
        self._guard = threading.Lock()
        # What this server understands beyond OpenAI's own fields; `negotiate` takes away what it refuses.
        self.extensions = {"ignore_eos", "cache_salt", "stream_options"}
        self.path = COMPLETIONS

    def __repr__(self) -> str:
        return f"Client({self._place}{self.base}, model={self.model!r})"

    @property
    def _place(self) -> str:
        return str(self._unix or f"{self.host}:{self.port}")

    # What a server says about itself

    def health(self, timeout_s: float = 5.0) -> bool:
        """Whether `/health` answers 200. That does not show generation: see `check_generation`."""
        try:
            self.get("/health", timeout_s)
        except ClientError:
            return False
        return True

    def models(self, timeout_s: float = 10.0) -> list[Mapping[str, object]]:
        """The models that `/v1/models` lists. Raises ClientError."""
        answer = parsed(self.get("/v1/models", timeout_s))
        data = answer.get("data")
        if not isinstance(data, list):
            raise Garbage("/v1/models has no list of models")
        return [item for item in data if isinstance(item, dict)]

    def version(self, timeout_s: float = 5.0) -> str | None:
        """VLLM's version; None where the server has no `/version`."""
        try:
            found = parsed(self.get("/version", timeout_s)).get("version")
        except ClientError:
            return None
        return shortened(found, 60) if isinstance(found, str) and found else None

    def metrics(self, timeout_s: float = 5.0) -> dict[str, float]:
        """`/metrics`: each name with the sum over its labels, and each `name{labels}` by itself.

        Raises ClientError.
        """
        return samples(self.get("/metrics", timeout_s).decode("utf-8", "replace"))

    # Asking for tokens

    def check_generation(self, timeout_s: float) -> Streamed:
        """Generation check: ask for one short streamed answer, which must have at least two tokens.

        Raises Refused, HttpError, NoTokens or another ClientError.
        """
        self.negotiate(timeout_s)
        answer = self.stream("Count from one to ten: one two", 8, timeout_s, require_usage=False)
        if answer.output_tokens < 2:
            raise NoTokens(f"the answer has {answer.output_tokens} tokens, at least 2 were asked for")
        return answer

    def negotiate(self, timeout_s: float) -> None:
        """Find out, by asking for one token, which endpoint and which extensions the server accepts."""
        until = time.perf_counter() + timeout_s
        while True:
            try:
                self.stream("Hello", 1, until - time.perf_counter(), salt="negotiate", require_usage=False)
                return
            except HttpError as error:
                if error.status == 404 and self.path == COMPLETIONS:
                    self.path = CHAT
                elif error.status in (400, 422) and self.extensions:
                    self.extensions.discard(_refused_extension(str(error), self.extensions))
                else:
                    raise

    def stream(
        self, prompt: str, max_tokens: int, timeout_s: float, salt: str = "", require_usage: bool = True
    ) -> Streamed:
        """One streamed answer at temperature 0, of exactly `max_tokens` where the server can ignore its end
        token.

        + salt: keeps the server's prefix cache from answering for another request
        + require_usage: raise NoUsage where the server counts no tokens (else: count its events)
        """
        events = self.events(prompt, max_tokens, timeout_s, salt)
        return read_stream(events, require_usage)

    def events(self, prompt: str, max_tokens: int, timeout_s: float, salt: str = "") -> Events:
        """The response of `stream`, not yet read: reading costs time that a busy probe has only later."""
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self.path == COMPLETIONS:
            body["prompt"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        if "stream_options" in self.extensions:
            body["stream_options"] = {"include_usage": True}
        if "ignore_eos" in self.extensions:
            body["ignore_eos"] = True
        if salt and "cache_salt" in self.extensions:
            body["cache_salt"] = salt
        events = self._exchange_stream(self.path, body, max_tokens, timeout_s)
        events.most_input, events.most_output = len(prompt.encode()) + TEMPLATE_TOKENS, max_tokens
        return events

    def ask(self, path: str, body: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
        """One answer in one piece. Raises ClientError."""
        return parsed(self._exchange("POST", path, {"model": self.model, **body}, timeout_s))

    def get(self, path: str, timeout_s: float) -> bytes:
        return self._exchange("GET", path, None, timeout_s)

    def abort(self) -> None:
        """End every request that is under way, in whatever thread: each raises ClientError there."""
        with self._guard:
            live = list(self._live)
        for sock in live:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side was faster
                continue

    # One exchange

    def _exchange(self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float) -> bytes:
        parts = [chunk for _, chunk in self._chunks(method, path, body, timeout_s, LARGEST_BODY)]
        return b"".join(parts)

    def _exchange_stream(
        self, path: str, body: Mapping[str, object], tokens: int, timeout_s: float
    ) -> Events:
        chunks = self._chunks("POST", path, body, timeout_s, STREAM_BYTES + TOKEN_BYTES * tokens)
        events = Events(sent=next(chunks)[0])
        rest = b""
        for moment, chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            events.lines += [(moment, line) for line in lines if line.strip()]
            if len(events.lines) > STREAM_LINES + TOKEN_LINES * tokens:
                chunks.close()
                raise TooLong(f"the stream has more than {len(events.lines)} events for {tokens} tokens")
        if rest.strip():
            events.lines.append((time.perf_counter(), rest))
        return events

    def _chunks(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float, most: int
    ) -> Generator[tuple[float, bytes], None, None]:
        """Yield (moment of sending, b""), then each piece of the body with the moment at which it was read.

        Raises TooLong for a body of more than `most` bytes.
        """
        received = 0
        deadline = time.perf_counter() + timeout_s
        connection = self._connection(max(timeout_s, 0.001))
        sock: socket.socket | None = None
        try:
            sock = self._connect(connection)
            connection.sock = TimedSocket(sock, deadline)
            payload = None if body is None else json.dumps(body).encode()
            sent = time.perf_counter()
            connection.request(method, self.base + path, payload, self._headers(body is not None))
            response = connection.getresponse()
            if response.status != 200:
                raise HttpError(response.status, _beginning(response).decode("utf-8", "replace"))
            yield sent, b""
            while chunk := response.read1(READ_BYTES):
                received += len(chunk)
                if received > most:
                    raise TooLong(f"the answer has more than {most} bytes")
                yield time.perf_counter(), chunk
        except TIMEOUTS as error:
            raise TimedOut(f"no complete answer within {timeout_s:.1f} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Dropped(f"the connection ended before the answer did ({words(error)})") from error
        finally:
            connection.close()
            self._close(sock)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._unix:
            return _UnixConnection(self._unix, timeout_s)
        if self.secure:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout_s, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def _connect(self, connection: http.client.HTTPConnection) -> socket.socket:
        before = self._listener()
        try:
            connection.connect()
        except TIMEOUTS:
            raise
        except OSError as error:
            raise Refused(f"no connection to {self._place} ({words(error)})") from error
        if self._listener() != before:
            raise Refused(f"the server on {self._place} was replaced while it was connected to")
        sock: socket.socket = connection.sock
        self._prove(sock)
        with self._guard:
            self._live.add(sock)
        return sock

    def _close(self, sock: socket.socket | None) -> None:
        if sock is not None:
            with self._guard:
                self._live.discard(sock)
            sock.close()

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"Connection": "close", **self._own_headers}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return headers


class _UnixConnection(http.client.HTTPConnection):
    """To a server that listens on a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _beginning(response: http.client.HTTPResponse) -> bytes:
    """An error's first words; of a chunk that is said to have -1 bytes, read() would read all that comes."""
    found = b""
    while len(found) < ERROR_BYTES and (piece := response.read1(ERROR_BYTES)):
        found += piece
    return found[:ERROR_BYTES]


def samples(text: str) -> dict[str, float]:
    """The text of `/metrics`: each name with the sum over its labels, and each `name{labels}` by itself."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        found = METRIC.match(line) if len(line) <= LONGEST_SAMPLE else None
        if not found:
            continue
        name, labels, told = found.groups()
        value = _sample(told)
        if value is None:
            continue
        values[name] = values.get(name, 0.0) + value
        if labels:
            values[name + labels] = value
    return values


def _sample(text: str) -> float | None:
    """The value of a sample; None for what no counter or gauge of a server can be."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= LARGEST_VALUE else None


def _parts(url: str) -> tuple[SplitResult, int | None]:
    """The URL taken apart, with its port. Raises ValueError naming it."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:  # an open bracket, a port that is none
        raise ValueError(f"{url!r} is not the URL of a server ({error}): give http://HOST:PORT") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{url!r} is not the URL of a server: give http://HOST:PORT")
    return parts, port


def _refused_extension(message: str, extensions: set[str]) -> str:
    """The extension that the server's refusal names, else the one that the fewest servers know."""
    for name in ("cache_salt", "ignore_eos", "stream_options"):
        if name in extensions and name in message:
            return name
    return next(name for name in ("cache_salt", "ignore_eos", "stream_options") if name in extensions)
