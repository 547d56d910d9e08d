"""The child of `on_host/staging/download.py`: drives the Hub client of an installed runtime, run by that
runtime's Python.

It gets one line of JSON on standard
input, with the token in it, and prints a line of JSON for each file that ended; when standard input closes,
whoever started it is gone and it ends at once. It writes to the part files it is given and nowhere else.

`hf_hub_download` is not used: from huggingface_hub 2.x on it downloads to a name of its own for each process
and deletes it on failure, so nothing is ever resumed across processes. `http_get`, which it uses itself,
resumes where it is told.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, cast

CHUNK_BYTES = 256 * 1024  # the client's own 10 MiB would show no progress for minutes on a slow link
MOST_MEMORY = 4 << 30  # of address space: the client needs well under one
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class Oversized(Exception):
    """The server sends more than the lock file says the file has."""


class Enough(Exception):
    """The bytes that were asked for of a longer file are here: the rest of the answer is not read."""


class Unranged(Exception):
    """The server sends a file from its beginning where a later part was asked for."""


class Part:
    """The part file as the client sees it: never grows past the size that the lock file states."""

    def __init__(self, path: str, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.file = os.fdopen(descriptor, "r+b", buffering=0)
        self.size = size
        self.name = path

    def resume(self) -> int:
        """Go to the end; the number of bytes already there (none when there are too many)."""
        have = self.file.seek(0, os.SEEK_END)
        if have > self.size:
            self.file.truncate(0)
            have = self.file.seek(0)
        return have

    def write(self, chunk: bytes) -> int:
        if self.file.tell() + len(chunk) > self.size:
            raise Oversized(f"more than {self.size} bytes")
        view = memoryview(chunk)
        while view:
            view = view[self.file.write(view) :]
        return len(chunk)

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, *where: int) -> int:
        return self.file.seek(*where)

    def truncate(self, *size: int) -> int:
        return self.file.truncate(*size)

    def flush(self) -> None:
        self.file.flush()


class Stretch(Part):
    """Some bytes of a file, from `start` on; to the client it looks as if those before were there already."""

    def __init__(self, path: str, size: int, start: int) -> None:
        super().__init__(path, size)
        self.start = start

    def resume(self) -> int:
        return self.start + super().resume()

    def write(self, chunk: bytes) -> int:
        room = self.size - self.file.tell()
        written = super().write(chunk[:room])
        if len(chunk) >= room:
            raise Enough
        return written

    def tell(self) -> int:
        return self.start + self.file.tell()

    def seek(self, *where: int) -> int:
        """The client goes back where its range was not heeded."""
        raise Unranged("the server does not send parts of files")


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """Standard input is open as long as the parent lives."""
    sys.stdin.read()
    os._exit(1)


def classify(error: BaseException) -> dict[str, object]:
    """The error as the parent process reads it: `kind`, the HTTP `status` if any, and the client's
    words.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = " ".join(str(error).split())[:400]
    if isinstance(error, Oversized):
        kind = "oversized"
    elif status is not None:
        kind = "http"
    elif isinstance(error, Unranged):
        kind = "unranged"
    elif "Consistency check failed" in words:
        kind = "inconsistent"
    elif isinstance(error, OSError) and error.errno in DISK:
        kind = "disk"
    else:
        kind = "network"
    return {"kind": kind, "status": status, "error": f"{type(error).__name__}: {words}"}


def download(request: Mapping[str, Any], file: Mapping[str, Any]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(request["repo"], file["path"], revision=request["commit"], endpoint=request["endpoint"])
    headers = build_hf_headers(token=request["token"] or False)
    headers["Accept-Encoding"] = "identity"  # a compressed body can't be resumed at a byte
    if "start" in file:
        stretch(url, headers, file)
        return
    part = Part(file["part"], file["size"])
    with part.file:
        have = part.resume()
        http_get(url, cast("BinaryIO", part), resume_size=have, headers=headers, expected_size=file["size"])
        os.fsync(part.file.fileno())


def stretch(url: str, headers: dict[str, str], file: Mapping[str, Any]) -> None:
    from huggingface_hub.file_download import http_get

    part = Stretch(file["part"], file["size"], file["start"])
    with part.file:
        have = part.resume()
        if have < file["start"] + file["size"]:
            with suppress(Enough):
                http_get(url, cast("BinaryIO", part), resume_size=have, headers=headers)
        os.fsync(part.file.fileno())


def attempt(request: Mapping[str, Any], file: Mapping[str, Any]) -> None:
    try:
        download(request, file)
    except Exception as error:  # every cause is told to the parent, which decides
        say(path=file["path"], ok=False, **classify(error))
    else:
        say(path=file["path"], ok=True)


class Compressed(Exception):
    """The server compresses what it was asked to send as it is: a few bytes could become any
    number of them.
    """


def refuse_compressed(response: Any, *_: object, **__: object) -> None:
    """Called for every answer, redirects and errors too, before a byte of its body is read or
    decompressed.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise Compressed(f"a compressed answer ({encoding[:40]!r}), which was not asked for")


def watch_answers() -> None:
    """Have the client of this runtime, httpx's or the older requests', show each answer to
    `refuse_compressed`.
    """
    import huggingface_hub

    if hasattr(huggingface_hub, "set_client_factory"):
        from huggingface_hub.utils import _http

        def client() -> Any:
            made = _http.default_client_factory()
            hooks = made.event_hooks
            made.event_hooks = {**hooks, "response": [*hooks.get("response", []), refuse_compressed]}
            return made

        huggingface_hub.set_client_factory(client)
        return
    import requests  # type: ignore[import-untyped]

    def session() -> Any:
        made = requests.Session()
        made.hooks["response"].append(refuse_compressed)
        return made

    huggingface_hub.configure_http_backend(backend_factory=session)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    from huggingface_hub import constants

    watch_answers()
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    with ThreadPoolExecutor(max_workers=request["parallel"]) as pool:
        for file in request["files"]:
            pool.submit(attempt, request, file)
    os._exit(0)  # the thread that waits for the parent would keep the process


if __name__ == "__main__":
    main()
