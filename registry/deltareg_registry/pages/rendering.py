"""Templates become answers, with the headers that every page has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import cast
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from deltareg_registry import __version__
from deltareg_registry.access.principal import Principal
from deltareg_registry.pages.forms import csrf_of
from deltareg_registry.pages.static import static_url
from deltareg_registry.state import state_of

__all__ = ["HEADERS", "render", "server_url"]

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        # Nothing may be run or loaded but the files of /static: what a description smuggles in stays text.
        "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        # Who is signed out must not find pages in the browser that others may not see.
        "Cache-Control": "no-store",
    }
)

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def render(request: Request, template: str, *, status: int = 200, **content: object) -> HTMLResponse:
    """A page made of `template`, which knows who asks."""
    principal: Principal | None = getattr(request.state, "visitor", None)
    token: str | None = getattr(request.state, "token", None)
    found = _ENVIRONMENT.get_template(template)
    signed_in = principal is not None and principal.signed_in
    csrf = csrf_of(token) if token is not None and signed_in else ""
    path = request.url.path + (f"?{request.url.query}" if request.method == "GET" and request.url.query else "")
    text = found.render(
        principal=principal,
        csrf=csrf,
        here=path,
        server=server_url(request),
        version=__version__,
        static=static_url,
        **content,
    )
    return HTMLResponse(text.encode("utf-8", "replace"), status, dict(HEADERS))


def server_url(request: Request) -> str:
    """The URL of the server, as clients use it."""
    return (state_of(request).settings.url or str(request.base_url)).rstrip("/")


# --- filters ------------------------------------------------------------------------------------------------------


def _size(count: int) -> str:
    """Bytes in binary units, as `deltareg` prints them: `1.5 MiB`."""
    power = min(int(math.log2(count)) // 10, len(_UNITS) - 1) if count > 0 else 0
    return f"{count / 1024**power:.4g} {_UNITS[power]}" if power else f"{count} B"


def _number(count: int) -> str:
    return f"{count:,}"


def _time(text: str | None) -> Markup | str:
    """A time to the minute, for readers and for programs."""
    if text is None:
        return "–"
    try:
        read = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return text
    return Markup('<time datetime="{}">{}</time>').format(text, f"{read:%Y-%m-%d %H:%M} UTC")


def _short(digest: str) -> Markup:
    """The beginning of a digest, with all of it for who points at it."""
    kind, _, value = digest.partition(":")
    return Markup('<code title="{}">{}</code>').format(digest, f"{kind}:{value[:12]}…" if len(value) > 12 else digest)


def _figure(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + "…"


def _breakable(text: str) -> Markup:
    """A name that may be broken into lines after its signs."""
    pieces = (escape(piece) for piece in text.replace("/", "/\0").replace("-", "-\0").replace(".", ".\0").split("\0"))
    return Markup("<wbr>").join(pieces)


def _codes(text: str) -> Markup:
    """A sentence in which what stands between backticks is code."""
    pieces = text.split("`")
    # Of an odd number of backticks the last one is itself.
    end = [] if len(pieces) % 2 else ["`" + pieces.pop()]
    made = (
        Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces)
    )
    return Markup("").join([*made, *map(escape, end)])


def _with_query(path: str, **values: object) -> str:
    told = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(told)}" if told else path


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("deltareg_registry.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Callable[..., object]]", made.filters)  # type: ignore[reportUnknownMemberType]
    filters.update(
        breakable=_breakable,
        clipped=_clipped,
        codes=_codes,
        figure=_figure,
        number=_number,
        percent=_percent,
        short=_short,
        size=_size,
        time=_time,
    )
    cast("dict[str, object]", made.globals)["with_query"] = _with_query  # type: ignore[reportUnknownMemberType]
    return made


_ENVIRONMENT = _environment()
