"""Breaks hosts at every step of a switch and shows from outside that nothing is ever lost."""
