"""The names by which a server may be called: no web page gets in under one of its own that was made to point here.

Behind a loopback address there is no key, and a browser of this machine asks what a page tells it to (DNS rebinding).

>>> own_hosts("127.0.0.1", ["judge.example"])
['localhost', '127.0.0.1', '[::1]', 'judge.example']
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from unifiedreward_think.serving.limits import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def own_hosts(host: str, more: Sequence[str]) -> list[str]:
    """Return what requests may call a server that listens on `host`; nothing stands for any name.

    >>> own_hosts("::1", [])
    ['localhost', '127.0.0.1', '[::1]']
    >>> own_hosts("0.0.0.0", [])
    []
    """
    if not loopback(host) and not more:
        return []
    listening = f"[{host}]" if ":" in host else host
    return list(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", listening, *more]))


def loopback(host: str) -> bool:
    """Return whether an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HostCheck:
    """Wrap an application of ASGI: requests to a name that is not its own are answered with 421.

    Args:
        app: what is wrapped.
        hosts: as from `own_hosts`.
    """

    def __init__(self, app: App, *, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection."""
        try:
            if scope["type"] != "lifespan":
                check_host(dict(scope["headers"]).get(b"host", b""), self._hosts)
        except Refused as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
            else:
                from starlette.responses import PlainTextResponse  # the command line is read without it

                await PlainTextResponse(str(error), error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def check_host(given: bytes, hosts: frozenset[str]) -> None:
    """Check the header `Host` of a request against names in lower case; none of them allows any.

    Raises:
        Refused: it is none of them.
    """
    host = re.sub(r":\d*\Z", "", given.decode("latin-1")).lower()
    if hosts and host not in hosts:
        raise Refused("this server does not go by that name; --allow-hosts adds names", status=421)
