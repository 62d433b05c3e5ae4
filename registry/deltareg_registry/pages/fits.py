"""Does it fit my base? Judged from config.json and tokenizer files; nothing that is sent is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from deltareg.errors import DeltaregError, InvalidArgument
from deltareg_registry.api.check import CHECK_LIMIT, CheckAnswer, CheckRequest, check
from deltareg_registry.pages.forms import Asking, Values, model_of, read_form, uploaded_text
from deltareg_registry.pages.rendering import render
from deltareg_registry.problems import status_of

__all__ = ["fits_pages"]

fits_pages = APIRouter(include_in_schema=False)

_FILES = {"config": "config.json", "tokenizer": "tokenizer.json", "tokenizer_config": "tokenizer_config.json"}


async def _uploaded(request: Request, _: Asking) -> AsyncGenerator[Values]:
    async with read_form(request, CHECK_LIMIT) as values:
        yield values


_Uploaded = Annotated[Values, Depends(_uploaded)]


@fits_pages.get("/fits")
def fits_form(request: Request, asking: Asking, delta: str = "") -> Response:
    """The form that takes the files."""
    return _page(request, deltas=delta)


@fits_pages.post("/fits")
def fits(request: Request, asking: Asking, form: _Uploaded) -> Response:
    """What is known of the deltas that were named, or of those that come nearest."""
    named = form.text("deltas") or ""
    try:
        files = {name: uploaded_text(file, name) for key, name in _FILES.items() if (file := form.file(key))}
        if _FILES["config"] not in files:
            raise InvalidArgument("config.json is missing", hint="choose the file")
        body = model_of(CheckRequest, {"files": files, "deltas": named.replace(",", " ").split()})
        found = check(request, asking, body)
    except DeltaregError as error:
        return _page(request, deltas=named, fault=error.message, status=status_of(error))
    return _page(request, deltas=named, found=found)


def _page(
    request: Request,
    *,
    deltas: str,
    found: CheckAnswer | None = None,
    fault: str | None = None,
    status: int = 200,
) -> Response:
    return render(request, "fits.html", status=status, deltas=deltas, found=found, fault=fault, limit=CHECK_LIMIT)
