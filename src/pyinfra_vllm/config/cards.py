"""The operator's own cards: `cards.yaml`, beside checkpoints.lock.yaml.

It is a layer below all group data with the one key `cards`. `resolve` reads the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from ..catalog.gpus import Gpu, capability_of, described, memory_of
from ..errors import one_line
from ..repeated_keys import Loader
from .base import Declaration
from .fields import Text
from .layers import Layer, dotted
from .problems import Problems, unknown

CARDS_FILE = Path("cards.yaml")
KEY = "cards"


def _number_as_text(value: object) -> object:
    """YAML reads 8.9 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _checked(read: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        read(text)
        return text

    return AfterValidator(check)


class Card(Declaration):
    """One card that the catalog doesn't have, or has wrong. Its name is the one that nvidia-smi prints."""

    memory: Annotated[Text, _checked(memory_of)] = Field(
        description='the memory that nvidia-smi prints, such as "48GiB" or "49140MiB"'
    )
    compute_capability: Annotated[Text, BeforeValidator(_number_as_text), _checked(capability_of)] = Field(
        description='the compute capability, such as "8.9"'
    )
    bandwidth_gb_s: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="GB/s of memory bandwidth by the datasheet, more than 0, or left out"
    )

    def gpu(self, name: str) -> Gpu:
        return described(name, self.compute_capability, memory_of(self.memory), self.bandwidth_gb_s)


Cards = dict[Annotated[Text, Field(min_length=1)], Card]


class _File(Declaration):
    cards: Cards = Field(default_factory=dict, description="a map of GPU names to their memory and the rest")


def layer(problems: Problems) -> Layer:
    """The layer that the file of this directory is; an empty one where there is none, or after a problem."""
    content = _content(problems)
    for key in [key for key in content if key != KEY]:
        problems.add(str(CARDS_FILE), str(key), unknown("key", str(key), (KEY,)))
    return Layer(str(CARDS_FILE), {KEY: content[KEY]} if content.get(KEY) is not None else {})


def own() -> tuple[Gpu, ...]:
    """The cards of this directory's file. Raises DeclarationError with everything that is wrong in it."""
    from .reading import read  # which imports the models of a service, and they import this one

    problems = Problems()
    values = layer(problems).values
    found = read(_File, values, problems, lambda path: (str(CARDS_FILE), dotted(path)))
    problems.raise_if_any()
    return as_gpus(found.cards) if found else ()


def as_gpus(cards: Mapping[str, Card]) -> tuple[Gpu, ...]:
    return tuple(card.gpu(name) for name, card in cards.items())


def _content(problems: Problems) -> Mapping[Any, Any]:
    try:
        content = yaml.load(CARDS_FILE.read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problems.add(str(CARDS_FILE), "", f"can't be read: {one_line(error)}; correct it or remove it")
        return {}
    if content is not None and not isinstance(content, Mapping):
        problems.add(str(CARDS_FILE), "", f"must be a map with the key {KEY}")
        return {}
    return content or {}
