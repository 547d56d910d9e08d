"""The documented proxy, run by a real nginx before a server that streams."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai_server import serving

PAGE = (Path(__file__).parents[2] / "docs" / "proxy.md").read_text()
DOCUMENTED = PAGE.partition("```nginx\n")[2].partition("```")[0]
NGINX = shutil.which("nginx")
TOKENS, TPOT_S, KEY = 6, 0.2, "s3cr3t"
AROUND = """
daemon off;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/chat.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def certificate(folder: Path) -> None:
    made = f"-keyout {folder}/privkey.pem -out {folder}/fullchain.pem -days 1 -subj /CN=chat.example.net"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes {made} -addext subjectAltName=DNS:chat.example.net"
    subprocess.run(words.split(), check=True, capture_output=True)


@dataclass(frozen=True)
class Answer:
    """Its lines, and when each came."""

    status: int
    lines: list[tuple[float, bytes]]


class Client:
    """Asks the proxy by the name in its certificate, which it checks."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))

    def ask(self, path: str, body: object = None, key: str = KEY) -> Answer:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection = http.client.HTTPConnection("chat.example.net")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with closing(connection):
            connection.sock = self.context.wrap_socket(plain, server_hostname="chat.example.net")
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            with connection.getresponse() as response:
                return Answer(response.status, [(time.monotonic(), line) for line in response])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    if NGINX is None:
        pytest.skip("no nginx here")
    folder = tmp_path_factory.mktemp("nginx")
    certificate(folder)
    port = free_port()
    with serving(api_key=KEY, tpot_s=TPOT_S) as server:
        changed = DOCUMENTED.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        changed = changed.replace("listen 443", f"listen 127.0.0.1:{port}").replace(
            "/etc/ssl/vllm", str(folder)
        )
        (folder / "chat.conf").write_text(changed)
        (folder / "nginx.conf").write_text(AROUND.format(folder=folder))
        command = [NGINX, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(port, process)
            yield Client(port, folder)
        finally:
            process.terminate()
            _, said = process.communicate(timeout=20)
        assert "[warn]" not in said and "[emerg]" not in said, said


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail("nginx does not listen")


def test_tokens_come_through_one_by_one(client: Client) -> None:
    body = {"model": "m", "prompt": "hello", "max_tokens": TOKENS, "stream": True}
    answer = client.ask("/v1/completions", body)
    came = [at for at, line in answer.lines if line.startswith(b"data: {")]
    assert (answer.status, len(came)) == (200, TOKENS)
    assert came[-1] - came[0] > (TOKENS - 1) * TPOT_S / 2, "they were held back and came together"


def test_the_key_goes_through_and_a_wrong_one_is_refused(client: Client) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    assert client.ask("/v1/chat/completions", body).status == 200
    assert client.ask("/v1/chat/completions", body, key="wrong").status == 401


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_what_is_on_the_list_is_served(client: Client, path: str) -> None:
    assert client.ask(path).status == 200


OTHERS = (
    *("/metrics", "/version", "/tokenize", "/invocations", "/HEALTH", "/health/", "//metrics", "/v1/modelsx"),
    *("/v1/../metrics", "/v1/models/../../version", "/v1%2f..%2fmetrics"),
)


@pytest.mark.parametrize("path", OTHERS)
def test_everything_else_is_not_there(client: Client, path: str) -> None:
    answer = client.ask(path)
    text = b"".join(line for _, line in answer.lines)
    assert answer.status in (400, 404) and b"no such page" not in text, "the server itself was asked"


def test_the_page_has_one_configuration() -> None:
    assert len(re.findall(r"^```nginx$", PAGE, re.M)) == 1 and DOCUMENTED.count("listen 443") == 1
