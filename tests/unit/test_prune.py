"""Garbage collection on a host: what is needed stays, what goes is there whole or not at all, links lead
nowhere.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated import Killed, bottomless

from pyinfra_vllm.asking import Answer
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands import prune as command
from pyinfra_vllm.commands.prune import keep as kept_by
from pyinfra_vllm.config import Layer, Problems, declare, merge
from pyinfra_vllm.errors import LockError
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.staging import prune
from pyinfra_vllm.on_host.staging.prune import Keep
from pyinfra_vllm.on_host.state import durable, journal, lock, manifest
from pyinfra_vllm.on_host.state.paths import ServicePaths

A, B, C, D = ("a" * 12, "b" * 12, "c" * 12, "d" * 12)


class Storage:
    """A host's root with four releases: A ran before, B runs, C was tried and left, D waits for
    its window.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.chat = ServicePaths(root, "chat")
        for age, release in enumerate((C, A, B, D)):
            self.stage(release, release[0] * 40, "0.33.0" if release != C else "0.32.0")
            os.utime(self.chat.release(release), ns=(age, age))
        durable.point(self.chat.current, self.chat.release(B))
        durable.point(self.chat.previous, self.chat.release(A))
        for version in ("0.31.0", "0.32.0", "0.33.0"):
            self.runtime(version)
        self.checkpoint("org--model", "e" * 40)

    def stage(self, release: str, commit: str, version: str) -> None:
        document = {
            "id": release,
            "checkpoint": {"directory": str(self.checkpoint("org--model", commit))},
            "runtime": {"path": str(self.root / "runtimes" / version)},
        }
        files = {name: "" for name in releases.FILES} | {"release.json": json.dumps(document)}
        payload = self.root / "payload.json"
        payload.write_text(json.dumps({"id": release, "user": getpass.getuser(), "files": files}))
        releases.stage(self.chat, payload)

    def checkpoint(self, name: str, commit: str) -> Path:
        directory = self.root / "checkpoints" / name / commit
        (directory / "deep").mkdir(parents=True, exist_ok=True)
        (directory / "deep" / "model.safetensors").write_bytes(b"x" * 9000)
        manifest.mark(directory)
        return directory

    def runtime(self, version: str) -> None:
        place = self.root / "runtimes" / version
        place.mkdir(parents=True)
        durable.write_json(place / ".complete", {})

    def prunable(self, **keep: list[str]) -> list[str]:
        items = prune.prunable(self.root, Keep(**{name: frozenset(values) for name, values in keep.items()}))
        return [f"{item.kind} {item.path.relative_to(self.root)}" for item in items]

    def prune(self, **keep: list[str]) -> None:
        wanted = Keep(**{name: frozenset(values) for name, values in keep.items()})
        prune.prune(self.root, wanted, "ann", self.root / "run")

    def everything(self) -> list[Path]:
        return sorted(self.root.rglob("*"))


SPARE = [
    f"release chat/releases/{C}",
    f"checkpoint checkpoints/org--model/{'c' * 40}",
    f"checkpoint checkpoints/org--model/{'e' * 40}",
    "runtime runtimes/0.31.0",
    "runtime runtimes/0.32.0",
]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def test_it_shows_what_nothing_needs_and_changes_nothing(storage: Storage) -> None:
    before = storage.everything()
    assert storage.prunable() == SPARE
    assert storage.everything() == before
    items = {item.path.name: item.bytes for item in prune.prunable(storage.root, Keep())}
    assert items["c" * 40] >= 9000


def test_it_deletes_that_and_nothing_else(storage: Storage) -> None:
    before = storage.everything()
    spare = [storage.root / line.split(" ")[1] for line in SPARE]
    storage.prune()
    gone = {path for path in before if any(path == top or top in path.parents for top in spare)}
    after = {path for path in storage.everything() if "run" not in path.parts and path.name != "lock"} - {
        storage.root / "run"
    }
    assert after == set(before) - gone
    assert storage.prunable() == []


def test_what_is_pinned_or_declared_stays_with_what_it_needs(storage: Storage) -> None:
    assert storage.prunable(releases=[f"chat/{C}"]) == [SPARE[2], SPARE[3]]
    assert SPARE[2] not in storage.prunable(checkpoints=[f"org--model/{'e' * 40}"])
    assert SPARE[3] not in storage.prunable(runtimes=["0.31.0"])
    assert storage.prunable(releases=[f"code/{C}"]) == SPARE


def test_what_another_service_needs_stays(storage: Storage) -> None:
    code = Storage.__new__(Storage)
    code.root, code.chat = storage.root, ServicePaths(storage.root, "code")
    code.stage(C, "e" * 40, "0.31.0")
    durable.point(code.chat.current, code.chat.release(C))
    assert storage.prunable() == [SPARE[0], SPARE[1], SPARE[4]]


