"""What every request passes before it is parsed: the host, the key, the size, the nesting; then it is counted.

Plain ASGI, since a framework's middleware would read the body before its size is known.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from unifiedreward_think.serving.hosts import App, Message, Receive, Send, check_host
from unifiedreward_think.serving.key import checked
from unifiedreward_think.serving.limits import Budget, Limits, Refused, Share, check_json
from unifiedreward_think.serving.public import without_folders
from unifiedreward_think.serving.telemetry import Telemetry

OPEN_PATHS = frozenset({"/health"})  # a load balancer has no key
BODY_SECONDS = 60.0


class Guard:
    """Wrap an application.

    Args:
        app: what is guarded.
        limits: on bodies.
        flying: the bytes that all requests may hold.
        telemetry: counts requests.
        paths: that are counted by name; others together, so that no client can make up labels.
        api_key: that requests must bring as a bearer token; empty for none.
        hosts: names and addresses that requests may call this server by; none lets them call it what they like.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        flying: Budget,
        telemetry: Telemetry,
        paths: frozenset[str],
        api_key: str,
        hosts: frozenset[str],
    ) -> None:
        self._app = app
        self._limits = limits
        self._telemetry = telemetry
        self._paths = paths
        self._key = checked(api_key).encode()
        self._hosts = frozenset(host.lower() for host in hosts)
        self._bytes = flying

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET, without the body
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = 499  # the client left before an answer

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._checked(scope, receive, counted)
        finally:
            self._telemetry.requests.labels(path, str(status)).inc()
            self._telemetry.seconds.labels(path).observe(time.perf_counter() - started)

    async def _checked(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        with self._bytes.share() as take:
            try:
                check_host(headers.get(b"host", b""), self._hosts)
                self._check_key(scope["path"], headers.get(b"authorization", b""))
                body = await self._body(headers.get(b"content-length", b""), receive, take)
                check_json(body, self._limits)
            except Refused as error:
                await refusal(error)(scope, receive, send)
                return
            except ConnectionResetError:
                return
            first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return first.pop() if first else await receive()

            await self._app(scope, replay, send)

    def _check_key(self, path: str, given: bytes) -> None:
        scheme, _, key = given.partition(b" ")
        brought = scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(b" "), self._key)
        if self._key and path not in OPEN_PATHS and not brought:
            raise Refused("send the API key as `Authorization: Bearer KEY`", status=401)

    async def _body(self, declared: bytes, receive: Receive, take: Share) -> bytes:
        """Read the body, counting as it comes: what a header declares may be a lie, or missing."""
        limit = self._limits.body_bytes
        too_large = Refused(f"a request of more than {limit} bytes", status=413)
        if declared.isdigit() and int(declared[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > limit:
                        raise too_large
                    take(len(piece))
                    body += piece
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise Refused(f"the request did not arrive within {BODY_SECONDS:g} s", status=408) from error
        return bytes(body)


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return head


def refusal(error: Refused) -> JSONResponse:
    """Return the reply to a refused request."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": {"message": without_folders(str(error)), "type": kind}}
    return JSONResponse(body, status_code=error.status, headers=headers)
