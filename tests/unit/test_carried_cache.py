"""Compiled code goes from one release's cache to the next; what was put there later does not."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import bottomless

from pyinfra_vllm.on_host.inspect import disk
from pyinfra_vllm.on_host.server import carried_cache, compile_cache
from pyinfra_vllm.on_host.staging import prune

USER = getpass.getuser()


@pytest.fixture
def caches(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A cache with two compiled files, an empty one, and where the first is noted."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "vllm/torch_compile_cache/abc").mkdir(parents=True)
    (old / "vllm/torch_compile_cache/abc/graph.bin").write_bytes(b"graph" * 1000)
    kernel = old / "triton/kernel.so"
    kernel.parent.mkdir()
    kernel.write_bytes(b"\x7fELF")
    kernel.chmod(0o755)
    os.utime(kernel, (1_000_000, 1_000_000))
    new.mkdir()
    return old, new, tmp_path / "cache.json"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


BOTH = {"vllm/torch_compile_cache/abc/graph.bin", "triton/kernel.so"}


def test_what_was_noted_is_carried_with_its_times_and_its_right_to_run(
    caches: tuple[Path, Path, Path],
) -> None:
    old, new, noted = caches
    assert carried_cache.note(old, noted) == 2
    assert noted.stat().st_mode & 0o777 == 0o600
    assert carried_cache.carry(noted, old, new, USER) == (2, 5004)
    assert names(new) == BOTH
    kernel = (new / "triton/kernel.so").stat()
    assert kernel.st_mode & 0o777 == 0o700 and kernel.st_mtime == 1_000_000
    assert not new.with_name(".new.partial").exists()


def test_what_came_later_or_was_changed_stays(caches: tuple[Path, Path, Path]) -> None:
    old, new, noted = caches
    carried_cache.note(old, noted)
    (old / "triton/planted.so").write_bytes(b"\x7fELF evil")
    (old / "triton/kernel.so").write_bytes(b"\x7fEVL")
    assert carried_cache.carry(noted, old, new, USER)[0] == 1
    assert names(new) == {"vllm/torch_compile_cache/abc/graph.bin"}


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "folder of links"])
def test_links_and_pipes_are_neither_noted_nor_followed(
    caches: tuple[Path, Path, Path], kind: str, tmp_path: Path
) -> None:
    old, new, noted = caches
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "kernel.so").write_bytes(b"secret")
    carried_cache.note(old, noted)
    kernel = old / "triton/kernel.so"
    kernel.unlink()
    if kind == "link":
        kernel.symlink_to(secret / "kernel.so")
    elif kind == "fifo":
        os.mkfifo(kernel)
    elif kind == "folder":
        kernel.mkdir()
    else:
        kernel.parent.rmdir()
        kernel.parent.symlink_to(secret)
    assert carried_cache.carry(noted, old, new, USER)[0] == 1
    assert names(new) == {"vllm/torch_compile_cache/abc/graph.bin"}
    again = tmp_path / "again.json"
    assert carried_cache.note(old, again) == 1


def test_a_cache_that_has_something_is_left_alone(caches: tuple[Path, Path, Path]) -> None:
    old, new, noted = caches
    carried_cache.note(old, noted)
    (new / "own").write_text("compiled here")
    assert carried_cache.carry(noted, old, new, USER) == (0, 0) and names(new) == {"own"}


def test_nothing_noted_carries_nothing(caches: tuple[Path, Path, Path]) -> None:
    old, new, noted = caches
    assert carried_cache.carry(noted, old, new, USER) == (0, 0)


def test_the_file_that_once_held_keys_is_never_carried(caches: tuple[Path, Path, Path]) -> None:
    old, _, noted = caches
    (old / "vllm/torch_compile_cache/abc" / compile_cache.FACTORS).write_text('{"VLLM_API_KEY": "k"}')
    assert carried_cache.note(old, noted) == 2


def test_an_endless_cache_is_noted_in_part(
    caches: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, noted = caches
    monkeypatch.setattr(carried_cache, "MOST_BYTES", 100)
    assert carried_cache.note(old, noted) <= 1


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.pyc", "evil.pth"])
def test_nothing_that_python_could_import_is_carried(caches: tuple[Path, Path, Path], name: str) -> None:
    old, new, noted = caches
    (old / "triton" / name).write_text("import os")
    assert carried_cache.note(old, noted) == 2
    carried_cache.carry(noted, old, new, USER)
    assert names(new) == BOTH


def test_a_link_in_the_place_of_a_noted_folder_leads_nowhere(
    caches: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Also where the file behind it has the very bytes that were noted."""
    old, new, noted = caches
    carried_cache.note(old, noted)
    (old / "triton").rename(tmp_path / "elsewhere")
    (old / "triton").symlink_to(tmp_path / "elsewhere")
    assert carried_cache.carry(noted, old, new, USER)[0] == 1
    assert names(new) == BOTH - {"triton/kernel.so"}


