"""Pictures from the web, from hosts that an allow-list names: off by default, and never from a private address.

A name is resolved once, every address is checked, and the connection goes to the address that was checked: a name that
points elsewhere a moment later gains nothing. Redirects are followed by the same rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from unifiedreward_think.serving.limits import Refused

REDIRECTS = 3
SECONDS = 20.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host.

    Raises:
        OSError: the name is not known.
    """
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


class Fetcher:
    """Fetch from allowed hosts over https.

    Args:
        hosts: names that may be fetched from, letter for letter; none forbids all fetching.
        limit: bytes of one file.
        resolve: turns a name into addresses.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        hosts: Sequence[str] = (),
        *,
        limit: int,
        resolve: Resolve = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._limit = limit
        self._resolve = resolve
        # No proxy from the environment: it would resolve the name again.
        self._options: dict[str, Any] = {"transport": transport, "timeout": SECONDS, "trust_env": False}

    async def __call__(self, address: str) -> bytes:
        """Return the content behind an address.

        Raises:
            Refused: the host is not allowed, or the content cannot be had within the limits.
        """
        if not self._hosts:
            raise Refused("this server fetches nothing: send pictures as data URLs")
        try:
            async with asyncio.timeout(SECONDS), httpx.AsyncClient(**self._options) as client:
                for _ in range(REDIRECTS + 1):
                    reply = await self._get(client, address)
                    if isinstance(reply, bytes):
                        return reply
                    address = reply
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise Refused(f"cannot fetch the picture ({type(error).__name__})") from error
        raise Refused(f"more than {REDIRECTS} redirects")

    async def _get(self, client: httpx.AsyncClient, address: str) -> bytes | str:
        """Return the content, or the address of a redirect."""
        url = httpx.URL(address)
        checked = await self._checked(url)
        # TLS still asks for the name: the certificate must be that of the host.
        extensions: dict[str, Any] = {"sni_hostname": url.host}
        # Not compressed: a few bytes on the way must not become gigabytes here.
        headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"}
        async with client.stream("GET", url.copy_with(host=checked), headers=headers, extensions=extensions) as reply:
            if reply.is_redirect:
                return str(url.join(reply.headers.get("location", "")))
            if reply.status_code != 200:
                raise Refused(f"the host answered {reply.status_code}")
            content = bytearray()
            async for piece in reply.aiter_raw():
                content += piece
                if len(content) > self._limit:
                    raise Refused(f"a picture of more than {self._limit} bytes", status=413)
            return bytes(content)

    async def _checked(self, url: httpx.URL) -> str:
        """Return an address of the host that may be connected to."""
        if url.scheme != "https" or url.host.lower() not in self._hosts or url.port not in (None, 443) or url.userinfo:
            raise Refused("pictures are fetched by https from the hosts of the allow-list only")
        addresses = await self._resolve(url.host, 443)
        if not addresses or not all(_public(address) for address in addresses):
            raise Refused("the host has a private address")
        return addresses[0]


def _public(address: str) -> bool:
    """Whether an address belongs to the open internet, also where it wraps another one (IPv4 in IPv6)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return inner.is_global
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF).is_global
    return ip.is_global and not ip.is_multicast
