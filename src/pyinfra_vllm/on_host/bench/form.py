"""Finds degenerate output: blank answers, loops, noise, and parts of a chat template in an answer.

Judges one text at a time and needs no expected answer; whether a model got worse is judged in ladder.py.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib

BLANK, LOOP, NOISE, TEMPLATE = "blank", "repeats itself", "noise", "template"
LOOP_COPIES = 6
LOOP_TAIL = 16_384  # characters that are looked at: 2048 tokens have about 8,000
LOOP_CHARACTERS = 24  # a repetition shorter than this in all may well be an answer
SCRIPTS = 4  # no answer of ours needs so many
BROKEN_SHARE = 0.1  # of the characters
EXPECTED_SCRIPTS = {
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "KATAKANA-HIRAGANA",
    "LATIN",
    "FULLWIDTH",
    "HALFWIDTH",
    "DIGIT",
}
# Begins with a role's name, or holds a marker of a chat template: a template without the assistant's turn
# makes the model write it, one of another model makes it repeat the foreign marks.
ROLE = re.compile(r"\s*(?:#+\s*)?(?i:assistant|user|system|human)(?:\s*:|\s*\n|\s*$|(?=[A-Z]))")
MARKER = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
# zlib makes at most so little of so long a text when it repeats itself; English and Japanese answers stay far
# above.
COMPRESSIBLE, COMPRESSIBLE_BYTES = 0.25, 200


def defects(text: str) -> list[str]:
    """The defects of this answer's form; an empty list where there are none."""
    if not text.strip():
        return [BLANK]
    found = []
    if _loops(text) or _too_compressible(text):
        found.append(LOOP)
    if _noise(text):
        found.append(NOISE)
    if ROLE.match(text) or MARKER.search(text):
        found.append(TEMPLATE)
    return found


def _loops(text: str) -> bool:
    """Whether it ends in many copies of one piece."""
    tail = text.rstrip()[-LOOP_TAIL:]
    for size in range(1, len(tail) // LOOP_COPIES + 1):
        copies = max(LOOP_COPIES, math.ceil(LOOP_CHARACTERS / size))
        if tail.endswith(tail[-size:] * copies):
            return True
    return False


def _too_compressible(text: str) -> bool:
    data = text.encode()
    return len(data) >= COMPRESSIBLE_BYTES and len(zlib.compress(data, 9)) < COMPRESSIBLE * len(data)


def _noise(text: str) -> bool:
    """Whether broken characters are many, or more scripts meet than any answer of ours needs."""
    letters = [character for character in text if not character.isspace()]
    broken = sum(1 for c in letters if c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs"))
    if broken > BROKEN_SHARE * len(letters):
        return True
    scripts = {unicodedata.name(c, "?").split()[0] for c in letters if c.isalpha()}
    return len(scripts - EXPECTED_SCRIPTS) >= SCRIPTS
