"""Runs on a host as root: has two real vLLM servers sleep, wake and serve, and prints what it saw as JSON.

`drive.py FOLDER KEY [end]`; the servers have FOLDER/a/api.sock, FOLDER/a/control.sock and the same of b.
With `end` it stops b while two requests wait for it.
"""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time

FOLDER, KEY = sys.argv[1:3]
CANARY = {"model": "tiny", "prompt": "What is the capital of Japan?", "max_tokens": 24, "temperature": 0}
LONG = {**CANARY, "max_tokens": 600, "ignore_eos": True}


class Connection(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(name, body, path="/v1/completions", method="POST", **headers):
    """Status, headers and text of an answer. A GET has no body: a server that closes may not wait for one."""
    connection = Connection(f"{FOLDER}/{name}/api.sock")
    told = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
    connection.request(method, path, json.dumps(body) if method == "POST" else None, told)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def text(answer):
    """The tokens of an answer, streamed or not."""
    status, _, body = answer
    if status != 200:
        return f"{status}: {body[:200]}"
    if not body.startswith("data:"):
        return json.loads(body)["choices"][0]["text"]
    events = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def command(name, **words):
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(120)
        asking.connect(f"{FOLDER}/{name}/control.sock")
        asking.sendall(json.dumps(words).encode() + b"\n")
        found = json.loads(asking.makefile().readline())
    return {**found, "took_s": round(time.monotonic() - began, 3)}


def finished(name):
    """Requests that the server has answered, by its own count."""
    lines = ask(name, {}, "/metrics", "GET")[2].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))


class Later(threading.Thread):
    """A question whose answer comes later."""

    def __init__(self, *words, **headers):
        super().__init__(daemon=True)
        self.words, self.headers, self.answer = words, headers, None
        self.start()

    def run(self):
        self.answer = ask(*self.words, **self.headers)


def until(what, limit_s=60):
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s
        time.sleep(0.02)


def as_other_user(user):
    """The answer to another user at the control socket."""
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{FOLDER}/a/control.sock')"
    code += '; s.sendall(b\'{"do": "sleep"}\\n\'); print(s.recv(100))'
    done = subprocess.run(
        ["runuser", "-u", user, "--", "python3", "-c", code], capture_output=True, text=True
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


if sys.argv[3:] == ["end"]:
    command("b", do="sleep")
    waiting = [Later("b", CANARY) for _ in range(2)]
    until(lambda: command("b", do="state")["held"] == 2)
    command("b", do="end")
    began = time.monotonic()
    subprocess.run(["systemctl", "stop", "vllm-chat.b.service"], check=True)
    stopped = round(time.monotonic() - began, 1)
    for each in waiting:
        each.join(10)
    print(json.dumps({"statuses": [each.answer[0] for each in waiting], "stopped after s": stopped}))
    sys.exit()

seen = {}
before = text(ask("a", CANARY))
seen["canary"] = before
seen["other_users"] = {user: as_other_user(user) for user in ("nobody", "chat")}
seen["state"] = command("a", do="state")
dev = ("/sleep", "/wake_up", "/collective_rpc", "/server_info", "/reset_prefix_cache", "/is_sleeping")
seen["development endpoints"] = {path: ask("a", {}, path)[0] for path in dev}

# A request and a stream in flight end before it sleeps. On a busy machine they may have ended before the
# command came: then once more.
for _ in range(5):
    whole, stream = Later("a", LONG), Later("a", {**LONG, "stream": True})
    until(lambda: command("a", do="state")["in_flight"] == 2)
    slept = command("a", do="sleep", limit_s=60)
    whole.join(60), stream.join(60)
    if slept["took_s"] > 0.1:
        break
    command("a", do="wake"), command("a", do="serve")
seen["sleep"] = slept
seen["in flight"] = {
    "closes": whole.answer[1].get("connection"),
    "tokens": json.loads(whole.answer[2])["usage"]["completion_tokens"],
    "equal": text(stream.answer) == text(whole.answer),
}

# Asleep: health and metrics answer, others wait; without the key nobody does.
seen["asleep"] = {
    "health": ask("a", {}, "/health", "GET")[0],
    "gauge": [
        line for line in ask("a", {}, "/metrics", "GET")[2].splitlines() if "engine_sleep_state{" in line
    ],
    "no key": ask("a", CANARY, Authorization="Bearer wrong")[0],
}
waiting = [Later("a", CANARY) for _ in range(8)]
until(lambda: command("a", do="state")["held"] == 8)
time.sleep(2)
seen["held"] = [each.answer for each in waiting].count(None)
woken = command("a", do="wake", limit_s=60)
seen["wake"] = woken
passing = {"X-Pyinfra-Vllm-Pass": woken["pass"]}
seen["canary with the pass"] = text(ask("a", CANARY, **passing)) == before
seen["held after the wake"] = command("a", do="state")["held"]
seen["serve"] = command("a", do="serve")
for each in waiting:
    each.join(60)
seen["answers of those who waited"] = [text(each.answer) == before for each in waiting].count(True)

# Again and again.
times, equal = [], 0
for _ in range(10):
    times.append(command("a", do="sleep")["took_s"])
    times.append(command("a", do="wake")["took_s"])
    equal += text(ask("a", CANARY, **passing)) == before
    command("a", do="serve")
seen["cycles"] = {"equal": equal, "longest_s": max(times)}

# Those who wait at a sleeper are answered by the server that is awake, streams too.
command("a", do="sleep")
waiting = [Later("a", {**CANARY, "stream": bool(number % 2)}) for number in range(16)]
until(lambda: command("a", do="state")["held"] == 16)
seen["relay"] = command("a", do="relay", to=f"{FOLDER}/b/api.sock")
for each in waiting:
    each.join(60)
late = ask("a", CANARY)
direct = text(ask("b", CANARY))
seen["relayed"] = {
    "equal": [text(each.answer) == direct for each in waiting].count(True),
    "late": text(late) == direct,
    "closes": late[1].get("connection"),
    "asked b": finished("b"),
    "left": command("a", do="state"),
}
command("a", do="wake")
command("a", do="serve")
seen["at the end"] = [text(ask("a", CANARY)) == before, command("a", do="state")]
print(json.dumps(seen))
