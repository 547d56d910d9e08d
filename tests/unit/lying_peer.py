"""A peer that says it has all of a checkpoint, and answers whatever it is asked for with zeros.

libtorrent itself can't be made to do that: it checks pieces before it sends them.

    lying_peer.py REQUEST.json   in the place of the host that was to share by this request
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import libtorrent

from pyinfra_vllm.in_runtime import peer

LONGEST_S = 60
BITFIELD, UNCHOKE, REQUEST, PIECE = 5, 1, 6, 7


def info_hash(request: dict[str, Any]) -> bytes:
    """The name of what is shared, as peers know it."""
    order = request["swarm"]
    named = {"name": request["commit"], "piece_bytes": order["piece"], "pieces": order["hashes"]}
    described = peer.described({"files": request["files"], **named})
    return hashlib.sha1(libtorrent.bencode(described[b"info"])).digest()


def greeting(request: dict[str, Any]) -> bytes:
    """The first bytes that a peer sends, for what is shared by this request."""
    return b"\x13BitTorrent protocol" + bytes(8) + info_hash(request) + b"-LI0000-" + bytes(12)


def message(kind: int, content: bytes = b"") -> bytes:
    return (1 + len(content)).to_bytes(4, "big") + bytes([kind]) + content


def everything(pieces: int) -> bytes:
    """The bits of all pieces."""
    return (((1 << pieces) - 1) << (-pieces % 8)).to_bytes(-(-pieces // 8), "big")


def answer(asked: socket.socket, stream: IO[bytes]) -> None:
    stream.read(68)  # the other's greeting
    while len(header := stream.read(4)) == 4:
        words = stream.read(int.from_bytes(header, "big"))
        if words[:1] == bytes([REQUEST]):
            size = int.from_bytes(words[9:13], "big")
            asked.sendall(message(PIECE, words[1:9] + bytes(size)))


def lie_to(other: tuple[str, int], request: dict[str, Any]) -> None:
    """Lie whenever the other accepts a connection, for LONGEST_S seconds."""
    claim = message(BITFIELD, everything(len(request["swarm"]["hashes"]) // 40)) + message(UNCHOKE)
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        with suppress(OSError), socket.socket() as asked:
            asked.settimeout(10)
            asked.bind((request["swarm"]["address"], 0))
            asked.connect(other)
            asked.sendall(greeting(request) + claim)
            with asked.makefile("rb") as stream:
                answer(asked, stream)
        time.sleep(0.1)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    for address, port in request["swarm"]["peers"]:
        threading.Thread(target=lie_to, args=((address, port), request)).start()


if __name__ == "__main__":
    main()
