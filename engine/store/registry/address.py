"""The network addresses that a registry may lead a client to: public addresses and the registry's own.

A server pulls on behalf of its clients, and a client chooses the registry.  A redirect, an upload location or a token
realm must therefore not reach what only the server can reach: this machine and its private networks.
"""

from __future__ import annotations

import ipaddress
import socket

import httpx

from ...errors import RegistryError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; the last four bytes are an IPv4 address


def check_destination(url: httpx.URL, registry: httpx.URL, may_be_private: bool = False) -> None:
    """Check that `registry` may lead a client to the host of `url`.

    may_be_private   allow addresses of private networks, but neither loopback nor link-local addresses
    Raises: RegistryError.  A host that cannot be resolved is accepted: the request fails by itself, or a proxy knows it
    """
    if url.host == registry.host:
        return
    for address in sorted(resolve_host(url.host) - resolve_host(registry.host), key=str):
        check_address(address, f"{registry.host} leads to {url.host}", may_be_private)


def check_address(address: Address, what: str, may_be_private: bool) -> None:
    """Check that `address` is public.  `what` begins the message.  Raises: RegistryError"""
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        allowed = False
    else:
        allowed = may_be_private or (address.is_global and not address.is_multicast)
    if not allowed:
        raise RegistryError(f"{what} ({address}), expected a public address: refused to reach into a private network")


def resolve_host(host: str) -> set[Address]:
    """Return the addresses of `host`, or an empty set if it cannot be resolved."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()
    return {without_envelope(ipaddress.ip_address(address)) for address in found}


def peer_address(server: tuple[object, ...]) -> Address:
    """Return the address in what a socket tells of its peer: (address, port, ...)."""
    return without_envelope(ipaddress.ip_address(str(server[0])))


def without_envelope(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 address that stands for one, or else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(address.packed[-4:])
        return address.ipv4_mapped or address.sixtofour or address
    return address
