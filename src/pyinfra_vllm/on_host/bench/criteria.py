"""The gate's criteria: every limit of the gate that an operator can set, with its default.

Plain JSON-able values only: the declaration on the control machine is built from this class, and the host
reads it back from the release. It never measures and never judges.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

# Fields that take one of a few words.
CHOICES: dict[str, tuple[str, ...]] = {
    "on_inconclusive": ("rollback", "keep"),
    "soak_action": ("rollback", "alert"),
}
MAX = "max"  # in `concurrency`, and as a phase: saturation, as many requests at once as the server admits
MOST_LENGTHS = 8  # of prompts that take turns
MOST = 64  # requests at once that saturation means at most
MOST_LOG = 50.0  # of a ratio: a change that is larger, or known less well than that, is unknown
MOST_STREAMS = 1024  # at once: the most sequences that vLLM lets run unless told otherwise
# What decides by comparison, and where: `ONE_STREAM` at one stream only (docs/gate.md says why).
EVERY_PHASE, ONE_STREAM = ("tokens_per_s", "e2e_s"), ("tpot_s", "ttft_s")
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
MOST_STARTS = 2  # of each side that rounds in turns can have
LONGEST_S = 7 * 86400  # a service is measured and watched for so long at most
# The least and the most of what is neither a share nor a limit of a phase, and how to say it.
RANGES: dict[str, tuple[float, float, str]] = {
    "budget_s": (5, LONGEST_S, f"at least 5 seconds, at most {LONGEST_S}"),
    "max_budget_s": (5, LONGEST_S, f"at least 5 seconds, at most {LONGEST_S}"),
    "restarts": (1, MOST_STARTS, "1 or 2: the starts of each side that rounds in turns are measured on"),
    "ttft_floor_s": (0, math.inf, "seconds from 0 on"),
    "tpot_floor_s": (0, math.inf, "seconds from 0 on"),
    "e2e_floor_s": (0, math.inf, "seconds from 0 on"),
    "throughput_floor": (0, math.inf, "output tokens/s from 0 on"),
    "max_gpu_memory_mib": (1, math.inf, "a whole number of at least 1"),
    "max_bits_per_byte": (0, math.inf, "a number of at least 0, or null"),
    "quality_drop_points": (0, 100, "percentage points from 0 to 100"),
    "soak_s": (0, LONGEST_S, f"seconds from 0 to {LONGEST_S}"),
    "soak_stall_s": (1, LONGEST_S, f"seconds from 1 to {LONGEST_S}"),
    "soak_max_errors": (0, math.inf, "a whole number of at least 0"),
    "soak_max_preemptions_per_minute": (0, math.inf, "a number of at least 0"),
    "soak_throughput_drop": (0, 1, "a share from 0 to 1"),
}


Limit = TypeVar("Limit")


class CriteriaError(ValueError):
    """A gate setting that can't be used: the message names the key, the value and what is allowed."""


