"""Draws docs/gate-pass.svg, docs/gate-fail.svg and docs/gate-inconclusive.svg from verdicts of the real gate.

The records are made up (their noise is in EXAMPLES); everything drawn is what `gate.judge` said of them.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Phase, Record
from pyinfra_vllm.on_host.gate import gate
from pyinfra_vllm.on_host.gate.verdict import Row, Verdict

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Verdict -> (after is so many times slower, noise of a round).
EXAMPLES = {"pass": (1.01, 0.004), "fail": (1.12, 0.01), "inconclusive": (1.04, 0.09)}
COLORS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}
LEFT, RIGHT, TOP, STEP, WIDTH = 150, 620, 74, 34, 720
LOW, HIGH = 0.80, 1.25


def x(ratio: float) -> float:
    """Where a ratio stands: logarithmic, so that twice as fast is as far from 1 as half as fast."""
    bounded = min(max(ratio, LOW), HIGH)
    return LEFT + (RIGHT - LEFT) * math.log(bounded / LOW) / math.log(HIGH / LOW)


def record(slower: float, noise: float, seed: int) -> Record:
    source = random.Random(seed)
    phases = []
    for concurrency, tpot in ((1, 0.0125), (8, 0.0126)):
        rounds, requests = [], []
        for number in range(6):
            mood = slower * math.exp(source.gauss(0, noise))
            ttft, e2e = 0.057 * mood, (0.057 + 127 * tpot) * mood
            names = [f"c{concurrency}-{number * 8 + index:04d}" for index in range(8)]
            requests += [
                {"prompt": name, "ok": True, "ttft_s": ttft, "e2e_s": e2e, "input_tokens": 250,
                 "output_tokens": 128, "round": number}
                for name in names
            ]  # fmt: skip
            duration = e2e * 8 / concurrency
            rounds.append({"round": number, "duration_s": duration, "output_tokens": 1024, "complete": True})
        total = sum(item["duration_s"] for item in rounds)
        phases.append(
            {"name": f"c{concurrency}", "concurrency": concurrency, "duration_s": total, "requests": requests,
             "rounds": rounds}
        )  # fmt: skip
    return Record("m", {}, tuple(map(Phase.of, phases)))


def text(
    place: float, y: float, words: str, anchor: str = "start", color: str = "#57606a", size: int = 13
) -> str:
    return (
        f'<text x="{place:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{color}"'
        f' font-size="{size}">{words}</text>'
    )


def draw(verdict: Verdict) -> str:
    rows = [row for row in verdict.metrics if row.decides and row.interval]
    height = TOP + STEP * len(rows) + 44
    color = COLORS[verdict.verdict]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(16, 30, verdict.verdict, color=color, size=20),
        text(x(1), TOP - 12, "no change", "middle"),
        f'<line x1="{x(1):.0f}" y1="{TOP - 6}" x2="{x(1):.0f}" y2="{height - 40}" stroke="#8c959f"/>',
    ]
    for number, row in enumerate(rows):
        parts += bar(row, TOP + STEP * number + 14)
    parts.append(
        text(
            16,
            height - 14,
            "ratio after / before with its 95 % interval; shaded: worse than the margin allows",
        )
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def bar(row: Row, y: float) -> list[str]:
    assert row.interval is not None and row.limit is not None and row.ratio is not None  # see draw
    color = COLORS[row.verdict]
    low, high = row.interval
    more_is_better = row.limit < 1
    worse_from, worse_to = (LEFT, x(row.limit)) if more_is_better else (x(row.limit), RIGHT)
    return [
        (
            f'<rect x="{worse_from:.0f}" y="{y - 12:.0f}" width="{worse_to - worse_from:.0f}" height="24"'
            ' fill="#ffebe9"/>'
        ),
        text(16, y + 4, f"{row.phase} {row.name}", color="#24292f"),
        (
            f'<line x1="{x(low):.1f}" y1="{y:.0f}" x2="{x(high):.1f}" y2="{y:.0f}" stroke="{color}"'
            ' stroke-width="3"/>'
        ),
        f'<circle cx="{x(row.ratio):.1f}" cy="{y:.0f}" r="5" fill="{color}"/>',
        text(RIGHT + 12, y + 4, f"{row.ratio:.3f}", color=color),
    ]


def main() -> None:
    for expected, (slower, noise) in EXAMPLES.items():
        before, after = record(1.0, noise, 1), record(slower, noise, 2)
        verdict = gate.judge(before, after, Criteria())
        if verdict.verdict != expected:
            raise SystemExit(f"the example for {expected} is judged {verdict.verdict}: {verdict.reasons}")
        (DOCS / f"gate-{expected}.svg").write_text(draw(verdict))


if __name__ == "__main__":
    main()