def test_a_folder_that_becomes_a_link_while_it_is_noted_leads_nowhere(
    caches: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """A server may change its cache between root's look at a folder and root's look at the files in it."""
    old, _, _ = caches
    secret = tmp_path / "root"
    secret.mkdir()
    (secret / "kernel.so").write_bytes(b"a secret of root's")
    until = time.monotonic() + 60
    found = [name for name in carried_cache._files(old, until) if name.endswith("kernel.so")]
    (old / "triton").rename(tmp_path / "elsewhere")
    (old / "triton").symlink_to(secret)
    assert found == ["triton/kernel.so"] and carried_cache.read(old, found[0], until) is None


def test_folders_within_folders_without_end_are_noted_in_part(caches: tuple[Path, Path, Path]) -> None:
    old, _, noted = caches
    bottomless(old, 3000)
    assert carried_cache.note(old, noted) == 2
    prune.remove(old / "d")  # pytest could not


@pytest.mark.parametrize(
    "name", ["{folder}/victim.so", "../victim.so", "a/../../victim.so", "./a", ".", "", "a//b"]
)
def test_a_listed_name_of_another_place_is_never_opened(caches: tuple[Path, Path, Path], name: str) -> None:
    """Root of the host that made the archive may have written any name into its list."""
    old, new, noted = caches
    victim = new.with_name("victim.so")
    victim.write_bytes(b"precious")
    digest = hashlib.sha256(b"precious").hexdigest()
    noted.write_text(json.dumps({"files": {name.format(folder=new.parent): [digest, 8]}}))
    assert carried_cache.carry(noted, old, new, USER) == (0, 0)
    assert victim.read_bytes() == b"precious" and names(new) == set()


def test_a_full_disk_leaves_nothing_of_a_cache(
    caches: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, noted = caches
    carried_cache.note(old, noted)
    read = carried_cache.read

    def full(cache: Path, name: str, *more: object) -> object:
        read(cache, name, *more)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(carried_cache, "read", full)
    with pytest.raises(OSError, match="No space left"):
        carried_cache.carry(noted, old, new, USER)
    assert not new.with_name(".new.partial").exists() and names(new) == set()


def test_a_cache_for_which_the_disk_has_no_room_is_not_carried(
    caches: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, noted = caches
    carried_cache.note(old, noted)
    free = 5004 + disk.MARGIN_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(OSError, match="no room"):
        carried_cache.carry(noted, old, new, USER)
    assert not new.with_name(".new.partial").exists() and names(new) == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert carried_cache.carry(noted, old, new, USER) == (2, 5004)


def test_a_file_that_grew_is_not_copied_beyond_what_was_noted(
    caches: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Its server is at work: what was looked at before the copy may be gigabytes by now."""
    old, _, noted = caches
    carried_cache.note(old, noted)
    (old / "triton/kernel.so").write_bytes(bytes(5 << 20))
    with (tmp_path / "copy").open("w+b") as copy:
        assert carried_cache.read(old, "triton/kernel.so", time.monotonic() + 60, copy, 4) is None
        assert copy.tell() == 0
