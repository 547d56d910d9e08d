"""The fetch on a host, with the real Hub client against a server that misbehaves in every way a Hub can."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, serving

from pyinfra_vllm.on_host.inspect.checkpoints import checkpoints
from pyinfra_vllm.on_host.staging import download, fetch, pieces
from pyinfra_vllm.on_host.state import manifest

REPO = "acme/tiny-awq"
WEIGHTS = random.Random(1).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[:500_000],
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(HubServer(repositories={REPO: dict(FILES)})) as running:
        yield running


@dataclass
class Lab:
    """One host's root below a temporary directory, and the server that it fetches from."""

    server: HubServer
    path: Path

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def directory(self) -> Path:
        return self.root / "checkpoints" / "acme--tiny-awq" / self.server.commit(REPO)

    @property
    def partial(self) -> Path:
        return self.directory.with_name(self.directory.name + ".partial")

    def request(self, **changes: Any) -> Path:
        content = {
            "root": str(self.root),
            "run": str(self.path / "run"),
            "key": "tiny",
            "repo": REPO,
            "commit": self.server.commit(REPO),
            "endpoint": self.server.endpoint,
            "python": sys.executable,
            "files": wanted(FILES),
            "attempts": 1,
        }
        target = self.path / "request.json"
        target.write_text(json.dumps(content | changes))
        return target

    def fetch(self, **changes: Any) -> int:
        return fetch.main([str(self.request(**changes))])

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "run" / "fetch-tiny.json").read_text())
        return content

    def error(self, **changes: Any) -> str:
        assert self.fetch(**changes) == 1
        status = self.status()
        assert status["state"] == "failed"
        return str(status["error"])

    def assert_complete(self) -> None:
        assert manifest.full_check(self.directory) == []
        for path, content in FILES.items():
            assert (self.directory / path).read_bytes() == content
        assert not self.partial.exists()
        assert self.status()["state"] == "done"

    def assert_as_it_was(self) -> None:
        assert list(self.root.rglob("*")) == []


@pytest.fixture
def lab(server: HubServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path)


def test_a_checkpoint_is_fetched_verified_and_readable_by_all(lab: Lab) -> None:
    assert lab.fetch() == 0
    lab.assert_complete()
    for path in lab.directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    assert {path.name for path in lab.directory.iterdir()} == {
        "config.json", "model-1.safetensors", "model-2.safetensors", "additional_chat_templates",
        "manifest.json", ".complete",
    }  # fmt: skip


