"""README and docs: links that lead somewhere, and numbers that are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pyinfra_vllm.catalog import flags
from pyinfra_vllm.operations import program

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


def test_every_page_is_named_in_the_readme() -> None:
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in README] == []


def test_the_readmes_versions_are_those_of_the_code() -> None:
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python {needed.removeprefix('>=')} or newer" in README
    assert f"systemd {program.OLDEST_SYSTEMD} or newer ({program.CREDENTIALS} with a Hub token)" in README
    assert f"python3 {'.'.join(map(str, program.OLDEST_PYTHON))} or newer" in README
    oldest, newest = flags.oldest().rpartition(".")[0], ".".join(map(str, flags.newest()[:2]))
    assert f"| vLLM | {oldest} to {newest}. " in README and f"those of {newest} are assumed" in README


def test_the_glossary_has_each_word_once() -> None:
    page = (PROJECT / "docs" / "glossary.md").read_text()
    words = [
        word
        for line in re.findall(r"^\| ([a-z][^|]*) \| \S", page, re.M)
        for word in line.split(", ")
        if word != "word"
    ]
    assert len(words) == len(set(words)) > 30
    assert {"release", "wave", "held", "gate", "window", "switch", "service", "verdict"} <= set(words)
