"""Forms: read in bounds, and only from pages of this server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar, cast
from urllib.parse import urlsplit

import anyio
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from deltareg.errors import InvalidArgument, NotAllowed
from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import authorise
from deltareg_registry.state import state_of

__all__ = ["Asking", "Posted", "Values", "csrf_of", "local_path", "model_of", "read_form", "uploaded_text"]

Asking = Annotated[Principal, Depends(authorise)]
"""Who asks, once it is sure that they may."""

_FORM_LIMIT = 256 << 10
_MOST_FIELDS = 200
_SLOWEST = 100_000.0  # bytes a second
# The rest of the form is still on its way: the connection cannot be used again.
_CLOSE = {"Connection": "close"}
_MOST_FILES = 4

Model = TypeVar("Model", bound=BaseModel)


class Values:
    """What was filled in."""

    def __init__(self, data: FormData) -> None:
        self._data = data

    def text(self, name: str) -> str | None:
        """A field without white space around it; None where it is absent or empty."""
        found = self._data.get(name)
        return (found.strip() or None) if isinstance(found, str) else None

    def texts(self, name: str) -> list[str]:
        """All values of a field."""
        return [value for value in self._data.getlist(name) if isinstance(value, str) and value]

    def whole(self, name: str) -> int | None:
        """A whole number; None where it is absent. Raises InvalidArgument."""
        found = self.text(name)
        if found is None:
            return None
        if not (found.isascii() and found.isdigit() and len(found) <= 18):
            raise InvalidArgument(f"{name} is not a whole number: {found!r:.60}", hint="write digits alone")
        return int(found)

    def file(self, name: str) -> UploadFile | None:
        """A file; None where none was chosen."""
        found = self._data.get(name)
        return found if isinstance(found, UploadFile) and found.filename else None


def csrf_of(token: str) -> str:
    """What the forms of whoever is signed in with a token have to bring along: other sites cannot know it."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"deltareg forms", hashlib.sha256).hexdigest()


@asynccontextmanager
async def read_form(request: Request, limit: int) -> AsyncGenerator[Values]:
    """The form that a page sent; its files are there as long as the body runs.

    Raises NotAllowed for one of another site, HTTPException 413 above `limit` bytes.
    """
    _refuse_strangers(request)
    seconds = state_of(request).settings.body_seconds
    end, taken = anyio.current_time() + seconds, 0

    async def receive() -> Message:
        nonlocal taken
        # What comes at a fair speed may take longer.
        with anyio.fail_after(max(0.0, end + taken / _SLOWEST - anyio.current_time())):
            message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the form has more than {limit} bytes", _CLOSE)
        return message

    bounded = Request(request.scope, receive)
    try:
        data = await bounded.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_FORM_LIMIT)
    except TimeoutError as error:
        raise HTTPException(408, f"the form did not arrive in {seconds:g} s", _CLOSE) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the form ended early") from error
    try:
        _check_csrf(request, data.get("csrf"))
        yield Values(data)
    finally:
        await data.close()


async def _posted(request: Request, _: Asking) -> AsyncGenerator[Values]:
    async with read_form(request, _FORM_LIMIT) as values:
        yield values


Posted = Annotated[Values, Depends(_posted)]
"""A form without files, of whoever may send it."""


def model_of(model: type[Model], values: Mapping[str, object]) -> Model:
    """The document that a form stands for. Raises InvalidArgument."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise InvalidArgument("the form is not filled in right: " + "; ".join(faults[:8])) from error


def uploaded_text(file: UploadFile, what: str) -> str:
    """The text of an uploaded file. Raises InvalidArgument."""
    try:
        return file.file.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{what} is not a text in UTF-8: {error}") from error


def local_path(text: str | None) -> str:
    """A path of this server that a form asks to go on to; `/` for anything else."""
    # A browser takes `\` for `/`, and drops tabs and line ends: `//` and its likes lead to another host.
    if text is None or not text.startswith("/") or text[1:2] in ("/", "\\") or not text.isprintable():
        return "/"
    return text


def _refuse_strangers(request: Request) -> None:
    """Raise NotAllowed for a form of another site, as far as the browser tells."""
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = {headers.get("host", ""), urlsplit(state_of(request).settings.url or "").netloc}
    strange = site not in ("same-origin", "none") if site else origin is not None and urlsplit(origin).netloc not in own
    if strange:
        raise NotAllowed("the form comes from another site", hint="open the page here, and fill it in again")


def _check_csrf(request: Request, sent: object) -> None:
    principal, token = cast(Principal, request.state.principal), cast("str | None", request.state.token)
    # A token in a header was put there by a program, not by a browser that was led astray.
    by_header = request.headers.get("authorization", "").lower().startswith("bearer ")
    if not principal.signed_in or token is None or by_header:
        return
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode("utf-8", "replace"), csrf_of(token).encode()):
        raise NotAllowed("the form is from before you signed in", hint="go back, load the page again, and send it anew")
