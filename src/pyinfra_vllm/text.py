"""Writes numbers, times, bytes and sentences for people: the one home of their forms on the control side."""

from __future__ import annotations

import math
import textwrap


def in_units(count: float) -> str:
    """Bytes as people write them, in powers of ten: 19.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_time(seconds: float) -> str:
    """Seconds as people write them: 45 s, 12 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """Seconds as a clock shows them: 0:07, 12:30, 1:05:00."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 10 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent or a needless zero."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def latency(seconds: float) -> str:
    """A short time with three digits: 42.1 ms, 1.25 s."""
    return f"{three_digits(seconds * 1000)} ms" if abs(seconds) < 1 else f"{three_digits(seconds)} s"


def percent(share: float) -> str:
    """A share in percent: 0.5 %."""
    return f"{three_digits(100 * share)} %"


def gpu_memory(mib: float) -> str:
    """MiB as nvidia-smi counts them, in GiB: 61.2 GiB."""
    return f"{mib / 1024:.1f} GiB"


def four_digits(value: object, missing: str = "") -> str:
    """A number of a verdict with four significant digits; `missing` where there is none."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return missing if value is None else str(value)


def counted(count: int, thing: str, things: str = "") -> str:
    """`1 host`, `2 hosts`; `things` is an irregular plural."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def wrapped(text: str, width: int, indent: str, following: str) -> list[str]:
    """The text in lines of at most `width`, broken between words only."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )


def sentence(text: str) -> str:
    """The text with a mark at its end: what others wrote often has one already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
