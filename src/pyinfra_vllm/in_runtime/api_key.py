"""Asks clients for the service's key, in vLLM's own process: for versions that keep every VLLM_* variable on the disk.

vLLM 0.12 to 0.28 writes `VLLM_API_KEY` in clear text below its compile cache. So the unit takes that variable away and gives the
key under a name that vLLM does not know; `vllm serve --middleware pyinfra_vllm_api_key.ApiKey` loads this file from the
release's folder. It asks where vLLM itself would, and answers as it does. Without a key the server does not start.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

VARIABLE = "PYINFRA_VLLM_API_KEY"
# vllm/entrypoints/serve/utils/server_utils.py GUARDED_PREFIX, 0.28; older versions guard the first one to three of them.
GUARDED = ("/v1", "/v2", "/inference", "/cohere")
REFUSAL = b'{"error":"Unauthorized"}'

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


class ApiKey:
    """ASGI middleware: 401 for whoever asks for a guarded path without `Authorization: Bearer <key>`."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        key = os.environ[VARIABLE]
        if not key:
            raise ValueError(f"{VARIABLE} is empty")
        self.key = _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asks(scope) and not self._knows(scope):
            await self._refuse(scope, send)
        else:
            await self.app(scope, receive, send)

    def _asks(self, scope: Scope) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return False
        path = str(scope["path"])
        root = str(scope.get("root_path") or "")
        return path.startswith(GUARDED) or path.removeprefix(root).startswith(GUARDED)

    def _knows(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name.lower() == b"authorization":
                scheme, _, given = value.partition(b" ")
                return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(given), self.key)
        return False

    async def _refuse(self, scope: Scope, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(REFUSAL)).encode()),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})
