"""A tiny OpenAI-compatible server for tests: it streams as fast as it is told to, and
misbehaves on request.
"""

from __future__ import annotations

import http.server
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """The server's behaviour. `status` answers every request for tokens with that status instead."""

    ttft_s: float = 0.002
    tpot_s: float = 0.0002
    status: int = 200
    wedged: bool = False  # /health is fine, no token ever comes
    mute: bool = False  # streams as ever, and lets every question wait
    trickles: bool = False  # headers come one byte at a time, for ever
    garbage: bool = False
    usage: bool = True
    drop_every: int = 0
    fail_every: int = 0  # HTTP 500
    fails: tuple[int, ...] = ()  # HTTP 500 to these requests, counted from 1
    refuses: tuple[str, ...] = ()  # fields of a request that get HTTP 400
    completions: bool = True
    chat: bool = True
    api_key: str = ""
    max_model_len: int = 4096
    answers: dict[str, str] = field(default_factory=dict)
    default_answer: str = "I do not know."
    thinking: str = ""
    metrics: bool = True
    logprob: float | None = None  # of each further word of a prompt; None: the server can't tell
    tokens_per_event: int = 1  # more than one is speculative decoding


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []  # of each of them
        self.count = itertools.count(1)
        self.prompt_tokens = self.output_tokens = 0
        self.guard = threading.Lock()
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if self.path == "/health":
            self._whole(200, b"")
        elif self.path == "/version":
            self._json(200, {"version": "0.32.0"})
        elif self.path == "/v1/models":
            self._json(200, {"data": [{"id": "m", "max_model_len": behaviour.max_model_len}]})
        elif self.path == "/metrics" and behaviour.metrics:
            text = (
                "# HELP x y\n"
                f'vllm:prompt_tokens_total{{engine="0"}} {self.server.prompt_tokens}\n'
                f'vllm:generation_tokens_total{{engine="0"}} {self.server.output_tokens}\n'
                'vllm:num_requests_running{engine="0"} 0\n'
            )
            self._whole(200, text.encode())
        else:
            self._whole(404, b"no such page")

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append({"path": self.path, **body})
            self.server.headers.append(self.headers)
        number = next(self.server.count)
        if behaviour.api_key and self.headers.get("Authorization") != f"Bearer {behaviour.api_key}":
            return self._json(401, {"error": "Unauthorized"})
        if self.path == "/v1/completions" and not behaviour.completions:
            return self._whole(404, b"not here")
        if self.path == "/v1/chat/completions" and not behaviour.chat:
            return self._whole(404, b"no chat here")
        for name in behaviour.refuses:
            if name in body:
                return self._json(400, {"error": {"message": f"unknown field {name}"}})
        if behaviour.wedged or (behaviour.mute and not body.get("stream")):
            self.server.stopping.wait(60)
            return None
        if behaviour.trickles:
            return self._trickle()
        if behaviour.status != 200:
            return self._json(behaviour.status, {"error": {"message": "told to fail"}})
        if number in behaviour.fails or (behaviour.fail_every and number % behaviour.fail_every == 0):
            return self._json(500, {"error": {"message": "told to fail"}})
        dropped = bool(behaviour.drop_every) and number % behaviour.drop_every == 0
        if body.get("stream"):
            return self._stream(body, dropped)
        return self._answer(body)

    def _trickle(self) -> None:
        for letter in itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.repeat(ord("x"))):
            if self.server.stopping.wait(0.05):
                return
            self.wfile.write(bytes([letter]))

    def _stream(self, body: dict[str, Any], dropped: bool) -> None:
        behaviour = self.server.behaviour
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if behaviour.garbage:
            self._chunk(b"\x00\xff\xfe not an event\n\n")
            return self._chunk(b"")
        time.sleep(behaviour.ttft_s)
        left = body["max_tokens"]
        while left > 0:
            count = min(behaviour.tokens_per_event, left)
            left -= count
            self._event({"choices": [{"text": "x" * count, "finish_reason": None if left else "length"}]})
            if dropped:
                self.close_connection = True
                return None
            time.sleep(behaviour.tpot_s * count)
        prompt = str(body.get("prompt") or body.get("messages"))
        tokens = len(prompt.split())
        with self.server.guard:
            self.server.prompt_tokens += tokens
            self.server.output_tokens += body["max_tokens"]
        if behaviour.usage and body.get("stream_options"):
            usage = {"prompt_tokens": tokens, "completion_tokens": body["max_tokens"]}
            self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        return self._chunk(b"")

    def _answer(self, body: dict[str, Any]) -> None:
        behaviour = self.server.behaviour
        if "messages" in body:
            question = body["messages"][0]["content"]
            text = behaviour.answers.get(question, behaviour.default_answer)
            if behaviour.thinking and body["max_tokens"] < 1000:
                text = f"<think>{behaviour.thinking}"
            choice = {
                "message": {"content": text},
                "finish_reason": "length" if "<think>" in text else "stop",
            }
        else:
            text = behaviour.answers.get(body["prompt"], behaviour.default_answer)
            choice = {"text": text, "finish_reason": "stop"}
            if "prompt_logprobs" in body and behaviour.logprob is not None:
                words = body["prompt"].split()
                choice["prompt_logprobs"] = [
                    None,
                    *({"7": {"logprob": behaviour.logprob}} for _ in words[1:]),
                ]
        self._json(200, {"choices": [choice]})

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, status: int, value: Any) -> None:
        self._whole(status, json.dumps(value).encode())

    def _whole(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(behaviour: Behaviour | None = None, **settings: Any) -> Iterator[_Server]:
    """The server, for the time of the block."""
    server = _Server(behaviour or Behaviour(**settings))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
