"""Run on a host under test: everything the invariants are about, as JSON. Changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path("/srv/pyinfra-vllm")
sys.path.insert(0, str(ROOT / "bin/on-host.pyz"))

from pyinfra_vllm.on_host import journal, observe  # noqa: E402  (its place is known only now)


def processes():
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            cgroup = (entry / "cgroup").read_text().strip().splitlines()[-1]
            user = entry.stat().st_uid
        except OSError:  # it ended while we looked
            continue
        if command and state != "Z":
            yield {"pid": int(entry.name), "state": state, "command": command, "cgroup": cgroup, "uid": user}


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def evidence(tx):
    folder = ROOT / "tiny/evidence" / tx
    kept = {path.stem: observe.read_json(path) for path in folder.glob("*.json")}
    closed = journal.read(folder / "journal.jsonl") if (folder / "journal.jsonl").exists() else None
    return {"kept": kept, "journal": closed}


def main():
    service = observe.service(ROOT, "tiny")
    entries = journal.last_transaction(ROOT / "tiny/journal.jsonl") or []
    mounts = [line.split()[4] for line in Path("/proc/1/mountinfo").read_text().splitlines()]
    found = {
        "service": service,
        "entries": entries,
        "evidence": evidence(entries[0]["tx"]) if entries else None,
        "previous_exists": (ROOT / "tiny/previous/release.json").exists(),
        "processes": list(processes()),
        "mounts": sorted(path for path in mounts if not path.startswith(("/run/credentials", "/run/user"))),
        "units": lines("systemctl", "list-units", "--all", "--plain", "--no-legend", "pyinfra-vllm*"),
        "files": sorted(
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.relative_to(ROOT).parts[:2] != ("tiny", "cache")
        ),
    }
    json.dump(found, sys.stdout)


main()
