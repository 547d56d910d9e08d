"""The compile cache of one host goes to another: whole, only what was noted, and only where it fits."""

from __future__ import annotations

import base64
import getpass
import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.server import carried_cache
from pyinfra_vllm.on_host.staging import compiled
from pyinfra_vllm.on_host.state.paths import ServicePaths
from pyinfra_vllm.operations.util import compiled as bringing

USER, RELEASE = getpass.getuser(), "20261129-abc"


def service(root: Path) -> ServicePaths:
    paths = ServicePaths(root, "chat")
    paths.own_cache(RELEASE).mkdir(parents=True)
    return paths


@pytest.fixture
def donor(tmp_path: Path) -> ServicePaths:
    paths = service(tmp_path / "donor")
    cache = paths.own_cache(RELEASE)
    (cache / "vllm/torch_compile_cache/abc").mkdir(parents=True)
    (cache / "vllm/torch_compile_cache/abc/graph.bin").write_bytes(os.urandom(3000))
    (cache / "kernel.so").write_bytes(b"\x7fELF")
    (cache / "kernel.so").chmod(0o755)
    carried_cache.note(cache, paths.noted_cache(RELEASE))
    return paths


@pytest.fixture
def taker(tmp_path: Path) -> ServicePaths:
    return service(tmp_path / "taker")


def sent(donor: ServicePaths, taker: ServicePaths, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has the archive travel in pieces of 1000 bytes; returns its sum."""
    monkeypatch.setattr(compiled, "PIECE", 1000)
    told = compiled.pack(donor, RELEASE)
    folder = compiled.expect(taker, RELEASE)
    count = -(-told["bytes"] // 1000)
    assert count > 3
    for number in range(count):
        (folder / f"{number:05d}").write_bytes(base64.b64decode(compiled.piece(donor, RELEASE, number)))
    return str(told["sha256"])


def given(taker: ServicePaths) -> set[str]:
    """The files that the switch would put into the release's cache."""
    brought = taker.carried_cache(RELEASE)
    cache = taker.own_cache(RELEASE)
    carried_cache.carry(brought / compiled.LISTED, brought / compiled.FILES, cache, USER)
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}


