"""A Hub that means harm: it takes no memory of whoever asks it, and is told no token unencrypted."""

from __future__ import annotations

import base64
import gzip
import sys
from collections.abc import Iterator

import pytest
from lab import control

from .people import Attacked

pytestmark = pytest.mark.full

PORT = 8912
TOKEN = "hf_attacked"
MOST_KB = 300_000
# Answers everything by the given status and bytes, and says which token it was sent.
HUB = """
import base64, http.server, sys
body = base64.b64decode(sys.argv[3])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("was sent", self.headers.get("Authorization"))
        self.send_response(int(sys.argv[2]))
        self.send_header("Content-Encoding", "gzip, gzip")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
print("listens")
server.serve_forever()
"""


# A small process starts the command: what a process has when it starts another counts as that one's, too.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("most", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bomb() -> str:
    """Some kB that are 400 MB."""
    return base64.b64encode(gzip.compress(gzip.compress(bytes(400_000_000), 1))).decode()


@pytest.fixture(params=["200", "500"])
def hub(request: pytest.FixtureRequest, attacked: Attacked, bomb: str) -> Iterator[str]:
    """The file that the hostile Hub's words go to."""
    with attacked.running("hub", HUB, str(PORT), request.param, bomb, wait_for="listens") as said:
        yield said


def lock(attacked: Attacked, **variables: str) -> tuple[int, str, int]:
    """Exit code and words of `pyinfra-vllm lock` at that Hub, and the most memory that it had, in kB."""
    env = {"HF_ENDPOINT": f"http://{attacked.host.address}:{PORT}", **variables}
    with control.own_lock_file() as file:
        file.unlink(missing_ok=True)
        done = control.run(
            sys.executable, "-I", "-c", MEASURED, "pyinfra-vllm", "lock", control.INVENTORY, env=env
        )
    told, _, most_kb = done.stderr.rpartition("most ")
    return done.returncode, told, int(most_kb)


def test_what_a_hub_compresses_twice_takes_no_memory(attacked: Attacked, hub: str) -> None:
    code, told, most_kb = lock(attacked)
    assert "was sent None" in attacked.sh(f"cat {hub}"), told
    assert most_kb < MOST_KB
    assert code and "The lock file is as it was." in told


def test_no_token_travels_unencrypted(attacked: Attacked, hub: str) -> None:
    code, told, _ = lock(attacked, HF_TOKEN=TOKEN, PYINFRA_VLLM_TOKEN_OVER_HTTP="")
    assert TOKEN not in attacked.sh(f"cat {hub}")
    assert code == 2 and "Nothing was sent or touched." in told
