"""A large model's server for tests: OpenAI's protocol over a real socket, answers by script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from infra.settings.serving import Teacher


class FakeTeacher:
    """An OpenAI-compatible server: the answers to a prompt in turn; an int is an HTTP status.

    ``otherwise`` answers from the request's body what is not in the script.
    """

    def __init__(
        self,
        script: dict[str, list[str | int]],
        otherwise: Callable[[dict[str, Any]], str | int] | None = None,
    ) -> None:
        self.script, self.asked, self.otherwise = script, list[str](), otherwise
        self.tokens = 10
        """Of an answer, by what it says of its use."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = outer.next(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = Teacher.model_validate(
            {"url": f"http://127.0.0.1:{self._server.server_port}/v1", "model": "large"}
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self.asked.append(prompt)
            if self.otherwise is not None and prompt not in self.script:
                answer = self.otherwise(body)
            else:
                answer = self.script[prompt].pop(0)
        if isinstance(answer, int):
            return answer, {"error": {"message": "no"}}
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        envelope = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        tokens = self.tokens
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": tokens,
            "total_tokens": 100 + tokens,
        }
        return 200, {**envelope, "choices": [choice], "usage": usage}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
