"""Stand-ins for OpenAI-compatible servers, and a real one of transformers."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from helpers.processes import free_port
from unifiedreward_think.verdict import render

GOOD = render(1, [("Aesthetics", 9, 4)], noun="Image")


def reply(text=GOOD, finish="stop", **message):
    """A chat completion, as bytes."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


def caption(body):
    """The text a request asks about."""
    return " ".join(part["text"] for turn in body["messages"] for part in turn["content"] if part["type"] == "text")


class Patient(ThreadingHTTPServer):
    """Lets as many connections wait as a real server does; by default a sixth one at a time is lost."""

    request_queue_size = 128


class FakeServer:
    """An OpenAI-compatible server whose answers `respond(body, nth call)` makes: (status, headers, bytes).

    Returning fewer bytes than the Content-Length header says cuts the connection in the middle of the body.

    Attributes:
        tokenize: makes the answer of the route /tokenize from the parts of the only message and `chat_template_kwargs`.
        cards: what it lists as its models.
        bodies: requests for completions.
        tokenized: paths and headers of requests for tokens.
    """

    def __init__(self, respond=None, models=200, tokenize=lambda parts, **_: (404, {}, b"no such route"), cards=()):
        self.respond = respond or (lambda body, nth: (200, {}, reply()))
        self.models, self.tokenize, self.tokenized, self.cards = models, tokenize, [], cards
        self.bodies, self.flying, self.most = [], 0, 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send(fake.models, {}, json.dumps({"object": "list", "data": fake.cards}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/tokenize"):
                    fake.tokenized.append((self.path, self.headers))
                    options = {"chat_template_kwargs": body.get("chat_template_kwargs", {})}
                    return self.send(*fake.tokenize(body["messages"][0]["content"], **options))
                with fake.lock:
                    fake.bodies.append(body)
                    fake.flying += 1
                    fake.most = max(fake.most, fake.flying)
                    nth = len(fake.bodies)
                try:
                    answer = fake.respond(body, nth)
                finally:
                    with fake.lock:
                        fake.flying -= 1
                self.send(*answer)

            def send(self, status, headers, content):
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = Patient(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serving(respond=None, **options):
    server = FakeServer(respond, **options)
    try:
        yield server
    finally:
        server.stop()


def prompt(name="r0", images=2):
    content = [{"type": "image", "text": None}] * images + [{"type": "text", "text": f"Which is better, {name}?"}]
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(images)]
    return {"id": name, "order": "ab", "prompt": [{"role": "user", "content": content}], "images": pictures}


@contextmanager
def transformers_serve(model, folder):
    """The real server on a free port; yields its address."""
    port = int(free_port())
    (folder / "hub").mkdir()  # without it, /v1/models answers 500
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--device", "cpu", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", port]
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(list(map(str, command)), env={**os.environ, "HF_HOME": str(folder)}, stderr=log)
        try:
            for _ in range(900):
                if child.poll() is not None:
                    raise AssertionError((folder / "log.txt").read_text()[-2000:])
                with closing(socket.socket()) as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            child.wait(30)
