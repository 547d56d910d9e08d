"""Checkpoints: the files, with size and content hash, of each declared model.

`checkpoints.lock.yaml` is the record of that; every rollout reads it and nothing here talks to a host or to a
network (`hub` asks the Hub). A lock file is read strictly: one entry that can't be trusted is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pyinfra_vllm import repeated_keys
from pyinfra_vllm.errors import LockError, one_line
from pyinfra_vllm.on_host.state import durable, manifest

SCHEMA = "pyinfra-vllm/checkpoints/1"
LOCK_FILE = Path("checkpoints.lock.yaml")
HEADER = """\
# Which files each declared model means: written by `pyinfra-vllm lock`, read by every rollout, kept in version control.
# A rollout fetches exactly these bytes. To move a branch or a tag forward run `pyinfra-vllm lock`, then read the diff.
# config: what config.json says (used for memory fit and tuning). weights_bytes: all safetensors files together.
"""  # noqa: E501

# Files that shape the graph that vLLM compiles, beside Python code: the model's configuration, and the
# quantization that vLLM 0.32 reads from a file beside it (`get_config_filenames` of its classes).
SHAPES_THE_GRAPH = frozenset(
    (
        *("config.json", "params.json"),
        *("quant_config.json", "quantize_config.json", "quantization_config.json", "hf_quant_config.json"),
    )
)

MOST_FILES = 4096  # the largest public checkpoints have a few hundred shards
MOST_BYTES = 8 * 1024**4  # 8 TiB: beyond any model that one host could serve

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a repository: size in bytes and the content hash that the Hub states for it.

    `sha256` is there for files kept in LFS, `blob_sha1` (git's blob hash) for the others; never neither.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_sha1: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model repository at one commit: the files that serving needs, and its config.json."""

    repo: str
    revision: str
    commit: str
    files: tuple[File, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in messages and in the lock file: ``org/name@revision``."""
        return f"{self.repo}@{self.revision}"

    @property
    def total_bytes(self) -> int:
        """All files together, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def weights_bytes(self) -> int:
        """All safetensors files together, in bytes: their headers (well under 0.1 %) are counted in."""
        return sum(file.size for file in self.files if file.path.endswith(".safetensors"))

    @property
    def brings_code(self) -> bool:
        """Whether it has Python files: they are locked only for a service that declares `allow_code`."""
        return any(file.path.endswith(".py") for file in self.files)

    @property
    def graph(self) -> str:
        """12 hex digits that stay the same while no file changes that shapes the compiled graph.

        Where there is no such file, any may: then they are of all of them.
        """
        shaping = [file for file in self.files if _shapes_the_graph(file.path)] or self.files
        content = sorted((file.path, file.sha256 or file.blob_sha1) for file in shaping)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def directory(self, root: str) -> str:
        """Directory on a host.

        A repository's name can't hold ``--`` (checked), so no two share a directory.
        """
        return f"{root.rstrip('/')}/checkpoints/{self.repo.replace('/', '--')}/{self.commit}"


def _shapes_the_graph(path: str) -> bool:
    return path.endswith(".py") or path.rpartition("/")[2] in SHAPES_THE_GRAPH


class Lock:
    """All entries of one lock file. Immutable: `merged` and `without` return another."""

    def __init__(self, entries: Iterable[Checkpoint] = (), path: Path = LOCK_FILE) -> None:
        self.path = path
        self._entries = {entry.name: entry for entry in entries}

    def __repr__(self) -> str:
        return f"Lock({str(self.path)!r}, {sorted(self._entries)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lock) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    @property
    def entries(self) -> tuple[Checkpoint, ...]:
        """Every entry, sorted by name."""
        return tuple(self._entries[name] for name in sorted(self._entries))

    def get(self, repo: str, revision: str = "main") -> Checkpoint:
        """The checkpoint that `repo` at `revision` means.

        Raises LockError when it has no entry.
        """
        entry = self._entries.get(f"{repo}@{revision}")
        if entry is None:
            known = ", ".join(e.revision for e in self.entries if e.repo == repo)
            hint = f" (it has {known} of this model)" if known else ""
            raise LockError(
                f"{self.path} has no entry for {repo} at revision {revision!r}{hint}. No host was touched. "
                f"Run `pyinfra-vllm lock` and commit the file."
            )
        return entry

    def find(self, repo: str, revision: str) -> Checkpoint | None:
        """The entry for `repo` at `revision`, or None."""
        return self._entries.get(f"{repo}@{revision}")

    def merged(self, entries: Iterable[Checkpoint]) -> Lock:
        """This lock with `entries` added or put in place of those of the same name."""
        return Lock([*self._entries.values(), *entries], self.path)

    def without(self, names: Iterable[str]) -> Lock:
        """This lock less the entries named."""
        dropped = set(names)
        return Lock([entry for name, entry in self._entries.items() if name not in dropped], self.path)

    @classmethod
    def load(cls, path: Path | str = LOCK_FILE) -> Lock:
        """Read a lock file.

        Raises LockError, naming the entry and the key, for anything that can't be trusted.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise LockError(
                f"{path} is not there. No host was touched. Run `pyinfra-vllm lock` and commit the file."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise LockError(f"{path} can't be read: {error}. No host was touched.") from error
        return cls(parse(text, str(path)), path)

    def dump(self, path: Path | str | None = None) -> None:
        """Write the lock file, whole or not at all. Raises LockError where the disk refuses it."""
        target = Path(path) if path is not None else self.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            durable.write_text(target, render(self.entries), durable.PUBLIC)
        except OSError as error:
            raise LockError(
                f"{target} can't be written: {error.strerror}. It is as it was. Make room or the folder"
                " writable, and run again."
            ) from error


def render(entries: Iterable[Checkpoint]) -> str:
    """The text of a lock file: sorted, one file a line, so that a diff shows the changes alone."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    document = {"schema": SCHEMA, "checkpoints": {entry.name: _as_dict(entry) for entry in ordered}}
    return HEADER + yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**16, default_flow_style=False
    )


