"""Tells whoever follows a unit how far it is: one small JSON file, and lines for the unit's own log.

`state` is done or failed at the end, anything else before; `error` says why, `message` what is done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RUN = Path("/run/pyinfra-vllm")


class Status:
    """The status file of one unit. Holds no secret."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, state: str, **content: Any) -> None:
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"state": state, "updated": time.time(), **content}), encoding="utf-8")
        partial.replace(self.path)

    def say(self, state: str, message: str, **content: Any) -> None:
        """One line of what is done now."""
        self.write(state, message=message, **content)
        print(message, file=sys.stderr, flush=True)

    def done(self, message: str, **content: Any) -> None:
        self.say("done", message, **content)

    def failed(self, error: str, **content: Any) -> None:
        self.write("failed", error=error, **content)
        print(error, file=sys.stderr, flush=True)
