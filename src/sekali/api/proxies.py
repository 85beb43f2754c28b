"""Whose request a proxy passes on. Only what proxies say that are named as trusted is believed."""

import ipaddress
import re
from collections.abc import Iterable

from sekali.settings import Network

_FOR = re.compile(r'(?:^|[;,])\s*for\s*=\s*("[^"]*"|[^;,\s]*)', re.IGNORECASE)


class Proxies:
    """The proxies that are trusted to say whose request it is that they pass on."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        self._networks = networks

    def client(self, peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address that a request comes from.

        Proxies append the address that they see, so the list is read from its end, as long as trusted proxies wrote it.
        ``X-Forwarded-For`` counts before ``Forwarded`` (RFC 7239), which the usual proxies leave to the client.
        """
        if peer is None:
            return "unknown"
        address = peer[0]
        if not self._is_trusted(address):
            return address
        for hop in reversed(_hops(headers)):
            found = _address(hop)
            if found is None:
                return address
            address = found
            if not self._is_trusted(address):
                return address
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:  # as where ``::`` is listened on
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    lists: dict[bytes, list[str]] = {b"x-forwarded-for": [], b"forwarded": []}
    for name, value in headers:
        if name in lists:
            lists[name].append(value.decode("latin-1"))
    if lists[b"x-forwarded-for"]:
        return ",".join(lists[b"x-forwarded-for"]).split(",")
    return [found.strip('"') for found in _FOR.findall(",".join(lists[b"forwarded"]))]


def _address(hop: str) -> str | None:
    """Return the address in an entry, which may have a port; None where there is none."""
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None
