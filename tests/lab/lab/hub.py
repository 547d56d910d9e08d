"""A small HTTP server that speaks the Hub's protocol to the real huggingface_hub client, and breaks when told
to.

It serves directories on the lab's bridge: model information, file trees, and files with ETag, Range,
redirects of large files, tokens and the Hub's own error codes. It holds no state between runs.
"""

from __future__ import annotations

import json
import mmap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .hub_repository import File, Repository, files_of

_CHUNK = 64 << 10


@dataclass
class Fault:
    """A fault of files whose path matches; `times` counts down for each request that it spoils."""

    path: str = "*"
    drop_after: int | None = None  # close the connection after so many bytes of the body
    bytes_per_s: float | None = None  # a slow drip
    flip_at: int | None = None  # this byte of the file is sent with its bits inverted
    truncate_to: int | None = None  # the file is shorter than was said, and ends properly
    endless: bool = False  # the body never ends
    status: int | None = None  # an error instead of the file
    hang_s: float = 0.0  # silence before the answer
    times: int | None = None


@dataclass(frozen=True)
class Request:
    """One request as the Hub saw it; `sent` counts the body's bytes."""

    method: str
    path: str
    range: str | None
    authorized: bool
    status: int
    sent: int
    client: str = ""


@dataclass
class Hub:
    """The server.

    `token`, when set, is asked of every client; `faults` apply to files; `requests` remembers.
    """

    address: str
    port: int = 0
    token: str | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        server = _Server((self.address, self.port), _Handler)
        server.hub = self
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.05,), name="lab-hub", daemon=True).start()

    def stop(self) -> None:
        """Become unreachable; `start` comes back on the same port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def publish(self, repository: str, files: Path | Mapping[str, Path | bytes], branch: str = "main") -> str:
        """Put a directory (or named contents) on a branch; returns the commit."""
        kept = self.repositories.setdefault(repository, Repository(repository))
        return kept.commit(files_of(files) if isinstance(files, Path) else files, branch)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def fault_for(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fnmatch(path, fault.path) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; what went wrong is in `Hub.requests`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, format: str, *arguments: Any) -> None:
        """The requests are kept in `Hub.requests` instead."""

    def _route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        hub = self.server.hub
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        if hub.token is not None and not self._authorized() and words[0] != "cdn":
            return self._error(401, "Invalid username or password.", None)
        if words[:2] == ["api", "models"] and len(words) >= 4:
            return self._api("/".join(words[2:4]), words[4:], body)
        if len(words) >= 5 and words[2] == "resolve":
            return self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        if words[0] == "cdn" and len(words) >= 5:
            return self._resolve("/".join(words[1:3]), words[3], "/".join(words[4:]), redirect=False)
        return self._error(404, "Not found", None)

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        what, revision, *path = [*rest, "main"] if len(rest) == 1 else rest or ["revision", "main"]
        found = self._snapshot(name, revision)
        if found is None:
            return
        commit, files = found
        if what == "revision":
            blobs = "blobs" in parse_qs(urlsplit(self.path).query)
            siblings = [file.sibling() if blobs else {"rfilename": file.path} for file in files.values()]
            return self._json(
                {
                    "_id": commit[:24],
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": siblings,
                }
            )
        if what == "tree":
            under = "/".join(path)
            return self._json([file.tree_entry() for file in files.values() if file.path.startswith(under)])
        if what == "paths-info":
            wanted = (
                json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
            )
            return self._json([files[path].tree_entry() for path in wanted if path in files])
        return self._error(404, "Not found", None)

    def _resolve(self, name: str, revision: str, path: str, redirect: bool = True) -> None:
        found = self._snapshot(name, revision)
        if found is None:
            return
        commit, files = found
        file = files.get(path)
        if file is None:
            return self._error(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.sha256 and redirect:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
            headers["Location"] = f"{self.server.hub.url}/cdn/{name}/{commit}/{quote(path)}"
            return self._answer(302, headers, b"")
        self._send_file(file, headers)

    def _send_file(self, file: File, headers: dict[str, str]) -> None:
        fault = self.server.hub.fault_for(file.path) if self.command == "GET" else None
        fault = fault or Fault()
        time.sleep(fault.hang_s)
        if fault.status:
            return self._error(fault.status, "as told by a fault", None)
        data = _spoilt(file.data(), fault)
        start, end = _range(self.headers.get("Range"), len(data))
        if start > 0 and start >= len(data):
            return self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        if self.headers.get("Range"):
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        length = end - start if not fault.endless else None
        self._head(206 if self.headers.get("Range") else 200, headers, length)
        sent = self._pour(memoryview(data)[start:end], fault) if self.command == "GET" else 0
        self._remember(206 if self.headers.get("Range") else 200, sent)

    def _pour(self, data: memoryview, fault: Fault) -> int:
        """Send the body as the fault wants it; returns the bytes sent."""
        sent, step = 0, _CHUNK if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s / 20))
        stop = len(data) if fault.drop_after is None else min(len(data), fault.drop_after)
        try:
            while sent < stop or fault.endless:
                chunk = data[sent : min(sent + step, stop)] or b"\0" * step
                self.wfile.write(chunk)
                sent += len(chunk)
                if fault.bytes_per_s:
                    time.sleep(len(chunk) / fault.bytes_per_s)
        except OSError:
            self.close_connection = True  # the client went away
        if stop < len(data):
            self.close_connection = True
        return sent

    def _snapshot(self, name: str, revision: str) -> tuple[str, dict[str, File]] | None:
        repository = self.server.hub.repositories.get(name)
        if repository is None:
            self._error(404, "Repository not found", "RepoNotFound")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return commit, repository.snapshots[commit]

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def _json(self, value: Any) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, message: str, code: str | None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, headers, json.dumps({"error": message}).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
        self._remember(status, len(body))

    def _head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _remember(self, status: int, sent: int) -> None:
        asked = Request(
            self.command,
            self.path,
            self.headers.get("Range"),
            "Authorization" in self.headers,
            status,
            sent,
            str(self.client_address[0]),
        )
        self.server.hub.requests.append(asked)


def _spoilt(data: bytes | mmap.mmap, fault: Fault) -> bytes | mmap.mmap:
    if fault.flip_at is not None:
        changed = bytearray(data)
        changed[fault.flip_at] ^= 0xFF
        data = bytes(changed)
    return data if fault.truncate_to is None else data[: fault.truncate_to]


def _range(header: str | None, size: int) -> tuple[int, int]:
    """The half-open byte range that a `Range: bytes=a-b` header asks for."""
    if not header:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first or 0), min(int(last) + 1, size) if last else size
