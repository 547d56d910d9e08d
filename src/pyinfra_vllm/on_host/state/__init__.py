"""Paths, journal, locks, records and whatever else lasts on a host."""
