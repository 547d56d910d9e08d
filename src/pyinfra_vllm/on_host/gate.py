"""Judges a new release: absolute criteria, and comparison with the baseline measured just before."""

from __future__ import annotations

from .criteria import CHOICES, Criteria, CriteriaError

__all__ = ["CHOICES", "Criteria", "CriteriaError"]
