"""A real HTTP server on loopback that speaks the OpenAI chat protocol, well and badly."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = json.dumps({"reasoning": "", "interests": [{"interest": "weekend trout fishing", "confidence": 0.9}]})


class Endpoint(ThreadingHTTPServer):
    """Answers by a word in the prompt: busy, broken, garbage, half, refuse, slow, odd; anything else is answered well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict] = []
        self.seen: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        prompt = json.dumps(body["messages"][1]["content"])
        self.server.seen[prompt] += 1
        first = self.server.seen[prompt] == 1
        if "busy" in prompt and first:
            return self._send(429, '{"error": {"message": "too many"}}', {"Retry-After": "0.01"})
        if "broken" in prompt:
            return self._send(500, "oh no")
        if "garbage" in prompt:
            return self._send(200, "<html>not the endpoint</html>")
        if "odd" in prompt:
            return self._send(200, '{"choices": []}')
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
        return self._send(200, json.dumps(completion | {"choices": [choice], "usage": usage}))

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
