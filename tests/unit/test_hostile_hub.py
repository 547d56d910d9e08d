"""A Hub that attacks whoever asks it: compressed answers, bodies of errors and redirects without end, and a
token's way.
"""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from pyinfra_vllm import hub_endpoint
from pyinfra_vllm.errors import CheckpointRefused, DeclarationError, HubError
from pyinfra_vllm.hub import Hub
from pyinfra_vllm.in_runtime import hub_client

MOST_MEMORY_KB = 200_000
BOMB = gzip.compress(gzip.compress(b"\0" * 3_000_000) * 100)  # a few hundred bytes that would be 300 MB


class Lying(ThreadingHTTPServer):
    """Answers each request by a status, headers and a body, which may be endless; remembers
    what it was sent.
    """

    daemon_threads = True

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, endless: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = (status, headers, body, endless)
        self.seen: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Lying

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        status, headers, body, endless = self.server.answer
        self.server.seen.append({name.title(): value for name, value in self.headers.items()})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not endless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
            while endless:
                self.wfile.write(body)
        except OSError:
            return


@contextmanager
def lying(status: int, headers: dict[str, str], body: bytes, *, endless: bool = False) -> Iterator[Lying]:
    server = Lying(status, headers, body, endless=endless)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv(hub_endpoint.TOKEN_ANYWAY, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


GZIP = {"Content-Encoding": "gzip, gzip"}
ATTACKS: dict[str, tuple[int, dict[str, str], bytes, bool]] = {
    "doubly compressed": (200, GZIP, BOMB, False),
    "a compressed error": (500, GZIP, BOMB, False),
    "a compressed redirect": (302, {**GZIP, "Location": "/again"}, BOMB, False),
    "deflate": (200, {"Content-Encoding": "deflate"}, BOMB, False),
    "an error without end": (500, {}, b"x" * 65536, True),
    "an error without end that names a code": (404, {"X-Error-Code": "EntryNotFound"}, b"x" * 65536, True),
    "a redirect without end": (302, {"Location": "/again"}, b"x" * 65536, True),
    "redirects in a circle": (302, {"Location": "/again"}, b"", False),
    "a redirect to another scheme": (302, {"Location": "file:///etc/passwd"}, b"", False),
    "deep JSON": (200, {}, b"[" * 1_000_000, False),
    "an answer of another kind": (200, {}, b"[1, 2, 3]", False),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_an_error_of_the_hub_within_bounds(name: str) -> None:
    status, headers, body, endless = ATTACKS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with lying(status, headers, body, endless=endless) as server:
        with pytest.raises((HubError, CheckpointRefused)) as error:
            Hub(server.url).checkpoint("org/model")
        assert len(server.seen) <= 6
    assert "The lock file is as it was." in str(error.value) and len(str(error.value)) < 700
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KB


def test_what_is_asked_for_is_not_compressed() -> None:
    with lying(404, {"X-Error-Code": "RepoNotFound"}, b"") as server:
        with pytest.raises(HubError, match="is not on"):
            Hub(server.url).checkpoint("org/model")
        assert [headers["Accept-Encoding"] for headers in server.seen] == ["identity"]


def test_a_token_stays_with_the_hub_that_it_is_for() -> None:
    with lying(404, {}, b"") as other:
        with lying(302, {"Location": f"{other.url}/org/model"}, b"") as server, pytest.raises(HubError):
            Hub(server.url, token="hf_secret").checkpoint("org/model")
        assert [headers.get("Authorization") for headers in server.seen] == ["Bearer hf_secret"]
        assert len(other.seen) == 1 and "Authorization" not in other.seen[0]


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example.net",
        "http://10.0.0.5:8080",
        "http://[2001:db8::1]",
        "http://127.0.0.1.example.net",
    ],
)
def test_a_token_does_not_travel_unencrypted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(DeclarationError, match="is not encrypted, and there is a token") as error:
        hub_endpoint.token()
    assert "hf_secret" not in str(error.value) and hub_endpoint.TOKEN_ANYWAY in str(error.value)
    with pytest.raises((DeclarationError, HubError), match="is not encrypted"):
        Hub().checkpoint("org/model")
    monkeypatch.setenv(hub_endpoint.TOKEN_ANYWAY, "1")
    assert hub_endpoint.token() == "hf_secret"


@pytest.mark.parametrize(
    "url", ["https://hub.example.net", "http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:1"]
)
def test_a_token_may_go_encrypted_or_stay_on_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    assert hub_endpoint.token(url) == "hf_secret"


CHILD = """
import sys
sys.argv = ["x"]
from pyinfra_vllm.in_runtime import hub_client
hub_client.watch_answers()
part = {part!r}
hub_client.attempt({request!r}, {{"path": "config.json", "size": 1000, "part": part}})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("status", [200, 302, 500])
def test_the_runtimes_client_reads_nothing_compressed(status: int, tmp_path: Any) -> None:
    """As a host runs it: in a process of its own, whose memory is looked at."""
    headers = {**GZIP, **({"Location": "/again"} if status == 302 else {})}
    with lying(status, headers, BOMB) as server:
        request = {"repo": "org/model", "commit": "0" * 40, "endpoint": server.url, "token": None}
        program = CHILD.format(part=str(tmp_path / "part"), request=request)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    said, memory = done.stdout.strip().splitlines()
    assert '"ok": false' in said and "Compressed" in said, done.stderr
    assert int(memory) < MOST_MEMORY_KB


def test_the_limit_of_the_client_is_one_that_it_can_live_with() -> None:
    assert hub_client.MOST_MEMORY >= 2 << 30


def test_the_hubs_client_asks_nothing_of_its_own() -> None:
    """Its question for agents unpacks any answer without a limit (see tests/lab/attacks/)."""
    code = "import pyinfra_vllm, huggingface_hub.constants as said; print(said.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