def test_it_arrives_as_it_was_noted(
    donor: ServicePaths, taker: ServicePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled.wanted(taker, RELEASE)
    assert compiled.take(taker, RELEASE, sent(donor, taker, monkeypatch), "gpu-1") == 2
    folder = taker.carried_cache(RELEASE)
    assert folder.stat().st_mode & 0o077 == 0 or folder.parent.stat().st_uid == os.getuid()
    assert json.loads((folder / compiled.LISTED).read_text())["from"] == "gpu-1"
    assert given(taker) == {"vllm/torch_compile_cache/abc/graph.bin", "kernel.so"}
    for name in ("vllm/torch_compile_cache/abc/graph.bin", "kernel.so"):
        there, here = donor.own_cache(RELEASE) / name, taker.own_cache(RELEASE) / name
        assert here.read_bytes() == there.read_bytes()
    assert (taker.own_cache(RELEASE) / "kernel.so").stat().st_mode & 0o777 == 0o700
    assert not compiled.wanted(taker, RELEASE)


def test_a_file_that_was_changed_since_is_not_given(
    donor: ServicePaths, taker: ServicePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (donor.own_cache(RELEASE) / "kernel.so").write_bytes(b"\x7fEVL")
    (donor.own_cache(RELEASE) / "planted.so").write_bytes(b"evil")
    assert compiled.take(taker, RELEASE, sent(donor, taker, monkeypatch), "gpu-1") == 1
    assert given(taker) == {"vllm/torch_compile_cache/abc/graph.bin"}


def test_nothing_noted_or_too_much_is_not_given(
    donor: ServicePaths, taker: ServicePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(compiled.Unusable, match="no compile cache was noted"):
        compiled.pack(taker, RELEASE)
    monkeypatch.setattr(compiled, "MOST_BYTES", 3000)
    with pytest.raises(compiled.Unusable, match="are given at most"):
        compiled.pack(donor, RELEASE)
    (donor.own_cache(RELEASE) / "kernel.so").unlink()
    (donor.own_cache(RELEASE) / "vllm/torch_compile_cache/abc/graph.bin").write_bytes(b"x")
    monkeypatch.setattr(compiled, "MOST_BYTES", 1 << 20)
    with pytest.raises(compiled.Unusable, match="no file of the compile cache"):
        compiled.pack(donor, RELEASE)
    assert not (donor.release(RELEASE) / "cache.tar").exists()


def test_an_archive_that_did_not_arrive_whole_leaves_nothing(
    donor: ServicePaths, taker: ServicePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = sent(donor, taker, monkeypatch)
    (taker.carried_cache(RELEASE) / "pieces/00001").write_bytes(b"garbage")
    with pytest.raises(compiled.Unusable, match="did not arrive as it was sent"):
        compiled.take(taker, RELEASE, sha256, "gpu-1")
    assert not taker.carried_cache(RELEASE).exists()


def packed(listed: object, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive that another host's root made at will."""
    data, content = io.BytesIO(), json.dumps({"files": listed}).encode()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, bytes_of_it in (*members, (tarfile.TarInfo(compiled.LISTED), content)):
            member.size = len(bytes_of_it)
            archive.addfile(member, io.BytesIO(bytes_of_it))
    return data.getvalue()


def took(taker: ServicePaths, data: bytes) -> int:
    (compiled.expect(taker, RELEASE) / "00000").write_bytes(data)
    return compiled.take(taker, RELEASE, hashlib.sha256(data).hexdigest(), "gpu-1")


@pytest.mark.parametrize("name", ["/VICTIM", "../../../../../VICTIM", "a/../../../../../../VICTIM"])
def test_a_name_beyond_the_folder_is_not_noted_and_its_file_stays(
    taker: ServicePaths, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim.so"
    victim.write_bytes(b"precious")
    name = str(victim) if name == "/VICTIM" else name.replace("VICTIM", victim.name)
    assert took(taker, packed({name: [hashlib.sha256(b"precious").hexdigest(), 8]})) == 0
    assert json.loads((taker.carried_cache(RELEASE) / compiled.LISTED).read_text())["files"] == {}
    assert given(taker) == set() and victim.read_bytes() == b"precious"


def test_only_what_was_unpacked_is_noted(taker: ServicePaths) -> None:
    digest = hashlib.sha256(b"ELF!").hexdigest()
    kernel = (tarfile.TarInfo("files/kernel.so"), b"ELF!")
    assert took(taker, packed({"kernel.so": [digest, 1 << 60], "missing.so": [digest, 4]}, kernel)) == 1
    noted = json.loads((taker.carried_cache(RELEASE) / compiled.LISTED).read_text())["files"]
    assert noted == {"kernel.so": [digest, 4]}
    assert given(taker) == {"kernel.so"}


def test_a_sparse_file_is_not_unpacked(taker: ServicePaths) -> None:
    """An archive of some kB that would become 64 MiB."""
    size = 64 << 20
    sparse = tarfile.TarInfo("files/x.so")
    sparse.pax_headers = {
        "GNU.sparse.map": f"{size - 1},1",
        "GNU.sparse.size": str(size),
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
    }
    assert took(taker, packed({"x.so": ["0" * 64, size]}, (sparse, b"x"))) == 0
    assert not (taker.carried_cache(RELEASE) / compiled.FILES / "x.so").exists()


@pytest.mark.parametrize(
    "bound", ["bytes", "list", "files", "compressed", "no list", "no sums", "deep", "time"]
)
def test_an_archive_beyond_a_bound_leaves_nothing(
    taker: ServicePaths, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    names = [f"{number}.so" for number in range(4)]
    files = [(tarfile.TarInfo(f"files/{name}"), bytes(3000)) for name in names]
    listed: object = {name: ["0" * 64, 3000] for name in names}
    if bound == "bytes":
        monkeypatch.setattr(compiled, "MOST_BYTES", 10_000)
    elif bound == "list":
        monkeypatch.setattr(compiled, "MOST_LISTED", 100)
    elif bound == "files":
        monkeypatch.setattr(carried_cache, "MOST_FILES", 3)
    elif bound == "no sums":
        listed = dict.fromkeys(names, 7)
    elif bound == "time":
        files[0][0].mtime = 1e300
    data = packed(listed, *files)
    if bound == "compressed":
        data = gzip.compress(data)
    elif bound == "no list":
        data = packed(listed, *files).replace(compiled.LISTED.encode(), b"other.json")
        assert compiled.LISTED.encode() not in data
    elif bound == "deep":
        nested = (tarfile.TarInfo(compiled.LISTED), b"[" * 100_000)
        data = packed(listed, nested)
    with pytest.raises(compiled.Unusable):
        took(taker, data)
    assert not taker.carried_cache(RELEASE).exists()


HOSTILE = ["../../../etc/cron.d/x", "/etc/cron.d/x", "a/../../x", "module.py", "site.pth", "./x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_reaches_nothing_beyond_its_folder(taker: ServicePaths, tmp_path: Path, name: str) -> None:
    """Even of the canary's root, whose sum would be right."""
    outside = tmp_path / "outside"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("files/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for path, content in (
            (f"files/{name}", b"evil"),
            ("files/link/outside", b"evil"),
            ("unlisted", b"evil"),
        ):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        listed = {each: ["0" * 64, 4] for each in (name, "link", "link/outside")}
        content = json.dumps({"files": listed}).encode()
        member = tarfile.TarInfo(compiled.LISTED)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    (compiled.expect(taker, RELEASE) / "00000").write_bytes(data.getvalue())
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    compiled.take(taker, RELEASE, sha256, "gpu-1")
    there = {path.name for path in (taker.carried_cache(RELEASE) / compiled.FILES).rglob("*")}
    assert there <= {"link", "outside"} and not outside.exists()
    assert not any(path.is_symlink() for path in taker.carried_cache(RELEASE).rglob("*"))
    assert given(taker) == set()  # no sum is right


def test_the_machine_is_another_one_with_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for flags in ("avx2", "avx2 avx512f", "avx2"):
        (tmp_path / "cpuinfo").write_text(
            f"model name\t: X\nflags\t\t: {flags}\ncpu MHz : 1\n\nprocessor : 1\n"
        )
        monkeypatch.setattr(compiled, "CPUINFO", tmp_path / "cpuinfo")
        found.append(compiled.machine())
    assert found[0] == found[2] != found[1]


def test_a_donor_can_not_fill_the_control_machine() -> None:
    longest = base64.b64encode(bytes(bringing.PIECE)).decode()
    assert len(bringing._decoded(longest)) == bringing.PIECE
    with pytest.raises(ValueError, match="instead of at most"):
        bringing._decoded(base64.b64encode(bytes(bringing.PIECE + 1)).decode())
    with pytest.raises(ValueError):
        bringing._decoded("no base64!")
