"""The program for the host, packed: one zipapp, the same bytes for the same sources."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip file can hold
# `answer` comes with every run: without the modules of all other verbs, which take 0.1 s to import.
_MAIN = """\
import sys
if sys.argv[1:2] == ["answer"]:
    from pyinfra_vllm.on_host.inspect.together import main
    sys.exit(main(sys.argv[2:]))
from pyinfra_vllm.on_host.__main__ import main
sys.exit(main())
"""


@cache
def archive() -> bytes:
    """The zipapp's bytes: `python3 FILE VERB ...` runs it on any python3 from 3.9 on."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in _entries():
            packed.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _entries() -> list[tuple[str, bytes]]:
    """The name and the content of each file, in order."""
    entries = {"__main__.py": _MAIN.encode(), "pyinfra_vllm/__init__.py": b""}
    for package in ("on_host", "in_runtime"):
        entries |= dict(_packed(files(f"pyinfra_vllm.{package}"), f"pyinfra_vllm/{package}"))
    return sorted(entries.items())


def _packed(directory: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for source in directory.iterdir():
        if source.is_file():
            yield f"{name}/{source.name}", source.read_bytes()
        elif source.name != "__pycache__":
            yield from _packed(source, f"{name}/{source.name}")


@cache
def program_name() -> str:
    """The archive's name on a host: by its content, so that a running transaction keeps the file it was
    started from.
    """
    content = hashlib.sha256()
    for name, text in _entries():
        content.update(f"{name} {len(text)}\n".encode() + text)
    return f"on-host-{content.hexdigest()[:12]}.pyz"
