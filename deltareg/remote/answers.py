"""What a server's refusal means: HTTP statuses, RFC 9457 problems and OCI errors as errors of deltareg."""

from __future__ import annotations

import http
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, cast

from deltareg.digest import parse_json
from deltareg.errors import (
    BadManifest,
    DeltaregError,
    DiskFull,
    NotAllowed,
    NotFound,
    NotSignedIn,
    RemoteUnavailable,
    TooManyRequests,
    all_errors,
)
from deltareg.names import as_reason
from deltareg.remote.network import shown

__all__ = ["PASSING", "Answer", "error_of", "seconds_to_wait", "texts_in"]

PASSING = frozenset({408, 429, 502, 503, 504})
"""Statuses that may be another one at the next try."""

_NOTHING: Mapping[str, Any] = {}
_PARAMETERS = frozenset({"self", "message", "cause", "hint"})
"""What the data of an error cannot be called."""


@dataclass(frozen=True)
class Answer:
    """What a server answered: `headers` have lower-case names, `url` is where redirects led."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    def json(self) -> Any:
        """The document. Raises BadManifest."""
        return parse_json(self.body, what=shown(self.url))


def error_of(answer: Answer, *, login: str) -> DeltaregError:
    """The error that an answer is; `login` is what a user types behind `deltareg login` for this remote."""
    document = _document(answer)
    raised = _problem(document, login)
    if raised is not None:
        return raised
    place, told = shown(answer.url), _told(document)
    status = f"{answer.status} {_phrase(answer.status)}".strip()
    cause = f"{status}: {told}" if told else status
    if answer.status == 401:
        hint = f"deltareg login {login}"
        return NotSignedIn(f"{login} wants to know who asks for {place}", cause=cause, hint=hint)
    if answer.status in (403, 407):
        hint = f"ask the owner for the right, or log in as somebody else: deltareg login {login}"
        return NotAllowed(f"{login} does not let you at {place}", cause=cause, hint=hint)
    if answer.status in (404, 410):
        return NotFound(f"{place} is not there", cause=cause, hint="check the name and the URL of the remote")
    if answer.status == 507:
        return DiskFull(f"{login} has no room left", cause=cause, hint="ask its owner for room, then run this again")
    if answer.status == 429:
        wait = seconds_to_wait(answer.headers, time.time())
        asks = "" if wait is None else f"; it asks to wait {wait:.0f} s"
        return TooManyRequests(f"{login} was asked too often{asks}", cause=cause, hint="run this again later")
    if answer.status >= 500 or answer.status in PASSING:
        hint = "run this again later: what was sent is kept"
        return RemoteUnavailable(f"{login} failed at {place}: {status}", cause=cause, hint=hint)
    return NotAllowed(f"{login} refused {place}: {told or status}", cause=cause, hint="deltareg doctor")


def seconds_to_wait(headers: Mapping[str, str], now: float) -> float | None:
    """What `Retry-After` asks for; None where it says nothing that can be understood."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def texts_in(value: object) -> Iterator[str]:
    """All texts in what was JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for item in cast("Iterable[object]", value):
            yield from texts_in(item)
        if isinstance(value, Mapping):
            yield from texts_in(list(cast("Mapping[str, object]", value).values()))


def _document(answer: Answer) -> Mapping[str, Any]:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.endswith(("/json", "+json")):
        return _NOTHING
    try:
        value = answer.json()
    except BadManifest:
        return _NOTHING
    return cast("dict[str, Any]", value) if isinstance(value, dict) else _NOTHING


def _problem(document: Mapping[str, Any], login: str) -> DeltaregError | None:
    """The error that the server raised, where it says so by its code."""
    found = _coded(document)
    if found is None:
        return None
    kind, fields = found
    message = _text(fields, "message") or _text(fields, "detail") or _text(fields, "title") or kind.__name__
    given = fields.get("data")
    data = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    kept = {key: value for key, value in data.items() if key.isidentifier() and key not in _PARAMETERS}
    return kind(message, cause=_text(fields, "cause"), hint=_hint(kind, fields, login), **kept)


def _hint(kind: type[DeltaregError], fields: Mapping[str, Any], login: str) -> str | None:
    # A server behind a proxy does not know what it is called.
    return f"deltareg login {login}" if issubclass(kind, NotSignedIn) else _text(fields, "hint")


def _coded(document: Mapping[str, Any]) -> tuple[type[DeltaregError], Mapping[str, Any]] | None:
    """An error class and its fields: of a problem, or of an OCI error whose `detail` is one."""
    kinds = {kind.code: kind for kind in all_errors()}
    kind = kinds.get(str(document.get("code")))
    if kind is not None:
        return kind, document
    for error in _errors(document):
        detail = error.get("detail")
        fields = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
        kind = kinds.get(str(fields.get("code")))
        if kind is not None:
            return kind, {"message": error.get("message"), **fields}
    return None


def _told(document: Mapping[str, Any]) -> str:
    """What an OCI error, or a problem of another program, says."""
    said = [_text(error, "message") or _text(error, "code") or "" for error in _errors(document)]
    return "; ".join(filter(None, said)) or _text(document, "detail") or _text(document, "title") or ""


def _errors(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = document.get("errors")
    listed = cast("list[Any]", found) if isinstance(found, list) else []
    return [cast("dict[str, Any]", error) for error in listed[:8] if isinstance(error, dict)]


def _text(fields: Mapping[str, Any], key: str) -> str | None:
    # A terminal obeys control characters: a server's words are shown as one line of plain text.
    value = fields.get(key)
    return (as_reason(value) or None) if isinstance(value, str) else None


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