@pytest.mark.thorough
def test_complete_checkpoint_is_not_fetched_again(lab: Lab) -> None:
    lab.fetch()
    before = len(lab.server.served)
    stamp = (lab.directory / "manifest.json").stat().st_mtime_ns
    assert lab.fetch() == 0
    assert len(lab.server.served) == before
    assert (lab.directory / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.thorough
def test_the_token_comes_as_a_credential_and_goes_to_the_hub_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lab.server.token = "hf_canary"
    assert "check the token" in lab.error()
    lab.assert_as_it_was()
    (lab.path / "hub-token").write_text("hf_canary\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(lab.path))
    with serving(HubServer(repositories={REPO: dict(FILES)})) as cdn:
        path = "model-1.safetensors"
        cdn_url = (
            f"http://localhost:{cdn.endpoint.rsplit(':', 1)[1]}/{REPO}/resolve/{cdn.commit(REPO)}/{path}"
        )
        lab.server.faults[path] = Fault(location=cdn_url)
        assert lab.fetch() == 0
        assert [request.authorization for request in cdn.served] == [None]
    assert {request.authorization for request in lab.server.served} == {"Bearer hf_canary"}
    shown = "".join(capfd.readouterr()) + json.dumps(lab.status()) + (lab.path / "request.json").read_text()
    assert "hf_canary" not in shown


# --- interrupted ---


def start(lab: Lab, **changes: Any) -> subprocess.Popen[bytes]:
    code = "import sys; from pyinfra_vllm.on_host.staging import fetch; sys.exit(fetch.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(lab.request(**changes))], stderr=subprocess.DEVNULL
    )


def wait_for_bytes(lab: Lab, count: int) -> None:
    wait_until(lambda: sum(map(_size, lab.partial.rglob("*.part"))) >= count)


def _size(path: Path) -> int:
    """A part that is complete gets its name between the look at the folder and the look at it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 30 s"
        time.sleep(0.02)


@pytest.mark.thorough
def test_after_kill_9_it_goes_on_from_the_bytes_it_has(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(bytes_per_s=2_000_000)
    with start(lab) as running:
        wait_for_bytes(lab, 1_500_000)
        running.send_signal(signal.SIGKILL)
    before = lab.server.sent("model-1.safetensors")
    time.sleep(0.5)  # the child sees that its parent is gone
    settled = lab.server.sent("model-1.safetensors")
    assert settled < len(WEIGHTS)
    del lab.server.faults["model-1.safetensors"]
    lab.server.served.clear()
    assert lab.fetch() == 0
    lab.assert_complete()
    again = [request for request in lab.server.served if request.path == "model-1.safetensors"]
    assert [request.start > 1_000_000 for request in again] == [True]
    assert sum(request.sent for request in lab.server.served) < len(WEIGHTS) - 1_000_000
    assert before <= settled


@pytest.mark.thorough
def test_a_cut_connection_is_resumed_in_the_same_run(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(cut_after=700_000)
    assert lab.fetch(attempts=3) == 0
    lab.assert_complete()
    assert lab.server.sent("model-1.safetensors") < 1.5 * len(WEIGHTS)  # a chunk at each cut comes twice


@pytest.mark.thorough
def test_a_server_that_ignores_ranges_is_taken_from_zero(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(bytes_per_s=2_000_000)
    with start(lab) as running:
        wait_for_bytes(lab, 500_000)
        running.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    lab.server.faults["model-1.safetensors"] = Fault(ignore_range=True)
    assert lab.fetch() == 0
    lab.assert_complete()


@pytest.mark.thorough
def test_two_at_once_are_refused(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(bytes_per_s=1_000_000)
    with start(lab) as running:
        wait_for_bytes(lab, 200_000)
        wait_until((lab.path / "run" / "fetch-tiny.json").exists)
        assert "has held" in error_of_a_second(lab)
        assert running.wait(30) == 0
    assert manifest.full_check(lab.directory) == []


def error_of_a_second(lab: Lab) -> str:
    """The second one must not overwrite the status of the first: its words are on standard error alone."""
    code = "import sys; from pyinfra_vllm.on_host.staging import fetch; sys.exit(fetch.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(lab.path / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert lab.status()["state"] == "downloading"
    return done.stderr


# --- damaged ---


def flip_a_byte(path: Path, *, keep_time: bool = False) -> None:
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.thorough
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "symlink", "directory-symlink", "manifest"])
def test_damage_is_found_by_stat_and_only_that_file_is_fetched(lab: Lab, damage: str) -> None:
    lab.fetch()
    path = lab.directory / "model-1.safetensors"
    inode = (lab.directory / "model-2.safetensors").stat().st_ino
    expected = {"model-1.safetensors"}
    if damage == "flip":
        flip_a_byte(path)
    elif damage == "truncate":
        os.truncate(path, 100)
    elif damage == "remove":
        path.unlink()
    elif damage == "symlink":
        path.replace(lab.path / "elsewhere")
        path.symlink_to(lab.path / "elsewhere")
    elif damage == "directory-symlink":
        folder = lab.directory / "additional_chat_templates"
        folder.rename(lab.path / "elsewhere")
        folder.symlink_to(lab.path / "nowhere")
        expected = set()
    else:
        (lab.directory / "manifest.json").write_text("{")
        expected = set()
    assert manifest.quick_check(lab.directory)
    lab.server.served.clear()
    if damage == "directory-symlink":
        assert "is a symbolic link" in lab.error()
        assert not (lab.path / "nowhere").exists()
        return
    assert lab.fetch() == 0
    lab.assert_complete()
    assert {request.path for request in lab.server.served} == expected
    assert (lab.directory / "model-2.safetensors").stat().st_ino == inode


@pytest.mark.thorough
def test_a_byte_that_a_failing_disk_flipped_is_found_by_reading(lab: Lab) -> None:
    lab.fetch()
    flip_a_byte(lab.directory / "model-1.safetensors", keep_time=True)
    assert manifest.quick_check(lab.directory) == []
    assert manifest.full_check(lab.directory) != []
    lab.server.served.clear()
    assert lab.fetch(verify=True) == 0
    lab.assert_complete()
    assert [request.path for request in lab.server.served] == ["model-1.safetensors"]


@pytest.mark.thorough
def test_a_touched_file_is_read_not_fetched(lab: Lab) -> None:
    lab.fetch()
    os.utime(lab.directory / "model-1.safetensors")
    lab.server.served.clear()
    assert lab.fetch() == 0
    lab.assert_complete()
    assert lab.server.served == []


@pytest.mark.thorough
def test_a_damaged_partial_file_is_not_trusted(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(bytes_per_s=100_000)
    with start(lab) as running:
        wait_until((lab.partial / "model-2.safetensors").exists)
        running.send_signal(signal.SIGKILL)
    flip_a_byte(lab.partial / "model-2.safetensors")
    lab.server.faults.clear()
    assert lab.fetch() == 0
    lab.assert_complete()


@pytest.mark.thorough
def test_a_directory_without_its_marker_is_read_and_marked(lab: Lab) -> None:
    lab.fetch()
    manifest.unmark(lab.directory)
    lab.server.served.clear()
    assert lab.fetch() == 0
    lab.assert_complete()
    assert lab.server.served == []


@pytest.mark.thorough
def test_a_repair_that_fails_leaves_the_rest_as_it_was(lab: Lab) -> None:
    lab.fetch()
    flip_a_byte(lab.directory / "model-1.safetensors")
    lab.server.faults["model-1.safetensors"] = Fault(content=bytes(len(WEIGHTS)))
    assert "other content" in lab.error()
    assert not manifest.is_marked(lab.directory)
    assert (lab.directory / "model-2.safetensors").read_bytes() == FILES["model-2.safetensors"]
    assert not lab.partial.exists()


# --- locked anew at the same commit ---


def wanted(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Files as a lock states them."""
    found = []
    for path, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = path.endswith(".safetensors")
        hashes = {"sha256": hashlib.sha256(content).hexdigest()} if large else {"blob_sha1": blob}
        found.append({"path": path, "size": len(content), **hashes})
    return found


FORGED = {"config.json": FILES["config.json"].replace(b"3", b"2"), "model-1.safetensors": WEIGHTS[::-1]}


def test_content_that_another_lock_stated_is_replaced(lab: Lab) -> None:
    """A mirror lied when the model was locked; the files are whole, and their sizes are the same."""
    assert lab.fetch() == 0
    for path, content in FORGED.items():
        (lab.directory / path).write_bytes(content)
    recorded = manifest.read(lab.directory)
    entries = [
        manifest.describe(
            lab.directory, entry.path, manifest.hash_file(lab.directory / entry.path),
            manifest.hash_file(lab.directory / entry.path, blob=True),
        )
        for entry in recorded.files
    ]  # fmt: skip
    manifest.write(lab.directory, recorded._replace(files=tuple(entries)))
    assert manifest.full_check(lab.directory) == []
    assert lab.fetch() == 0
    lab.assert_complete()
    (note,) = lab.status()["notes"]
    assert note.startswith("config.json, model-1.safetensors: replaced")


def test_a_directory_is_whole_for_its_releases_until_another_locks_files_are_here(lab: Lab) -> None:
    more = {**FILES, "consolidated.safetensors": WEIGHTS[:1000]}
    lab.server.repositories[REPO].update(more)
    assert lab.fetch() == 0
    lab.server.faults["consolidated.safetensors"] = Fault(status=503)
    assert "503" in lab.error(files=wanted(more))
    assert manifest.full_check(lab.directory) == []
    lab.server.faults.clear()
    assert lab.fetch(files=wanted(more)) == 0
    assert manifest.full_check(lab.directory) == []
    assert (lab.directory / "consolidated.safetensors").read_bytes() == WEIGHTS[:1000]


@pytest.mark.parametrize("verify", [False, True])
def test_files_that_only_another_lock_names_stay_and_are_still_checked(lab: Lab, verify: bool) -> None:
    assert lab.fetch() == 0
    fewer = {path: content for path, content in FILES.items() if path != "model-1.safetensors"}
    assert lab.fetch(files=wanted(fewer), verify=verify) == 0
    lab.assert_complete()
    (note,) = lab.status()["notes"]
    assert note.startswith("model-1.safetensors: kept")
    (lab.directory / "model-1.safetensors").unlink()
    assert manifest.quick_check(lab.directory) != []
    assert lab.fetch(files=wanted(fewer)) == 0  # deleted by hand: this lock can do without it
    assert manifest.full_check(lab.directory) == []


def test_two_locks_of_one_commit_are_both_complete(lab: Lab) -> None:
    """One for a service with `allow_code`, one without: neither undoes the other."""
    fewer = {"config.json": FILES["config.json"]}
    assert lab.fetch() == 0 and lab.fetch(files=wanted(fewer)) == 0
    (stored,) = checkpoints(lab.root)
    assert set(stored.files) == set(FILES)
    lab.server.served.clear()
    assert lab.fetch() == 0 and lab.server.served == []


def test_a_manifest_of_version_0_1_is_taken_over_without_a_download(lab: Lab) -> None:
    assert lab.fetch() == 0
    path = lab.directory / "manifest.json"
    content = json.loads(path.read_text())
    for entry in content["files"]:
        del entry["blob_sha1"]
    path.write_text(json.dumps(content))
    lab.server.served.clear()
    assert checkpoints(lab.root)[0].files["config.json"] == [hashlib.sha256(FILES["config.json"]).hexdigest()]
    assert lab.fetch() == 0
    assert lab.server.served == [] and lab.status()["notes"] == []
    for file in wanted(FILES):
        assert file.get("sha256", file.get("blob_sha1")) in checkpoints(lab.root)[0].files[file["path"]]


def test_content_of_another_lock_is_not_shared(lab: Lab) -> None:
    assert lab.fetch() == 0
    other = wanted({**FILES, "config.json": FORGED["config.json"]})
    order = {
        "python": sys.executable, "piece": pieces.SMALLEST_PIECE, "hashes": "ab" * 20,
        "address": "127.0.0.1", "port": 1, "peers": [["127.0.0.2", 1]],
    }  # fmt: skip
    assert "not verified to be what the lock states" in lab.error(files=other, swarm=order)
    total = sum(map(len, FILES.values()))
    lab.server.served.clear()
    part = {"begin": 0, "end": total, "piece": pieces.piece_bytes(total)}
    assert lab.fetch(part=part) == 0 and lab.server.served == []
    assert lab.fetch(part=part, files=other) == 0 and lab.server.served


def test_a_changed_file_is_not_told_as_verified(lab: Lab) -> None:
    assert lab.fetch() == 0
    flip_a_byte(lab.directory / "model-1.safetensors")
    (stored,) = checkpoints(lab.root)
    assert stored.state == "damaged" and "model-1.safetensors" not in stored.files


# --- an untrusted Hub ---

LIES = {
    "other content": Fault(content=bytes(len(WEIGHTS))),
    "one byte more": Fault(content=WEIGHTS + b"x"),
    "one byte less": Fault(content=WEIGHTS[:-1]),
    "endless": Fault(endless=True),
}


@pytest.mark.thorough
@pytest.mark.parametrize("lie", LIES)
def test_wrong_content_twice_is_an_error_and_is_removed(lab: Lab, lie: str) -> None:
    lab.server.faults["model-1.safetensors"] = LIES[lie]
    assert "model-1.safetensors" in (error := lab.error())
    assert "twice" in error
    lab.assert_as_it_was()
    assert lab.server.sent("model-1.safetensors") < 8 * len(WEIGHTS)


@pytest.mark.thorough
def test_wrong_content_of_every_file_leaves_the_disk_as_it_was(lab: Lab) -> None:
    lab.server.faults = {path: Fault(content=b"x" * len(content)) for path, content in FILES.items()}
    lab.error()
    lab.assert_as_it_was()


@pytest.mark.thorough
def test_trickling_download_is_given_up(lab: Lab) -> None:
    lab.server.faults["model-1.safetensors"] = Fault(bytes_per_s=1000)
    began = time.monotonic()
    error = lab.error(stall_s=2.0, min_bytes_per_s=100_000)
    assert "less than 100000 bytes/s" in error
    assert time.monotonic() - began < 15


@pytest.mark.thorough
def test_redirects_in_a_circle_end(lab: Lab) -> None:
    url = f"{lab.server.endpoint}/{REPO}/resolve/{lab.server.commit(REPO)}/config.json"
    lab.server.faults["config.json"] = Fault(location=url)
    assert "config.json" in lab.error()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://127.0.0.1:9/x", "//", "\\\\x", "data:,x"]
)
def test_a_redirect_to_nowhere_good_ends_and_nothing_of_it_is_kept(lab: Lab, where: str) -> None:
    lab.server.repositories[REPO] = {"config.json": FILES["config.json"]}
    lab.server.faults["config.json"] = Fault(location=where)
    files = [file for file in json.loads(lab.request().read_text())["files"] if file["path"] == "config.json"]
    assert "config.json" in lab.error(files=files)
    lab.assert_as_it_was()


