"""Root's decision about a user agrees with what the kernel lets that user do, for owners, groups, others and
access lists.
"""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.state.permissions import EXECUTE, READ, WRITE, Account

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
USER = "nobody"
PYTHON = "/usr/bin/python3"  # one that this user may start
# Asks the kernel, as the user.
TRY = """
import json, os, sys
print(json.dumps([os.access(path, mode) for path, mode in json.load(sys.stdin)]))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path


def kernel(asked: list[tuple[str, int]]) -> list[bool]:
    found = pwd.getpwnam(USER)
    done = subprocess.run(
        [PYTHON, "-I", "-c", TRY], input=json.dumps(asked), capture_output=True, text=True, check=True,
        user=found.pw_uid, group=found.pw_gid, extra_groups=os.getgrouplist(USER, found.pw_gid), cwd="/",
    )  # fmt: skip
    return list(json.loads(done.stdout))


def agree(paths: list[Path]) -> None:
    account = Account(USER)
    asked = [(str(path), mode) for path in paths for mode in (READ, WRITE, EXECUTE, READ | WRITE)]
    said = [not account.hindrance(Path(path), mode) for path, mode in asked]
    assert dict(zip(asked, said, strict=True)) == dict(zip(asked, kernel(asked), strict=True))
    assert len(set(said)) == 2, "all alike: this shows nothing"


def test_owner_group_and_others(place: Path) -> None:
    account = Account(USER)
    paths = []
    for owner, group, mode in itertools.product(
        (0, account.uid), (0, min(account.groups)), (0o640, 0o604, 0o460, 0o755, 0o070, 0o111)
    ):
        path = place / f"{owner}-{group}-{mode:o}"
        path.touch()
        os.chown(path, owner, group)
        path.chmod(mode)
        paths.append(path)
    agree(paths)


def test_folders_on_the_way_and_links(place: Path) -> None:
    for name, mode in (("open", 0o755), ("shut", 0o700), ("listed", 0o744)):
        (place / name).mkdir()
        (place / name / "file").write_text("x")
        (place / name).chmod(mode)
        (place / f"to-{name}").symlink_to(place / name / "file")
        (place / "open" / f"through-{name}").symlink_to(place / name)
    agree([
        *(place / name / "file" for name in ("open", "shut", "listed")),
        *(place / f"to-{name}" for name in ("open", "shut", "listed")),
        *(place / "open" / f"through-{name}" / "file" for name in ("open", "shut", "listed")),
        place / "nowhere",
    ])  # fmt: skip


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_access_lists(place: Path) -> None:
    account = Account(USER)
    group, nobody = min(account.groups), 0xFFFFFFFF
    lists = {
        "named": acl((1, 6, nobody), (2, 4, account.uid), (4, 0, nobody), (16, 7, nobody), (32, 0, nobody)),
        "masked": acl((1, 6, nobody), (2, 6, account.uid), (4, 0, nobody), (16, 4, nobody), (32, 0, nobody)),
        "refused": acl((1, 6, nobody), (2, 0, account.uid), (4, 0, nobody), (16, 7, nobody), (32, 7, nobody)),
        "group": acl((1, 6, nobody), (4, 0, nobody), (8, 5, group), (16, 7, nobody), (32, 0, nobody)),
    }
    paths = []
    for name, raw in lists.items():
        paths.append(place / name)
        paths[-1].touch()
        try:
            os.setxattr(paths[-1], "system.posix_acl_access", raw)
        except OSError as error:
            pytest.skip(f"no access lists on {place}: {error}")
    agree(paths)


def test_nothing_is_run_to_find_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    (place / "file").touch()
    assert Account(USER).hindrance(place / "file") == ""
    shutil.rmtree(place)
