"""Helpers of the operations: what they ask, start, follow and show."""
