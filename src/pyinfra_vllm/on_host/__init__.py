"""The program that runs on the host, under its own python3 (3.9 or newer), as one zipapp.

It imports the standard library and itself, nothing else: a host has no other Python that we may rely on.
"""
