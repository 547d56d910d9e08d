"""Which Hub, and whether it may have the token: from HF_ENDPOINT, before `huggingface_hub` is imported."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from pyinfra_vllm.config.problems import shown
from pyinfra_vllm.errors import DeclarationError

VARIABLE = "HF_ENDPOINT"
TOKEN_ANYWAY = "PYINFRA_VLLM_TOKEN_OVER_HTTP"
DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """The Hub's base URL without a slash at its end.

    Raises DeclarationError for a variable that holds no such URL, or a password: plans, logs and the hosts'
    status files name the Hub.
    """
    declared = os.environ.get(VARIABLE) or DEFAULT_ENDPOINT
    if set("@?#") & set(declared):  # whichever of these a password may have in it
        raise DeclarationError(
            f"The environment variable {VARIABLE} (not shown) must be a URL like {DEFAULT_ENDPOINT}, without"
            " user, password or query. A token goes into HF_TOKEN. Nothing was touched."
        )
    try:
        parts = urlsplit(declared)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an open bracket, a port that is none
        usable = False
    if not usable or not declared.isprintable() or " " in declared:
        raise DeclarationError(
            f"The environment variable {VARIABLE} = {shown(VARIABLE, declared)} is not the URL of a Hub: set"
            f" it to one like {DEFAULT_ENDPOINT}, or unset it. Nothing was touched."
        )
    return declared.rstrip("/")


def check() -> None:
    """Raises DeclarationError where no Hub can be meant, or where the token would travel unencrypted."""
    if not may_have_token(endpoint()):
        token()


def token(to: str | None = None) -> str | None:
    """The Hub's token, from HF_TOKEN or where `hf auth login` keeps it; None where there is none.

    + to: the Hub's URL; left out: the declared one

    Raises DeclarationError where it would travel unencrypted to another machine and nobody said that it may.
    """
    from huggingface_hub import get_token

    where = to or endpoint()
    found = get_token()
    if found and not may_have_token(where):
        raise DeclarationError(
            f"The environment variable {VARIABLE} = {shown(VARIABLE, where)} is not encrypted, and there is"
            " a token (HF_TOKEN, or of `hf auth login`), which everybody on the way could read. Nothing was"
            " sent or touched. Use an https:// URL, unset the token where all models are public, or set"
            f" {TOKEN_ANYWAY}=1 where nobody else is on that network."
        )
    return found


def may_have_token(where: str) -> bool:
    """Whether a token is safe on the way to that Hub: encrypted, on this machine, or so accepted."""
    parts = urlsplit(where)
    return (
        parts.scheme == "https" or _is_loopback(parts.hostname or "") or os.environ.get(TOKEN_ANYWAY) == "1"
    )


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
