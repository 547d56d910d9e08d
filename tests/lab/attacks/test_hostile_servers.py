"""Lines that a server, its clients and users put into its log, which root's process reads."""

from __future__ import annotations

import pytest

from .people import KEY, MALLORY, SERVICE, UNIT, Attacked

pytestmark = pytest.mark.full

MOST_KB = 300_000  # of root's process: the longest answer that it takes has 8 MiB
# How much memory root's program had at most, while it lived.
WITNESS = """
import glob, re, time
most = 0
print("watches")
while True:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if b"on-host" in open(path, "rb").read():
                found = re.search(r"VmHWM:\\s+(\\d+)", open(path.replace("cmdline", "status")).read())
                if found and int(found[1]) > most:
                    most = int(found[1])
                    print("most", most)
        except OSError:
            pass
    time.sleep(0.1)
"""
INSTEAD = """
import vllm.light_server as light
def complete(self, request):
    self.send_response(200)
    self.send_header("Content-Type", "text/event-stream")
    self.send_header("Connection", "close")
    self.end_headers()
    self.close_connection = True
    for piece in pieces():
        self.wfile.write(piece)
light.Handler.complete = complete
"""
ANSWERS = {
    "a line of 1.5 GB": f"{INSTEAD}pieces = lambda: (b'x' * (1 << 20) for _ in range(1500))\n",
    "deep JSON": f"{INSTEAD}pieces = lambda: [b'data: ' + b'[' * 200_000 + b'\\n\\n']\n",
    "other types": f"{INSTEAD}pieces = lambda: [b'data: ' + value + b'\\n\\n' for value in "
    """(b'{"choices": 5}', b'{"choices": [7], "usage": "many"}', b'[]',"""
    """ b'{"choices": [{"text": {}}], "usage": [1]}')]\n""",
    "100,000 tokens claimed": "import vllm.light_server as light\nlight.usage = lambda read, written: "
    "{'prompt_tokens': read, 'completion_tokens': 100_000, 'total_tokens': 100_000 + read}\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_endless_invalid_or_false_answers_fail_the_release(serving: Attacked, name: str) -> None:
    old = serving.status()["current"]
    began = serving.sh("date +%s")
    server = serving.put("server.py", ANSWERS[name])
    with serving.running("witness", WITNESS, user="root", wait_for="watches") as said:
        done = serving.deploy("b", LIGHT_RUN=server)
        most_kb = int(serving.sh(f"grep most {said} | tail -n 1").split()[1])
    assert most_kb < MOST_KB
    assert done.returncode == 1, "a release that answers like this was kept"
    assert serving.outcome()[0] == "rolled_back", serving.outcome()
    assert serving.status()["running"] == old
    told = serving.sh(f"journalctl --no-pager -o cat --since @{began} -u 'pyinfra-vllm-*'")
    assert "Traceback" not in told


# A client asks for a model whose name is a line of vLLM's log.
CLIENT = """
import http.client, json, sys, time
forged = (
    "x\\nINFO 11-28 05:00:00 [awq_marlin.py:1] Detected that the model can run with awq_marlin, however you"
    " specified quantization=awq explicitly, so forcing awq."
)
body = json.dumps({"model": forged, "prompt": "x"})
while True:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=2)
        connection.request("POST", "/v1/completions", body, {"Authorization": "Bearer " + sys.argv[1]})
        if connection.getresponse().status == 404:
            print("asked")
        connection.close()
    except OSError:
        pass
    time.sleep(0.005)
"""
FORGED = "so forcing awq"


def test_client_text_in_the_log_does_not_reject_a_release(serving: Attacked) -> None:
    with serving.running("client", CLIENT, KEY, wait_for="asked"):
        done = serving.deploy("b")
    this = f"_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {UNIT})"
    assert FORGED in serving.sh(f"journalctl --no-pager -o cat {this} | grep -m 1 '{FORGED}'"), (
        "this shows nothing"
    )
    assert done.returncode == 0, serving.outcome()


# Another user of the host writes to the journal by itself, in the unit's name.
FORGER = """
import socket, struct, sys, time
unit, start = sys.argv[1], sys.argv[2]
slow = (
    b"Detected that the model can run with awq_marlin, however you specified quantization=awq explicitly,"
    b" so forcing awq."
)
fields = {
    "MESSAGE": slow.decode(), "UNIT": unit, "OBJECT_SYSTEMD_UNIT": unit, "COREDUMP_UNIT": unit,
    "_SYSTEMD_UNIT": unit, "_PID": "1",
    "_UID": "0", "_SYSTEMD_INVOCATION_ID": start, "SYSLOG_IDENTIFIER": "vllm", "INVOCATION_ID": start,
}
native = "".join(f"{name}={value}\\n" for name, value in fields.items()).encode()
while True:
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.sendto(native, "/run/systemd/journal/socket")
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.connect("/run/systemd/journal/stdout")
    stream.sendall(f"vllm\\n{unit}\\n6\\n1\\n0\\n0\\n0\\n".encode() + slow + b"\\n")
    stream.close()
    print("forged")
    time.sleep(0.05)
"""


def test_a_users_words_in_the_journal_are_not_the_units(serving: Attacked) -> None:
    start, began = serving.sh(f"systemctl show -P InvocationID {UNIT}; date +%s").split()
    with serving.running("forger", FORGER, UNIT, start, wait_for="forged"):
        serving.deployed("b")
    lines = f"journalctl --no-pager -o cat --since @{began}"
    assert FORGED in serving.sh(f"{lines} _UID=$(id -u {MALLORY}) | grep -m 1 '{FORGED}'")
    assert serving.sh(f"{lines} -u {UNIT} | grep -c '{FORGED}'", check=False) == "0"


FLOOD = """
for number in range(4000):
    print("x" * 47_900, number)
"""


def test_a_flooded_log_is_kept_in_part(serving: Attacked) -> None:
    began = serving.sh("date +%s")
    serving.deploy("b", LIGHT_RUN=serving.put("flood.py", FLOOD))
    there = serving.sh(f"journalctl --no-pager -o cat --since @{began} -u {UNIT} | wc -c")
    assert int(there) > 150_000_000, "the journal has not kept the flood: this shows nothing"
    newest = serving.sh(f"ls -td {SERVICE}/evidence/* | head -n 1")
    assert int(serving.sh(f"du -sm {newest}").split()[0]) < 10