def test_both_ends_of_a_switch_without_an_end_stay(storage: Storage) -> None:
    log = journal.Journal(storage.chat.journal, "t1")
    log.write("begin", "done", **{"from": B, "to": C})
    assert SPARE[0] not in storage.prunable()
    log.write("end", "done", outcome="rolled_back")
    assert storage.prunable() == SPARE


def test_downloads_that_were_given_up_and_leftovers_go(storage: Storage) -> None:
    place = storage.root / "checkpoints" / "org--other"
    for name in ("f" * 40 + ".partial", f".{'f' * 40}.pruned", "0" * 40 + ".partial"):
        (place / name).mkdir(parents=True)
    (storage.root / "runtimes" / ".cache-0.30.0").mkdir()
    (storage.root / "runtimes" / "0.30.0").mkdir()
    (storage.root / "runtimes" / "0.30.0" / ".building").touch()
    (storage.chat.releases / f".{D}.partial").mkdir()
    found = storage.prunable(checkpoints=[f"org--other/{'0' * 40}"])
    assert sorted(set(found) - set(SPARE)) == [
        f"download checkpoints/org--other/{'f' * 40}.partial",
        f"leftover chat/releases/.{D}.partial",
        f"leftover checkpoints/org--other/.{'f' * 40}.pruned",
        "leftover runtimes/.cache-0.30.0",
        "runtime runtimes/0.30.0",
    ]
    storage.prune()
    assert not place.exists() and storage.prunable() == []


def test_what_is_not_ours_stays(storage: Storage) -> None:
    for name in (
        "runtimes/my-own-venv/bin",
        "checkpoints/org--model/notes",
        "backup/releases/old",
        "checkpoints/README",
    ):
        (storage.root / name).mkdir(parents=True)
    (storage.root / "backup/releases/old").rmdir()
    assert storage.prunable() == SPARE


@pytest.mark.parametrize("path", [".team", ".cache-x/venv", "team/venv", ".own.pruned"])
def test_a_runtime_in_use_stays_whatever_its_name(storage: Storage, path: str) -> None:
    """`runtime.path` may be declared anywhere, also among ours."""
    runtime = storage.root / "runtimes" / path
    (runtime / "bin").mkdir(parents=True)
    (runtime.parent / ".building").touch()  # as of an installation around it that was interrupted
    document = storage.chat.release(B) / "release.json"
    content = json.loads(document.read_text())
    content["runtime"]["path"] = str(runtime)
    document.chmod(0o644)
    document.write_text(json.dumps(content))
    storage.prune()
    assert (runtime / "bin").is_dir()


