"""Judging one record by another: criteria, ratios, limits, quality, noise, and the watch after a commit."""
