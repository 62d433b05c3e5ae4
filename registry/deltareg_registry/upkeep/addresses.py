"""Which hosts the server itself may send to: whoever makes a webhook must not reach what only the server can reach."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from deltareg.errors import InvalidArgument, NotAllowed

__all__ = ["Place", "check_url", "parse_host", "resolve"]

_PORTS = {"http": 80, "https": 443}
_HINT = "name a host that everybody can reach, or let the operator allow it: serve --webhook-host HOST"
# Networks whose addresses stand for others, which hide in them: NAT64, and 6to4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The rest of IPv6 is not given out: there lie translated addresses and site-local ones, which `ipaddress` calls global.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
# Not global, whatever versions of `ipaddress` say: protocols and documentation; and where clouds answer their machines.
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "3fff::/20", "168.63.129.16/32")))


@dataclass(frozen=True)
class Place:
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host, with its port where that is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, address: str) -> str:
        """The URL with an address instead of the host."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def check_url(url: str, allowed: Sequence[str]) -> Place:
    """Where a URL leads. Raises InvalidArgument for one that is none, NotAllowed where its host is plainly private.

    What a name stands for is looked at when something is sent, by `resolve`: it may change.
    """
    place = _parsed(url)
    if _is_named(place.host, allowed):
        return place
    address = _literal(place.host)
    if place.host == "localhost" or place.host.endswith(".localhost"):
        raise _refused(place.host)
    if address is not None and not _may_reach(address, allowed):
        raise _refused(place.host)
    return place


def resolve(place: Place, allowed: Sequence[str]) -> list[str]:
    """The addresses of a host, to be connected to as they are: asked again, the name could stand for others.

    Raises NotAllowed where any of its addresses is not public and not `allowed`; OSError where it has none.
    """
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not _is_named(place.host, allowed):
        for address in addresses:
            if not _may_reach(ipaddress.ip_address(address), allowed):
                raise _refused(place.host)
    return list(dict.fromkeys(addresses))


def parse_host(text: str) -> str:
    """A host or network that an operator allows, as it is compared. Raises InvalidArgument."""
    host = text.strip().lower().rstrip(".")
    if "/" in host:
        try:
            return str(ipaddress.ip_network(host))
        except ValueError as error:
            raise InvalidArgument(f"{text!r} is not a network", cause=str(error), hint="write 10.1.0.0/16") from error
    if not host or (any(char in host for char in " :@") and _literal(host) is None):
        raise InvalidArgument(f"{text!r} is not a host", hint="write hooks.example.org or 10.1.0.0/16")
    return host


def _parsed(url: str) -> Place:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        if parts.scheme in _PORTS and host:
            host = host.encode("idna").decode() if ":" not in host else host
    except (ValueError, UnicodeError) as error:
        raise InvalidArgument(f"{url[:200]!r} is not a URL", cause=str(error)) from error
    if parts.scheme not in _PORTS or not host or port == 0:
        raise InvalidArgument(f"{url[:200]!r} is not a URL of http or https", hint="write https://host/path")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument("a webhook's URL holds no password", hint="check the signature of its messages instead")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, host, port or _PORTS[parts.scheme], path)


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_named(host: str, allowed: Sequence[str]) -> bool:
    return host in {parse_host(each) for each in allowed}


def _may_reach(address: IPv4Address | IPv6Address, allowed: Sequence[str]) -> bool:
    real = _real(address)
    networks = [ipaddress.ip_network(each) for each in map(parse_host, allowed) if "/" in each]
    if any(real in network for network in networks if network.version == real.version):
        return True
    given_out = real.version == 4 or real in _GIVEN_OUT
    special = any(real in network for network in _SPECIAL if network.version == real.version)
    return real.is_global and not real.is_multicast and given_out and not special


def _real(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address that an IPv6 address stands for, where it is one that hides another."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _refused(host: str) -> NotAllowed:
    return NotAllowed(f"the server does not send to {host}: it is an address of a private network", hint=_HINT)
