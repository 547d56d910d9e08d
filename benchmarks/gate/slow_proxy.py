"""A proxy that makes a server slower by a known factor: each piece of an answer arrives `factor` times later.

Stands between the probe and a real server, so that a slowdown of exactly 5 or 10 % can be recorded without
touching the settings of the machine.  `slow_proxy.py PORT UPSTREAM_PORT FACTOR`
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time

Pieces = queue.SimpleQueue  # of (moment of arrival, bytes); empty bytes are the end


def stamp(upstream: socket.socket, pieces: Pieces) -> None:
    while True:
        piece = upstream.recv(1 << 16)
        pieces.put((time.perf_counter(), piece))
        if not piece:
            return


def forward(client: socket.socket, upstream: socket.socket) -> None:
    while piece := client.recv(1 << 16):
        upstream.sendall(piece)


def relay(client: socket.socket, upstream_port: int, factor: float) -> None:
    began = time.perf_counter()
    pieces: Pieces = queue.SimpleQueue()
    with client, socket.create_connection(("127.0.0.1", upstream_port)) as upstream:
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=stamp, args=(upstream, pieces), daemon=True).start()
        threading.Thread(target=forward, args=(client, upstream), daemon=True).start()
        while True:
            arrived, piece = pieces.get()
            if not piece:
                return
            due = began + (arrived - began) * factor
            time.sleep(max(0.0, due - time.perf_counter()))
            client.sendall(piece)


def main() -> None:
    port, upstream_port, factor = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", port), backlog=256) as server:
        while True:
            client, _ = server.accept()
            threading.Thread(target=relay, args=(client, upstream_port, factor), daemon=True).start()


if __name__ == "__main__":
    main()