def _as_dict(entry: Checkpoint) -> dict[str, object]:
    return {
        "repo": entry.repo,
        "revision": entry.revision,
        "commit": entry.commit,
        "total_bytes": entry.total_bytes,
        "weights_bytes": entry.weights_bytes,
        "config": _sorted(entry.config),
        "files": {
            file.path: _OneLine(
                {"size": file.size}
                | ({"sha256": file.sha256} if file.sha256 else {"blob_sha1": file.blob_sha1})
            )
            for file in sorted(entry.files, key=lambda file: file.path)
        },
    }


def _sorted(value: Any) -> Any:
    """Plain data with its keys in order; a list of plain values stays on one line."""
    if isinstance(value, Mapping):
        return {str(key): _sorted(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return _Row(_sorted(item) for item in value)
    return value


class _OneLine(dict[str, object]):
    """A mapping that the lock file shows on one line."""


class _Row(list[Any]):
    """A list that the lock file shows on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _OneLine, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
_Dumper.add_representer(
    _Row, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


class _Loader(repeated_keys.Loader):
    """Plain YAML; repeated keys and aliases are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (&name or *name), which no lock file holds")
        return super().compose_node(parent, index)


def parse(text: str, name: str = str(LOCK_FILE)) -> tuple[Checkpoint, ...]:
    """The entries in the text of a lock file. Raises LockError naming `name`, the entry and the key."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise LockError(
            f"{name} is not a lock file: {one_line(error)}. No host was touched. "
            f"Restore it from version control, or remove it and run `pyinfra-vllm lock`."
        ) from error
    reader = _Reader(name, "")
    top = reader.mapping(document, {"schema", "checkpoints"})
    if top["schema"] != SCHEMA:
        reader.fail(
            "schema", top["schema"], f"must be {SCHEMA!r}: write the file with this version of `lock`"
        )
    if not isinstance(top["checkpoints"], dict):
        reader.fail("checkpoints", top["checkpoints"], "must be a mapping of org/name@revision to an entry")
    return tuple(_read_entry(_Reader(name, str(key)), entry) for key, entry in top["checkpoints"].items())


class _Reader:
    """Takes one entry of a lock file apart; complaints name the file, the entry, the key and the fix."""

    def __init__(self, file: str, entry: str) -> None:
        self.file = file
        self.entry = entry

    def fail(self, key: str, value: object, reason: str) -> NoReturn:
        where = f"{self.file}, entry {one_line(self.entry)}" if self.entry else self.file
        raise LockError(
            f"{where}: {key} {reason} (found {str(value)[:80]!r}). No host was touched. "
            f"Restore the file from version control, or remove it and run `pyinfra-vllm lock`."
        )

    def mapping(self, value: object, keys: set[str], key: str = "the entry") -> Mapping[str, Any]:
        if not isinstance(value, dict) or set(value) != keys:
            self.fail(key, value, f"must be a mapping with exactly the keys {', '.join(sorted(keys))}")
        return value

    def text(self, value: object, pattern: re.Pattern[str], key: str, meaning: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.fail(key, value, f"must be {meaning}")
        return value

    def bytes(self, value: object, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_BYTES:
            self.fail(key, value, f"must be a number of bytes between 0 and {MOST_BYTES}")
        return value


_ENTRY_KEYS = {"repo", "revision", "commit", "total_bytes", "weights_bytes", "config", "files"}


def _read_entry(reader: _Reader, content: object) -> Checkpoint:
    entry = reader.mapping(content, _ENTRY_KEYS)
    repo = reader.text(entry["repo"], _REPOSITORY, "repo", "a repository like org/name")
    if reason := refuse_repository(repo):
        reader.fail("repo", repo, reason)
    revision = reader.text(entry["revision"], _REVISION, "revision", "a branch, a tag or a commit")
    if reader.entry != f"{repo}@{revision}":
        reader.fail("repo", f"{repo}@{revision}", "is another model than the entry is named for")
    commit = reader.text(entry["commit"], _COMMIT, "commit", "40 lower-case hex digits")
    if _COMMIT.fullmatch(revision) and revision != commit:
        reader.fail("commit", commit, "is another commit than the revision names")
    if not isinstance(entry["config"], dict):
        reader.fail("config", entry["config"], "must be a mapping")
    files = entry["files"]
    if not isinstance(files, dict) or not 1 <= len(files) <= MOST_FILES:
        reader.fail("files", files, f"must name between 1 and {MOST_FILES} files")
    checkpoint = Checkpoint(
        repo=repo,
        revision=revision,
        commit=commit,
        files=tuple(_read_file(reader, path, files[path]) for path in sorted(files, key=str)),
        config=entry["config"],
    )
    _check_sums(reader, entry, checkpoint)
    return checkpoint


def _read_file(reader: _Reader, path: object, content: object) -> File:
    if not isinstance(path, str) or (reason := manifest.unsafe(path)):
        reader.fail("a file name", path, "is not text" if not isinstance(path, str) else reason or "")
    if not isinstance(content, dict) or set(content) not in ({"size", "sha256"}, {"size", "blob_sha1"}):
        reader.fail(path, content, "must have a size and either sha256 or blob_sha1")
    file = File(path=path, size=reader.bytes(content["size"], f"{path}: size"))
    if "sha256" in content:
        sha256 = reader.text(content["sha256"], _SHA256, f"{path}: sha256", "64 lower-case hex digits")
        return replace(file, sha256=sha256)
    blob = reader.text(content["blob_sha1"], _COMMIT, f"{path}: blob_sha1", "40 lower-case hex digits")
    return replace(file, blob_sha1=blob)


def _check_sums(reader: _Reader, entry: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    for key in ("total_bytes", "weights_bytes"):
        expected = getattr(checkpoint, key)
        if reader.bytes(entry[key], key) != expected:
            reader.fail(
                key, entry[key], f"is not the sum of the files' sizes, {expected}: the entry was edited"
            )
    if reason := refuse_files(checkpoint.files):
        reader.fail("files", ", ".join(file.path for file in checkpoint.files), reason)


def refuse_repository(repo: str) -> str | None:
    """Why a repository's name can't be used, or None. The Hub itself forbids ``--`` and ``..`` in names."""
    if not _REPOSITORY.fullmatch(repo):
        return "must be a repository like org/name"
    if "--" in repo or ".." in repo:
        return "must not hold '--' or '..'"
    return None


def refuse_revision(revision: str) -> str | None:
    """Why a revision can't be used, or None."""
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        return "must be a branch, a tag or a commit (letters, digits and ._/+-)"
    return None


def refuse_files(files: Iterable[File]) -> str | None:
    """Why a set of files can't be one checkpoint, or None: a name that is also a folder, or too much."""
    paths = [file.path for file in files]
    folders = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    if clash := folders.intersection(paths):
        return f"has {sorted(clash)[0]!r} as a file and as a folder"
    if sum(file.size for file in files) > MOST_BYTES:
        return f"is larger than {MOST_BYTES} bytes in all"
    return None