@dataclass(frozen=True)
class Criteria:
    """The success checklist of one service. Phases are named `c1`, `c8`, ... after their concurrency, and
    `max` is the one of the highest, whatever its number turns out to be.
    """

    budget_s: float = 120.0  # seconds of measuring on each side of the switch, warm-up and quality included
    max_budget_s: float | None = (
        None  # seconds before a release goes back for doubt alone; None is 3 x budget_s
    )
    restarts: int = 1  # starts of each side that rounds in turns (standby) are measured on
    concurrency: tuple[int | str, ...] = (1, 8, MAX)
    prompt_tokens: tuple[int, ...] | None = None  # lengths that take turns; None is about 32, 250 and 1000
    answer_tokens: int | None = None  # of each answer; None is 128, fewer where the budget is short
    min_tokens_per_s: dict[str, float] = field(default_factory=dict)  # phase -> output tokens/s, at least
    max_ttft_s: dict[str, float] = field(default_factory=dict)  # phase -> median seconds, at most
    max_gpu_memory_mib: int | None = None  # the largest of the service's GPUs
    max_error_rate: float = 0.0
    throughput_margin: float = 0.05  # how much worse may still be called no worse; also for end-to-end time
    tpot_margin: float | None = 0.05  # at one stream; None shows it and lets it never decide
    ttft_margin: float | None = 0.10  # the same
    # phase -> metric -> its margin there instead; None shows it and lets it never decide
    margins: dict[str, dict[str, float | None]] = field(default_factory=dict)
    # A difference that is smaller than its floor never counts as worse, however large its share.
    ttft_floor_s: float = 0.05
    tpot_floor_s: float = 0.0
    e2e_floor_s: float = 0.0
    throughput_floor: float = 0.0
    on_inconclusive: str = "rollback"
    quality: bool = True
    quality_drop_points: float = 5.0  # percentage points of graded answers that may be lost
    quality_builtin: bool = True  # ask the built-in prompts
    quality_prompts: str | None = None  # a JSONL file of the operator's own prompts
    min_right_share: float = 0.03  # of graded answers, where no baseline says what this model can
    languages: tuple[str, ...] = LANGUAGES  # of the built-in questions and texts
    likelihood_margin: float = 0.03  # how many more bits the fixed texts may cost
    max_bits_per_byte: float | None = 2.0  # of English text, where no baseline says what this model can
    # lm-eval's TASK/METRIC -> its score, at least; and by how much it may fall. Judged where a record has
    # evaluations.
    min_evaluation: dict[str, float] = field(default_factory=dict)
    max_evaluation_drop: dict[str, float] = field(default_factory=dict)
    keep_answers: bool = False  # write the text of answers into the evidence
    soak_s: float = 0.0  # how long to keep watching after the commit; 0 is not at all
    soak_action: str = "rollback"
    soak_stall_s: float = 60.0  # no token for this long, and none when asked for one, counts as dead
    soak_max_errors: int = 0  # requests ended by an error inside the server while watching
    soak_max_preemptions_per_minute: float = 60.0
    # Share of the gate's own c1 tokens/s below which real traffic may not fall.
    soak_throughput_drop: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "concurrency", tuple(self.concurrency))
        if not self.concurrency or any(not _is_streams(item) for item in self.concurrency):
            words = f'whole numbers from 1 to {MOST_STREAMS}, and "{MAX}" for as many as the server admits'
            raise CriteriaError(_refusal("concurrency", self.concurrency, words))
        if len(set(self.concurrency)) != len(self.concurrency):
            raise CriteriaError(_refusal("concurrency", self.concurrency, "each number once"))
        self._check_lengths()
        object.__setattr__(self, "languages", tuple(self.languages))
        unknown = [language for language in self.languages if language not in LANGUAGES]
        if unknown:
            own = "texts and questions in others come from your own file, quality_prompts"
            raise CriteriaError(_refusal("languages", self.languages, f"{', '.join(LANGUAGES)}; {own}"))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise CriteriaError(_refusal(name, getattr(self, name), " or ".join(choices)))
        for name in SHARES:
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise CriteriaError(
                    _refusal(name, getattr(self, name), "a share from 0 up to 1 (0.05 is 5 %)")
                )
        for name, (least, most, allowed_words) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and least <= value <= most):
                raise CriteriaError(_refusal(name, value, allowed_words))
        if self.max_budget_s is not None and self.max_budget_s < self.budget_s:
            raise CriteriaError(
                _refusal("max_budget_s", self.max_budget_s, f"at least budget_s, {self.budget_s:g}")
            )
        for name in ("min_tokens_per_s", "max_ttft_s"):
            self._check_phases(name, getattr(self, name))
        self._check_margins()
        for name in ("min_evaluation", "max_evaluation_drop"):
            self._check_scores(name, getattr(self, name))

    def _check_lengths(self) -> None:
        if self.prompt_tokens is not None:
            object.__setattr__(self, "prompt_tokens", tuple(self.prompt_tokens))
            few = 1 <= len(self.prompt_tokens) <= MOST_LENGTHS
            if not few or any(not _is_count(item) for item in self.prompt_tokens):
                words = f"one to {MOST_LENGTHS} whole numbers of at least 1, or null"
                raise CriteriaError(_refusal("prompt_tokens", self.prompt_tokens, words))
        if self.answer_tokens is not None and not (_is_count(self.answer_tokens) and self.answer_tokens >= 2):
            words = "a whole number of at least 2, or null"
            raise CriteriaError(_refusal("answer_tokens", self.answer_tokens, words))

    def _check_phase(self, key: str, phase: str, value: Any) -> None:
        measured = tuple(_phase(item) for item in self.concurrency)
        if phase not in measured:
            raise CriteriaError(_refusal(key, value, f"one of the phases {', '.join(measured)}"))

    def _check_phases(self, name: str, limits: dict[str, float]) -> None:
        for phase, limit in limits.items():
            self._check_phase(f"{name}.{phase}", phase, limit)
            if not (_is_number(limit) and limit > 0):
                raise CriteriaError(_refusal(f"{name}.{phase}", limit, "a number above 0"))

    def _check_margins(self) -> None:
        for phase, metrics in self.margins.items():
            self._check_phase(f"margins.{phase}", phase, metrics)
            known = (*EVERY_PHASE, *(ONE_STREAM if phase == "c1" else ()))
            for metric, margin in metrics.items():
                key = f"margins.{phase}.{metric}"
                if metric not in known:
                    raise CriteriaError(_refusal(key, margin, f"one of the metrics {', '.join(known)}"))
                most = 1.0 if metric == "tokens_per_s" else math.inf
                if margin is not None and not (_is_number(margin) and 0 <= margin < most):
                    words = "a share from 0 on (0.05 is 5 %), or null"
                    less = " and below 1" if metric == "tokens_per_s" else ""
                    raise CriteriaError(_refusal(key, margin, words.replace(" on", f" on{less}", 1)))

    def _check_scores(self, name: str, limits: dict[str, float]) -> None:
        for score, limit in limits.items():
            if "/" not in score:
                wanted = "a task and a metric of lm-eval, such as ifeval/prompt_level_strict_acc"
                raise CriteriaError(_refusal(f"{name}.{score}", limit, wanted))
            if not _is_number(limit):
                raise CriteriaError(_refusal(f"{name}.{score}", limit, "a number"))

    @property
    def longest_s(self) -> float:
        """Seconds of measuring a side at most: over `budget_s` only where doubt alone would roll back."""
        if self.on_inconclusive == "keep":
            return self.budget_s
        return 3 * self.budget_s if self.max_budget_s is None else self.max_budget_s

    def allowing(self, seconds: float) -> str:
        """The setting with which a side may be measured for so long."""
        if self.on_inconclusive == "keep":
            return f"gate.budget_s = {math.ceil(seconds)}"
        if self.max_budget_s is None:
            return f"gate.budget_s = {math.ceil(seconds / 3)}"
        return f"gate.max_budget_s = {math.ceil(seconds)}"

    def both_sides_s(self, in_turns: bool) -> float:
        """Seconds of measuring on both sides at most.

        + in_turns: the new release is measured for `budget_s`, and then both in turns for as long as the old
            one may be; where they can't take turns, it is as without
        """
        return 2 * self.longest_s + (self.budget_s if in_turns else 0.0)

    def streams(self, admitted: int) -> tuple[int, ...]:
        """How many requests at once, in each phase, of a server that admits so many.

        Where a declared number already reaches what the server admits, saturation has no phase of its own.
        """
        declared = [int(item) for item in self.concurrency if item != MAX]
        if MAX in self.concurrency and all(item < min(admitted, MOST) for item in declared):
            declared.append(min(admitted, MOST))
        return tuple(declared)

    def at(self, highest: int) -> Criteria:
        """The same with every `max` named: it is the phase of so many requests at once.

        What names that phase itself wins.
        """
        if MAX not in self.concurrency:
            return self
        name = _phase(highest)
        margins = _renamed(self.margins, name)
        if MAX in self.margins:
            margins[name] = {**self.margins[MAX], **self.margins.get(name, {})}
        declared = [item for item in self.concurrency if item not in (MAX, highest)]
        return replace(
            self,
            concurrency=(*declared, highest),
            margins=margins,
            min_tokens_per_s=_renamed(self.min_tokens_per_s, name),
            max_ttft_s=_renamed(self.max_ttft_s, name),
        )

    def margin(self, phase: str, metric: str) -> float | None:
        """How much worse, as a share, may still be called no worse; None where this never decides."""
        if metric in ONE_STREAM and phase != "c1":
            return None
        own = self.margins.get(phase, {})
        if metric in own:
            return own[metric]
        return {"tpot_s": self.tpot_margin, "ttft_s": self.ttft_margin}.get(metric, self.throughput_margin)

    def floor(self, metric: str) -> float:
        """The smallest difference, in the metric's own unit, that anybody would notice."""
        return {
            "ttft_s": self.ttft_floor_s,
            "tpot_s": self.tpot_floor_s,
            "e2e_s": self.e2e_floor_s,
            "tokens_per_s": self.throughput_floor,
        }[metric]

    def allowed(self, phase: str, metric: str, before: float, noise: float | None = None) -> float | None:
        """How much worse is still no worse, as a logarithm of the ratio; None where this never decides.

        Worse is what is beyond its margin, and beyond its floor, and beyond what noise alone does.

        + before: what was measured before, in the metric's own unit
        + noise: the share that calibration found
        """
        margin = self.margin(phase, metric)
        if margin is None:
            return None
        beyond_noise = math.log1p(noise or 0.0)
        if metric == "tokens_per_s":
            left = before - self.floor(metric)
            floor = math.log(before / left) if left > 0 else math.inf
            return max(-math.log(1 - margin), floor, beyond_noise)
        return max(math.log1p(margin), math.log1p(self.floor(metric) / before), beyond_noise)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Criteria:
        """The criteria from parsed JSON or YAML.

        Raises CriteriaError for an unknown key or a value of another type.
        """
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
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        return {**asdict(self), **lists}