@pytest.mark.thorough
def test_an_unreachable_hub_leaves_the_disk_as_it_was(lab: Lab) -> None:
    assert "could not be reached" in lab.error(endpoint="http://127.0.0.1:9")
    lab.assert_as_it_was()


def test_a_runtime_without_the_client_says_so(lab: Lab) -> None:
    assert "can't be started" in lab.error(python="/nonexistent/python")
    bare = "/usr/bin/python3"
    if subprocess.run(
        [bare, "-I", "-c", "import huggingface_hub"], capture_output=True, check=False
    ).returncode:
        assert "No module named 'huggingface_hub'" in lab.error(python=bare)
    lab.assert_as_it_was()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a\\x", "C:x", "a\0b", ".hidden", "a//b", "", 7]
)
def test_no_name_leaves_the_directory(lab: Lab, path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.fetch(files=[{"path": path, "size": 1, "sha256": "a" * 64}]) in (1, 2)
    if path != 7:
        assert "file name" in capsys.readouterr().err
        assert not lab.root.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"repo": "../x"}, {"repo": "a/.."}, {"repo": "a--b/c"}, {"commit": "main"}, {"root": "relative"},
        {"root": "/a/../b"}, {"key": "../x"}, {"files": []}, {"files": [{"path": "a", "size": -1,
        "sha256": "a" * 64}]},
        {"files": [{"path": "a", "size": 1}]}, {"files": [{"path": "a", "size": "1", "sha256": "a" * 64}]},
        {"files": 3},
    ],
)  # fmt: skip
def test_a_bad_request_touches_nothing(lab: Lab, changes: dict[str, Any]) -> None:
    assert lab.fetch(**changes) == 2
    assert not lab.root.exists()
    assert fetch.main([]) == 2


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/acme--tiny-awq", "commit", "partial"])
def test_nothing_is_written_through_a_link(lab: Lab, where: str) -> None:
    target = lab.path / "elsewhere"
    target.mkdir()
    link = {"commit": lab.directory, "partial": lab.partial}.get(where, lab.root / where)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    assert "is a symbolic link" in lab.error()
    assert list(target.iterdir()) == []


