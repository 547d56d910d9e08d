"""A light server on a Unix socket for tests of the front: says who it is, as often as it is asked.

`server.py NAME SOCKET [START_S] [PORT]`; like vLLM it makes its socket first and listens when it has started.
"""

import asyncio
import signal
import socket
import sys
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s"


class Answering(asyncio.Protocol):
    """One connection."""

    who = b""

    def connection_made(self, transport):
        self.transport, self.got = transport, b""

    def data_received(self, data):
        self.got += data
        while b"\r\n\r\n" in self.got:
            head, _, self.got = self.got.partition(b"\r\n\r\n")
            if b"/stream" in head.split(b"\r\n")[0]:
                self.streaming = asyncio.ensure_future(self.stream())
                return
            closing = b"connection: close" in head.lower()
            self.transport.write(
                ANSWER % (len(self.who), b"Connection: close\r\n" if closing else b"", self.who)
            )
            if closing:
                self.transport.close()

    async def stream(self):
        """Fifty tokens, and who made them; ends with the connection."""
        self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(50):
            self.transport.write(self.who)
            await asyncio.sleep(0.1)
        self.transport.close()


async def main(name, path, start_s="0", port=""):
    Answering.who = name.encode()
    Path(path).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    await asyncio.sleep(float(start_s))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, sys.exit)
    await loop.create_unix_server(Answering, sock=listening, backlog=2048)
    if port:
        await loop.create_server(Answering, "127.0.0.1", int(port), backlog=2048)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
