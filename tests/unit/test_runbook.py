"""Every command of the runbook and of the page on unattended rollouts is one that exists, with those very
options.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from pyinfra_cli.main import cli as pyinfra

from pyinfra_vllm.cli import cli
from pyinfra_vllm.on_host import __main__ as on_host
from pyinfra_vllm.schedule.units import units
from pyinfra_vllm.spoken import OVERRIDE_KEYS, ROLLBACK_KEYS

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "docs" / name for name in ("runbook.md", "unattended.md")]
PROGRAM = "/srv/pyinfra-vllm/bin/on-host.pyz"
ON_HOST_UNITS = {
    "vllm-chat.service",
    "pyinfra-vllm-switch-chat.service",
    "pyinfra-vllm-recover@chat.service",
}
PLAIN = {"nvidia-smi", "df"}
INLINE = r"`((?:systemctl (?!--user)|pyinfra-vllm )[^`]+)`"


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("    ")]
    inline = [found for page in PAGES for found in re.findall(INLINE, page.read_text())]
    words = [
        shlex.split(line, comments=True) for line in [*lines, *inline] if not line.lstrip().startswith("*")
    ]
    return [item[1:] if item[0] == "sudo" else item for item in words]


def of(program: str) -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == program]


def test_the_pages_have_commands_and_no_unknown_programs() -> None:
    found = {words[0] for words in commands()}
    assert found == {"pyinfra", "pyinfra-vllm", "python3", "systemctl", "journalctl", *PLAIN}
    assert len(commands()) > 30
    assert ["prune", "inventory/prod.py", "--limit", "gpu-01"] in of("pyinfra-vllm"), "those in the text too"


@pytest.mark.parametrize("words", of("pyinfra-vllm"), ids=" ".join)
def test_our_command_takes_these_words(words: list[str]) -> None:
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None
    context = command.make_context(words[0], words[1:])
    assert context.params["inventory"] == "inventory/prod.py"


@pytest.mark.parametrize("words", of("pyinfra"), ids=" ".join)
def test_pyinfra_takes_these_words(words: list[str]) -> None:
    given = pyinfra.make_context("pyinfra", list(words)).params
    assert given["inventory"] == "inventory/prod.py" and given["yes"]
    (deploy,) = given["operations"]
    assert (PROJECT / deploy).is_file()
    keys = {item.partition("=")[0] for item in given["data"]}
    allowed = {*OVERRIDE_KEYS, *(ROLLBACK_KEYS if deploy == "rollback.py" else ())}
    assert keys <= allowed


@pytest.mark.parametrize("words", of("python3"), ids=" ".join)
def test_the_hosts_program_has_these_verbs(words: list[str]) -> None:
    assert words[0] == PROGRAM
    assert on_host.PARSER.parse_args(words[1:]).run


def test_units_have_these_names() -> None:
    ours = set(units("inventory/prod.py", ["x"], PROJECT).files)
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"[a-z][a-z@-]*\.(?:service|timer)\b", text))
    assert named == ON_HOST_UNITS | ours
    sources = "".join(path.read_text() for path in (PROJECT / "src/pyinfra_vllm").rglob("*.py"))
    assert "pyinfra-vllm-recover@.service" in sources and '"pyinfra-vllm-switch"' in sources


def test_every_link_of_the_runbook_leads_somewhere() -> None:
    text = PAGES[0].read_text()
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.+)$", text, re.M)
    }
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links and set(links) <= titles
