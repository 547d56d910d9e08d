"""Judges what collect.py kept, pair by pair, with the product's own criteria, and prints the tables of
README.md.

    python benchmarks/quality/table.py [FILE ...]      (this is `make bench-quality`)

A FILE is the `all.json` of serve_all.py, also as .json.xz; without one, those that are kept beside this
program are read. Nothing is served: recorded bits and answers are judged.
"""

from __future__ import annotations

import json
import lzma
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyinfra_vllm.on_host.bench import likelihood
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import AskedOver, Graded, Likelihood, Record
from pyinfra_vllm.on_host.gate import ladder

BASE = "awq-g64"
HARMLESS = (
    ("float16", "rtn-8"),
    (BASE, "awq-g64-as-float16"),
    ("awq-g64-as-float16", BASE),
    (BASE, "awq-g32"),
)
SIMULATED = 2000  # pairs for each line of the simulation
Kept = dict[str, Any]


def record(kept: Kept, run: int = 0) -> Record:
    """The quality part of a benchmark record, as the probe writes it."""
    return Record(
        model="?",
        server={},
        phases=(),
        quality=tuple(map(Graded.of, kept["runs"][run % len(kept["runs"])])),
        likelihood=measured_in(kept),
        likelihood_missing=kept["missing"],
        asked_over=AskedOver("chat"),
    )


def measured_in(kept: Kept) -> tuple[Likelihood, ...]:
    return tuple(map(Likelihood.of, kept["likelihood"]))


def judged(before: Record | None, after: Record) -> tuple[str, list[str]]:
    """The verdict of quality alone, and the criteria that made it."""
    rows = [row for row in ladder.rows(before, after, Criteria()) if row.decides]
    for verdict in ("fail", "inconclusive"):
        found = [row.name for row in rows if row.verdict == verdict]
        if found:
            return verdict, found
    return "pass", []


def line(name: str, kept: dict[str, Kept], base: str) -> str:
    before, after = record(kept[base]), record(kept[name])
    compared = likelihood.compare(before.likelihood or (), after.likelihood or ())
    bits = perplexity = "-"
    if compared is not None:
        width = "" if compared.low is None else f" [{compared.low - 1:+.1%}, {(compared.high or 0) - 1:+.1%}]"
        bits = f"{compared.ratio - 1:+.1%}{width}"
        perplexity = "-" if compared.perplexity is None else f"{compared.perplexity - 1:+.0%}"
    right = [sum(item.passed for item in side.quality) for side in (before, after)]
    sound = sum(1 for item in after.quality if not item.form) / len(after.quality)
    verdict, by = judged(before, after)
    first, first_by = judged(None, after)
    return (
        f"| {base} -> {name} | {perplexity} | {bits} | {right[0]} -> {right[1]} | {sound:.0%}"
        f" | {verdict} | {', '.join(by)} | {first} | {', '.join(first_by)} |"
    )


def repeated(kept: dict[str, Kept], before: str, after: str) -> str:
    """Every run of one against every run of the other: the verdicts."""
    early, late = kept[before], kept[after]
    verdicts = [
        judged(record(early, one), record(late, other))[0]
        for one in range(len(early["runs"]))
        for other in range(len(late["runs"]))
        if before != after or one != other
    ]
    shares = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in ("pass", "inconclusive", "fail"))
    return f"| {before} -> {after} | {len(verdicts)} | {shares} |"


def simulated(
    measured: Sequence[Likelihood], perplexity: float, spread: float, bits_per_token: float | None
) -> str:
    """How often a rise of the perplexity fails, as a line of the table."""
    verdicts = rises(measured, perplexity, spread, bits_per_token, SIMULATED)
    shares = " | ".join(
        f"{verdicts.count(verdict) / SIMULATED:.1%}" for verdict in ("pass", "inconclusive", "fail")
    )
    return f"| {perplexity - 1:+.0%} | {bits_per_token or own_bits(measured):.2f} | {spread:.3f} | {shares} |"


def own_bits(measured: Sequence[Likelihood]) -> float:
    """Bits a token of the model that was measured."""
    return sum(sum(item.pieces) for item in measured) / sum(item.tokens or 0 for item in measured)


