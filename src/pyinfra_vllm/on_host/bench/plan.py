"""The settings of a measurement, and the plan that both sides of a comparison share.

Measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .criteria import LANGUAGES, MOST, Criteria

ROUNDS = 30  # at most; each visits every concurrency, so that a drift of the machine meets all phases alike


@dataclass(frozen=True)
class Settings:
    """How to measure.

    concurrency: requests under way at once, one phase each
    budget_s: seconds for all of it: warm-up, speed, quality
    output_tokens: of each answer; 0 fits them to the budget
    prompt_tokens: of the prompts, which take turns, by the server's own count
    words: the same as shape -> words of a prompt. Where neither is given, it is prompts.SHAPES, shortened
        where the model's context is short
    """

    concurrency: tuple[int, ...] = (1, 8, MOST)
    budget_s: float = 120.0
    rounds: int = ROUNDS
    output_tokens: int = 0
    prompt_tokens: tuple[int, ...] = ()
    words: dict[str, int] | None = None
    quality: bool = True
    quality_builtin: bool = True
    quality_prompts: str | None = None
    languages: tuple[str, ...] = LANGUAGES
    keep_answers: bool = False

    @classmethod
    def from_criteria(cls, criteria: Criteria, admitted: int = MOST) -> Settings:
        """The operator's settings for a server that admits so many requests at once."""
        return cls(
            concurrency=criteria.streams(admitted),
            budget_s=criteria.budget_s,
            output_tokens=criteria.answer_tokens or 0,
            prompt_tokens=criteria.prompt_tokens or (),
            quality=criteria.quality,
            quality_builtin=criteria.quality_builtin,
            quality_prompts=criteria.quality_prompts,
            languages=criteria.languages,
            keep_answers=criteria.keep_answers,
        )


@dataclass(frozen=True)
class Plan:
    """The settings that both sides of a comparison share. Kept in the record of the first."""

    words: dict[str, int] = field(default_factory=dict)
    output_tokens: int = 0
    rounds: int = 0
    requests: dict[str, int] = field(default_factory=dict)  # phase -> requests of one round


def phase_name(concurrency: int) -> str:
    return f"c{concurrency}"
