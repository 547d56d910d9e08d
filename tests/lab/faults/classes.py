"""All classes of faults, by the names that the table uses."""

from __future__ import annotations

from .breaking import BROKEN
from .fault import Fault
from .obstacles import OBSTACLES
from .people import PEOPLE
from .shortages import SHORTAGES
from .sleepers import SLEEPERS

FAULTS: dict[str, Fault] = {**BROKEN, **SHORTAGES, **PEOPLE, **OBSTACLES, **SLEEPERS}
