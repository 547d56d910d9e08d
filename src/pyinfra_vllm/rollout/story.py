"""Turns journal entries into sentences for an operator's screen. Pure; it never decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyinfra_vllm.answers import Entry, Metric
from pyinfra_vllm.on_host.gate.verdict import FAIL, INCONCLUSIVE, PASS, Row, Verdict
from pyinfra_vllm.on_host.state.evidence import HOW_FAR
from pyinfra_vllm.on_host.state.observed import Summary
from pyinfra_vllm.on_host.switch.order import CALIBRATION
from pyinfra_vllm.text import counted, four_digits

STEPS = {
    "begin": "begin",
    "prove-way-back": "rollback pre-check",
    "prove-way-forward": "release pre-check",
    "drain": "drain",
    "measure-before": "measure the baseline",
    "window": "check the window's last start",
    "reserve-rollback": "reserve what a rollback needs",
    "activate": "switch and restart",
    "point": "make the new release current",
    "ready": "wait for tokens",
    "kernel": "check the kernel",
    "measure-after": "measure the new release",
    "turns": "measure both in turns",
    "judge": "verdict",
    "commit": "commit",
    "soak": "watch it under real traffic",
    "undrain": "undrain",
    "notify": "tell people",
    "restore": "bring the old release back",
    "measure-run": "measure",
    "restart": "restart the same release",
    "noise": "keep the noise",
}
UNMET = {FAIL: "failed", INCONCLUSIVE: "undecided"}  # criteria, by the verdict that they decided
WIDEST = 24  # of a column of the table of metrics: a host may send a name of any length
# Errors of an entry of another version of the program, or of a host that lies.
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)


def tell(entries: Iterable[Entry], progress: Iterable[str]) -> list[str]:
    """News in the order in which they happened: entries and lines of progress carry their time first."""
    told = [(entry["at"], text) for entry in entries for text in _told(entry)]
    for line in progress:
        at, _, text = line.partition(" ")
        if not text.startswith(HOW_FAR):
            told.append((at, text))
    return [text for _, text in sorted(told, key=lambda item: item[0])]


def how_far(progress: Iterable[str]) -> str:
    """The newest line about how far a step is, without its time; empty where there is none."""
    texts = [line.partition(" ")[2] for line in progress]
    return ([""] + [text.removeprefix(HOW_FAR) for text in texts if text.startswith(HOW_FAR)])[-1]


def verdict_in(entries: Iterable[Entry]) -> Entry | None:
    """The entry with the gate's verdict; None where it is not among these."""
    return next((entry for entry in entries if (entry["step"], entry["state"]) == ("judge", "done")), None)


def in_short(reason: str, judged: Entry | None) -> str:
    """The reason of an outcome with the names alone of the criteria that decided it: `2 criteria failed:
    c8 tokens_per_s, c8 e2e_s`. Their numbers were shown with the verdict.
    """
    if judged is None:
        return reason
    try:
        whole, count, names = (
            Verdict.read(judged, "verdict").conclusion(),
            _count(judged),
            ", ".join(_deciding(judged)),
        )
    except DAMAGED:
        return reason
    return f"{count}: {names}{reason[len(whole) :]}" if names and reason.startswith(whole) else reason


def _told(entry: Entry) -> list[str]:
    """A damaged entry has a sentence too."""
    try:
        return _entry(entry)
    except DAMAGED:
        return [f"{STEPS.get(entry['step'], entry['step'])}: {entry['state']}"]


def _entry(entry: Entry) -> list[str]:
    step, state = entry["step"], entry["state"]
    if step == "standby":
        because = entry.get("because")
        return [f"standby: no, because {because}" if because else "standby: the old release sleeps meanwhile"]
    if step == "standby-for":
        because = entry.get("because")
        return [f"the old release is stopped: {because}" if because else "the old release sleeps on"]
    if step == "interrupted":
        return [f"interrupted by {entry.get('by', 'somebody')}"]
    name = STEPS.get(step)
    if name is None:
        return []
    if step == "begin":
        if entry["purpose"] == CALIBRATION:
            return [f"calibration of {entry['to']} by {entry['operator']}"]
        return [
            (
                f"{entry['to']} is to replace {entry['from'] or 'nothing'} ({entry['purpose']} by"
                f" {entry['operator']})"
            )
        ]
    if state == "intended":
        run = f" (run {entry['run']} of {entry['of']})" if "run" in entry else ""
        return [f"{name}{run} ..."]
    if state == "failed":
        serving = f"; serving {entry['serving'] or 'nothing'}" if "serving" in entry else ""
        return [f"{name}: failed: {entry['error']}{serving}"]
    if step == "judge":
        return _judged(entry)
    return [f"{name}: {_detail(entry)}"]


