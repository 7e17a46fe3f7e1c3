"""A real HTTP server that speaks as an OpenAI-compatible endpoint does; each test says what it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


def chat_completion(
    message: dict[str, Any], finish: str | None = "stop", model: str = "m", **more: Any
) -> bytes:
    """The body of an answer with one choice."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}
    return json.dumps(answer | more).encode()


class ChatHandler(BaseHTTPRequestHandler):
    """Hands questions to `reply` and sends its answers, without a word on the screen."""

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def reply(self, question: Any) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running(server: HTTPServer) -> Iterator[None]:
    """Have the server answer for the time of the `with` block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
