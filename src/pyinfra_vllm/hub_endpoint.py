"""Which Hub: read from HF_ENDPOINT and checked before `huggingface_hub`, which reads it too, is imported."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pyinfra_vllm.config.problems import shown
from pyinfra_vllm.errors import DeclarationError

VARIABLE = "HF_ENDPOINT"
DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """The Hub's base URL without a slash at its end. Raises DeclarationError for a variable that holds no such URL."""
    declared = os.environ.get(VARIABLE) or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(declared)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an open bracket, a port that is none
        usable = False
    if not usable or not declared.isprintable() or " " in declared:
        raise DeclarationError(
            f"The environment variable {VARIABLE} = {shown(VARIABLE, declared)} is not the URL of a Hub: set it to one "
            f"like {DEFAULT_ENDPOINT}, or unset it. Nothing was touched."
        )
    return declared.rstrip("/")
