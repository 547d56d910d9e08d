"""A stand-in for nvidia-smi: a program that answers our questions as the real one does (driver 580; older and
dead ones on demand).

`program(...)` is its text, for a file called nvidia-smi on a PATH. Words and exit codes are those of the real
program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Card = dict[str, Any]


def card(index: int = 0, processes: Sequence[Mapping[str, Any]] = (), **changes: Any) -> Card:
    """One card.

    A process has a `pid`, or a `unit` whose main process it is, if any, a `name` and `used`; on a MIG card
    `place`.
    """
    return {
        "index": index, "uuid": uuid(index), "name": "NVIDIA H200", "memory.total": 143771, "memory.used": 0,
        "driver_version": "580.159.04", "compute_cap": "9.0", "ecc.mode.current": "Enabled",
        "mig.mode.current": "Disabled", "instances": [], "processes": list(processes), **changes,
    }  # fmt: skip


def uuid(number: int, kind: str = "GPU") -> str:
    return f"{kind}-{number:08x}-1111-2222-3333-444444444444"


def instance(number: int, place: tuple[int, int], total: Any = 20096, used: Any = 19) -> dict[str, Any]:
    """One MIG instance: its number on its card, and its GPU instance and compute instance."""
    return {
        "number": number, "uuid": uuid(number, "MIG"), "profile": "1g.20gb", "place": list(place),
        "total": total, "used": used,
    }  # fmt: skip


def program(
    *cards: Card, refused: Sequence[str] = (), dead: bool = False, garbage: str = "", hangs_s: float = 0
) -> str:
    """The text of a program that tells of these cards.

    refused: columns that its driver is too old for; dead: no driver answers; hangs_s: seconds before it does
        anything
    """
    state = {
        "cards": cards,
        "refused": list(refused),
        "dead": dead,
        "garbage": garbage,
        "hangs_s": hangs_s,
    }
    return f"#!/usr/bin/env python3\nSTATE = {json.dumps(state)!r}\n{_PROGRAM}"


def install(folder: Path, text: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(text)
    path.chmod(0o755)
    return path


_PROGRAM = r"""
import json, subprocess, sys, time
from xml.sax.saxutils import escape
STATE = json.loads(STATE)
cards, arguments = STATE["cards"], sys.argv[1:]
time.sleep(STATE["hangs_s"])
if STATE["dead"]:
    print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
          "Make sure that the latest NVIDIA driver is installed and running.\n")
    sys.exit(9)
if STATE["garbage"]:
    print(STATE["garbage"])
    sys.exit(0)
def pid(process):
    if "unit" not in process:
        return process["pid"]
    return subprocess.run(["systemctl", "show", "-P", "MainPID", process["unit"]], capture_output=True, text=True).stdout.strip()
for card in cards:
    card["processes"] = [process for process in card["processes"] if pid(process) not in ("", "0")]
def query(option):
    (text,) = [word.split("=", 1)[1] for word in arguments if word.startswith(option + "=")]
    for column in text.split(","):
        if column in STATE["refused"]:
            print(f'Field "{column}" is not a valid field to query.\n')
            sys.exit(2)
    return text.split(",")
def mib(value):
    return value if isinstance(value, str) else f"{value} MiB"
if any(word.startswith("--query-gpu=") for word in arguments):
    assert "--format=csv,noheader,nounits" in arguments or query("--query-gpu") == ["driver_version"]
    for card in cards:
        print(", ".join(str(card[column]) for column in query("--query-gpu")))
elif any(word.startswith("--query-compute-apps=") for word in arguments):
    for card in cards:
        for process in card["processes"]:
            row = {"gpu_uuid": card["uuid"], "pid": pid(process), "used_memory": process.get("used", "[N/A]"),
                   "process_name": process.get("name", "[Not Found]")}
            print(", ".join(str(row[column]) for column in query("--query-compute-apps")))
elif arguments == ["-L"]:
    for card in cards:
        print(f"GPU {card['index']}: {card['name']} (UUID: {card['uuid']})")
        for each in card["instances"]:
            print(f"  MIG {each['profile']}     Device {each['number']:>2}: (UUID: {each['uuid']})")
elif arguments == ["-q", "-x"]:
    print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>')
    for card in cards:
        print(f"<gpu id=\"00000000:{card['index']:02X}:00.0\"><product_name>{card['name']}</product_name><mig_devices>")
        for each in card["instances"]:
            gi, ci = each["place"]
            print(f"<mig_device><index>{each['number']}</index><gpu_instance_id>{gi}</gpu_instance_id>"
                  f"<compute_instance_id>{ci}</compute_instance_id><fb_memory_usage><total>{mib(each['total'])}</total>"
                  f"<reserved>0 MiB</reserved><used>{mib(each['used'])}</used></fb_memory_usage></mig_device>")
        print(f"</mig_devices><uuid>{card['uuid']}</uuid><processes>")
        for process in card["processes"]:
            gi, ci = process.get("place", ("N/A", "N/A"))
            print(f"<process_info><gpu_instance_id>{gi}</gpu_instance_id><compute_instance_id>{ci}</compute_instance_id>"
                  f"<pid>{pid(process)}</pid><type>{process.get('type', 'C')}</type>"
                  f"<process_name>{escape(process.get('name', '[Not Found]'))}</process_name>"
                  f"<used_memory>{mib(process.get('used', 'N/A'))}</used_memory></process_info>")
        print("</processes></gpu>")
    print("</nvidia_smi_log>")
else:
    print(f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n")
    sys.exit(1)
"""  # noqa: E501
