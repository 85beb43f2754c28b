"""Which addresses webhooks are not sent to, unless the operator allows it: all that is not the public internet.

From the registries of special-purpose addresses
(https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry).
Python's own ``is_global`` differs from version to version and takes multicast and NAT64 for global.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from sekali.settings import Network

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # of IPv6 nothing else is public
_REFUSED = [
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier or cloud"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's own service"),  # Azure, on every machine; the others' are link-local or private
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "reserved"),
        ("3fff::/20", "reserved"),
    )
]
_NAT64 = IPv6Network("64:ff9b::/96")


def refusal(text: str, allowed: Iterable[Network]) -> str | None:
    """Say what kind of address it is where nothing may be sent to it, None where that is fine.

    One that stands for an IPv4 address (mapped, NAT64, 6to4) is as good as that. ``allowed`` counts before all.
    """
    address = ip_address(text)
    inner = _embedded(address)
    if any(one in network for network in allowed for one in (address, inner)):
        return None
    for network, kind in _REFUSED:
        if inner in network:
            return kind
    return "reserved" if isinstance(inner, IPv6Address) and inner not in _GLOBAL_UNICAST else None


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that packets end up at, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