def _judged(entry: Entry) -> list[str]:
    """A verdict: a table of criteria that passed, the verdict, a line for each other criterion and note."""
    unmet = _unmet(entry)
    sentences = [Row.read(row, "metric").sentence() for row in unmet]
    notes = [text for text in entry["reasons"] if text not in sentences]
    summary = _count(entry) or "".join(notes[:1])
    verdict = ": ".join(filter(None, (STEPS["judge"], entry["verdict"], summary)))
    below = [*sentences, *(text for text in notes if text != summary)]
    table = _table(row for row in entry["metrics"] if not _is_unmet(row))
    return [*table, verdict, *(f"  {text}" for text in below)]


def _is_unmet(row: Metric) -> bool:
    return row["decides"] and row["verdict"] != PASS


def _unmet(judged: Entry) -> list[Metric]:
    """The criteria that failed, then those that are undecided."""
    return sorted(filter(_is_unmet, judged["metrics"]), key=lambda row: row["verdict"] != FAIL)


def _deciding(judged: Entry) -> list[str]:
    """The names of the criteria by which a release failed, or by which its verdict is open."""
    return [_name(row) for row in _unmet(judged) if row["verdict"] == judged["verdict"]]


def _count(judged: Entry) -> str:
    """`2 criteria failed`; empty where no criterion decided against the release."""
    count = len(_deciding(judged))
    return f"{counted(count, 'criterion', 'criteria')} {UNMET[str(judged['verdict'])]}" if count else ""


def _detail(entry: Entry) -> str:
    step = entry["step"]
    if step in ("ready", "restart"):
        return f"after {entry['after_s']} s"
    if step in ("kernel", "soak"):
        return _verdict(entry)
    if "summary" in entry:
        return "; ".join(_measured(name, value) for name, value in entry["summary"].items())
    if "baseline" in entry:
        return str(entry["baseline"])
    if step == "restore" and "after_s" in entry:
        return f"it generates tokens after {entry['after_s']} s"
    return "done"


def _verdict(entry: Entry) -> str:
    found = [entry["verdict"], *entry.get("kernels", []), *entry.get("reasons", [])]
    return "; ".join(filter(None, found))


def _table(metrics: Iterable[Metric]) -> list[str]:
    """The metrics, a line each: before, after, ratio, limit and verdict, in columns."""
    rows = [_cells(row) for row in metrics]
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*rows, strict=True)]
    return [_line(cells, widths) for cells in rows]


def _cells(row: Metric) -> tuple[str, ...]:
    """The cells of a metric; one that does not decide has no limit."""
    ratio = f"x{row['ratio']:.3f}" if row["ratio"] is not None else ""
    limit = f"limit {four_digits(row['limit'])}" if row["decides"] and row["limit"] is not None else ""
    verdict = str(row["verdict"]) if row["decides"] else "informational"
    return _name(row), four_digits(row["before"], "-"), four_digits(row["after"], "-"), ratio, limit, verdict


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:{side}{width}}" for cell, side, width in zip(cells, "<>>><<", widths, strict=True))
    name, before, after, ratio, limit, verdict = padded
    judged = f"{limit}  {verdict}" if limit.strip() else verdict  # without a limit no room is lost to it
    return f"  {name}  {before} -> {after}  {ratio}  {judged}".rstrip()


def _name(row: Metric) -> str:
    return f"{row['phase'] or ''} {row['name']}".strip()


def _measured(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name} {value}"
    ttft = f", first token after {value['ttft_s'] * 1000:.0f} ms" if value.get("ttft_s") is not None else ""
    errors = f", {value['errors']} errors" if value.get("errors") else ""
    return f"{name} {value['tokens_per_s']} tokens/s{ttft} ({value['requests']} requests{errors})"


def ending(last: Summary) -> str:
    """One sentence about a finished transaction."""
    by = f"{last.purpose} of release {last.new} by {last.operator}, begun {last.began}"
    return f"{by}: {last.outcome} ({last.reason})"
