"""The tiny AWQ checkpoints that hosts serve: trained once by `train.py` inside the runtime, kept in the cache."""

from __future__ import annotations

from pathlib import Path

from .keeping import kept
from .layout import cache, recipe_key
from .shell import run, say

REPOSITORIES = ("good-a", "good-b", "broken")
ORGANISATION = "lab"
SCRIPTS = [
    Path(__file__).parent / "training" / name
    for name in ("train.py", "awq.py", "tokenizer.py", "questions.jsonl")
]


def made(python: Path) -> dict[str, Path]:
    """Repository name -> directory of each checkpoint; `python` is the one of the runtime's venv, which has torch."""
    key = recipe_key(
        *[script.read_bytes() for script in SCRIPTS], str(python.resolve()), python.parents[1].name
    )
    place = kept(
        cache() / "checkpoints" / key,
        "training the lab's checkpoints",
        lambda place: _train(python, place),
    )
    return {f"{ORGANISATION}/{name}": place / name for name in REPOSITORIES}


def _train(python: Path, place: Path) -> None:
    place.mkdir(parents=True)
    say(run(python, SCRIPTS[0], place).stdout.strip())
