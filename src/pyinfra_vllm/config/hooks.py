"""Declared hooks: commands on the host or URLs that a switch calls (docs/hooks.md).

Nothing here may hold a secret: all can read it on the host. A secret URL is named by its variable.
"""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from .base import Declaration
from .fields import EnvironmentName, Text, as_tuple, no_control, plain
from .problems import secret_in_url


def _url(text: str) -> str:
    if secret_in_url(text):
        raise ValueError(
            'looks like a secret; put the URL under `secrets` and declare {"url_env": "ITS_VARIABLE"} here'
        )
    try:
        parts = urlsplit(no_control(text))
        port = parts.port
    except ValueError as error:  # an open bracket, a port above 65535
        raise ValueError(f"must be an http(s) URL that can be called ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text or port == 0:
        raise ValueError("must be an http(s) URL, or a command as a list of words; never a shell's text")
    return text


def _hook(value: object) -> object:
    """One of the three kinds; the field refuses any other value."""
    if isinstance(value, str):
        return _url(value)
    words = as_tuple(value)
    if isinstance(words, tuple) and not (words and str(words[0]).startswith("/")):
        raise ValueError(
            'must begin with the absolute path of a program on the host, like "/usr/local/bin/lb"'
        )
    return plain(words)


class SecretUrl(Declaration):
    """A URL that one of the service's secrets holds."""

    url_env: EnvironmentName = Field(description="the name of a variable of the service's `secrets`")


_ALLOWED = 'a list of words like ["/usr/local/bin/lb", "drain"], a URL, or {"url_env": NAME}'
Hook = Annotated[SecretUrl | tuple[Text, ...] | str, BeforeValidator(_hook)]


class Hooks(Declaration):
    """The hooks of one service; left out: none."""

    drain: Hook | None = Field(default=None, description=_ALLOWED)
    undrain: Hook | None = Field(default=None, description=_ALLOWED)
    notify: Hook | None = Field(default=None, description=_ALLOWED)
    timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=30.0, description="seconds, more than 0 and at most 600"
    )

    check: bool = Field(
        default=False,
        description="whether the programs take `--check` as a last word, for `pyinfra-vllm doctor`",
    )

    @model_validator(mode="after")
    def _no_way_without_a_way_back(self) -> Self:
        if (self.drain is None) != (self.undrain is None):
            raise ValueError("must have both of `drain` and `undrain`, or neither")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The variables that hold URLs."""
        return tuple(hook.url_env for hook in self._called().values() if isinstance(hook, SecretUrl))

    def document(self) -> dict[str, object]:
        """The same for the host (on_host/server/hooks.py); empty where no hook is declared."""
        called = {kind: _document(hook) for kind, hook in self._called().items()}
        if not called:
            return {}
        return {**called, "timeout_s": self.timeout_s, **({"check": True} if self.check else {})}

    def _called(self) -> dict[str, SecretUrl | tuple[str, ...] | str]:
        hooks = {kind: getattr(self, kind) for kind in ("drain", "undrain", "notify")}
        return {kind: hook for kind, hook in hooks.items() if hook is not None}


def _document(hook: SecretUrl | tuple[str, ...] | str) -> dict[str, object]:
    if isinstance(hook, SecretUrl):
        return {"url_env": hook.url_env}
    return {"url": hook} if isinstance(hook, str) else {"argv": list(hook)}
