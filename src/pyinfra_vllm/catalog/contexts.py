"""The context lengths that a vLLM derives from a config.json, which changed over its versions. Pure.

After config/model.py _get_and_verify_max_len and transformers_utils/model_arch_config_convertor.py, read in
0.20, 0.28 to 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.catalog import versions
from pyinfra_vllm.errors import DeclarationError

KEYS = (  # the smallest counts
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
SCALINGS = ("rope_scaling", "rope_parameters")
OWN_WORD = "model_max_length"  # goes before all of them
LARGEST = 2**31 - 1
# Types of rope scaling whose factor is in the positions already; gemma3's is, whatever its type.
IN_POSITIONS = ("su", "longrope", "llama3")
YARN = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")
# From here on YaRN's factor counts as one that is in the positions; before, `yarn` means the original length
# times the factor, and its other names the positions times it (vLLM pull request 56446).
YARN_IN_POSITIONS_FROM = "0.30"


@dataclass(frozen=True)
class Context:
    """Tokens: the longest context that may be declared, and the one of a server where none is. 0: unknown."""

    longest: int = 0
    default: int = 0


@dataclass(frozen=True)
class Contexts:
    """The context by version."""

    newer: Context = Context()
    older: Context = Context()  # below YARN_IN_POSITIONS_FROM

    def of(self, version: versions.Version) -> Context:
        return self.older if versions.below(version, YARN_IN_POSITIONS_FROM) else self.newer


def derive(text: Mapping[str, Any], name: str) -> Contexts:
    """The contexts of a text model's config.json. Raises DeclarationError for a number that can't be one."""
    positions = min((found for key in KEYS if (found := _number(text, key, name))), default=0)
    positions = _number(text, OWN_WORD, name) or positions
    rows = () if "gemma3" in str(text.get("model_type")) else tuple(_scalings(text))
    newer = int(positions * _factor(rows, (*IN_POSITIONS, *YARN), name))
    older = int(_before_yarn(rows, positions) * _factor(rows, IN_POSITIONS, name))
    default = None
    if any(_kind(row) == "longrope" for row in rows):
        default = _number(text, "original_max_position_embeddings", name) or None
    return Contexts(Context(newer, default or newer), Context(older, default or older))


def overridden(contexts: Contexts, overrides: Mapping[str, Any], name: str) -> Contexts:
    """The contexts with what --hf-overrides puts over a config.json, at its top or under `text_config`.

    Lengths that aren't overridden are taken as the config's own, with the rope scaling that is put over it.
    """
    inner = overrides.get("text_config")
    text = {**overrides, **(inner if isinstance(inner, Mapping) else {})}
    given = {key: text[key] for key in (*KEYS, OWN_WORD, *SCALINGS) if text.get(key) is not None}
    if not given:
        return contexts
    positions = {} if any(key in given for key in (*KEYS, OWN_WORD)) else {KEYS[0]: contexts.newer.longest}
    return derive({**positions, **given}, name)


def _scalings(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rope scaling, or one for each kind of layer."""
    scaling = next((text[key] for key in SCALINGS if text.get(key)), None)
    if isinstance(scaling, Mapping):
        yield from [row for row in scaling.values() if isinstance(row, Mapping)] or [scaling]


def _kind(row: Mapping[str, Any]) -> str:
    return str(row.get("rope_type", row.get("type", "default")))


def _factor(rows: tuple[Mapping[str, Any], ...], scaled: tuple[str, ...], name: str) -> float:
    factor = 1.0
    for row in rows:
        given = row.get("factor")
        if _kind(row) in scaled or isinstance(given, bool) or not isinstance(given, int | float):
            continue
        if not 0 < given <= LARGEST:
            raise DeclarationError(f"{name}: `factor` of the rope scaling in its config.json is {given}")
        factor = float(given)
    return factor


def _before_yarn(rows: tuple[Mapping[str, Any], ...], positions: int) -> int:
    for row in rows:
        original = row.get("original_max_position_embeddings")
        if _kind(row) == "yarn" and isinstance(original, int) and 0 < original <= LARGEST:
            return original
    return positions


def _number(text: Mapping[str, Any], key: str, name: str) -> int:
    """A number of tokens; 0 where there is none. Some configs have floats, or a number that stands for none
    (tokenizers of transformers write 1e30).
    """
    value = text.get(key)
    if value is None or value is False:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise DeclarationError(
            f"{name}: `{key}` in its config.json is {str(value)[:60]!r} and must be a whole number, "
            "so flags and memory can't be worked out"
        )
    return int(value) if value <= LARGEST else 0
