"""The content of the lab's Hub: repositories, their revisions, and files named by content as the real Hub
names them.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".msgpack")


@dataclass
class File:
    """One file as the Hub describes it.

    What it claims may be changed by a test; what it sends is its content.
    """

    path: str
    content: Path | bytes
    size: int
    blob_sha1: str
    sha256: str | None  # of large files only, as on the Hub

    @classmethod
    def of(cls, path: str, content: Path | bytes) -> File:
        data = content if isinstance(content, bytes) else content.read_bytes()
        large = path.endswith(LFS_SUFFIXES)
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        )
        return cls(
            path, content, len(data), _blob_sha1(pointer if large else data), sha256 if large else None
        )

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_sha1

    def data(self) -> bytes | mmap.mmap:
        """The content; of a file not read into memory, as checkpoints of a benchmark are large."""
        if isinstance(self.content, bytes):
            return self.content
        if not self.size:
            return b""
        with self.content.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def sibling(self) -> dict[str, Any]:
        """This file in the answer of `model_info(files_metadata=True)`."""
        entry: dict[str, Any] = {"rfilename": self.path, "size": self.size, "blobId": self.blob_sha1}
        if self.sha256:
            entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 135}
        return entry

    def tree_entry(self) -> dict[str, Any]:
        """This file in the answer of `list_repo_tree`."""
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob_sha1}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 135}
        return entry


@dataclass
class Repository:
    """Snapshots by commit, and branches that point at them."""

    name: str
    snapshots: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Path | bytes], branch: str) -> str:
        """Record a snapshot on a branch; the commit is computed from the content, so it is the same
        everywhere.
        """
        ordered = dict(sorted(files.items()))
        with ThreadPoolExecutor() as pool:  # hashing takes the time here
            described = pool.map(File.of, ordered, ordered.values())
            snapshot = dict(zip(ordered, described, strict=True))
        text = "".join(f"{file.blob_sha1} {path}\n" for path, file in snapshot.items())
        commit = hashlib.sha1(f"{self.name}\n{text}".encode()).hexdigest()
        self.snapshots[commit] = snapshot
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.snapshots else None


def files_of(directory: Path) -> dict[str, Path | bytes]:
    return {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
