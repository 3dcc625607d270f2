"""Every refusal of the gateway, in OpenAI's error shape, so that their clients raise the right class."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web


class GatewayError(Exception):
    """An answer to the caller that is an error.

    ``message`` says what is wrong and what to do; it never quotes the caller's text.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.headers: dict[str, str] = {}
        """More headers of the response, such as the call's id."""

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": None,
                "code": self.code,
            }
        }

    def response(self) -> web.Response:
        headers = dict(self.headers)
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(self.retry_after_seconds)
        return web.Response(
            status=self.status,
            body=json.dumps(self.body()).encode(),
            content_type="application/json",
            headers=headers,
        )


class CallerGone(Exception):
    """The caller closed the connection before its answer was complete."""


def bad_request(message: str, code: str | None = None) -> GatewayError:
    return GatewayError(400, message, code=code)


def too_large(limit_bytes: int) -> GatewayError:
    return GatewayError(
        413,
        f"the request body is larger than {limit_bytes} bytes: shorten it, "
        "or raise gateway.max_body_bytes",
        code="request_too_large",
    )


def too_slow(limit_seconds: float) -> GatewayError:
    return GatewayError(
        408,
        f"the request's body did not come within {limit_seconds:g} seconds",
        code="request_timeout",
    )


def unauthorized(
    message: str = "no API key, or one that is not known here: send 'Authorization: Bearer <key>'",
    code: str = "invalid_api_key",
) -> GatewayError:
    error = GatewayError(401, message, kind="authentication_error", code=code)
    error.headers["WWW-Authenticate"] = "Bearer"
    return error


def forbidden(message: str) -> GatewayError:
    return GatewayError(403, message, kind="permission_error", code="insufficient_permissions")


def overloaded() -> GatewayError:
    return GatewayError(
        429,
        "too many calls are being answered at once: wait a moment and try again",
        kind="rate_limit_error",
        code="overloaded",
        retry_after_seconds=1,
    )


def log_unavailable() -> GatewayError:
    return GatewayError(
        503,
        "the call cannot be logged at the moment: try again, and look at the gateway's spool",
        kind="api_error",
        code="log_unavailable",
        retry_after_seconds=1,
    )


def teacher_unavailable(reason: str, status: int = 502) -> GatewayError:
    """``reason``: ours, never the upstream's text. 502 unreachable, 503 circuit open, 504 timeout."""
    return GatewayError(
        status,
        f"the large model cannot be asked: {reason}",
        kind="api_error",
        code="upstream_unavailable",
        retry_after_seconds=2 if status == 503 else None,
    )


def text_broken_off() -> GatewayError:
    """The last event of a streamed text that the small model must not finish."""
    return GatewayError(
        502,
        "the answer was broken off because the rest of it was not good enough: "
        "ask again, and the large model answers",
        kind="api_error",
        code="answer_broken_off",
    )