def _renamed(limits: Mapping[str, Limit], name: str) -> dict[str, Limit]:
    """The limits of `max` as those of the phase of that name, unless it has its own."""
    named = {phase: limit for phase, limit in limits.items() if phase != MAX}
    return {name: limits[MAX], **named} if MAX in limits else named


def _phase(concurrency: int | str) -> str:
    return MAX if concurrency == MAX else f"c{concurrency}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_streams(value: Any) -> bool:
    return value == MAX or (_is_count(value) and value <= MOST_STREAMS)


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
    "tuple[int, ...] | None": (
        lambda value: value is None or isinstance(value, (list, tuple)),
        "a list of whole numbers, or null",
    ),
    "tuple[int | str, ...]": (
        lambda value: isinstance(value, (list, tuple)),
        'a list of whole numbers and "max"',
    ),
    "dict[str, dict[str, float | None]]": (
        lambda value: (
            isinstance(value, dict)
            and all(
                isinstance(phase, str)
                and isinstance(metrics, dict)
                and all(
                    isinstance(metric, str) and (item is None or _is_number(item))
                    for metric, item in metrics.items()
                )
                for phase, metrics in value.items()
            )
        ),
        "a mapping of phases to metrics and shares, such as {c1: {ttft_s: 0.8}}",
    ),
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


def margin_for(metric: str, loss: float) -> float | None:
    """The margin, rounded up to whole percent, that lets a metric be worse by this logarithm, or None."""
    if loss > MOST_LOG:
        return None
    share = -math.expm1(-loss) if metric == "tokens_per_s" else math.expm1(loss)
    margin = math.ceil(100 * share + 1e-6) / 100  # what is exactly at its limit may be past it by a rounding
    return margin if metric != "tokens_per_s" or margin < 1 else None
