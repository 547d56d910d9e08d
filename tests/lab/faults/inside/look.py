"""Run on a host under test: everything the invariants are about, as JSON. Changes nothing.

It shares no code with the product: what the product says of itself (`status`) is only carried along, to be
compared.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/srv/pyinfra-vllm")
STATE = ROOT / "tiny"
UNIT = "vllm-tiny.service"
UNITS = Path("/etc/systemd/system")


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_journal(path):
    """Every whole line, oldest first; one that was torn or is being written is left out."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in found if isinstance(entry, dict) and "tx" in entry]


def newest(entries):
    begun = [entry["tx"] for entry in entries if entry["step"] == "begin"]
    return [entry for entry in entries if begun and entry["tx"] == begun[-1]]


def last(entries):
    """The newest transaction in a few words: what it was to do, and how it ended."""
    if not entries:
        return None
    end = next((entry for entry in reversed(entries) if entry["step"] == "end"), {})
    words = {key: entries[0].get(key) for key in ("tx", "from", "to", "purpose")}
    return {**words, "outcome": end.get("outcome"), "reason": end.get("reason") or ""}


def link(path):
    return path.readlink().name if path.is_symlink() else None


def main_process():
    return lines("systemctl", "show", "--value", "--property", "MainPID", UNIT)[0].strip()


def running(pid):
    """The release that the server was started from, as its own environment says."""
    try:
        words = Path("/proc", pid, "environ").read_text(errors="replace").split("\0")
    except OSError:
        return None
    return next((word.partition("=")[2] for word in words if word.startswith("PYINFRA_VLLM_RELEASE=")), None)


def lock_holder():
    """The content of the lock's file, where a live process holds it."""
    try:
        descriptor = os.open(STATE / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return (STATE / "lock").read_text()
    finally:
        os.close(descriptor)


def processes():
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            cgroup = (entry / "cgroup").read_text().strip().splitlines()[-1]
        except OSError:  # it ended while we looked
            continue
        if command and state != "Z":
            yield {"pid": int(entry.name), "state": state, "command": command, "cgroup": cgroup}


def evidence(tx):
    folder = STATE / "evidence" / tx
    journal = folder / "journal.jsonl"
    return {
        "kept": {path.stem: read_json(path) for path in folder.glob("*.json")},
        "journal": read_journal(journal) if journal.exists() else None,
    }


def status():
    """The product's own account of itself."""
    said = subprocess.run(
        ("python3", ROOT / "bin/on-host.pyz", "--root", ROOT, "status", "tiny"),
        capture_output=True,
        text=True,
    )
    try:
        (service,) = json.loads(said.stdout)
    except ValueError:
        return {"error": said.stderr[-500:]}
    return {key: service[key] for key in ("running", "current", "last", "asleep")}


def main():
    entries = newest(read_journal(STATE / "journal.jsonl"))
    mounts = [line.split()[4] for line in Path("/proc/1/mountinfo").read_text().splitlines()]
    release = read_json(STATE / "current/release.json")
    found = {
        "service": {
            "current": link(STATE / "current"),
            "previous": link(STATE / "previous"),
            "running": running(main_process()),
            "release": release["id"] if release else None,
            "lock": lock_holder(),
            "rejected": sorted(read_json(STATE / "rejected.json") or {}),
            "last": last(entries),
        },
        "entries": entries,
        "evidence": evidence(entries[0]["tx"]) if entries else None,
        "previous_exists": (STATE / "previous/release.json").exists(),
        "links": {
            "unit": os.path.realpath(UNITS / UNIT) == os.path.realpath(STATE / "current/vllm.service"),
            "at boot": (UNITS / "multi-user.target.wants" / UNIT).is_symlink(),
        },
        "processes": list(processes()),
        "mounts": sorted(path for path in mounts if not path.startswith(("/run/credentials", "/run/user"))),
        "units": lines("systemctl", "list-units", "--all", "--plain", "--no-legend", "pyinfra-vllm*"),
        "failed": lines("systemctl", "list-units", "--failed", "--plain", "--no-legend"),
        "files": sorted(
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.relative_to(ROOT).parts[:2] != ("tiny", "cache")
        ),
        "status": status(),
    }
    json.dump(found, sys.stdout)


main()
