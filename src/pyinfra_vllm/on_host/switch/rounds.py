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
from . import pair
from .pair import Act, Busy
from .two_servers import Failed

MOST_BLOCKS = 30  # of what the journal has room reserved for, about a third
GOALS = {turns.OLD: pair.TURN_TO_OLD, turns.NEW: pair.TURN_TO_NEW}

Reach = Callable[[pair.Goal], Sequence[Act]]
Ask = Callable[[str, int, float], Sequence[Phase]]
Enough = Callable[[InTurns], bool]


def measure(reach: Reach, ask: Ask, enough: Enough, budget_s: float, seed: str) -> InTurns:
    """Measure blocks of rounds in turns.

    + reach: has this goal reached (two_servers), and tells its acts
    + ask: one round of this side, with its number and its deadline
    + enough: asked after each block
    + budget_s: after so many seconds no block is begun that would not end in time
    + seed: of the order, for the record

    A client's requests that don't end, and an old release that has to be started, end the measurement. Raises
    Failed where the new release fails in a turn, and whatever else a turn raises.
    """
    blocks: list[list[Side]] = []
    changes, longest_s, until = 0, 0.0, time.monotonic() + budget_s
    try:
        for number, sides in enumerate(turns.orders(MOST_BLOCKS, seed)):
            began = time.monotonic()
            if began + longest_s > until:
                break
            block: list[Side] = []
            for side in sides:
                changes += _turn(reach, side)
                asked = 2 * number + [each.who for each in block].count(side)
                block.append(Side(side, ask(side, asked, until)))
            blocks.append(block)
            longest_s = max(longest_s, time.monotonic() - began)
            if enough(InTurns(blocks, changes)):
                break
    except (Busy, _Restarted):
        pass  # what was measured so far counts
    changes += bool(reach(pair.TURN_TO_NEW))
    return InTurns(blocks, changes)


class _Restarted(Exception):
    """The old release had to be started: it can't take turns."""


def _turn(reach: Reach, side: str) -> bool:
    """Whether the servers changed. Raises Failed where the new one was lost: one that keeps its memory is
    stopped while that is waited for, which only its next start shows.
    """
    acts = reach(GOALS[side])
    if Act(pair.STOP, pair.NEW) in acts or Act(pair.START, pair.NEW) in acts:
        raise Failed("the new release had to be stopped in a turn: it failed to sleep, or kept its memory")
    if Act(pair.START, pair.OLD) in acts:
        raise _Restarted
    return bool(acts)
