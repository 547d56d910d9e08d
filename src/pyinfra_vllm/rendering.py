"""Text of unit and environment files: how words are written so that systemd expands nothing in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2


def rendered(template: str, **words: Any) -> str:
    """The template with these words. A word that it names and that is missing is an error."""
    return _compiled(template).render(**words)


@cache  # one for all services of a run
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    environment.filters.update(quoted=quoted, assigned=assigned, specifier=specifier)
    return environment.from_string(template)


def specifier(text: str) -> str:
    """Text in which systemd expands nothing."""
    return str(text).replace("%", "%%")


def quoted(text: str) -> str:
    """One word of a unit file: systemd splits at spaces and expands `%`, `$` and backslashes."""
    return assigned(text).replace("$", "$$")


def assigned(text: str) -> str:
    """One word of Environment=, where `$` stands for itself."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def environment_file(environment: Mapping[str, str]) -> str:
    """The text of an EnvironmentFile=: within double quotes `"`, backslash, `$`, backtick are special."""
    lines = []
    for name, value in sorted(environment.items()):
        escaped = value
        for character in ("\\", '"', "$", "`"):
            escaped = escaped.replace(character, f"\\{character}")
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)
