"""A local user reads what root writes, and holds what root needs."""

from __future__ import annotations

import pytest

from .people import MALLORY, ROOT, SERVICE, Attacked

pytestmark = pytest.mark.full

STORAGE = "/run/pyinfra-vllm/storage.lock"
LOCK = f"{SERVICE}/lock"
HOLD = """
import fcntl, sys, time
held = []
for path in sys.argv[1:]:
    try:
        held.append(open(path))
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        print(error)
print("holds", len(held))
time.sleep(600)
"""
# The lock goes to a program that is root by its file's mode and waits for a password.
HAND_TO_ROOT = """
import fcntl, os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
os.set_inheritable(held, True)
fcntl.flock(held, fcntl.LOCK_EX)
read, write = os.pipe()
os.dup2(read, 0)
os.set_inheritable(write, True)
print("holds 1")
os.execv("/bin/su", ["su"])
"""
AS_BEFORE = (
    f"rm {ROOT}/bin/on-host.pyz; chmod 755 /run/pyinfra-vllm; touch {STORAGE} {LOCK}; chmod 644 {STORAGE}"
    f" {LOCK}"
)


def as_mallory(attacked: Attacked, command: str) -> str:
    return attacked.sh(f"runuser -u {MALLORY} -- sh -c '{command}'", check=False)


def test_locks_of_an_earlier_version_that_a_user_holds_block_nobody(serving: Attacked) -> None:
    serving.sh(AS_BEFORE)
    with serving.running("hold", HOLD, STORAGE, LOCK, wait_for="holds 2"):
        serving.deployed("b")
        assert serving.sh(f"python3 -I {ROOT}/bin/on-host.pyz recover tiny; echo $?") == "0"


def test_a_lock_that_was_handed_to_a_root_program_blocks_nobody(serving: Attacked) -> None:
    serving.sh(AS_BEFORE)
    with serving.running("hand", HAND_TO_ROOT, LOCK, wait_for="holds 1"):
        serving.until("pgrep -u root -x su")
        serving.deployed("b")
        assert serving.outcome()[0] == "committed"


def test_a_user_can_hold_no_lock_of_ours(attacked: Attacked) -> None:
    attacked.sh(f"python3 -I {ROOT}/bin/on-host.pyz tighten")
    with attacked.running("hold", HOLD, STORAGE, LOCK, wait_for="holds") as said:
        assert attacked.sh(f"cat {said}").splitlines()[-1] == "holds 0"


def test_a_user_can_put_nothing_where_root_writes(attacked: Attacked) -> None:
    """Neither the names that root takes nor any other, in whatever way a name can be taken."""
    folders = attacked.sh(f"find {ROOT} /run/pyinfra-vllm -type d ! -path '*/cache'").split()
    ways = ("ln -sfn /etc/passwd", "ln -f /etc/passwd", "mkfifo", "touch", "mkdir")
    code = "; ".join(f'{way} "$folder/mallory-$RANDOM"' for way in ways)
    attacked.sh(
        f"runuser -u {MALLORY} -- bash -c 'for folder in {' '.join(folders)}; do {code}; done'", check=False
    )
    assert attacked.sh(f"find {ROOT} /run/pyinfra-vllm -name 'mallory-*'") == ""


def test_records_logs_and_answers_are_for_root_alone(attacked: Attacked) -> None:
    readable = as_mallory(attacked, f"find {SERVICE} /run/pyinfra-vllm -type f -readable").splitlines()
    public = ("release.json", "vllm.service", "argv", "env")
    assert [path for path in readable if path.rsplit("/", 1)[1] not in public] == []


def test_an_upgrade_closes_what_an_earlier_version_left_open(attacked: Attacked) -> None:
    open_files = f"{SERVICE}/journal.jsonl {SERVICE}/evidence"
    attacked.sh(f"chmod -R a+rX {open_files}; rm {ROOT}/bin/on-host.pyz")
    assert as_mallory(attacked, f"head -c 1 {SERVICE}/journal.jsonl") == "{"
    attacked.deployed()
    assert as_mallory(attacked, f"head -c 1 {SERVICE}/journal.jsonl") == ""
    assert as_mallory(attacked, f"ls {SERVICE}/evidence") == ""