def test_a_venv_of_the_operator_stays_though_no_release_names_it_yet(storage: Storage) -> None:
    (storage.root / "runtimes" / ".team" / "bin").mkdir(parents=True)
    assert storage.prunable() == SPARE


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/org--model",
f"checkpoints/org--model/{'e' * 40}", "runtimes", "chat", "chat/releases"])  # fmt: skip
def test_no_link_leads_a_delete_out_of_the_root(
    storage: Storage, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "moved"
    (storage.root / where).rename(outside)
    (storage.root / where).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    storage.prune()
    assert [path for path in sorted(outside.rglob("*")) if path.name != "lock"] == before
    assert (
        storage.chat.release(B).is_dir() and (storage.root / "checkpoints/org--model" / ("b" * 40)).is_dir()
    )


def test_a_link_inside_of_what_goes_is_removed_and_not_followed(
    storage: Storage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").touch()
    (storage.root / "checkpoints" / "org--model" / ("e" * 40) / "link").symlink_to(outside)
    storage.prune()
    assert (outside / "precious").exists() and storage.prunable() == []


def test_a_release_that_can_not_be_read_stops_everything(storage: Storage) -> None:
    (storage.chat.release(B) / "release.json").write_text("{")
    before = storage.everything()
    with pytest.raises(releases.NotReady, match=r"release\.json is not valid JSON"):
        storage.prunable()
    assert storage.everything() == before


@pytest.mark.thorough
@pytest.mark.parametrize("held", ["service", "storage"])
def test_prune_is_refused_while_a_lock_is_held(storage: Storage, held: str) -> None:
    before = storage.everything()
    run = storage.root / "run"
    path = storage.chat.lock if held == "service" else lock.storage(run)
    with lock.shared(path, "fetch", "org/model"), pytest.raises(lock.Held, match="fetch has held"):
        storage.prune()
    kept = set(storage.everything())
    assert set(before) <= kept
    with (
        lock.exclusive(lock.storage(run), "ann", "pruning"),
        pytest.raises(lock.Held, match="ann has held"),
        lock.shared(lock.storage(run), "fetch", "x"),
    ):
        pytest.fail("a download began while a prune was under way")


CALLS: list[tuple[Any, str]] = [(Path, "rename"), (durable, "sync_directory"), (os, "unlink"), (os,
"rmdir"), (shutil, "rmtree"), (Path, "rmdir")]  # fmt: skip


def mortal(monkeypatch: pytest.MonkeyPatch, die_at: int | None) -> list[str]:
    """Count every call that changes the disk, and die at one of them."""
    calls: list[str] = []

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if die_at is not None and len(calls) > die_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in CALLS:
        monkeypatch.setattr(owner, name, wrapped(name, getattr(owner, name)))
    return calls


@pytest.mark.thorough
def test_a_kill_at_any_call_leaves_each_checkpoint_whole_or_gone(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        total = Storage(tmp_path / "dry")
        calls = mortal(patch, None)
        total.prune()
    assert len(calls) > 30
    for moment in range(len(calls)):
        storage = Storage(tmp_path / str(moment))
        with pytest.MonkeyPatch.context() as patch:
            mortal(patch, moment)
            with pytest.raises(Killed):
                storage.prune()
        for name in "abcde":
            directory = storage.root / "checkpoints" / "org--model" / (name * 40)
            if directory.exists():
                assert (
                    manifest.is_marked(directory)
                    and (directory / "deep" / "model.safetensors").stat().st_size == 9000
                )
            else:
                assert name in "ce"
        storage.prune()
        assert storage.prunable() == []
        assert not list(storage.root.rglob("*.pruned"))


def test_folders_within_folders_without_end_are_measured_and_removed(storage: Storage) -> None:
    """A server can lay them in its cache; neither Python's recursion nor the length of a path is their limit."""  # noqa: E501
    cache = storage.chat.release(C) / "cache"
    cache.mkdir(exist_ok=True)
    (cache / "kernel.so").write_bytes(b"x" * 100_000)
    bottomless(cache, 3000)
    (item,) = [item for item in prune.prunable(storage.root, Keep()) if item.path == cache.parent]
    assert item.bytes >= 100_000
    storage.prune()
    assert not cache.parent.exists() and not list(storage.root.rglob("*.pruned"))


# --- what the control machine says must stay ---

LOCKED = Checkpoint(
    repo="org/model", revision="main", commit="a" * 40, files=(File(path="x", size=1, sha256="b" * 64),)
)
CHAT = {"model": "org/model", "runtime": {"version": "0.33.0"}, "port": 8000}


def declared(**top: Any) -> Any:
    problems = Problems()
    found = declare(
        "gpu-1", merge([Layer("group_data/all.py", {"services": {"chat": CHAT}, **top})]), problems
    )
    assert found is not None, problems.found
    return found


def test_what_is_declared_and_pinned_is_kept() -> None:
    pins = [f"org/other@{'f' * 40}", "org/model@main", f"chat/{C}"]
    assert kept_by(declared(keep=pins), Lock([LOCKED])) == {
        "checkpoints": [f"org--model/{'a' * 40}", f"org--other/{'f' * 40}"],
        "releases": [f"chat/{C}"],
        "runtimes": ["0.33.0"],
    }


def test_a_pin_whose_files_nobody_knows_is_an_error() -> None:
    with pytest.raises(LockError, match="no entry for org/model at revision 'v1'"):
        kept_by(declared(keep=["org/model@v1"]), Lock([LOCKED]))


@pytest.mark.parametrize(
    "pin", ["org/model", "model@main", "../x@main", "chat/latest", "org/model@a..b", "", 7]
)
def test_a_pin_names_a_checkpoint_or_a_release(pin: object) -> None:
    problems = Problems()
    assert declare("gpu-1", merge([Layer("f", {"keep": [pin]})]), problems) is None
    assert str(problems.found[0]).startswith("f: keep")


def test_the_answer_names_every_path_and_says_that_nothing_was_deleted() -> None:
    item = {"kind": "checkpoint", "path": "/srv/x", "bytes": 19e9}
    answers = [Answer("a", [item]), Answer("b", []), Answer("c", problem="down")]
    assert command.sentences(answers, delete=False) == [
        "a: checkpoint   19.0 GB  /srv/x",
        "a: 19.0 GB can be freed",
        "b: 0 B can be freed",
        "c: down",
        "Nothing was deleted: run it again with --yes.",
    ]
    assert command.sentences(answers, delete=True)[1] == "a: 19.0 GB freed"
