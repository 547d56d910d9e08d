"""Measures two servers of one card in turns: blocks of four rounds, until more would not matter or the time
is over. Ends with the new release serving, or raises.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Callable

from ..bench.record import Phase
from ..gate import turns
from ..gate.in_turns import InTurns, Side
from ..openai.client import ClientError
from . import pair
from .pair import Act, Busy
from .two_servers import Failed, Stuck

MOST_BLOCKS = 30  # of what the journal has room reserved for, about a third
GOALS = {turns.OLD: pair.TURN_TO_OLD, turns.NEW: pair.TURN_TO_NEW}

Reach = Callable[[pair.Goal], Sequence[Act]]
Ask = Callable[[str, int, float], Sequence[Phase]]
Enough = Callable[[InTurns], bool]
Keep = Callable[[str], None]


class _Restarted(Exception):
    """The old release had to be started, or does not start again: it can't take turns."""


class Rounds:
    """The blocks of one measurement.

    + reach: has this goal reached (two_servers), and tells its acts
    + ask: one round of this side, with its number and its deadline
    + enough: asked after each block, about those of the same starts
    + left_open: asked once, when the budget is spent: whether more blocks may decide what these leave open
    + keep_canary: writes down what this server answers after a start, where that was not done before a sleep
    + seed: of the order, for the record
    """

    def __init__(
        self, reach: Reach, ask: Ask, enough: Enough, left_open: Enough, keep_canary: Keep, seed: str
    ) -> None:
        self.reach, self.ask, self.enough, self.keep_canary = reach, ask, enough, keep_canary
        self.left_open = left_open
        self.orders = turns.orders(MOST_BLOCKS, seed)
        self.cut_short = ""  # why the measurement ended before its time, or has one start of each side
        self.block_s = 0.0  # of the longest block
        self.blocks: list[list[Side]] = []
        self.changes = 0

    def measure(
        self, budget_s: float, longest_s: float, start_again: Callable[[], bool] | None = None
    ) -> InTurns:
        """Measure for so long in all.

        + longest_s: the same where there are too few blocks for a verdict after `budget_s`, or they leave it
            open
        + start_again: asked after half of it: whether there is time for a second start of each side

        A client's requests that don't end, and an old release that has to be started or does not start
        again, end the measurement. Raises Failed where the new release fails, and whatever else a turn
        raises.
        """
        share = 2 if start_again else 1
        try:
            self._fill(0, share, budget_s, longest_s)
            if start_again and start_again():
                self._start_both_again()
                self._fill(1, share, budget_s, longest_s)
            elif start_again:
                self.cut_short = "there was no time left for second starts"
        except (Busy, _Restarted) as problem:  # what was measured so far counts
            self.cut_short = str(problem)
        self.changes += bool(self.reach(pair.TURN_TO_NEW))
        return InTurns(self.blocks, self.changes)

    def _fill(self, start: int, share: int, budget_s: float, longest_s: float) -> None:
        """Blocks of this start, none begun that would not end in time.

        + share: how many starts share the seconds
        """
        first, now = len(self.blocks), time.monotonic()
        spent, until = now + budget_s / share, now + longest_s / share
        last_start = start == share - 1
        for number in range(first, first + MOST_BLOCKS // share):
            began = time.monotonic()
            few = number - first < turns.LEAST_BLOCKS / share
            if not few and began + self.block_s > spent:
                if not (last_start and spent < until and self.left_open(InTurns(self.blocks))):
                    return
                spent = until
            if began + self.block_s > until:
                return
            block: list[Side] = []
            for side in self.orders[number]:
                self.changes += self._turn(side)
                asked = 2 * number + [each.who for each in block].count(side)
                block.append(Side(side, self.ask(side, asked, until), start))
            self.blocks.append(block)
            self.block_s = max(self.block_s, time.monotonic() - began)
            if self.enough(InTurns(self.blocks[first:])):
                return

    def _turn(self, side: str) -> bool:
        """Whether the servers changed. Raises Failed where the new one was lost."""
        acts = self.reach(GOALS[side])
        if Act(pair.STOP, pair.NEW) in acts or Act(pair.START, pair.NEW) in acts:
            raise Failed("the new release had to be stopped in a turn: it failed to sleep or ended by itself")
        if Act(pair.START, pair.OLD) in acts:
            raise _Restarted("the old release had to be started in a turn")
        return bool(acts)

    def _start_both_again(self) -> None:
        """First the new release, while the old one is there; then the old one, while the new one is."""
        self.changes += bool(self.reach(pair.BACK))
        self.reach(pair.ACTIVATE)
        try:
            self.keep_canary(pair.NEW)
        except ClientError as problem:
            raise Failed(f"the new release does not answer after its second start: {problem}") from problem
        self.reach(pair.FORWARD)
        self.changes += 2
        try:
            self.reach(pair.TURN_TO_OLD)
            self.keep_canary(pair.OLD)
        except (Stuck, ClientError) as problem:
            raise _Restarted(f"the old release does not serve after its second start: {problem}") from problem
