"""The client against a real socket: what it measures, and how each way of failing is told apart."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from openai_server import serving

from pyinfra_vllm.on_host.openai import client as clients
from pyinfra_vllm.on_host.openai.client import Client

pytestmark = pytest.mark.alone  # it has a time limit against a live server


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_generation_check_returns_its_measurement() -> None:
    with serving() as server:
        flow = Client(server.url, "m").check_generation(5)
    assert flow.output_tokens == 8 and 0 < flow.ttft_s <= flow.e2e_s


def test_times_are_those_of_the_server() -> None:
    with serving(ttft_s=0.1, tpot_s=0.01) as server:
        answer = Client(server.url, "m").stream("one two three", 11, 5)
    assert answer.output_tokens == 11 and answer.input_tokens == 3 and answer.finish_reason == "length"
    assert 0.1 <= answer.ttft_s < 0.2
    assert answer.e2e_s - answer.ttft_s >= 0.1


def test_tokens_come_from_usage_when_an_event_carries_several() -> None:
    with serving(tokens_per_event=4) as server:
        answer = Client(server.url, "m").stream("x", 16, 5)
    assert (answer.events, answer.output_tokens) == (4, 16)


def test_nothing_listening_is_refused() -> None:
    with pytest.raises(clients.Refused, match="no connection to"):
        Client(f"http://127.0.0.1:{free_port()}", "m").check_generation(5)


def test_an_http_error_carries_its_status_and_words() -> None:
    with (
        serving(status=500) as server,
        pytest.raises(clients.HttpError, match="told to fail") as error,
    ):
        Client(server.url, "m").check_generation(5)
    assert error.value.status == 500 and error.value.kind == "http_500"


def test_an_error_without_an_end_is_not_read_on() -> None:
    """http.client reads a chunk that is said to have -1 bytes to the connection's end."""
    sent = 0

    def answer(listening: socket.socket) -> None:
        nonlocal sent
        connected, _ = listening.accept()
        with connected, suppress(OSError):
            connected.recv(4096)
            connected.sendall(b"HTTP/1.1 500 no\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
            while sent < 64 << 20:
                sent += connected.send(b"x" * (1 << 20))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=answer, args=(listening,))
        answering.start()
        with pytest.raises(clients.HttpError, match="HTTP 500: xxx"):
            Client(f"http://127.0.0.1:{listening.getsockname()[1]}", "m").get("/", 5)
        answering.join()
    assert sent < 32 << 20


@pytest.mark.parametrize("way", ["wedged", "trickles"])
def test_a_server_that_never_answers_costs_the_time_limit_and_no_more(way: str) -> None:
    began = time.monotonic()
    with serving(**{way: True}) as server:
        client = Client(server.url, "m")
        assert client.health()
        with pytest.raises(clients.ClientError):
            client.check_generation(0.5)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"garbage": True}, clients.Garbage),
        ({"drop_every": 1}, clients.Dropped),
        ({"usage": False}, clients.NoUsage),
    ],
)
def test_each_broken_stream_has_its_own_error(behaviour: dict[str, bool], expected: type[Exception]) -> None:
    with serving(**behaviour) as server, pytest.raises(expected):
        Client(server.url, "m").stream("x", 8, 5)


def test_generation_check_without_usage_counts_events() -> None:
    with serving(usage=False) as server:
        assert Client(server.url, "m").check_generation(5).output_tokens == 8


@pytest.mark.parametrize("name", ["cache_salt", "ignore_eos", "stream_options"])
def test_a_refused_extension_is_left_out_from_then_on(name: str) -> None:
    with serving(refuses=(name,)) as server:
        client = Client(server.url, "m")
        client.negotiate(5)
        assert name not in client.extensions and len(client.extensions) == 2
        client.stream("x", 2, 5, salt="s", require_usage=False)
        assert name not in server.requests[-1]


def test_chat_takes_over_where_there_are_no_completions() -> None:
    with serving(completions=False) as server:
        client = Client(server.url, "m")
        client.negotiate(5)
        assert client.path == clients.CHAT
        assert server.requests[-1]["messages"][0]["role"] == "user"


def test_the_api_key_is_sent_and_never_shown() -> None:
    with serving(api_key="sesame") as server:
        client = Client(server.url, "m", api_key="sesame")
        assert client.check_generation(5).output_tokens == 8
        assert "sesame" not in repr(client)
        with pytest.raises(clients.HttpError, match="HTTP 401") as error:
            Client(server.url, "m", api_key="wrong-key").check_generation(5)
        assert "wrong-key" not in str(error.value)


def test_metrics_sum_over_labels_and_keep_each() -> None:
    with serving() as server:
        server.prompt_tokens = 42
        metrics = Client(server.url, "m").metrics()
    assert metrics["vllm:prompt_tokens_total"] == metrics['vllm:prompt_tokens_total{engine="0"}'] == 42


@pytest.mark.parametrize("url", ["", "ftp://host", "http://"])
def test_a_url_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a server"):
        Client(url, "m")


def test_a_trailing_v1_is_accepted() -> None:
    with serving() as server:
        assert Client(server.url + "/v1/", "m").models()[0]["id"] == "m"


def test_unix_socket_requests_are_sent_only_to_the_proven_server(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    seen = []

    def stranger(connected: socket.socket) -> None:
        raise clients.Refused("it is another unit's")

    with serving() as server, forwarded(path, server.server_address[1]):
        headers = {"X-Pass": "secret"}
        asking = Client("http://127.0.0.1:1", "m", unix=path, prove=seen.append, headers=headers)
        assert asking.check_generation(5).output_tokens == 8 and len(seen) == 2
        assert server.headers[-1]["X-Pass"] == "secret" and str(path) in repr(asking)
        count = len(server.requests)
        with pytest.raises(clients.Refused, match="another unit's"):
            Client("http://127.0.0.1:1", "m", unix=path, prove=stranger).check_generation(5)
        assert len(server.requests) == count
    with pytest.raises(clients.Refused, match=f"no connection to {path}"):
        Client("http://127.0.0.1:1", "m", unix=path).check_generation(5)


@contextmanager
def forwarded(path: Path, port: int) -> Iterator[None]:
    """Each connection to the Unix socket is led to the port."""

    def lead(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far, suppress(OSError):
            other = {near: far, far: near}
            while parts := [(one, one.recv(4096)) for one in select.select([near, far], [], [])[0]]:
                if not all(part for _, part in parts):
                    return
                for one, part in parts:
                    other[one].sendall(part)

    def accept() -> None:
        with suppress(OSError):
            while True:
                lead(listening.accept()[0])

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
    path.unlink()
