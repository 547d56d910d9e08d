"""The child of `on_host/staging/swarm.py`: shares one checkpoint with other hosts of the fleet by libtorrent.

The only module that imports libtorrent; it is run by the first Python of the host that has it. It gets one
line of JSON on standard input and prints a line of JSON twice a second; when standard input closes, whoever
started it is gone and it ends at once. It connects to the addresses that it was given and to no other: no
tracker, no DHT, no local discovery, no peer exchange, no port mapping. Its files are not trusted: it checks
pieces to find out who sends garbage, and `on_host/staging/fetch.py` checks each file's sha256.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

TICK_S = 0.5
CONNECT_EVERY_S = 3.0
# Once all are complete, sharing goes on for so long: the others may not have seen yet that this host is.
FAREWELL_S = 3.0
MOST_CONNECTIONS = 200
EVERYBODY = (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
BLOCKED, ALLOWED = 1, 0
PLAIN = 2  # enc_policy.disabled: libtorrent's own cipher hides traffic from providers and protects nothing

SETTINGS = {
    "user_agent": "pyinfra-vllm",
    "listen_interfaces": "",  # nobody may connect before the filter is there
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "out_enc_policy": PLAIN,
    "in_enc_policy": PLAIN,
    "allow_multiple_connections_per_ip": False,
    "close_redundant_connections": False,  # a peer that has all is to be seen as such
    "peer_timeout": 30,  # seconds without a word: its link is cut, or its host is gone
    "connections_limit": MOST_CONNECTIONS,
    # Hosts begin within seconds of each other: one that is not there yet is asked again soon, however often.
    "min_reconnect_time": 2,
    "max_failcount": 1000,
    "file_pool_size": 64,
    "alert_mask": 0,
}


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """Standard input is open as long as the parent lives."""
    sys.stdin.read()
    os._exit(1)


def described(order: Mapping[str, Any]) -> dict[bytes, Any]:
    """The torrent: the files of the checkpoint in the order of the lock, and the sha1 of each piece."""
    files = [
        {b"length": file["size"], b"path": [part.encode() for part in file["path"].split("/")]}
        for file in order["files"]
    ]
    info = {
        b"files": files,
        b"name": order["name"].encode(),
        b"piece length": order["piece_bytes"],
        b"pieces": bytes.fromhex(order["pieces"]),
        b"private": 1,  # peers by our list only
    }
    return {b"info": info}


def session(order: Mapping[str, Any]) -> Any:
    """A session that listens on this host's address of the fleet and talks to the others' alone."""
    import libtorrent

    settings = {**SETTINGS, "outgoing_interfaces": order["address"]}
    made = libtorrent.session(cast("libtorrent.settings_pack", settings))
    allowed = libtorrent.ip_filter()
    for first, last in EVERYBODY:
        allowed.add_rule(first, last, BLOCKED)
    for address, _ in order["peers"]:
        allowed.add_rule(address, address, ALLOWED)
    made.set_ip_filter(allowed)
    address = f"[{order['address']}]" if ":" in order["address"] else order["address"]
    made.apply_settings({"listen_interfaces": f"{address}:{order['port']}"})
    return made


def torrent(order: Mapping[str, Any], made: Any) -> Any:
    import libtorrent

    flags = libtorrent.torrent_flags
    parameters = libtorrent.add_torrent_params()
    parameters.ti = libtorrent.torrent_info(libtorrent.bencode(described(order)))
    parameters.save_path = order["directory"]
    # Of the torrent: a session's own limits don't hold for private addresses.
    parameters.upload_limit = parameters.download_limit = order["bytes_per_s"] or 0  # 0: none
    # In place of the default flags: without apply_ip_filter the session's filter lets everybody in.
    parameters.flags = flags.apply_ip_filter | flags.disable_dht | flags.disable_lsd | flags.disable_pex
    if order["complete"]:
        parameters.flags |= flags.seed_mode  # verified before by sha256: it is read, and never written to
    return made.add_torrent(parameters)


class Others:
    """The peers that were told: who is connected, who lacks a piece, who has all."""

    def __init__(self, handle: Any, told: list[list[Any]]) -> None:
        self.handle = handle
        self.told = {(address, port) for address, port in told}
        self.connected: set[str] = set()
        self.complete: set[str] = set()
        self.asked = 0.0

    def look(self) -> None:
        """Ask libtorrent who is there, and have it connect to those who are not."""
        import libtorrent

        seen = {peer.ip[0]: peer for peer in self.handle.get_peer_info() if not self._connecting(peer)}
        self.connected = set(seen)
        self.complete |= {
            ip for ip, peer in seen.items() if peer.flags & libtorrent.peer_info.seed or peer.progress >= 1
        }
        if time.monotonic() - self.asked > CONNECT_EVERY_S:
            self.asked = time.monotonic()
            for address, port in self.told:
                if address not in self.connected:
                    self.handle.connect_peer((address, port))

    @staticmethod
    def _connecting(peer: Any) -> bool:
        import libtorrent

        return bool(peer.flags & (libtorrent.peer_info.connecting | libtorrent.peer_info.handshake))

    @property
    def lacking(self) -> set[str]:
        return self.connected - self.complete

    @property
    def all_complete(self) -> bool:
        return self.complete >= {address for address, _ in self.told}


def share(order: Mapping[str, Any]) -> None:
    """Fetch what is missing, then share.

    That ends soon after every peer has all; when no peer that lacks something was connected for `quiet_s`;
    and `longest_s` after this host had all. How slowly it may come here is the parent's to judge.
    """
    made = session(order)
    handle = torrent(order, made)
    others = Others(handle, order["peers"])
    # since: this host has all of it, or is still fetching; lacked: somebody lacked something
    since = quiet = lacked = time.monotonic()
    while True:
        others.look()
        now, state = time.monotonic(), handle.status()
        if state.errc.value():
            say(error=f"{state.errc.message()} ({state.error_file})")
            return
        whole = state.is_seeding
        say(
            bytes=state.total_wanted_done,
            whole=whole,
            listening=made.listen_port() != 0,
            checking="checking" in str(state.state),
            connected=len(others.connected),
            lacking=len(others.lacking),
            received=state.total_payload_download,
            sent=state.total_payload_upload,
            garbage=state.total_failed_bytes,
        )
        since = since if whole else now
        quiet = now if others.lacking or not whole else quiet
        lacked = lacked if whole and others.all_complete else now
        if now - lacked > FAREWELL_S or (whole and now - quiet > order["quiet_s"]):
            return
        if now - since > order["longest_s"]:
            return
        time.sleep(TICK_S)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        share(order)
    except Exception as error:  # every cause is told to the parent, which goes on without this source
        say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    sys.stdout.flush()
    os._exit(0)  # no waiting for connections to close


if __name__ == "__main__":
    main()
