"""What every route of `/api/v1` has: who asks, from where, and the problems that it may answer with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends

from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import authorise
from deltareg_registry.problems import Problem, codes_of

__all__ = ["PROBLEMS", "Asking", "problems"]

Asking = Annotated[Principal, Depends(authorise)]
"""Who asks, once it is sure that they may."""

_MEANINGS = {
    400: "The request is not understood.",
    401: "It needs a token, or the token is not good.",
    403: "Whoever asks may not do that.",
    404: "It is not in the registry, or not for whoever asks.",
    409: "Somebody else was there before.",
    413: "The body is too long.",
    422: "A document, a checkpoint or a blob is not what it has to be.",
    429: "Too many requests; Retry-After tells when to ask again.",
    500: "The server failed.",
    503: "The database or the storage does not answer, or too much is asked at once.",
    507: "The disk is full.",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The declaration of answers that are problems, for a route."""
    return {
        status: {"model": Problem, "description": f"{_MEANINGS[status]} Codes: {', '.join(codes_of(status))}."}
        for status in statuses
    }


PROBLEMS: Responses = problems(400, 401, 403, 404, 422, 429, 500, 503)
"""What every route may answer."""