def rises(
    measured: Sequence[Likelihood], perplexity: float, spread: float, bits_per_token: float | None, pairs: int
) -> list[str]:
    """The verdicts on so many simulated rises of the perplexity, each piece being hit by it more or less.

    + spread: standard deviation of a piece's log ratio around the mean, as a real damage of this size has
    + bits_per_token: of another model than the one that was measured; its bits are scaled to it
    """
    scale = (bits_per_token or own_bits(measured)) / own_bits(measured)
    rise = math.log2(perplexity) / (own_bits(measured) * scale)
    before = [replace(item, pieces=tuple(bits * scale for bits in item.pieces)) for item in measured]
    draw = random.Random(1)
    verdicts = []
    for _ in range(pairs):
        after = [
            replace(
                item,
                pieces=tuple(bits * (1 + rise) * math.exp(draw.gauss(0, spread)) for bits in item.pieces),
            )
            for item in before
        ]
        early, late = (Record("?", {}, (), likelihood=tuple(side)) for side in (before, after))
        verdicts.append(judged(early, late)[0])
    return verdicts


def spread_of(before: Kept, after: Kept) -> float:
    logs = [
        math.log(now / then)
        for one, other in zip(before["likelihood"], after["likelihood"], strict=True)
        for then, now in zip(one["pieces"], other["pieces"], strict=True)
    ]
    return statistics.stdev(logs)


def read(path: Path) -> dict[str, Kept]:
    """The records of collect.py by variant."""
    data = path.read_bytes()
    kept: dict[str, Kept] = json.loads(lzma.decompress(data) if path.suffix == ".xz" else data)
    return kept


def main() -> None:
    here = Path(__file__).parent
    for path in [Path(name) for name in sys.argv[1:]] or sorted(here.glob("answers-*.json.xz")):
        kept = read(path)
        print(f"{path.name}\n")
        _variants(kept)
        if "float16" in kept:
            _harmless(kept)
            _simulation(kept)
        _seconds(kept)


def _variants(kept: dict[str, Kept]) -> None:
    print("| pair | perplexity | bits | right | without defect | verdict | by | first installation | by |")
    print("|---|--:|--:|--:|--:|---|---|---|---|")
    if "float16" in kept:
        print(line("rtn-8", kept, "float16"))
        print(line(BASE, kept, "float16"))
    for name in kept:
        if name not in ("float16", "rtn-8", BASE):
            print(line(name, kept, BASE))


def _harmless(kept: dict[str, Kept]) -> None:
    print("\n| unchanged or harmless, every run against every run | pairs | verdicts |\n|---|--:|---|")
    for before, after in [(BASE, BASE), ("float16", "float16"), *HARMLESS]:
        print(repeated(kept, before, after))
    for name in kept:
        if "@" in name:
            print(repeated(kept, name.partition("@")[0], name))


def _simulation(kept: dict[str, Kept]) -> None:
    print(
        "\n| perplexity | bits a token | spread of a piece | pass | inconclusive | fail"
        " |\n|--:|--:|--:|--:|--:|--:|"
    )
    damage = spread_of(kept[BASE], kept["scales-5"])
    noise = spread_of(kept[BASE], kept["awq-g64-as-float16"])
    for perplexity, spread in ((1.0, noise), (1.0, damage), (1.1, damage)):
        for bits in (None, 2.6):
            print(simulated(measured_in(kept[BASE]), perplexity, spread, bits))


def _seconds(kept: dict[str, Kept]) -> None:
    """Of servers that share a GPU or a processor with many others, unless there is but one."""
    seconds = [kept[name]["alone_s"] for name in kept]
    bits_s = [kept[name]["likelihood_s"] for name in kept]
    print(
        f"\n401 questions: median {statistics.median(seconds):.1f} s, {min(seconds):.1f} to"
        f" {max(seconds):.1f}; 24 pieces of text: median {statistics.median(bits_s):.2f} s,"
        f" {min(bits_s):.2f} to {max(bits_s):.2f}\n"
    )


if __name__ == "__main__":
    main()
