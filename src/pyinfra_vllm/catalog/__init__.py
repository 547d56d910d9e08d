"""The catalog of GPUs, models, vLLM's flags and their effects: YAML and JSON that a person corrects.

Reads the files beside this one, once each. Decides nothing: `tuning` and `fit` do.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

# The C one is ten times faster, and not in every build.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def table(name: str) -> Any:
    """The content of one data file, such as `table("gpus.yaml")`. Treat it as read-only: it is shared."""
    text = (files(__name__) / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.load(text, Loader=_Loader)
