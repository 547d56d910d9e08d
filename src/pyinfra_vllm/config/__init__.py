"""The declaration: frozen, typed, and checked before any host is contacted.

`declare(...)` turns merged layers of plain data into `Declared` hosts; everything found wrong comes back as
one `DeclarationError`. This package never reads an inventory (that is `fleet.py`) and never touches a host.
"""

from .declared import Declared, Fleet, Overrides, declare
from .gate import Gate
from .layers import Layer, Merged, merge
from .models import Runtime, Service
from .problems import Problem, Problems
from .rollout import Rollout

__all__ = [
    "Declared",
    "Fleet",
    "Gate",
    "Layer",
    "Merged",
    "Overrides",
    "Problem",
    "Problems",
    "Rollout",
    "Runtime",
    "Service",
    "declare",
    "merge",
]
