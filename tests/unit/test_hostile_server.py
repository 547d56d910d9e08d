"""A server that attacks whoever measures it: every answer without end, without sense or without truth is one
kind of error.

Real sockets. root's process on the host reads these answers, between stopping one release and judging
another.
"""

from __future__ import annotations

import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench import graders, likelihood, quality
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.form import defects
from pyinfra_vllm.on_host.bench.graders import Undecided, grade
from pyinfra_vllm.on_host.bench.watch import Watch
from pyinfra_vllm.on_host.gate import soak
from pyinfra_vllm.on_host.openai import stream
from pyinfra_vllm.on_host.openai.client import Client, ClientError, Garbage, TooLong
from pyinfra_vllm.on_host.openai.stream import Events, read_stream

LIMIT_S = 1.0
MOST_MEMORY_KB = 150_000  # beyond what the process had: the largest answer is 8 MiB
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PLAIN = HEAD + b"Connection: close\r\n\r\n"
DEEP = b"[" * 200_000
TOKEN = b'data: {"choices": [{"text": "x"}]}\n\n'
Attack = Callable[[socket.socket], None]


@contextmanager
def server(attack: Attack) -> Iterator[str]:
    """Answers every request by the attack, until the test is over."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            attack(connection)

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        listening.close()


def endless(head: bytes, piece: bytes) -> Attack:
    def attack(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return attack


def whole(body: bytes, head: bytes = HEAD) -> Attack:
    return lambda connection: connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def drip(head: bytes, piece: bytes) -> Attack:
    def attack(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(0.02)

    return attack


CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
ATTACKS: dict[str, Attack] = {
    "a line without end": endless(PLAIN, b"x" * 65536),
    "events without end": endless(PLAIN, TOKEN * 1000),
    "comments without end": endless(PLAIN, b": still here\n" * 1000),
    "empty lines without end": endless(PLAIN, b"\n" * 65536),
    "chunks without end": endless(CHUNKED, CHUNK),
    "chunks of one byte": endless(CHUNKED, b"1\r\nx\r\n" * 1000),
    "a chunk of a negative size": endless(CHUNKED + b"-5\r\n", b"x" * 1000),
    "a chunk of a nonsensical size": whole(b"", CHUNKED + b"zz\r\n"),
    "a chunk of an immense size": endless(CHUNKED + b"f" * 30 + b"\r\n", b"x" * 65536),
    "a chunk's extension without end": endless(CHUNKED + b"5;", b"x" * 65536),
    "trailers without end": endless(CHUNKED + b"0\r\n", b"A: b\r\n" * 100),
    "a length that is negative": whole(b"", HEAD + b"Content-Length: -1\r\n\r\n" + DEEP[:100]),
    "an immense length": endless(HEAD + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", b"x" * 65536),
    "headers without end": endless(HEAD, b"A: b\r\n" * 100),
    "a header without end": endless(HEAD + b"A: ", b"b" * 65536),
    "continue without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "no status": endless(b"", b"nonsense\r\n"),
    "a status that is no number": whole(b"", b"HTTP/1.1 abc OK\r\n"),
    "a slow drip of the body": drip(PLAIN, b"x"),
    "a slow drip of headers": drip(HEAD, b"A"),
    "an error without end": endless(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536),
    "gzip": whole(gzip.compress(b"0" * 10_000_000), HEAD + b"Content-Encoding: gzip\r\n"),
    "deep JSON": whole(DEEP),
    "deep JSON in an event": whole(b"data: " + DEEP + b"\n\n"),
    "deep JSON in an object": whole(b'data: {"choices": ' + DEEP + b"\n\n"),
    "a number of 100,000 digits": whole(b'data: {"usage": ' + b"9" * 100_000 + b"}\n\n"),
    "bytes that are no text": whole(b"\xff\xfe" * 1000),
    "nothing": lambda connection: None,
}  # fmt: skip
ASKED: dict[str, Callable[[Client], object]] = {
    "a stream": lambda client: client.stream("hello", 8, LIMIT_S),
    "a question": lambda client: client.ask("/v1/completions", {"prompt": "hello"}, LIMIT_S),
    "the models": lambda client: client.models(LIMIT_S),
}


@pytest.mark.thorough
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_an_error_of_the_client_soon_and_within_bounds(name: str, asked: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with server(ATTACKS[name]) as url, pytest.raises(ClientError) as error:
        ASKED[asked](Client(url, "m", timeout_s=LIMIT_S))
    assert len(str(error.value)) < 600
    assert time.monotonic() - began < 10 * LIMIT_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KB


@pytest.mark.thorough
@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_metrics_raise_no_unexpected_error(name: str) -> None:
    with server(ATTACKS[name]) as url:
        client = Client(url, "m", timeout_s=LIMIT_S)
        with suppress(ClientError):
            assert all(isinstance(value, float) for value in client.metrics(LIMIT_S).values())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "0x10", "9" * 5000, "1e", "{}"])
def test_a_counter_that_counts_nothing_is_left_out(value: str) -> None:
    text = f'vllm:generation_tokens_total{{engine="0"}} {value}\nother 1.5\n'.encode()
    with server(whole(text)) as url:
        client = Client(url, "m")
        assert client.metrics() == {"other": 1.5}
        with Watch(client) as watch:
            pass
        assert watch.traffic(0, 0).as_dict() == {"known": False}
        found = soak.soak(client, Criteria(soak_s=0.2))
    assert found.verdict == "inconclusive"


def test_a_line_of_counters_without_end_is_passed_over() -> None:
    with server(whole(b"a{" + b"}" * 7_000_000 + b"\nother 1.5\n")) as url:
        assert Client(url, "m").metrics() == {"other": 1.5}


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": "x", "finish_reason": "stop"}], **content}).encode()


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 5, "completion_tokens": 100_000},
        {"prompt_tokens": 10**30, "completion_tokens": 8},
        {"prompt_tokens": -1, "completion_tokens": 8},
        {"prompt_tokens": 5000, "completion_tokens": 8},
    ],
)
def test_tokens_that_nobody_asked_for_are_not_counted(usage: dict[str, int]) -> None:
    with server(whole(event(usage=usage) + b"\n\ndata: [DONE]\n\n")) as url:
        with pytest.raises(Garbage, match="`usage` claims"):
            Client(url, "m").stream("hello", 8, LIMIT_S)
        with pytest.raises(Garbage):
            Client(url, "m").check_generation(LIMIT_S)


def test_tokens_that_were_asked_for_are_counted() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 8}
    with server(whole(event(usage=usage) + b"\n\ndata: [DONE]\n\n")) as url:
        answer = Client(url, "m").stream("hello", 8, LIMIT_S)
    assert (answer.input_tokens, answer.output_tokens) == (5, 8)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["choices", "usage", "error", "text", "delta", "content", "message", "prompt_logprobs", "finish_reason"]
)
ANSWERS = st.dictionaries(
    KEYS, st.lists(st.dictionaries(KEYS, JSON, max_size=3) | JSON, max_size=2) | JSON, max_size=4
)


@pytest.mark.thorough
@settings(max_examples=300)
@given(st.lists(ANSWERS, max_size=3))
def test_whatever_an_event_holds_it_is_an_answer_or_a_client_error(answers: list[Any]) -> None:
    lines = [(1.0, b"data: " + json.dumps(answer).encode()) for answer in answers]
    for required in (True, False):
        with suppress(ClientError):
            read_stream(Events(0.0, [*lines, (2.0, b"data: [DONE]")]), required)


@pytest.mark.thorough
@settings(max_examples=300)
@given(ANSWERS)
def test_whatever_an_answer_holds_it_is_read_or_a_client_error(answer: Any) -> None:
    answer = json.loads(json.dumps(answer))
    for read in (quality._read, likelihood._bits):
        with suppress(ClientError, likelihood.NoLikelihood):
            read(answer)


@given(st.binary(max_size=200))
def test_whatever_bytes_come_they_are_an_object_or_garbage(data: bytes) -> None:
    with suppress(Garbage):
        assert isinstance(stream.parsed(data), dict)


def test_an_answer_longer_than_any_is_refused() -> None:
    with pytest.raises(TooLong):
        quality._read({"choices": [{"text": "x" * 10**6}]})


@pytest.mark.thorough
@pytest.mark.parametrize(
    "text", ["a" * quality.LONGEST_ANSWER, "ab" * 100_000, "\u0301" * 100_000, "<think>" * 30_000]
)
def test_the_longest_answers_are_looked_at_soon(text: str) -> None:
    began = time.monotonic()
    defects(graders.answer_of(text))
    assert time.monotonic() - began < 5


def test_a_pattern_that_takes_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graders, "APART_S", 0.5)
    began = time.monotonic()
    with pytest.raises(Undecided, match="no end within"):
        grade("regex", "a" * 60 + "!", "^(a+)+$")
    assert time.monotonic() - began < 5


@pytest.mark.thorough
@pytest.mark.parametrize(
    "text", ["(" * 100_000, "-" * 200_000 + "1", "x" + "[0]" * 50_000, "lambda:" * 50_000, "\x00", "f(" * 90]
)
def test_code_that_no_parser_survives_ends_no_switch(text: str) -> None:
    expect = {"function": "f", "parameters": 1}
    with suppress(Undecided):
        assert grade("code", text, expect) is False
    assert grade("code", "def f(a):\n    return a", expect)
    assert grade("regex", "the answer is 42", r"\b42\b") and not grade("regex", "41", "42")
    assert not grade("json", "[" * 100_000, [])
