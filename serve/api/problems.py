"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}; never a stack trace."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi import HTTPException as FastApiError
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from perpcs.errors import ConfigError, DataError, PerpcsError, StoreError
from perpcs.generate.requests import BusyError, UnknownUserError
from serve.errors import ForgottenError, ReplicaLostError, StaleRecipeError

log = logging.getLogger(__name__)

BAD = "invalid_request_error"


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error has this form."""

    error: ErrorBody


class Problem(FastApiError):
    """A refusal by the HTTP layer. Of FastAPI's kind, or one raised while a body is read would come out as another."""

    def __init__(
        self, status: int, message: str, *, type: str = BAD, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(status, message)
        self.status, self.body = status, ErrorBody(message=message, type=type, param=param, code=code)
        self.headers: dict[str, str] = {}

    def retry_after(self, seconds: float) -> Problem:
        """The same, with a header that says when to try again."""
        self.headers["Retry-After"] = str(max(1, round(seconds + 0.5)))
        return self

    def response(self) -> JSONResponse:
        """As an HTTP answer."""
        return JSONResponse({"error": self.body.model_dump()}, self.status, headers=self.headers)


def unauthorized() -> Problem:
    """One answer for no token, a wrong, expired or revoked one: which it is, is nobody's business."""
    problem = Problem(
        401,
        "no valid token; send Authorization: Bearer …",
        type="authentication_error",
        code="invalid_api_key",
    )
    problem.headers["WWW-Authenticate"] = "Bearer"
    return problem


def forbidden(message: str) -> Problem:
    """The token is valid and does not allow this."""
    return Problem(403, message, type="permission_error", code="forbidden")


def no_such_model() -> Problem:
    """One answer for a user who was never there, was forgotten, or is another tenant's."""
    return Problem(404, "there is no such model; assemble one first", param="model", code="model_not_found")


def of(error: PerpcsError) -> Problem:
    """What a client may know of an error below the HTTP layer."""
    if isinstance(error, UnknownUserError):
        return no_such_model()
    if isinstance(error, BusyError):
        return Problem(429, str(error), type="rate_limit_error", code="overloaded").retry_after(1)
    if isinstance(error, StaleRecipeError):
        return Problem(409, str(error), code="assembly_stale")
    if isinstance(error, ForgottenError):
        return Problem(409, str(error), code="user_forgotten")
    if isinstance(error, DataError | ConfigError):
        code = "context_length_exceeded" if "there is room for" in str(error) else None
        return Problem(400, str(error), code=code)
    if isinstance(error, ReplicaLostError):
        return Problem(503, str(error), type="server_error", code="replica_lost").retry_after(1)
    if isinstance(error, StoreError):
        # Its text has paths.
        return Problem(503, "the store does not answer; try again", type="server_error").retry_after(2)
    return internal(error)


def internal(error: BaseException) -> Problem:
    """A defect: type and place go to the log, the message, which may quote a prompt, does not."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].name}:{frames[-1].lineno}" if frames else "?"
    log.error("a request failed: %s in %s", type(error).__name__, where)
    return Problem(500, "the request failed here; try again", type="server_error", code="internal_error")


def install(app: FastAPI) -> None:
    """Give every error of the application this form."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(PerpcsError, _perpcs)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


async def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return error.response()


async def _perpcs(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PerpcsError)
    return of(error).response()


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = {404: "there is nothing at this address", 405: "this address does not take this method"}
    problem = Problem(error.status_code, message.get(error.status_code, "the request is refused"), code=code)
    problem.headers.update(error.headers or {})
    return problem.response()


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response()


def invalid(errors: Any) -> Problem:
    """The first complaint of pydantic; without the value, which may be a user's text."""
    first: Mapping[str, Any] = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return Problem(400, f"{param}: is not supported here", param=param, code="unsupported_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return Problem(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")
