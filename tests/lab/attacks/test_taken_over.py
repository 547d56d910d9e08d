"""Somebody has taken the server over: what runs in its process, under its unit, stays there and ends with its
release.
"""

from __future__ import annotations

import pytest

from .people import PLACE, SERVICE, UNIT, Attacked

pytestmark = pytest.mark.full

# Writes into its own environment, where an earlier version looked for the release: $LIE, or bytes that are no
# text.
LIAR = """
import ctypes, os
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
begin, end = int(fields[47]), int(fields[48])
memory = ctypes.string_at(begin, end - begin)
name = b"PYINFRA_VLLM_RELEASE="
at = memory.index(name) + len(name)
lie = os.environ["LIE"].encode() if os.environ["LIE"] != "ff" else b"\\xff" * 12
ctypes.memmove(begin + at, lie, 12)
"""
# Kills whatever else of its user it can see, for as long as it lives.
KILLER = """
import os, signal, threading, time
def kill():
    mine = {os.getpid()}
    while True:
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and int(name) not in mine and os.stat("/proc/" + name).st_uid == os.getuid():
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.0005)
threading.Thread(target=kill, daemon=True).start()
"""  # noqa: E501
# Leaves Python code and a library wherever it can write, for whoever comes after it.
PLANTER = """
import os, pathlib, site
left = []
for place in (os.getcwd(), os.environ["HOME"], os.environ["HOME"] + "/vllm", os.environ["HOME"] + "/triton", site.getusersitepackages(), "/dev/shm", "/tmp", "/var/tmp"):
    try:
        pathlib.Path(place).mkdir(parents=True, exist_ok=True)
        for name in ("colorsys.py", "usercustomize.py", "sitecustomize.py"):
            pathlib.Path(place, name).write_text("print('PLANTED', __file__)")
        left.append(place)
    except OSError:
        pass
print("planted in", *left, flush=True)
"""  # noqa: E501
# Does what vLLM's helpers do: starts Python beside itself; and looks at what is left of the one before.
HEIR = """
import os, subprocess, sys
for words in (["-c", "import colorsys; print('HELPER', colorsys.__file__)"], ["-m", "colorsys"]):
    print(subprocess.run([sys.executable, *words], capture_output=True, text=True).stdout, flush=True)
for top in (os.environ["HOME"], "/dev/shm", "/tmp", "/var/tmp"):
    print("FOUND", [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names if name.endswith("customize.py")], flush=True)
"""  # noqa: E501
LOG = f"journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {UNIT})"


def test_a_rejected_release_that_says_it_is_the_old_one_is_gone(serving: Attacked) -> None:
    old = serving.status()["current"]
    checkpoint = serving.sh(f"tr '\\0' ' ' < /proc/{serving.main_pid()}/cmdline")
    liar = serving.put("liar.py", LIAR)
    done = serving.deploy("b", LIGHT_RUN=liar, LIE=old, LIGHT_KERNEL="slow")
    assert done.returncode == 1
    assert serving.outcome()[0] == "rolled_back"
    assert serving.sh(f"tr '\\0' ' ' < /proc/{serving.main_pid()}/cmdline") == checkpoint
    assert serving.status()["running"] == old


def test_invalid_utf8_does_not_block_the_rollback(serving: Attacked) -> None:
    old = serving.status()["current"]
    liar = serving.put("liar.py", LIAR)
    done = serving.deploy("b", LIGHT_RUN=liar, LIE="ff", LIGHT_KERNEL="slow")
    assert done.returncode == 1
    assert serving.outcome()[0] == "rolled_back"
    assert serving.status()["running"] == old


def test_server_cannot_block_a_pre_check(serving: Attacked) -> None:
    """The old release can be left, and gone back to, whatever its process does to others of its user."""
    killer = serving.put("killer.py", KILLER)
    serving.deployed("b", LIGHT_RUN=killer)
    serving.deployed("a")
    assert serving.outcome()[0] == "committed"


def test_nothing_that_a_server_leaves_behind_is_run_by_the_next(serving: Attacked) -> None:
    serving.deployed("b", LIGHT_RUN=serving.put("planter.py", PLANTER))
    assert "planted in" in serving.sh(LOG)
    serving.deployed("b", LIGHT_RUN=serving.put("heir.py", HEIR))
    told = serving.sh(LOG)
    assert "HELPER /usr/lib" in told
    assert "PLANTED" not in told
    assert [line for line in told.splitlines() if line.startswith("FOUND")] == ["FOUND []"] * 4


def test_a_server_stays_in_its_unit(serving: Attacked) -> None:
    """Nobody starts anything for it, it writes to nothing but its cache, and nothing of root's was left open
    for it.
    """
    told = serving.inside(
        """
import os, socket
for path in ("/run/dbus/system_bus_socket", "/run/systemd/private"):
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(path)
        print("reached", path)
    except OSError:
        pass
for top in ("/srv", "/etc", "/run", "/var", "/opt", "/usr/local", "/sys/fs/cgroup"):
    for folder, folders, _ in os.walk(top):
        if os.access(folder, os.W_OK) and not folder.startswith(("/var/tmp", "/run/lock")):
            print("writes", folder)
            folders.clear()
print("umask", oct(os.umask(0)))
"""
    )
    assert [line for line in told.splitlines() if line != "umask 0o77" and not line.startswith("umask")] == [
        f"writes {SERVICE}/cache"
    ]
    kept = serving.sh(
        (
            f"ls -l /proc/{serving.main_pid()}/fd | grep -v 'socket:\\|/dev/null\\|anon_inode\\|pipe:' |"
            " grep -c /"
        ),
        check=False,
    )
    assert kept == "0"
    assert serving.sh(f"grep Umask /proc/{serving.main_pid()}/status").split()[1] == "0077"


def test_what_a_server_links_to_from_its_cache_stays_when_its_release_goes(serving: Attacked) -> None:
    """Root measures and removes releases with all that is in them: links in a cache lead it nowhere."""
    serving.sh(f"mkdir -p {PLACE}/precious && echo kept > {PLACE}/precious/file")
    release = serving.sh(f"readlink {SERVICE}/current")
    serving.inside(
        "import os, sys\nfor name, target in (('up', '..'), ('away', sys.argv[1]), ('root', '/')):\n"
        "    os.symlink(target, os.environ['HOME'] + '/' + name)\nos.mkfifo(os.environ['HOME'] + '/fifo')",
        f"{PLACE}/precious",
    )
    cache = f"{SERVICE}/{release}/cache"
    left = {"away", "fifo", "root", "up"}
    assert left <= set(serving.sh(f"ls {cache}").split())
    told = serving.on_host(
        "import shutil\nfrom pathlib import Path\nfrom pyinfra_vllm.on_host.staging import prune\ndoomed ="
        f" Path('{SERVICE}/releases/.doomed')\nshutil.copytree('{SERVICE}/{release}', doomed, symlinks=True,"
        " ignore=lambda d, n: ['fifo'])\nsize ="
        " prune.used_bytes(doomed)\nprune.remove(doomed)\nprint(json.dumps([size, doomed.exists()]))"
    )
    assert told[0] < 200_000 and told[1] is False
    assert serving.sh(f"cat {PLACE}/precious/file") == "kept"
    assert left <= set(serving.sh(f"ls {cache}").split())
    serving.sh(f"cd {cache} && rm {' '.join(left)}")
