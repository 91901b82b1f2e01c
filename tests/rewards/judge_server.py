"""A real HTTP server on loopback that judges: yes if the interest shares a word with the text, surer with log-probabilities."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Judge(ThreadingHTTPServer):
    """Answers with log-probabilities if asked for them, else with JSON; nonsense where the interest says so."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        content = body["messages"][1]["content"]
        text, interest = (content if isinstance(content, str) else content[-1]["text"]).split("\n\nInterest: ")
        yes = 0.9 if set(text.split()) & set(interest.split()) else 0.2
        content = json.dumps({"answer": "yes" if yes > 0.5 else "no"})
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        if "nonsense" in interest:
            choice["message"]["content"] = "who knows"
        elif body.get("logprobs"):
            top = [{"token": "yes", "logprob": math.log(yes / 2)}, {"token": "No", "logprob": math.log((1 - yes) / 2)}]
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        completion = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        completion["usage"] = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        answer = json.dumps(completion).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def serve_judge() -> Iterator[Judge]:
    """Run the server in a thread."""
    server = Judge()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
