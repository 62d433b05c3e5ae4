"""Errors as answers: RFC 9457 problems under /api/v1, the OCI form under /v2, with the codes that the client has.

What a browser asks for elsewhere is answered by a page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from deltareg.errors import (
    BadCheckpoint,
    BadHeader,
    BadManifest,
    BadName,
    Busy,
    ChannelMoved,
    Conflict,
    DeltaregError,
    DigestMismatch,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotHomologous,
    NotSignedIn,
    QuotaExceeded,
    RemoteUnavailable,
    TooLarge,
    TooManyRequests,
    UnsupportedFormat,
    UsageError,
    VersionExists,
)
from deltareg.manifest import Document
from deltareg_registry.state import state_of

__all__ = [
    "PROBLEM",
    "OciError",
    "Problem",
    "answer",
    "codes_of",
    "install",
    "late",
    "problem_of",
    "status_of",
]

_log = logging.getLogger("deltareg_registry.faults")

PROBLEM = "application/problem+json"
_CHALLENGE = 'Basic realm="deltareg"'

_STATUSES: tuple[tuple[type[DeltaregError], int], ...] = (
    (NotSignedIn, 401),
    (VersionExists, 409),
    (ChannelMoved, 409),
    (Conflict, 409),
    (QuotaExceeded, 403),
    (TooLarge, 413),
    (NotAllowed, 403),
    (NotFound, 404),
    (BadCheckpoint, 422),
    (BadManifest, 422),
    (BadHeader, 422),
    (DigestMismatch, 422),
    (NotHomologous, 422),
    (UnsupportedFormat, 422),
    (BadName, 400),
    (InvalidArgument, 400),
    (UsageError, 400),
    (DiskFull, 507),
    (Busy, 503),
    (TooManyRequests, 429),
    (RemoteUnavailable, 503),
)
_KINDS: Mapping[int, type[DeltaregError]] = MappingProxyType(
    {
        400: InvalidArgument,
        404: NotFound,
        405: UsageError,
        408: RemoteUnavailable,
        413: TooLarge,
        416: InvalidArgument,
    }
)
"""What deltareg calls a fault of which the protocol's status is all that is known."""
# From the OCI distribution specification, "Error Codes".
_OCI_CODES = {
    400: "NAME_INVALID",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NAME_UNKNOWN",
    405: "UNSUPPORTED",
    409: "DENIED",
    413: "SIZE_INVALID",
    416: "BLOB_UPLOAD_INVALID",
    422: "MANIFEST_INVALID",
    429: "TOOMANYREQUESTS",
}


# Parts of the server that only programs ask, whatever they say they accept.
_MACHINES = ("api", "v2", "healthz", "readyz", "metrics")


class Problem(Document):
    """What went wrong (RFC 9457), with what `deltareg` says of it: code, cause, hint and data."""

    type: str = Field(description="urn:deltareg:error: and the code")
    title: str = Field(description="what the code means")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what happened")
    instance: str | None = Field(default=None, description="the path of the request")
    code: str = Field(description="as docs/errors.md explains it")
    cause: str | None = None
    hint: str | None = Field(default=None, description="what to do")
    request_id: str | None = Field(default=None, description="what the request is called in the server's log")
    data: dict[str, Any] = Field(default={})


class OciError(DeltaregError):
    """An error that the OCI distribution specification has a code of its own for; `told` is what deltareg calls it."""

    def __init__(self, oci_code: str, status: int, told: DeltaregError | str, *, hint: str | None = None) -> None:
        kind = _KINDS.get(status, DeltaregError)
        self.told = told if isinstance(told, DeltaregError) else kind(told, hint=hint)
        super().__init__(self.told.message, cause=self.told.cause, hint=self.told.hint, **self.told.data)
        self.oci_code = oci_code
        self.status = status


