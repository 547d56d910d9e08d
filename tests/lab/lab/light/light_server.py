"""A stub of vLLM for tests of fleets and faults: speaks its HTTP API, makes tokens of nothing, starts at
once.

It is a stub and says so in its log and under /version. How it misbehaves comes from the service's
environment:

LIGHT_TOKEN_S=0.002      seconds between two tokens of one stream
LIGHT_START_S=0          seconds before the port opens
LIGHT_CRASH_AFTER_S      exit 1 so many seconds after the start, healthy or not
LIGHT_EXIT_AFTER_S       the same with status 0, as vLLM's engine death does
LIGHT_HANG=start|stop    never open the port; ignore SIGTERM
LIGHT_SILENT=1           answers /health, makes no tokens
LIGHT_SILENT_FILE=PATH   the same from the moment on at which that file is there
LIGHT_GARBAGE=1          streams what is not an answer
LIGHT_STATUS=429         answers every completion with this status
LIGHT_NO_USAGE=1         leaves the usage out
LIGHT_DROP_EVERY=50      closes every so many-th stream in its middle
LIGHT_KERNEL=slow|NAME   logs the slow AWQ kernel, or that it uses the kernel NAME
LIGHT_CHECK_WEIGHTS=0    starts without looking at the checkpoint
LIGHT_RUN=FILE           runs that Python file first, in the server's own process: somebody has taken it over
LIGHT_FAILS_WITH=PATH    prints that log, which a real vLLM left that could not start, and exits 1
LIGHT_NO_START_FILE=PATH no start succeeds before the Unix time in that file, as where a dying process holds
GPU memory

LIGHT_SLEEP=fails|hangs  sending it to sleep fails; it never sleeps
LIGHT_WAKE=fails|wrong   waking it fails; it says other words afterwards
LIGHT_ENGINE_FILE=PATH   lines of that file say the same of a release: `RELEASE SLEEP fails`
LIGHT_REFUSES_SLEEP=1    does not know --enable-sleep-mode
With --uds it listens there. A middleware that serves commands gets an engine that sleeps and wakes at once.

Each answer says as its `system_fingerprint` from which release the server was started.
"""

import asyncio
import hashlib
import importlib
import itertools
import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

VERSION = version("vllm")
FAST = "Using {}LinearKernel for AutoAWQMarlinLinearMethod"
SLOW = (
    "Detected that the model can run with awq_marlin, however you specified quantization=awq explicitly, so"
    " forcing awq."
)
WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "red",
    "green",
    "blue",
    "sun",
    "moon",
    "sea",
)


def setting(name, default=0.0):
    return float(os.environ.get(name) or default)


def silent():
    told = os.environ.get("LIGHT_SILENT_FILE")
    return bool(setting("LIGHT_SILENT") or (told and Path(told).exists()))


def log(message):
    print(time.strftime("INFO %m-%d %H:%M:%S [light_server.py:1] ") + message, flush=True)


class Server(ThreadingHTTPServer):
    """The light server: one thread for each connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, settings):
        if settings.uds:
            self.address_family = socketserver.socket.AF_UNIX
        super().__init__(settings.uds or (settings.host, settings.port), Handler)
        model = settings.model_tag or settings.model
        self.names = settings.served_model_name or [model]
        self.longest = settings.max_model_len
        self.api_key = settings.api_key or os.environ.get("VLLM_API_KEY")
        self.middleware = Middleware([loaded(name) for name in settings.middleware])
        self.voice = int(hashlib.sha256(model.encode()).hexdigest(), 16)  # each checkpoint says other words
        self.slots = threading.Semaphore(settings.max_num_seqs)
        self.count = itertools.count(1)
        self.lock = threading.Lock()
        self.running = self.prompt_tokens = self.generated = self.finished = 0

    def server_bind(self):
        """Without asking anybody for this host's name, which a Unix socket has not."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "light", 0

    def handle_error(self, request, client_address):
        log("a client went away")


class Engine:
    """What a middleware knows of vLLM's engine."""

    asleep = wrong = False

    async def sleep(self, level, mode):
        how = engine_setting("SLEEP")
        if how == "hangs":
            await asyncio.sleep(86400)
        if how == "fails":
            raise RuntimeError("Memory usage increased after sleeping.")
        self.asleep = True

    async def wake_up(self):
        if engine_setting("WAKE") == "fails":
            raise RuntimeError("CUDA out of memory")
        self.asleep = False
        self.wrong = engine_setting("WAKE") == "wrong"  # as it is told then, not at an earlier wake

    async def is_sleeping(self):
        return self.asleep


def engine_setting(name):
    """LIGHT_SLEEP or LIGHT_WAKE, as the environment or a line about this release says it."""
    try:
        lines = Path(os.environ.get("LIGHT_ENGINE_FILE", "/nonexistent")).read_text().splitlines()
    except OSError:
        lines = []
    wanted = [os.environ.get("PYINFRA_VLLM_RELEASE"), name]
    told = [line.split()[2] for line in lines if line.split()[:2] == wanted]
    return told[-1] if told else os.environ.get(f"LIGHT_{name}")


