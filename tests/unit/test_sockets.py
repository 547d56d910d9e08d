"""A program on the service's port that is not the service is found and named."""

from __future__ import annotations

import os
import socket

from pyinfra_vllm.on_host import sockets


def test_a_listener_outside_the_unit_is_a_stranger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = sockets.strangers(port, "vllm-chat.service")
        assert len(found) == 1 and f"(process {os.getpid()})" in found[0]


def test_nobody_listens_on_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert sockets.strangers(port, "vllm-chat.service") == []


def test_a_client_of_the_port_is_no_listener() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("::1", port)) as client:
            assert sockets.strangers(client.getsockname()[1], "vllm-chat.service") == []
            assert len(sockets.strangers(port, "vllm-chat.service")) == 1
