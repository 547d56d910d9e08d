"""Lets the probe's threads run before what they measure, as long as a measurement takes.

A reader that waits for a processor reads tokens later than they came. With four busy processes on two cores
an ordinary thread woke up to 0.4 s late, at nice -10 too, and read whole answers at once; under SCHED_RR it
was 0.15 ms (p99). The probe sleeps nearly all the time, so it takes little from the server; a kernel's
real-time limit (sched(7)) bounds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

REAL_TIME, ORDINARY = "real-time", "ordinary"
# The lowest of SCHED_RR: before every ordinary thread, after whatever else asked to be real-time.
PRIORITY = 1


@contextmanager
def first_in_line() -> Iterator[None]:
    """Real-time scheduling for this thread and those that it starts.

    Where that is not allowed, all stays as it is.

    It takes root or CAP_SYS_NICE, and Linux; `current()` says what was got, and the record keeps it.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def current() -> str:
    """How the calling thread is scheduled: `real-time` or `ordinary`."""
    if not hasattr(os, "sched_getscheduler"):
        return ORDINARY
    return REAL_TIME if os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO) else ORDINARY