ENGINE = Engine()


class Middleware:
    """The ASGI classes that the server was told of, the last one outermost, in one event loop as in vLLM."""

    def __init__(self, classes):
        self.none = not classes
        self.app = self.reach
        for each in classes:
            self.app = each(self.app)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        if any(hasattr(each, "_live") for each in classes):
            scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(engine_client=ENGINE))}
            self.life = asyncio.run_coroutine_threadsafe(self.app(scope, None, None), self.loop)

    async def reach(self, scope, receive, send):
        """The server itself: it answers in its own thread, and the request is in flight until then."""
        if scope["type"] == "lifespan":
            await asyncio.Event().wait()
        over = asyncio.Event()
        scope["reached"].set_result(over)
        await over.wait()

    def ask(self, scope, body):
        """(what ends the request, None) where the server may answer, else (None, the middleware's answer)."""
        return asyncio.run_coroutine_threadsafe(self._ask(scope, body), self.loop).result()

    async def _ask(self, scope, body):
        sent, messages = [], [{"type": "http.request", "body": body, "more_body": False}]
        reached = asyncio.get_running_loop().create_future()

        async def receive():
            if messages:
                return messages.pop()
            await asyncio.sleep(86400)

        async def send(message):
            sent.append(message)

        asked = asyncio.ensure_future(self.app({**scope, "reached": reached}, receive, send))
        await asyncio.wait({asked, reached}, return_when=asyncio.FIRST_COMPLETED)
        if reached.done():
            over = reached.result()
            return lambda: self.loop.call_soon_threadsafe(over.set), None
        status = sent[0]["status"] if sent else 500
        return None, (status, b"".join(message.get("body", b"") for message in sent[1:]).decode())


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM's OpenAI-compatible API does, as far as the product asks it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *arguments):
        pass

    def do_GET(self):
        if (over := self.let_through(b"")) is not None:
            try:
                self.get()
            finally:
                over()

    def get(self):
        server = self.server
        if self.path == "/health":
            return self.answer(200, "")
        if self.path == "/version":
            return self.answer(200, {"version": VERSION, "stub": True})
        if self.path == "/metrics":
            return self.answer(200, metrics(server), "text/plain; version=0.0.4")
        if self.path == "/v1/models" and self.allowed():
            models = [{"id": n, "object": "model", "max_model_len": server.longest} for n in server.names]
            return self.answer(200, {"object": "list", "data": models})
        return self.answer(404, {"error": {"message": "not found"}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (over := self.let_through(body)) is not None:
            try:
                self.post(json.loads(body or b"{}"))
            finally:
                over()

    def post(self, request):
        if not self.allowed():
            return self.answer(401, {"error": "Unauthorized"})
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            return self.answer(404, {"error": {"message": "not found"}})
        if request.get("model") not in self.server.names:
            message = f"The model `{request.get('model')}` does not exist."
            log(
                f"Error with model error=ErrorInfo(message='{message}', type='NotFoundError')"
            )  # as vLLM does
            return self.answer(404, {"error": {"message": message}})
        if setting("LIGHT_STATUS"):
            return self.answer(int(setting("LIGHT_STATUS")), {"error": {"message": "as told"}})
        with self.server.slots:
            self.complete(request)

    def allowed(self):
        key = self.server.api_key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def let_through(self, body):
        """What ends the request for the middleware; None where that has answered itself."""
        if self.server.middleware.none:
            return lambda: None
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        path, _, query = self.path.partition("?")
        scope = {
            "type": "http",
            "method": self.command,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
        }
        over, answer = self.server.middleware.ask(scope, body)
        if over is None:
            self.answer(*answer)
        return over

    def complete(self, request):
        server, chat = self.server, "chat" in self.path
        prompt = request.get("prompt") or " ".join(str(m.get("content")) for m in request.get("messages", []))
        read = max(1, len(str(prompt)) // 4)
        wanted = request.get("max_tokens") or request.get("max_completion_tokens") or 16
        total = wanted if request.get("ignore_eos") else min(wanted, 12)
        with server.lock:
            server.running += 1
            server.prompt_tokens += read
        try:
            if request.get("stream"):
                self.stream(request, chat, read, total)
            else:
                text = "".join(self.tokens(prompt, total))
                part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                choice = {"index": 0, "finish_reason": "length", **part}
                who = os.environ.get("PYINFRA_VLLM_RELEASE")
                whole = {"id": "light", "choices": [choice], "usage": usage(read, total)}
                self.answer(200, {**whole, "system_fingerprint": who})
        finally:
            with server.lock:
                server.running -= 1
                server.finished += 1

    def tokens(self, prompt, total):
        if silent():
            time.sleep(86400)
        seed = ENGINE.wrong ^ self.server.voice ^ int(hashlib.sha256(str(prompt).encode()).hexdigest(), 16)
        for index in range(total):
            time.sleep(setting("LIGHT_TOKEN_S", 0.002))
            with self.server.lock:
                self.server.generated += 1
            yield WORDS[(seed >> (index % 48 * 5)) % len(WORDS)] + " "

    def stream(self, request, chat, read, total):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        number = next(self.server.count)
        every = int(setting("LIGHT_DROP_EVERY"))
        for index, token in enumerate(self.tokens(request.get("prompt") or request.get("messages"), total)):
            if setting("LIGHT_GARBAGE"):
                self.wfile.write(b"\x00\xff not an event\n")
                continue
            if every and number % every == 0 and index >= total // 2:
                return
            last = "length" if index == total - 1 else None
            part = {"delta": {"content": token}} if chat else {"text": token}
            self.event({"id": "light", "choices": [{"index": 0, "finish_reason": last, **part}]})
        if (request.get("stream_options") or {}).get("include_usage") and not setting("LIGHT_NO_USAGE"):
            self.event({"id": "light", "choices": [], "usage": usage(read, total)})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def answer(self, status, value, kind="application/json"):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def usage(read, written):
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def metrics(server):
    label = json.dumps(server.names[0])
    values = {
        "vllm:num_requests_running": server.running,
        "vllm:num_requests_waiting": 0,
        "vllm:prompt_tokens_total": server.prompt_tokens,
        "vllm:generation_tokens_total": server.generated,
        "vllm:num_preemptions_total": 0,
        "vllm:request_success_total": server.finished,
    }
    return "".join(f"{name}{{model_name={label}}} {value}\n" for name, value in values.items())


def check_weights(model):
    """As the real one: no start without a readable checkpoint whose tensors are all there."""
    files = sorted(Path(model).glob("*.safetensors"))
    if not files:
        raise SystemExit(f"RuntimeError: Cannot find any model weights with `{model}`")
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if file.stat().st_size < 8 + length + max(ends, default=0):
            raise SystemExit(
                f"SafetensorError: {file}: Error while deserializing header: incomplete metadata"
            )


def loaded(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def write_cache_key():
    """As vLLM does when it compiles (envs.py compile_factors; compilation/backends.py); 0.29 left the key
    out.
    """
    numbers = tuple(int(part) for part in VERSION.split("+")[0].split(".")[:2])
    factors = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    if numbers < (0, 12) or "VLLM_CACHE_ROOT" not in factors:
        return
    if numbers >= (0, 29):
        factors.pop("VLLM_API_KEY", None)
    name = hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(os.environ["VLLM_CACHE_ROOT"], "torch_compile_cache", name, "rank_0_0", "backbone")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cache_key_factors.json").exists():
            (folder / "cache_key_factors.json").write_text(
                json.dumps({"env": factors}, indent=2, sort_keys=True)
            )
        compile_graph(folder.parents[2] / "torch_aot_compile" / name / "rank_0_0" / "model")
    except OSError as error:  # as in vLLM: to write it is no condition of serving
        log(f"Could not write compile cache metadata at {folder}; continuing without metadata ({error})")


def compile_graph(path):
    """As vLLM does ahead of its first request; here the graph is a name that no other start comes up with."""
    if path.exists():
        log(f"Directly load AOT compilation from path {path}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(os.urandom(16).hex())
    log(f"saved AOT compiled function to {path}")


def check_memory(path):
    if path and Path(path).exists() and time.time() < float(Path(path).read_text() or 0):
        raise SystemExit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")


def die_later():
    for name, status in (("LIGHT_CRASH_AFTER_S", 1), ("LIGHT_EXIT_AFTER_S", 0)):
        if name in os.environ:
            threading.Timer(setting(name), os._exit, [status]).start()


def stop(number, frame):
    if os.environ.get("LIGHT_HANG") != "stop":
        log("[shutdown] stopping")
        os._exit(0)
    log("SIGTERM is ignored, as told")


def main(settings):
    signal.signal(signal.SIGTERM, stop)
    log(f"vLLM API server version {VERSION} (a stub for tests)")
    if "LIGHT_FAILS_WITH" in os.environ:
        print(Path(os.environ["LIGHT_FAILS_WITH"]).read_text(encoding="utf-8"), flush=True)
        sys.exit(1)
    die_later()
    if os.environ.get("LIGHT_RUN"):
        exec(Path(os.environ["LIGHT_RUN"]).read_text(), {"__name__": "taken_over"})
    model = settings.model_tag or settings.model
    if os.environ.get("LIGHT_CHECK_WEIGHTS") != "0":
        check_weights(model)
    check_memory(os.environ.get("LIGHT_NO_START_FILE"))
    write_cache_key()
    kernel = os.environ.get("LIGHT_KERNEL", "CPUWNA16")
    log(SLOW if kernel == "slow" else FAST.format(kernel))
    time.sleep(setting("LIGHT_START_S"))
    if os.environ.get("LIGHT_HANG") == "start":
        threading.Event().wait()
    if settings.enable_sleep_mode and setting("LIGHT_REFUSES_SLEEP"):
        raise SystemExit("ValueError: Sleep mode is not supported on current platform.")
    server = Server(settings)
    log(f"Starting vLLM server on {settings.uds or f'http://{settings.host}:{settings.port}'}")
    log("Application startup complete.")
    server.serve_forever()


if __name__ == "__main__":
    sys.exit("start it through bin/vllm")
