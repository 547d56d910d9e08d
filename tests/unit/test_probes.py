"""The facts' programs, run for real by the python3 that is here, as a host would run them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.disk import Filesystem
from pyinfra_vllm.facts.runtime import Runtime
from pyinfra_vllm.on_host.inspect import disk as inspect_disk
from pyinfra_vllm.on_host.state import manifest

COMMIT = "a" * 40


def run(fact: Any, argument: object) -> Any:
    command = fact.command(str(argument)).get_raw_value()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd="/")
    assert done.stderr == ""
    return fact.process(done.stdout.splitlines())


def complete(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_bytes(b"{}")
    (directory / "config.json").chmod(0o644)
    entry = manifest.describe(directory, "config.json", hashlib.sha256(b"{}").hexdigest())
    manifest.write(directory, manifest.Manifest("acme/tiny", COMMIT, (entry,)))
    manifest.mark(directory)


def test_the_file_system_of_a_path_that_is_not_there(tmp_path: Path) -> None:
    found = run(Filesystem(), tmp_path / "a b'c" / "d")
    assert found.path == str(tmp_path)
    assert found.free_bytes > 0
    assert found.read_only is False
    assert str(tmp_path).startswith(found.mount)


def test_the_innermost_mount_is_taken_and_its_name_unescaped(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "21 20 8:2 / /srv rw,noatime shared:1 - xfs /dev/sdb1 rw\n"
        "22 21 8:3 / /srv/my\\040models rw - ext4 /dev/mapper/a\\040b rw\n"
        "23 20 8:4 / /srv/my rw - tmpfs tmpfs rw\n"
    )
    assert inspect_disk.mounted_at("/srv/my models/x", str(mounts)) == (
        "/srv/my models",
        "/dev/mapper/a b",
        "ext4",
    )
    assert inspect_disk.mounted_at("/srv/mymodels", str(mounts)) == ("/srv", "/dev/sdb1", "xfs")
    assert inspect_disk.mounted_at("/var", str(mounts)) == ("/", "/dev/sda1", "ext4")


def test_missing_runtime_is_not_found(tmp_path: Path) -> None:
    assert run(Runtime(), tmp_path) is None


def test_nothing_stored_is_an_empty_list(tmp_path: Path) -> None:
    assert run(Checkpoints(), tmp_path / "none") == []


def test_checkpoints_tell_their_state_and_who_needs_them(tmp_path: Path) -> None:
    tiny = tmp_path / "checkpoints/acme--tiny"
    complete(tiny / COMMIT)
    complete(tiny / ("b" * 40))
    (tiny / ("b" * 40) / "config.json").write_text("{ }")
    (tiny / f"{'c' * 40}.partial").mkdir()
    (tiny / ("d" * 40)).mkdir()
    (tiny / "README").touch()
    (tiny / ("e" * 40)).symlink_to(tiny / COMMIT)
    release = tmp_path / "chat/releases/r1"
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"checkpoint": {"directory": str(tiny / COMMIT)}}))

    found = {item.directory.rsplit("/", 1)[1]: item for item in run(Checkpoints(), tmp_path)}
    states = {name[0]: (item.state, item.referenced_by) for name, item in found.items()}
    assert states == {
        "a": ("complete", ["chat/r1"]), "b": ("damaged", []), "c": ("partial", []), "d": ("partial", []),
    }  # fmt: skip
    assert "config.json has 3 bytes, expected 2" in found["b" * 40].problems[0]
    assert found[COMMIT].bytes >= 2


def test_a_release_that_can_not_be_read_is_an_error_not_no_reference(tmp_path: Path) -> None:
    release = tmp_path / "chat/releases/r1"
    release.mkdir(parents=True)
    (release / "release.json").write_text("{")
    with pytest.raises(subprocess.CalledProcessError):
        run(Checkpoints(), tmp_path)
