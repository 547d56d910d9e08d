"""The hosts of the lab that runs on this machine; `make lab-up` starts one.

They are reached as an operator reaches hosts: by key, as an ordinary account with sudo, with known host keys.
PYINFRA_VLLM_LAB_HOSTS is JSON that tests write beside a host's name: {"solo": {"services": ...}}.
"""

import json
import os
from pathlib import Path

_state = Path(os.environ.get("PYINFRA_VLLM_LAB_STATE", "/run/pyinfra-vllm-lab/state.json"))
if not _state.exists():
    raise SystemExit("inventory/lab.py: no lab is running on this machine (start one: make lab-up)")
_lab = json.loads(_state.read_text())

# Checkpoints come from the lab's own Hub, unless the operator named another.
os.environ.setdefault("HF_ENDPOINT", _lab["hub"])
# Tests give that Hub a token, over a bridge that nobody else is on.
os.environ.setdefault("PYINFRA_VLLM_TOKEN_OVER_HTTP", "1")

_ssh = {
    "ssh_user": _lab["user"],
    "ssh_key": _lab["key"],
    "ssh_strict_host_key_checking": "yes",
    "ssh_known_hosts_file": _lab["known_hosts"],
    "_sudo": True,
}
_own = json.loads(os.environ.get("PYINFRA_VLLM_LAB_HOSTS", "{}"))
lab = [
    (name, {"ssh_hostname": address, **_ssh, **_own.get(name, {})}) for name, address in _lab["hosts"].items()
]
