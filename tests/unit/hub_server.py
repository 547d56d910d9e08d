"""A Hub small enough to read: it speaks the real Hub's protocol to the real client, and misbehaves on
request.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin")


@dataclass
class Fault:
    """Faults of a file's download: one or more of these."""

    bytes_per_s: float | None = None
    endless: bool = False
    content: bytes | None = None  # sent instead of the real one
    cut_after: int | None = None  # close the connection after that many bytes of this request
    status: int | None = None
    location: str | None = None
    ignore_range: bool = False


@dataclass
class Served:
    """One request for a file's content, as the server saw it."""

    path: str
    start: int
    authorization: str | None
    sent: int = 0


@dataclass
class HubServer:
    """Repositories by name, each a mapping of file name to content, all at one commit."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    listing_changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra_listing: list[dict[str, Any]] = field(default_factory=list)
    endless_answer: bool = False  # about a repository, instead of its listing
    token: str | None = None
    served: list[Served] = field(default_factory=list)
    endpoint: str = ""

    def commit(self, repo: str) -> str:
        names = json.dumps({k: hashlib.sha256(v).hexdigest() for k, v in self.repositories[repo].items()})
        return hashlib.sha1(names.encode()).hexdigest()

    def listing(self, repo: str) -> list[dict[str, Any]]:
        lines = []
        for path, content in self.repositories[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            line: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if path.endswith(LFS):
                sha256 = hashlib.sha256(content).hexdigest()
                line["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            lines.append(line | self.listing_changes.get(path, {}))
        return lines + self.extra_listing

    def sent(self, path: str) -> int:
        """Bytes of a file's content that went out, over all requests."""
        return sum(request.sent for request in self.served if request.path == path)


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """Serve `hub` on a free port of the loopback interface."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._error(404, "EntryNotFound")

    def _info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repositories:
            return self._error(404, "RepoNotFound")
        commit = self.hub.commit(repo)
        if revision not in ("main", commit):
            return self._error(404, "RevisionNotFound")
        if self.hub.endless_answer:
            return self._send("", b"", Fault(endless=True), commit)
        body = json.dumps({"id": repo, "sha": commit, "siblings": self.hub.listing(repo)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, repo: str, commit: str, path: str) -> None:
        content = self.hub.repositories.get(repo, {}).get(path)
        fault = self.hub.faults.get(path, Fault())
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(401, "GatedRepo")
        if content is None or commit != self.hub.commit(repo):
            return self._error(404, "EntryNotFound")
        if fault.location is not None:
            self.send_response(302)
            self.send_header("Location", fault.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if fault.status is not None:
            return self._error(fault.status, "Broken")
        self._send(path, content if fault.content is None else fault.content, fault, commit)
        return None

    def _send(self, path: str, content: bytes, fault: Fault, commit: str) -> None:
        start = 0
        if (
            wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        ) and not fault.ignore_range:
            start = int(wanted.group(1))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not fault.endless:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        request = Served(path, start, self.headers.get("Authorization"))
        self.hub.served.append(request)
        try:
            self._body(content[start:], fault, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self, content: bytes, fault: Fault, request: Served) -> None:
        piece = 64 * 1024 if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s / 20))
        limit = len(content) if fault.cut_after is None else min(len(content), fault.cut_after)
        while request.sent < limit or fault.endless:
            chunk = content[request.sent : min(limit, request.sent + piece)] or b"\0" * piece
            self.wfile.write(chunk)
            request.sent += len(chunk)
            if fault.bytes_per_s is not None:
                time.sleep(len(chunk) / fault.bytes_per_s)
        if limit < len(content):
            self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
