"""An OpenAI-compatible server on this machine that plays whatever a test tells it to."""

import json
import math
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_UP = None


def message(text, first=None):
    """A reply as OpenAI's API sends it; first: {token: probability} of the likeliest first tokens."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if first:
        top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in first.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, json.dumps(whole)


@contextmanager
def running(handler):
    """A server in threads of its own; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *args: None  # a client that hung up, or was killed
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(play):
    """A server whose replies are play(number of the request, prompt) -> (status, body) or HANG_UP; yields the prompts asked."""
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # what only batches do
            self.answer(self.path)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions", self.path
            assert self.headers["Accept-Encoding"] == "identity"  # the length of a packed reply says little
            self.answer(body["messages"][0]["content"])

        def answer(self, prompt):
            with lock:
                asked.append(prompt)
                n = len(asked) - 1
            reply = play(n, prompt)
            if reply is HANG_UP:
                self.connection.close()
                return
            self.send_response(reply[0])
            sent = reply[1] if isinstance(reply[1], bytes) else reply[1].encode()
            self.send_header("Content-Type", "text/html" if sent.startswith(b"<") else "application/json")
            self.send_header("Retry-After", "120")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args):
            pass

    with running(Handler) as url:
        yield asked, url


@contextmanager
def on_the_wire(talk):
    """A server that hands each connection, its first request read, to talk(prompt, socket); yields its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            talk(json.loads(self.rfile.read(length))["messages"][0]["content"], self.connection)

    with running(Handler) as url:
        yield url
