"""A real HTTP server on loopback that speaks the OpenAI chat protocol, well and badly, and refuses what real ones refuse."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import CEILING_SECONDS

ANSWER = json.dumps({"reasoning": "", "interests": [{"interest": "weekend trout fishing", "confidence": 0.9}]})
LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum")


class Endpoint(ThreadingHTTPServer):
    """Answers by a word in the prompt: busy, later, broken, garbage, cut, half, refuse, slow, meet, odd, wait, bad, dots.

    Anything else is answered well. `refuses` says what it does not take: "max_tokens", "temperature", "limits" of a schema,
    each as a frontier model refuses it, or a status of all requests, such as "401".
    """

    daemon_threads = True

    def __init__(self, refuses: tuple[str, ...] = ()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = refuses
        self.bodies: list[dict] = []
        self.seen: Counter[str] = Counter()
        self.times: list[tuple[str, float, float]] = []
        """Model, arrival and departure of every request."""
        self.meeting = threading.Barrier(2, timeout=CEILING_SECONDS)
        """Lets requests with the word meet go two by two."""
        self.release = threading.Event()
        """Lets requests with the word wait go."""
        self.counting = threading.Lock()
        self.most_at_once = self.at_once = 0
        """Requests being answered: the most so far, and now."""
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_POST(self):
        self.arrival = time.monotonic()
        with self.server.counting:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        self._answer()

    def _answer(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.model = body["model"]
        self.server.bodies.append(body)
        prompt = json.dumps(body["messages"][1]["content"])
        self.server.seen[prompt] += 1
        first = self.server.seen[prompt] == 1
        if refusal := self._refusal(body, prompt):
            status, error = refusal
            self._send(status, json.dumps({"error": error | {"type": "invalid_request_error"}}))
            return
        for word, seconds in (("busy", "0.01"), ("later", "0.9")):
            if word in prompt and first:
                self._send(429, '{"error": {"message": "too many"}}', {"Retry-After": seconds})
                return
        whole = {"broken": (500, "oh no"), "garbage": (200, "<html>not the endpoint</html>"), "odd": (200, '{"choices": []}')}
        for word, (status, text) in whole.items():
            if word in prompt:
                self._send(status, text)
                return
        if "cut" in prompt:
            self._send(200, '{"choices": [', {"Content-Length": "500"})
            self.close_connection = True
            return
        if "meet" in prompt:
            self.server.meeting.wait()
        if "wait" in prompt:
            self.server.release.wait(CEILING_SECONDS)
        if "slow" in prompt:
            time.sleep(1.5)
        dots = '{"reasoning": "...", "interests": [{"interest": "...", "confidence": 0.9}]}'
        given = {"half": {"content": ANSWER[:-20]}, "refuse": {"content": None, "refusal": "no"}, "dots": {"content": dots}}
        said = next((said for word, said in given.items() if word in prompt), {"content": ANSWER})
        finish = "length" if "half" in prompt else "stop"
        choice = {"index": 0, "message": {"role": "assistant"} | said, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        completion = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._send(200, json.dumps(completion | {"choices": [choice], "usage": usage}))

    def _refusal(self, body, prompt):
        """Status and error body of a request that a real endpoint would refuse."""
        refuses, model = self.server.refuses, body["model"]
        statuses = {"401": "Incorrect API key provided", "403": "You are not allowed to use this model"}
        statuses |= {"404": f"The model `{model}` does not exist", "400": "Bad request"}
        for status, message in statuses.items():
            if status in refuses:
                return int(status), {"message": message, "param": None, "code": None}
        if "max_tokens" in refuses and "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return 400, {"message": text, "param": "max_tokens", "code": "unsupported_parameter"}
        if "temperature" in refuses and body.get("temperature", 1) != 1:
            text = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
            return 400, {"message": text, "param": "temperature", "code": "unsupported_value"}
        schema = json.dumps(body.get("response_format", {}))
        if "limits" in refuses and (found := [keyword for keyword in LIMITS if f'"{keyword}"' in schema]):
            text = (
                f"Invalid schema for response_format 'interests': In context=('properties', 'x'), '{found[0]}' is not permitted."
            )
            return 400, {"message": text, "param": "response_format", "code": None}
        if "bad" in prompt:
            text = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
            return 400, {"message": text, "param": "messages", "code": "context_length_exceeded"}
        return None

    def _send(self, status, text, headers={}):
        # counted before a byte leaves: a client that has its answer may look here, or ask again, at once
        with self.server.counting:
            self.server.at_once -= 1
            self.server.times.append((self.model, self.arrival, time.monotonic()))
        content = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve_endpoint(*refuses: str) -> Iterator[Endpoint]:
    """Run the server in a thread."""
    server = Endpoint(refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
