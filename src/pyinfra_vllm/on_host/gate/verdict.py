"""A verdict and the criteria that it lists: as the gate makes them, writes them, and reads them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..state.values import Check, RecordError, flag, list_of, mapping, or_null, shown, text

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
TAIL = "ttft_p95_s"  # informational: no margin is named that would let it pass


@dataclass(frozen=True)
class Row:
    """One criterion with its numbers.

    phase: None for a criterion of the whole measurement
    limit: of the ratio where the row compares two sides, else of `after`
    decides: false for one that is informational
    repeatable: whether further rounds of the measurement make its interval narrower
    detectable: the smallest change that the run could see, as a share; None where that is not known
    needed: the margin with which it would have passed, and allowed_by the setting that says so
    doubt: why the numbers decide nothing, or less than they seem to
    hopeless: whether no further round can tell
    by: the statistic that decided, where it is not the mean
    note: the whole sentence of a row whose numbers do not say it
    """

    name: str
    phase: str | None
    before: float | None
    after: float | None
    limit: float | None
    verdict: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    decides: bool = True
    repeatable: bool = False
    detectable: float | None = None
    needed: float | None = None
    doubt: str = ""
    hopeless: bool = False
    by: str = ""
    allowed_by: str = ""
    note: str = ""

    @classmethod
    def read(cls, value: Any, where: str) -> Row:
        """The row of a verdict that was written by this version or an older one. Raises RecordError."""
        _ROW(value, where)
        known = {key: value[key] for key in _FIELDS if key in value}
        interval = value.get("interval")
        if interval is not None:
            known["interval"] = (interval[0], interval[1])
        return cls(**known, repeatable="detectable" in value)

    def as_dict(self) -> dict[str, object]:
        """The row as the verdict's JSON has it: keys that say nothing are left out."""
        made: dict[str, object] = {
            "name": self.name,
            "phase": self.phase,
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio,
            "interval": None if self.interval is None else list(self.interval),
            "limit": self.limit,
            "verdict": self.verdict,
            "decides": self.decides,
        }
        if self.repeatable:
            made["detectable"] = self.detectable
            if self.name != TAIL:
                made["needed"] = self.needed
        more = {key: getattr(self, key) for key in ("doubt", "hopeless", "by", "allowed_by", "note")}
        return {**made, **{key: value for key, value in more.items() if value}}

    def sentence(self) -> str:
        """The criterion in words, with its numbers."""
        if self.note:
            return f"{self.name}: {self.note}"
        where = f"{self.phase} " if self.phase else ""
        if self.ratio is None or self.interval is None:
            return f"{where}{self.name} is {self.after}, the limit is {self.limit}"
        low, high = self.interval
        words = {FAIL: "worse", INCONCLUSIVE: "can't tell", PASS: "no worse"}[self.verdict]
        doubt = f"; {self.doubt}" if self.doubt else ""
        doubt += f"; {self.allowed_by} would allow it" if self.allowed_by else ""
        return (
            f"{where}{self.name}: {words}: {self.before:g} before, {self.after:g} after, ratio"
            f" {self.ratio:.3f} [{low:.3f}, {high:.3f}], the limit is {self.limit:.3f}{doubt}"
        )


def row(
    name: str,
    phase: str | None,
    before: float | None,
    after: float | None,
    limit: float | None,
    verdict: str,
    note: str = "",
) -> Row:
    """The row of a criterion without an interval."""
    return Row(
        name=name,
        phase=phase,
        before=None if before is None else round(before, 6),
        after=None if after is None else round(after, 6),
        ratio=round(after / before, 6) if after is not None and before else None,
        limit=limit,
        verdict=verdict,
        note=note,
    )


@dataclass(frozen=True)
class Verdict:
    """The gate's answer, the criteria behind it, and the reasons in words."""

    verdict: str
    metrics: tuple[Row, ...]
    reasons: tuple[str, ...]

    @classmethod
    def read(cls, value: Any, where: str) -> Verdict:
        """The verdict that a journal or an evidence file holds. Raises RecordError."""
        _VERDICT(value, where)
        rows = enumerate(value["metrics"])
        metrics = tuple(Row.read(item, f"{where}.metrics[{number}]") for number, item in rows)
        return cls(value["verdict"], metrics, tuple(value["reasons"]))

    def as_dict(self) -> dict[str, object]:
        """The verdict as JSON has it."""
        metrics = [item.as_dict() for item in self.metrics]
        return {"verdict": self.verdict, "metrics": metrics, "reasons": list(self.reasons)}

    def conclusion(self) -> str:
        """Why the verdict is as it is, in one line: the criteria that decided it, without the notes."""
        decided = [item for item in self.metrics if item.decides and item.verdict == self.verdict]
        if self.verdict == PASS or not decided:
            return self.reasons[0]
        return "; ".join(item.sentence() for item in decided)


def concluded(metrics: Sequence[Row], reasons: Sequence[str], doubts: Sequence[str]) -> Verdict:
    """The verdict that follows from these rows: one that fails decides, then one that is undecided."""
    deciding = [item for item in metrics if item.decides]
    verdicts = {item.verdict for item in deciding}
    verdict = next((one for one in (FAIL, INCONCLUSIVE) if one in verdicts), PASS)
    lines = [item.sentence() for item in deciding if item.verdict == verdict]
    if verdict == PASS:
        lines = [f"{len(deciding)} criteria passed"]
    seen = [f"{item.phase} {item.name} {_change(item.detectable)}" for item in deciding if item.repeatable]
    last = ["the smallest change that this run could see: " + ", ".join(seen)] if seen else []
    return Verdict(verdict, tuple(metrics), (*lines, *doubts, *reasons, *last))


def _change(detectable: float | None) -> str:
    return "unknown: a single pair was seen" if detectable is None else f"{detectable:.1%}"


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"{where} must be a number, not {shown(value)}")


def _pair(value: Any, where: str) -> None:
    list_of(_number)(value, where)
    if len(value) != 2:
        raise RecordError(f"{where} must be two numbers, not {shown(value)}")


_OPTIONAL: dict[str, Check] = {
    "detectable": or_null(_number),
    "needed": or_null(_number),
    "doubt": text,
    "hopeless": flag,
    "by": text,
    "allowed_by": text,
    "note": text,
}
_NEEDED: dict[str, Check] = {
    "name": text,
    "phase": or_null(text),
    "before": or_null(_number),
    "after": or_null(_number),
    "ratio": or_null(_number),
    "limit": or_null(_number),
    "verdict": text,
    "decides": flag,
}
_FIELDS = (*_NEEDED, *_OPTIONAL)
_ROW = mapping({**_NEEDED, **_OPTIONAL, "interval": or_null(_pair)}, needed=tuple(_NEEDED))
_VERDICT = mapping(
    {"verdict": text, "metrics": list_of(mapping()), "reasons": list_of(text)},
    needed=("verdict", "metrics", "reasons"),
)
