"""The HTTP client of every remote on the network.

One place knows what may be tried again, where a secret may go, and which error of deltareg a failure is.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Protocol, TypeVar

import httpx2
import stamina

from deltareg import __version__
from deltareg.errors import BadConfig, BadManifest, Busy, DeltaregError, RemoteUnavailable, UsageError
from deltareg.remote.answers import PASSING, Answer, error_of, seconds_to_wait
from deltareg.remote.bodies import Body, Download, FilePart, first_byte, stream
from deltareg.remote.network import Network, origin_of, shown
from deltareg.remote.redirects import redirected
from deltareg.store.writer import mismatch

__all__ = ["Authorization", "HttpClient"]

Result = TypeVar("Result")

_ANSWER_LIMIT = 4 << 20
_ERROR_LIMIT = 64 << 10
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_CONNECTIONS = 64
_REFUSED_TRIES = 3
"""Nobody listens there: that seldom changes within seconds."""
_FEW_BYTES = 1 << 20
_CUTS = 20


class Authorization(Protocol):
    """Who the user is, as one server wants to be told. Its methods may be called from any thread."""

    def header(self, scope: str) -> str | None:
        """The value of `Authorization` for a request within a scope, if one is known."""
        ...

    def challenged(self, challenges: list[str], scope: str, sent: str | None) -> bool:
        """The server refused `sent` with these `WWW-Authenticate`: whether `header` gives something else now."""
        ...

    def conceal(self, text: str) -> str:
        """The text without any secret."""
        ...


@dataclass(frozen=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: Body | None
    scope: str
    repeatable: bool
    accept: frozenset[int] = field(default_factory=frozenset[int])


class _Failed(Exception):
    """One try failed in a way that another one might not."""

    def __init__(self, error: DeltaregError, *, wait: float | None = None, unsent: bool = False, refused: bool = False):
        super().__init__(error.message)
        self.error = error
        self.wait = wait
        self.unsent = unsent
        self.refused = refused


class HttpClient:
    """Asks one server, whose `base` is a URL; `login` is what a user types behind `deltareg login` for it.

    Its methods may be called from any thread. They raise RemoteUnavailable where nothing that can be understood comes
    back, and else the error that the server's answer is: NotAllowed, NotFound, DiskFull, or the very one that a
    deltareg server raised.
    """

    def __init__(
        self, base: str, network: Network, *, authorization: Authorization | None = None, login: str | None = None
    ) -> None:
        self.base = base
        self.origin = origin_of(base)
        self.login = login or base
        self.network = network
        self._authorization = authorization
        self._client = _open(network)

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        accept: tuple[int, ...] = (),
        repeatable: bool | None = None,
        limit: int = _ANSWER_LIMIT,
        scope: str = "",
    ) -> Answer:
        """The answer to one request, its body as a whole; `url` may be relative to the base.

        Statuses of 2xx and those in `accept` are returned, others raised. `repeatable` says whether the request may be
        sent again where it may have been done already; by default that is so of GET, HEAD, PUT and DELETE. Raises
        BadManifest for a body of more than `limit` bytes.
        """
        again = method in _REPEATABLE if repeatable is None else repeatable
        request = _Request(method, self.url(url), headers or {}, body, scope, again, frozenset(accept))

        def attempt() -> Answer:
            with self._answered(request) as (response, place):
                return Answer(response.status_code, _lower(response), self._read(response, place, limit), place)

        return self._patiently(request, attempt)

    def download(self, wanted: Download, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on. A connection that is cut is made anew, and the blob goes on there.

        Raises DigestMismatch where the server has another number of bytes.
        """
        position, cuts, since = offset, 0, offset
        while position < wanted.size or (wanted.size == 0 and cuts == 0):
            with closing(self._begin(wanted, position)) as pieces:
                try:
                    for piece in pieces:
                        self.network.bandwidth.take(len(piece))
                        position += len(piece)
                        yield piece
                        if position > wanted.size:
                            return  # whoever asked refuses it
                except _Failed as failed:
                    if position - since < _FEW_BYTES and cuts >= _CUTS:
                        raise failed.error from None
            cuts, since = (cuts + 1, since) if position - since < _FEW_BYTES else (0, position)
            if position < wanted.size and cuts > _CUTS:
                raise self._cut(wanted, position)

    def url(self, path: str) -> str:
        """A whole URL of what may be relative to the base."""
        return path if "://" in path else f"{self.base.rstrip('/')}/{path.lstrip('/')}"

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    # --- one try, and others ---

    def _patiently(self, request: _Request, attempt: Callable[[], Result]) -> Result:
        patience = self.network.patience
        begun, refusals = time.monotonic(), 0

        def worth_another(error: Exception) -> bool | float:
            nonlocal refusals
            if not isinstance(error, _Failed) or not (request.repeatable or error.unsent):
                return False
            refusals += error.refused
            if refusals >= _REFUSED_TRIES:
                return False
            if error.wait is None:
                return True
            return error.wait if time.monotonic() - begun + error.wait < patience.total else False

        try:
            for one in stamina.retry_context(
                on=worth_another,
                attempts=patience.attempts,
                timeout=patience.total,
                wait_initial=0.2,
                wait_max=10,
                wait_jitter=0.5,
            ):
                with one:
                    return attempt()
        except _Failed as failed:
            # Not chained: what lies below may hold a signed URL.
            raise failed.error from None
        raise AssertionError("a retry ends with a result or an error")

    def _begin(self, wanted: Download, offset: int) -> Generator[bytes]:
        """An answer whose first piece is there, so that each beginning brings the transfer on; then the others."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = _Request("GET", wanted.url, headers, None, wanted.scope, True, frozenset({416}))

        def attempt() -> tuple[bytes, Generator[bytes]]:
            pieces = self._pieces(request, wanted, offset)
            first = next(pieces, b"")
            if not first and offset < wanted.size:
                raise _Failed(self._cut(wanted, offset))
            return first, pieces

        first, pieces = self._patiently(replace(request, url=self.url(wanted.url)), attempt)

        def all_pieces() -> Generator[bytes]:
            with closing(pieces):
                if first:
                    yield first
                yield from pieces

        return all_pieces()

    def _pieces(self, request: _Request, wanted: Download, offset: int) -> Generator[bytes]:
        with self._answered(replace(request, url=self.url(wanted.url))) as (response, place):
            skipped = first_byte(response.status_code, response.headers, wanted, offset, shown(place))
            with self._reading(place):
                for piece in response.iter_raw():
                    kept = piece[max(0, offset - skipped) :] if skipped < offset else piece
                    skipped += len(piece)
                    if kept:
                        yield kept
            if skipped < wanted.size and "chunked" in response.headers.get("transfer-encoding", "").lower():
                # The end was sent, too: this is all that the server has. Without it the connection was cut.
                raise mismatch(wanted.digest, shown(place), expected=wanted.size, found=skipped)

    @contextmanager
    def _answered(self, request: _Request) -> Generator[tuple[httpx2.Response, str]]:
        """An answer that is no refusal and no redirect, and the URL that gave it. Raises as the class says, _Failed."""
        response, place = self._sent(request)
        try:
            status = response.status_code
            if not (200 <= status < 300 or status in request.accept):
                raise self._refusal(response, place)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise RemoteUnavailable(
                    f"{shown(place)} was sent in another form than was asked for",
                    cause=f"content-encoding {response.headers['content-encoding']!r:.40}",
                    hint="ask the owner of the remote to turn compression off for it",
                )
            yield response, place
        finally:
            response.close()

    def _sent(self, request: _Request) -> tuple[httpx2.Response, str]:
        """The answer behind redirects and, where the server wants to know who asks, a login."""
        url, trusted, told = request.url, True, False
        hops = 0
        while True:
            secret = self._secret(url, request.scope) if trusted else None
            response = self._exchange(request, url, secret)
            if response.status_code == 401 and trusted and not told and self._authorization is not None:
                told = True
                challenges = response.headers.get_list("www-authenticate")
                response.close()
                if self._authorization.challenged(challenges, request.scope, secret):
                    continue
                # The refusal's own words are still wanted.
                response = self._exchange(request, url, secret)
            target = response.headers.get("location") if response.status_code in (301, 302, 303, 307, 308) else None
            if target is None or response.status_code in request.accept:
                return response, url
            response.close()
            hops += 1
            url = redirected(request.method, response.status_code, url, target, hops)
            # Once it has led elsewhere, nothing that comes of it is asked in the user's name.
            trusted = trusted and origin_of(url) == self.origin

    def _secret(self, url: str, scope: str) -> str | None:
        if self._authorization is None or origin_of(url) != self.origin:
            return None
        return self._authorization.header(scope)

    def _exchange(self, request: _Request, url: str, secret: str | None) -> httpx2.Response:
        headers = {"Accept-Encoding": "identity", **request.headers}
        if secret is not None:
            headers["Authorization"] = secret
        content: Iterator[bytes] | None = None
        if request.body is not None:
            length = request.body.length if isinstance(request.body, FilePart) else len(request.body)
            headers["Content-Length"] = str(length)
            content = stream(request.body, self.network.bandwidth)
        elif request.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        try:
            made = self._client.build_request(request.method, url, headers=headers, content=content)
            return self._client.send(made, stream=True, follow_redirects=False)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError) as error:
            raise self._failure(error, url) from None

    # --- errors ---

    def _cut(self, wanted: Download, position: int) -> RemoteUnavailable:
        return RemoteUnavailable(
            f"{self.login} ended the transfer of {wanted.digest} again and again",
            cause=f"at byte {position} of {wanted.size}",
            hint="run this again later: what came is kept",
        )

    @contextmanager
    def _reading(self, place: str) -> Generator[None]:
        try:
            yield
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise self._failure(error, place) from None

    def _read(self, response: httpx2.Response, place: str, limit: int) -> bytes:
        if response.request.method == "HEAD":
            return b""
        with self._reading(place):
            data = _bounded(response, limit)
        if data is None:
            raise BadManifest(f"{shown(place)} has more than {limit} bytes", cause="so much is not read at once")
        return data

    def _refusal(self, response: httpx2.Response, place: str) -> Exception:
        with self._reading(place):
            body = _bounded(response, _ERROR_LIMIT) or b""
        answer = Answer(response.status_code, _lower(response), body, place)
        error = self._concealed(error_of(answer, login=self.login))
        if response.status_code not in PASSING:
            return error
        wait = seconds_to_wait(answer.headers, time.time())
        # 429 says that the request was not even looked at; and who is busy with another one has done nothing for this.
        return _Failed(error, wait=wait, unsent=response.status_code == 429 or isinstance(error, Busy))

    def _failure(self, error: Exception, url: str) -> Exception:
        told = self._conceal(str(error))
        if isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError)):
            return UsageError(f"{shown(url)} cannot be asked: {told}", hint="check the URL of the remote")
        if "CERTIFICATE_VERIFY_FAILED" in told or isinstance(error.__cause__, ssl.SSLCertVerificationError):
            return RemoteUnavailable(
                f"{origin_of(url)} shows a certificate that this machine does not trust",
                cause=told,
                hint="check the URL; for an authority of your own set SSL_CERT_FILE to its certificate",
            )
        unsent = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError))
        slow = isinstance(error, httpx2.TimeoutException)
        reason = "it took too long" if slow else told or type(error).__name__
        failure = RemoteUnavailable(
            f"{origin_of(url)} {'could not be reached' if unsent else 'broke the connection off'}: {reason}",
            cause=reason,
            hint="check the connection and the URL of the remote, then run this again",
        )
        return _Failed(failure, unsent=unsent, refused=isinstance(error, httpx2.ConnectError))

    def _concealed(self, error: DeltaregError) -> DeltaregError:
        texts = [error.message, error.cause or "", error.hint or ""]
        if [self._conceal(text) for text in texts] == texts:
            return error
        return type(error)(self._conceal(error.message), cause=None, hint=None)

    def _conceal(self, text: str) -> str:
        told = re.sub(r"\?[^\s\"')]*", "?…", text)[:500]
        return told if self._authorization is None else self._authorization.conceal(told)


@functools.cache
def _tls(certificates: str | None, directory: str | None) -> ssl.SSLContext:
    """The authorities that count, as these two variables say, else those of the system; reading them takes long."""
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        raise BadConfig(
            f"the certificates in {certificates or directory or 'the system'} cannot be read",
            cause=error.strerror or str(error),
            hint="check SSL_CERT_FILE and SSL_CERT_DIR",
        ) from error


def _open(network: Network) -> httpx2.Client:
    patience = network.patience
    # Cookies know no ports: what one server set would reach another one of the same host.
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx2.Client(
        verify=_tls(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
        headers={"User-Agent": f"deltareg/{__version__}", "Accept": "*/*"},
        timeout=httpx2.Timeout(patience.silence, connect=patience.connect, pool=None),
        limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=16, keepalive_expiry=15),
        cookies=cookies,
        follow_redirects=False,
    )


def _bounded(response: httpx2.Response, limit: int) -> bytes | None:
    data = bytearray()
    for piece in response.iter_raw():
        data += piece
        if len(data) > limit:
            return None
    return bytes(data)


def _lower(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _without_queries(record: logging.LogRecord) -> bool:
    # Redirects lead to signed URLs, whose queries are as good as a password.
    told = record.getMessage()
    record.msg, record.args = re.sub(r"\?[^\s\"')]*", "?…", told), ()
    return True


for _name in ("httpx2", "httpcore2.http11", "httpcore2.connection"):
    logging.getLogger(_name).addFilter(_without_queries)
# Without a handler of its own each retry would be printed.
logging.getLogger("stamina").addHandler(logging.NullHandler())