def test_a_link_in_what_an_earlier_run_shared_is_not_followed(lab: Lab, tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", lab.partial / ".parts" / lab.server.commit(REPO)
    outside.mkdir()
    tree.mkdir(parents=True)
    (tree / "additional_chat_templates").symlink_to(outside)
    total = sum(map(len, FILES.values()))
    assert lab.fetch(part={"begin": 0, "end": total, "piece": pieces.piece_bytes(total)}) == 0
    assert list(outside.iterdir()) == []
    content = FILES["additional_chat_templates/rag.jinja"]
    assert (tree / "additional_chat_templates/rag.jinja").read_bytes() == content


@pytest.mark.parametrize(
    "kind", ["longer", "shorter", "endless", "pipe", "folder", "missing", "other content"]
)
def test_nothing_but_a_file_of_that_size_is_copied(kind: str, tmp_path: Path) -> None:
    source, copy, size = tmp_path / "source", tmp_path / "copy", 5
    if kind == "endless":
        source.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(source)
    elif kind == "folder":
        source.mkdir()
    elif kind != "missing":
        source.write_bytes(bytes({"longer": 64 << 20, "shorter": size - 1}.get(kind, size)))
    wanted = download.Wanted("source", size, hashlib.sha256(b"right").hexdigest())
    with at_most(32 << 20):
        if kind in ("missing", "folder"):
            with pytest.raises(OSError, match=r"No such file|Is a directory"):
                wanted.copied(source, copy)
        else:
            assert wanted.copied(source, copy) is None
    assert not copy.exists()


@pytest.mark.thorough
def test_an_endless_file_in_a_shared_folder_is_left_to_the_hub(lab: Lab, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "acme--tiny-awq" / lab.server.commit(REPO)
    shared.mkdir(parents=True)
    (shared / "model-1.safetensors").symlink_to("/dev/zero")
    with at_most(64 << 20):
        assert lab.fetch(shared=str(tmp_path / "shared")) == 0
    lab.assert_complete()


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file grows beyond that, so that a fault fills no disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fault", ["full disk", "grows"])
def test_a_copy_that_is_not_handed_on_is_not_left(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"right" if fault == "full disk" else bytes(64 << 20))
    wanted = download.Wanted("source", 5, hashlib.sha256(b"right").hexdigest())
    if fault == "full disk":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(manifest, "hash_file", full)
        with pytest.raises(OSError, match="No space left"):
            wanted.copied(source, copy)
    else:
        real = os.fstat
        monkeypatch.setattr(os, "fstat", lambda file: as_it_was(real(file), size=5))
        assert wanted.copied(source, copy) is None
    assert not copy.exists()


def as_it_was(status: os.stat_result, size: int) -> os.stat_result:
    return os.stat_result((*status[:6], size, *status[7:]))
