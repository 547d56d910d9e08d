"""The lab: test hosts on this machine, with real systemd, real sshd and the real vLLM.

Each host is a systemd-nspawn container over one cached base image, on a bridge of its own. The lab is for
tests and for `make demo`; it is never part of what is installed, and it touches nothing on this machine but
names that only it uses (`layout.py`), its cache and, as root on Debian, missing packages.
"""
