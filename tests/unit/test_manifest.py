"""File names from an untrusted Hub, and what a manifest says of a directory."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.state import manifest

CONTENT = {"config.json": b"{}", "sub/model.safetensors": b"weights"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A complete checkpoint of two files."""
    entries = []
    for path, content in CONTENT.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
        (tmp_path / path).chmod(0o644)
        entries.append(manifest.describe(tmp_path, path, hashlib.sha256(content).hexdigest()))
    manifest.write(tmp_path, manifest.Manifest("acme/tiny", "a" * 40, tuple(entries)))
    manifest.mark(tmp_path)
    return tmp_path


def test_what_was_written_is_read(directory: Path) -> None:
    found = manifest.read(directory)
    assert (found.repo, found.commit, found.total_bytes) == ("acme/tiny", "a" * 40, 9)
    assert manifest.quick_check(directory) == manifest.full_check(directory) == []


def test_hashes_are_sha256_and_gits_own(directory: Path) -> None:
    assert manifest.hash_file(directory / "config.json") == hashlib.sha256(b"{}").hexdigest()
    blob = manifest.hash_file(directory / "config.json", blob=True)
    assert blob == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # `printf '{}' | git hash-object --stdin`


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"weight"), "has 6 bytes, expected 7"),
        (lambda path: path.write_bytes(b"wEights"), "was written to"),
        (lambda path: path.chmod(0o600), "can't be read by the service's user"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "is not a regular file"),
    ],
)
def test_the_file_system_tells_what_changed(
    directory: Path, change: Callable[[Path], object], complaint: str
) -> None:
    change(directory / "sub/model.safetensors")
    (found,) = manifest.quick_check(directory)
    assert complaint in found
    assert str(directory / "sub/model.safetensors") in found


def test_a_new_time_alone_is_no_damage(directory: Path) -> None:
    os.utime(directory / "config.json", ns=(1, 1))
    assert manifest.quick_check(directory) != []
    assert manifest.full_check(directory) == []


def test_without_marker_or_manifest_it_is_not_complete(directory: Path) -> None:
    manifest.unmark(directory)
    assert "it has no .complete" in manifest.quick_check(directory)[0]
    manifest.mark(directory)
    (directory / "manifest.json").unlink()
    assert "can't be used" in manifest.quick_check(directory)[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"schema": "pyinfra-vllm/manifest/9", "repo": "a/b", "commit": "c", "files": []}',
        '{"schema": "pyinfra-vllm/manifest/1", "repo": "a/b", "commit": "c", "files": [{"path": "../x"}]}',
        '{"schema": "pyinfra-vllm/manifest/1", "repo": "a/b", "commit": "c",'
        ' "files": [{"path": "../x", "size": 1, "sha256": "", "mtime_ns": 1}]}',
    ],
)
def test_no_text_breaks_the_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(manifest.ManifestError):
        manifest.read(tmp_path)


@given(st.text() | st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "/", "\0", "é"])).map("/".join))
def test_a_name_that_is_not_refused_stays_in_the_directory(name: str) -> None:
    if manifest.unsafe(name) is None:
        path = posixpath.normpath(posixpath.join("/root/checkpoint", name))
        assert path == "/root/checkpoint/" + name
        name.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("\ud800", "not valid Unicode"),
        ("model\udcff.safetensors", "not valid Unicode"),
        ("", "empty or too long"),
        ("a" * 1025, "empty or too long"),
        ("a\nb", "a control character"),
        ("a\x85b", "can't be seen"),
        ("a\u2028b", "can't be seen"),
        ("nosj.gifnoc\u202e", "can't be seen"),
        ("\ufeffconfig.json", "can't be seen"),
        ("-rf", "take for an option"),
        ("sub/--help.json", "take for an option"),
        ("sub/.hidden", "hidden"),
    ],
)
def test_a_name_that_means_something_else_is_refused(name: str, reason: str) -> None:
    assert reason in (manifest.unsafe(name) or "")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model-00001-of-00004.safetensors",
        "additional_chat_templates/rag.jinja",
        "a b/ü.json",
        "a/b-c.json",
    ],
)
def test_ordinary_names_are_not_refused(name: str) -> None:
    assert manifest.unsafe(name) is None
