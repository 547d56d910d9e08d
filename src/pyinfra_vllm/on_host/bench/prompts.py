"""The probe's own prompts: seeded, distinct, of three lengths, the same before and after a switch.

Plain words, so that any server with any tokenizer can take them. They measure speed; answers are judged with
the prompts of quality.json.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Words of each shape: about 32, 250 and 1000 tokens with the tokenizers of today's models.
SHAPES: dict[str, int] = {"s": 24, "m": 190, "l": 760}
LETTERS = "abcdefgh"  # names of the shapes where their lengths are declared
SEED = "pyinfra-vllm/1"

TEXT = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue side
kind head house service friend father power hour game line end member law car city community name
president team minute idea body information back parent face other level office door health person art
war history party result change morning reason research girl guy moment air teacher force education
river mountain letter market garden engine paper window table bridge island winter summer signal record
method figure detail corner animal forest picture simple early young large small public able human local
late hard major better economic strong possible whole free military true federal international full
special easy clear recent certain personal open red difficult available likely short single medical
current wrong private past foreign fine common poor natural significant make take come see know get give
find think tell become show leave feel put bring begin keep hold write stand hear let mean set meet run
pay sit speak lie lead read grow lose fall send build understand draw break spend cut rise drive buy
wear choose seek throw catch deal win forget carry reach follow stop create visit cover
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class Prompt:
    """A prompt of the load, by the name under which records have it."""

    name: str
    text: str


def prompt(name: str, words: int, nonce: str = "") -> Prompt:
    """The prompt of that name: the name seeds it, so that every run of every version makes the same one.

    + nonce: put before the text; of equal length in every run, see `nonce`
    """
    source = random.Random(f"{SEED}/{name}")
    sentences = []
    left = words
    while left > 0:
        length = min(left, source.randint(6, 14))
        sentences.append(" ".join(source.choice(WORDS) for _ in range(length)).capitalize() + ".")
        left -= length
    return Prompt(name, f"{nonce}{' '.join(sentences)}")


def series(phase: str, first: int, count: int, words: dict[str, int], nonce: str = "") -> list[Prompt]:
    """Prompts number `first` to `first + count - 1` of a phase, the shapes taking turns."""
    shapes = list(words)
    chosen = [(index, shapes[index % len(shapes)]) for index in range(first, first + count)]
    return [prompt(f"{phase}-{index:04d}{shape}", words[shape], nonce) for index, shape in chosen]


def shapes(tokens: Sequence[int], tokens_per_word: float) -> dict[str, int]:
    """Words of a prompt of each of these lengths."""
    return {
        letter: max(1, round(count / tokens_per_word)) for letter, count in zip(LETTERS, tokens, strict=False)
    }


def nonce(run: str) -> str:
    """Twelve single digits that differ between runs: for servers whose prefix cache knows no salt.

    Digits one by one, because tokenizers cut those alike: prompts keep their length from run to run.
    """
    source = random.Random(run)
    return " ".join(str(source.randrange(10)) for _ in range(12)) + "\n"
