"""A real HTTP server that speaks as an OpenAI-compatible endpoint does; each test says what it answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

import torch

from discernment.policies.policy import Policy
from discernment.prompts import Conversation


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


class PolicyServer(ThreadingHTTPServer):
    """An endpoint behind which a local policy replies greedily, and says how likely it finds what it is given.

    Attributes:
        asked: The last turn of every chat that was asked for, in the order of arrival.
        bodies: The bodies of all questions.
        trouble: Called with the last turn and with how often it was asked before; what it gives is sent in the place of
            the reply, a status with its body, or the connection is cut where that is `CUT`.
        echoes: Whether it knows `echo`.
    """

    daemon_threads = True

    def __init__(self, policy: Policy) -> None:
        super().__init__(("127.0.0.1", 0), PolicyHandler)
        self.policy = policy
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.trouble: Callable[[str, int], tuple[int, bytes] | None] = lambda text, times: None
        self.echoes = True
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.name = f"openai:tiny@{self.url}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests want."""


CUT: tuple[int, bytes] = (0, b"")
"""Instead of an answer, the connection is cut."""


class PolicyHandler(ChatHandler):
    server: PolicyServer

    def reply(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append(self.headers["authorization"])
        if self.path.endswith("/chat/completions"):
            self.chat(body)
        elif "echo" not in body:
            with server.lock:
                self.send(200, gone_on(server.policy, body))
        elif server.echoes:
            self.send(200, echoed(server, body))
        else:
            self.send(400, json.dumps({"error": {"message": "echo is not supported"}}).encode())

    def chat(self, body: dict[str, Any]) -> None:
        server = self.server
        *before, last = body["messages"]
        text = last["content"]
        with server.lock:
            times = server.asked.count(text)
            server.asked.append(text)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            trouble = server.trouble(text, times)
            if trouble is None:
                with server.lock:  # one model, one thread
                    trouble = 200, replied(server.policy, before, text, body)
        finally:
            with server.lock:
                server.at_once -= 1
        if trouble is CUT:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send(*trouble, {"retry-after-ms": "2"})


def replied(policy: Policy, before: list[dict[str, str]], text: str, body: dict[str, Any]) -> bytes:
    """What the policy replies to a chat, and what it took."""
    system = next((turn["content"] for turn in before if turn["role"] == "system"), None)
    earlier = [turn for turn in before if turn["role"] != "system"]
    asked = Conversation(text=text, system=system, earlier=earlier).asked
    sequences = policy.encode([asked])
    (reply,) = policy.generate(sequences, body["max_tokens"])
    usage = {"prompt_tokens": len(sequences[0]), "completion_tokens": reply.tokens, "total_tokens": 0}
    return chat_completion({"content": reply.text}, "stop" if reply.finished else "length", usage=usage)


def gone_on(policy: Policy, body: dict[str, Any]) -> bytes:
    """The tokens that the policy puts behind given ones, as vLLM says them."""
    (reply,) = policy.generate([body["prompt"]], body["max_tokens"])
    finish = "stop" if reply.finished else "length"
    choice = {"index": 0, "text": reply.text, "finish_reason": finish, "token_ids": list(reply.ids)}
    answer = {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(answer).encode()


def echoed(server: PolicyServer, body: dict[str, Any]) -> bytes:
    """How likely the policy finds each token of each prompt, as vLLM says it; the last prompt comes first."""
    tokenizer, choices, read = server.policy.chat.tokenizer, [], 0
    for index, ids in enumerate(body["prompt"]):
        with server.lock, torch.inference_mode():
            logits = server.policy.model(torch.tensor([ids])).logits[0].double()
        steps = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        said = {
            "tokens": [tokenizer.decode([i]) for i in ids] + ["x"],
            "token_logprobs": [None, *steps, -1.0],
        }
        choices.append({"index": index, "text": "", "finish_reason": "length", "logprobs": said})
        read += len(ids)
    usage = {"prompt_tokens": read, "completion_tokens": len(choices), "total_tokens": 0}
    answer = {"id": "x", "object": "text_completion", "created": 0, "model": "m", "usage": usage}
    return json.dumps(answer | {"choices": choices[::-1]}).encode()
