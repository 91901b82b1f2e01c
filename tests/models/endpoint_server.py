"""A real HTTP server on loopback that speaks the OpenAI chat protocol, well and badly."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import CEILING_SECONDS

ANSWER = json.dumps({"reasoning": "", "interests": [{"interest": "weekend trout fishing", "confidence": 0.9}]})


class Endpoint(ThreadingHTTPServer):
    """Answers by a word in the prompt: busy, later, broken, garbage, cut, half, refuse, slow, meet, odd; else it answers well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict] = []
        self.seen: Counter[str] = Counter()
        self.times: list[tuple[str, float, float]] = []
        """Model, arrival and departure of every request."""
        self.meeting = threading.Barrier(2, timeout=CEILING_SECONDS)
        """Lets requests with the word meet go two by two."""
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_POST(self):
        arrival = time.monotonic()
        body = self._answer()
        self.server.times.append((body["model"], arrival, time.monotonic()))

    def _answer(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        prompt = json.dumps(body["messages"][1]["content"])
        self.server.seen[prompt] += 1
        first = self.server.seen[prompt] == 1
        for word, seconds in (("busy", "0.01"), ("later", "0.9")):
            if word in prompt and first:
                self._send(429, '{"error": {"message": "too many"}}', {"Retry-After": seconds})
                return body
        whole = {"broken": (500, "oh no"), "garbage": (200, "<html>not the endpoint</html>"), "odd": (200, '{"choices": []}')}
        for word, (status, text) in whole.items():
            if word in prompt:
                self._send(status, text)
                return body
        if "cut" in prompt:
            self._send(200, '{"choices": [', {"Content-Length": "500"})
            self.close_connection = True
            return body
        if "meet" in prompt:
            self.server.meeting.wait()
        if "slow" in prompt:
            time.sleep(1.5)
        message, finish = {"role": "assistant", "content": ANSWER}, "stop"
        if "half" in prompt:
            message, finish = {"role": "assistant", "content": ANSWER[:-20]}, "length"
        if "refuse" in prompt:
            message = {"role": "assistant", "content": None, "refusal": "no"}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        completion = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._send(200, json.dumps(completion | {"choices": [choice], "usage": usage}))
        return body

    def _send(self, status, text, headers={}):
        content = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve_endpoint() -> Iterator[Endpoint]:
    """Run the server in a thread."""
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
