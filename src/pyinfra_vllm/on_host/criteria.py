"""What a new release must show: every limit of the gate that an operator can set, with its default.

Plain JSON-able values only: the declaration on the control machine is built from this class, and the host reads it back
from the release. It never measures and never judges.
"""

from __future__ import annotations

import difflib
import math
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# Fields that take one of a few words.
CHOICES: dict[str, tuple[str, ...]] = {
    "on_inconclusive": ("rollback", "keep"),
    "soak_action": ("rollback", "alert"),
}
# A share of the measured value: 0.05 means 5 %.
SHARES = (
    "throughput_margin",
    "tpot_margin",
    "ttft_margin",
    "likelihood_margin",
    "max_error_rate",
    "min_right_share",
)
LANGUAGES = ("en", "ja")  # that there are built-in questions and texts in
LONGEST_S = 7 * 86400  # a service is measured and watched for so long at most
# The least and the most of what is neither a share nor a limit of a phase, and how to say it.
RANGES: dict[str, tuple[float, float, str]] = {
    "budget_s": (5, LONGEST_S, f"at least 5 seconds, at most {LONGEST_S}"),
    "max_gpu_memory_mib": (1, math.inf, "a whole number of at least 1"),
    "max_bits_per_byte": (0, math.inf, "a number of at least 0, or null"),
    "quality_drop_points": (0, 100, "percentage points from 0 to 100"),
    "soak_s": (0, LONGEST_S, f"seconds from 0 to {LONGEST_S}"),
    "soak_stall_s": (1, LONGEST_S, f"seconds from 1 to {LONGEST_S}"),
    "soak_max_errors": (0, math.inf, "a whole number of at least 0"),
    "soak_max_preemptions_per_minute": (0, math.inf, "a number of at least 0"),
    "soak_throughput_drop": (0, 1, "a share from 0 to 1"),
}


class CriteriaError(ValueError):
    """A gate setting that can't be used: the message names the key, the value and what is allowed."""


