"""The Makefile's targets together run every test of the lab, each in one of them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
# What pytest chooses by, of those lines that choose by markers alone: `-m "alone and full" tests/lab`.
CHOICES = [
    quoted or word for quoted, word in re.findall(r'pytest .*-m (?:"([^"]+)"|(\w+)) tests/lab\b', MAKEFILE)
]


@pytest.mark.parametrize(("kind", "alone"), [*itertools.product(("", "full", "long", "gpu"), (False, True))])
def test_each_test_of_the_lab_is_run_by_one_target(kind: str, alone: bool) -> None:
    marks = {name: name == kind for name in ("full", "long", "gpu")} | {"alone": alone}
    assert [eval(choice, {}, marks) for choice in CHOICES].count(True) == 1, CHOICES
