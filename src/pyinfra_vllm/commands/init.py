"""`pyinfra-vllm init`: a small project to begin with. Writes new files only; contacts nobody."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import jinja2

from .. import shipped
from ..errors import DeclarationError

GROUP = "prod"
INVENTORY = f"inventory/{GROUP}.py"
AS_THEY_ARE = ("deploy.py", "rollback.py", "config.py")
HOST, MODEL = "gpu-01.example.net", "Qwen/Qwen3-14B-AWQ"  # to be replaced by whoever names none
RUNTIME, TIMEZONE, FIRST_PORT = "0.33.0", "Europe/Berlin", 8000
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._:@-]*")


@dataclass(frozen=True)
class Served:
    """One service of the new project."""

    name: str
    model: str
    port: int
    number: int


def files(hosts: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The files of a project for these hosts and models, path -> text.

    Raises DeclarationError for a name that can't be one.
    """
    hosts, models = hosts or (HOST,), models or (MODEL,)
    _check(hosts, _HOST, "--host", "a name, an address, or @local")
    _check(models, _REPOSITORY, "--model", "a repository like Qwen/Qwen3-14B-AWQ")
    values: dict[str, object] = {
        "hosts": hosts,
        "services": _services(models),
        "group": GROUP,
        "inventory": INVENTORY,
        "runtime": RUNTIME,
        "timezone": TIMEZONE,
    }
    return {
        **{name: shipped.text(name) for name in AS_THEY_ARE},
        INVENTORY: _filled("inventory.py.j2", values),
        f"group_data/{GROUP}.py": _filled("group_data.py.j2", values),
        ".gitignore": _filled("gitignore", values),
        ".ci/check": _filled("check", values),
        ".ci/plan": _filled("plan", values),
    }


def _check(given: Sequence[str], allowed: re.Pattern[str], option: str, kind: str) -> None:
    for text in given:
        if not allowed.fullmatch(text):
            raise DeclarationError(f"{option} {text!r}: must be {kind}. Nothing was written.")


def _services(models: Sequence[str]) -> list[Served]:
    """Named by their models; `chat` where there is one alone."""
    names = ["chat"] if len(models) == 1 else [_name(model) for model in models]
    if len(set(names)) < len(names):
        raise DeclarationError(
            f"--model: two of {', '.join(models)} would be services of one name. Nothing was written."
        )
    return [
        Served(name, model, FIRST_PORT + number, number)
        for number, (name, model) in enumerate(zip(names, models, strict=True))
    ]


def _name(model: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower())[:40].strip("-")


def _filled(name: str, values: dict[str, object]) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    environment.filters["literal"] = json.dumps
    return environment.from_string(shipped.text(f"templates/project/{name}")).render(**values)


def write(directory: Path, texts: dict[str, str]) -> None:
    """Writes all of the files or none.

    Raises DeclarationError where one is there already, or can't be written.
    """
    there = [name for name in texts if (directory / name).exists() or (directory / name).is_symlink()]
    if there:
        raise DeclarationError(
            f"{', '.join(there)} in {directory} would be overwritten. Nothing was written."
        )
    begun: list[Path] = []
    try:
        for name, text in texts.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            begun.append(path)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        for path in begun:
            path.unlink(missing_ok=True)
        raise DeclarationError(
            f"{error.filename or directory} can't be written: {error.strerror}. Nothing was written."
        ) from error


def following(directory: Path) -> list[str]:
    """The commands to type next."""
    here = directory.resolve() == Path.cwd().resolve()
    return [
        *([] if here else [f"cd {shlex.quote(str(directory))}"]),
        f"pyinfra-vllm lock {INVENTORY}",
        f"pyinfra {INVENTORY} deploy.py --dry",
        f"pyinfra {INVENTORY} deploy.py -y",
    ]


WHY = {
    "pyinfra-vllm lock": "pins the model to a commit with its hashes; commit the file",
    "deploy.py --dry": "says what would happen, host by host; changes nothing",
    "deploy.py -y": "stages now, and switches inside the window",
}


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help=f"A host to serve on, or @local [{HOST}]."
)
@click.option("--model", "models", multiple=True, metavar="REPOSITORY", help=f"A model to serve [{MODEL}].")
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")
def init(directory: Path, hosts: tuple[str, ...], models: tuple[str, ...], json_wanted: bool) -> int:
    """Write a small project to begin with: inventory, group data, deploy.py, rollback.py and what CI runs.

    Nothing is overwritten. Each --model becomes a service of its own, on a card and a port of its own.
    """
    texts = files(hosts, models)
    write(directory, texts)
    commands = following(directory)
    if json_wanted:
        click.echo(
            json.dumps({"directory": str(directory), "files": list(texts), "next": commands}, indent=2)
        )
        return 0
    click.echo(f"Wrote {', '.join(texts)}. Look through {INVENTORY} and group_data/{GROUP}.py; then:\n")
    for command in commands:
        why = next((text for words, text in WHY.items() if words in command), "")
        click.echo(f"    {command:48}{f'  # {why}' if why else ''}".rstrip())
    return 0
