"""Refusals in the shape that OpenAI's clients know."""

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal with an HTTP status; ``param`` names the part that is wrong, as ``messages[0].content``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong: 400."""
    return ApiError(400, message, param=param, code=code)


def late() -> ApiError:
    """An answer that was not ready in time: 504."""
    return ApiError(504, "the answer was not ready in time; ask for fewer tokens or try later", code="timeout")


def stopping() -> ApiError:
    """What is new, or not ready, when the server stops."""
    return ApiError(503, "the server is stopping", code="draining", headers={"Connection": "close"})