@dataclass(frozen=True)
class Criteria:
    """The success checklist of one service. Phases are named `c1`, `c8`, ... after their concurrency."""

    budget_s: float = 120.0  # seconds of measuring on each side of the switch, warm-up and quality included
    concurrency: tuple[int, ...] = (1, 8)
    min_tokens_per_s: dict[str, float] = field(default_factory=dict)  # phase -> output tokens/s, at least
    max_ttft_s: dict[str, float] = field(default_factory=dict)  # phase -> median seconds, at most
    max_gpu_memory_mib: int | None = None  # the largest of the service's GPUs
    max_error_rate: float = 0.0
    throughput_margin: float = 0.05  # how much worse may still be called no worse; also for end-to-end time
    tpot_margin: float | None = 0.05  # at one stream; None shows it and lets it never decide
    ttft_margin: float | None = 0.10  # the same
    on_inconclusive: str = "rollback"
    quality: bool = True
    quality_drop_points: float = 5.0  # percentage points of graded answers that may be lost
    quality_builtin: bool = True  # ask the built-in prompts
    quality_prompts: str | None = None  # a JSONL file of the operator's own prompts
    min_right_share: float = 0.03  # of graded answers, where no baseline says what this model can
    languages: tuple[str, ...] = LANGUAGES  # of the built-in questions and texts
    likelihood_margin: float = 0.03  # how many more bits the fixed texts may cost
    max_bits_per_byte: float | None = 2.0  # of English text, where no baseline says what this model can
    # lm-eval's TASK/METRIC -> its score, at least; and by how much it may fall. Judged where a record has evaluations.
    min_evaluation: dict[str, float] = field(default_factory=dict)
    max_evaluation_drop: dict[str, float] = field(default_factory=dict)
    keep_answers: bool = False  # write the text of answers into the evidence
    soak_s: float = 0.0  # how long to keep watching after the commit; 0 is not at all
    soak_action: str = "rollback"
    soak_stall_s: float = 60.0  # no token for this long, and none when asked for one, counts as dead
    soak_max_errors: int = 0  # requests ended by an error inside the server while watching
    soak_max_preemptions_per_minute: float = 60.0
    soak_throughput_drop: float = (
        0.5  # share of the gate's own c1 tokens/s below which real traffic may not fall
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "concurrency", tuple(self.concurrency))
        if not self.concurrency or any(not _is_count(item) for item in self.concurrency):
            raise CriteriaError(_refusal("concurrency", self.concurrency, "whole numbers of at least 1"))
        if len(set(self.concurrency)) != len(self.concurrency):
            raise CriteriaError(_refusal("concurrency", self.concurrency, "each number once"))
        object.__setattr__(self, "languages", tuple(self.languages))
        unknown = [language for language in self.languages if language not in LANGUAGES]
        if unknown:
            own = "texts and questions in others come from your own file, quality_prompts"
            raise CriteriaError(_refusal("languages", self.languages, f"{', '.join(LANGUAGES)}; {own}"))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise CriteriaError(_refusal(name, getattr(self, name), " or ".join(allowed)))
        for name in SHARES:
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise CriteriaError(
                    _refusal(name, getattr(self, name), "a share from 0 up to 1 (0.05 is 5 %)")
                )
        for name, (least, most, allowed_words) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and least <= value <= most):
                raise CriteriaError(_refusal(name, value, allowed_words))
        for name in ("min_tokens_per_s", "max_ttft_s"):
            self._check_phases(name, getattr(self, name))
        for name in ("min_evaluation", "max_evaluation_drop"):
            self._check_scores(name, getattr(self, name))

    def _check_phases(self, name: str, limits: dict[str, float]) -> None:
        measured = tuple(f"c{item}" for item in self.concurrency)
        for phase, limit in limits.items():
            if phase not in measured:
                raise CriteriaError(
                    _refusal(f"{name}.{phase}", limit, f"one of the phases {', '.join(measured)}")
                )
            if not (_is_number(limit) and limit > 0):
                raise CriteriaError(_refusal(f"{name}.{phase}", limit, "a number above 0"))

    def _check_scores(self, name: str, limits: dict[str, float]) -> None:
        for score, limit in limits.items():
            if "/" not in score:
                wanted = "a task and a metric of lm-eval, such as ifeval/prompt_level_strict_acc"
                raise CriteriaError(_refusal(f"{name}.{score}", limit, wanted))
            if not _is_number(limit):
                raise CriteriaError(_refusal(f"{name}.{score}", limit, "a number"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Criteria:
        """The criteria from parsed JSON or YAML. Raises CriteriaError for an unknown key or a value of another type."""
        if not isinstance(values, dict):
            raise CriteriaError(f"the gate's settings must be a mapping of keys to values, not {values!r}")
        known = [item.name for item in fields(cls)]
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise CriteriaError(f"unknown gate setting {key!r}: {hint}")
            _check_type(key, value)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "concurrency": list(self.concurrency), "languages": list(self.languages)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    """A finite number: also one that a float can hold, which a whole number need not be."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


# What a parsed value of each declared type may be, and how to say it.
_TYPES = {
    "float": (_is_number, "a number"),
    "int": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "text"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value),
        "a list of texts",
    ),
    "tuple[int, ...]": (lambda value: isinstance(value, (list, tuple)), "a list of whole numbers"),
    "dict[str, float]": (
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(name, str) and _is_number(item) for name, item in value.items())
        ),
        "a mapping of names to numbers, such as {c1: 50}",
    ),
    "float | None": (lambda value: value is None or _is_number(value), "a number, or null"),
    "int | None": (lambda value: value is None or _is_count(value), "a whole number of at least 1"),
    "str | None": (lambda value: value is None or isinstance(value, str), "text"),
}


def _check_type(key: str, value: Any) -> None:
    declared = next(str(item.type) for item in fields(Criteria) if item.name == key)
    accepts, words = _TYPES[declared]
    if not accepts(value):
        raise CriteriaError(_refusal(key, value, words))


def _refusal(key: str, value: Any, allowed: str) -> str:
    return f"gate setting {key} = {value!r} can't be used: allowed is {allowed}"