def status_of(error: DeltaregError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, OciError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def late(what: str, oci_code: str = "UNKNOWN") -> OciError:
    """The error of a request whose body did not come in time: the connection failed, and it may be tried again."""
    return OciError(oci_code, HTTPStatus.REQUEST_TIMEOUT, what, hint="check the connection, and send it again")


def codes_of(status: int) -> list[str]:
    """The codes of the errors that are answered with an HTTP status."""
    codes = {kind.code for kind, answered in _STATUSES if answered == status}
    return sorted(codes) or [_KINDS.get(status, DeltaregError).code]


def problem_of(error: DeltaregError, path: str | None = None) -> Problem:
    """An error as a document."""
    kind = error.told if isinstance(error, OciError) else error
    told = error.as_dict()
    title = " ".join((type(kind).__doc__ or "").split("\n\n")[0].split())
    return Problem(
        type=f"urn:deltareg:error:{kind.code}",
        title=title,
        status=status_of(error),
        detail=error.message,
        instance=path,
        code=kind.code,
        cause=error.cause,
        hint=error.hint,
        data=told["data"],  # type: ignore[arg-type]
    )


def install(app: FastAPI, page: Callable[[Request, Problem], Response]) -> None:
    """Let every error of `app` be answered in the form of its part; `page` shows one to a browser."""
    app.state.error_page = page
    app.add_exception_handler(DeltaregError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)


def answer(request: Request, error: DeltaregError) -> Response:
    """The answer that an error is, to a request."""
    identity = request.scope.get("state", {}).get("request_id")
    problem = problem_of(error, request.url.path).model_copy(update={"request_id": identity})
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and problem.cause is not None:
        # Hosts, users, paths, statements: of the server itself, strangers are told that it failed, and its log why.
        _log.warning("%s: %s", problem.detail, problem.cause)
        problem = problem.model_copy(update={"cause": None})
    headers: dict[str, str] = {}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _challenge(request)
    wait = error.data.get("retry_after")
    if isinstance(wait, (int, float)):
        headers["Retry-After"] = str(max(1, round(wait)))
    if _wants_page(request):
        shown: Response = request.app.state.error_page(request, problem)
        shown.headers.update({name: value for name, value in headers.items() if name == "Retry-After"})
        return shown
    content = problem.model_dump(by_alias=True, exclude_none=True)
    if not request.url.path.startswith("/v2"):
        return JSONResponse(content, problem.status, headers, media_type=PROBLEM)
    code = error.oci_code if isinstance(error, OciError) else _OCI_CODES.get(problem.status, "UNKNOWN")
    body = {"errors": [{"code": code, "message": problem.detail, "detail": content}]}
    return JSONResponse(body, problem.status, headers)


def _challenge(request: Request) -> str:
    """How to say who one is: by a password; under /v2 by a token that one gets for it, or without one."""
    if not request.url.path.startswith("/v2"):
        return _CHALLENGE
    base = (state_of(request).settings.url or str(request.base_url)).rstrip("/").replace('"', "%22")
    told = f'Bearer realm="{base}/v2/token",service="deltareg"'
    namespace, name = request.path_params.get("namespace"), request.path_params.get("name")
    if namespace is None or name is None:
        return told
    actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
    return f'{told},scope="repository:{quote(namespace)}/{quote(name)}:{actions}"'


def _wants_page(request: Request) -> bool:
    part = request.url.path.split("/")[1]
    return part not in _MACHINES and "text/html" in request.headers.get("accept", "")


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeltaregError)
    return answer(request, error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return answer(request, InvalidArgument("the request is not understood: " + "; ".join(faults[:8])))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told: DeltaregError
    if error.status_code == HTTPStatus.NOT_FOUND:
        told = NotFound(f"there is nothing at {request.url.path}")
    elif error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        told = TooLarge(str(error.detail), hint="send less at a time")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        takes = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
        hint = f"it takes {takes}" if takes else None
        told = OciError("UNSUPPORTED", 405, f"{request.url.path} does not take {request.method}", hint=hint)
    elif error.status_code == HTTPStatus.REQUEST_TIMEOUT:
        told = late(str(error.detail))
    else:
        told = OciError(_OCI_CODES.get(error.status_code, "UNKNOWN"), error.status_code, str(error.detail))
    response = answer(request, told)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
