"""Text that the host hands to an installed runtime's own Python, which has what the host's python3 lacks.

Packed beside `on_host` and read by it as data; nothing here is ever imported there.
"""
