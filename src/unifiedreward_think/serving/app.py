"""The HTTP application: routes, errors, and what happens when a client leaves.

    app = create_app(TransformersBackend("MODEL"), Settings(JudgingArguments().config()))
    uvicorn.run(app, host="127.0.0.1", port=8080)

`python -m unifiedreward_think.serving` does this from the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from unifiedreward_think import __version__
from unifiedreward_think.backends import Backend, RememberingBackend
from unifiedreward_think.errors import InputError
from unifiedreward_think.serving.batching import Batcher
from unifiedreward_think.serving.chat import events
from unifiedreward_think.serving.chat_schemas import ChatReply, ChatRequest
from unifiedreward_think.serving.fetch import Fetcher
from unifiedreward_think.serving.flow_factory import ComputeReply, ComputeRequest, compute
from unifiedreward_think.serving.guard import Guard, refusal
from unifiedreward_think.serving.intake import Intake
from unifiedreward_think.serving.limits import Budget, Refused
from unifiedreward_think.serving.questions import Settings
from unifiedreward_think.serving.schemas import (
    CompareReply,
    CompareRequest,
    ErrorReply,
    Health,
    ModelList,
    RankReply,
    RankRequest,
    ScoreReply,
    ScoreRequest,
    ServedModel,
)
from unifiedreward_think.serving.service import Service
from unifiedreward_think.serving.telemetry import Telemetry

T = TypeVar("T")
TITLE = "UnifiedReward-Think reward server"
_REASONS = {
    400: "JSON that is malformed or too deep, or a parameter that is not known",
    401: "the API key is missing or wrong",
    408: "the body came too slowly",
    413: "over a limit of size",
    421: "sent to a name that this server does not go by",
    422: "a request that cannot be judged, such as a malformed picture",
    429: "the server is full; try again after Retry-After seconds",
    504: "the deadline passed before anything was judged",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": reason} for status, reason in _REASONS.items()
}
_CHAT_ERRORS: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    404: {"model": ErrorReply, "description": "no model of this name"},
    502: {"model": ErrorReply, "description": "the backend failed, or did not answer in time"},
}
_EVENTS = {"content": {"text/event-stream": {}}, "description": "the completion; with `stream` as events"}
_GET_ERRORS: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (400, 401, 408, 413, 421, 429)}


def create_app(
    backend: Backend,
    settings: Settings,
    *,
    api_key: str = "",
    hosts: Sequence[str] = (),
    fetch_hosts: Sequence[str] = (),
    max_wait: float = 0.01,
    max_queue: int = 4096,
    parallel: int = 1,
    drain_seconds: float = 300.0,
) -> FastAPI:
    """Return the application of a reward server; its `state.batcher` says what a stop has given up.

    Args:
        backend: judges.
        settings: how.
        api_key: that requests must bring; empty for none.
        hosts: as in `Guard`.
        fetch_hosts: hosts that pictures may be fetched from; none forbids it.
        max_wait: as in `Batcher`.
        max_queue: as in `Batcher`.
        parallel: as in `Batcher`.
        drain_seconds: as in `Batcher`.
    """
    telemetry = Telemetry()
    if isinstance(backend, RememberingBackend) and backend.cache is not None:
        telemetry.watch_vision(backend.cache)
    batcher = Batcher(
        backend,
        telemetry=telemetry,
        max_wait=max_wait,
        max_queue=max_queue,
        parallel=parallel,
        drain_seconds=drain_seconds,
    )
    flying = Budget(settings.limits.flying_bytes, "bytes")
    telemetry.watch_held("bytes", lambda: flying.held)
    fetcher = Fetcher(fetch_hosts, limit=settings.limits.medium_bytes)
    service = Service(batcher, Intake(settings.limits, fetcher, telemetry, flying=flying), settings, telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    # No pages of documentation: they load scripts from the web; the schema is at /openapi.json.
    app = FastAPI(title=TITLE, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher = batcher
    _add_judging(app, service, telemetry)
    _add_watching(app, service, telemetry)
    for kind, answer in ((RequestValidationError, _invalid), (InputError, _refused), (HTTPException, _http)):
        app.add_exception_handler(kind, answer)
    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    named = frozenset(hosts)
    app.add_middleware(
        Guard, limits=settings.limits, flying=flying, telemetry=telemetry, paths=paths, api_key=api_key, hosts=named
    )
    return app


def _add_judging(app: FastAPI, service: Service, telemetry: Telemetry) -> None:
    @app.post("/v1/compare", responses=_ERRORS)
    async def compare(body: CompareRequest, request: Request) -> CompareReply:
        """Judge a pair of any task."""
        return await _while_present(request, service.compare(body), telemetry)

    @app.post("/v1/rank", responses=_ERRORS)
    async def rank(body: RankRequest, request: Request) -> RankReply:
        """Judge a group: win rates and Bradley-Terry scores, by pairs, by points, or by both."""
        return await _while_present(request, service.rank(body), telemetry)

    @app.post("/v1/score", responses=_ERRORS)
    async def score(body: ScoreRequest, request: Request) -> ScoreReply:
        """Score candidates, each alone."""
        return await _while_present(request, service.score(body), telemetry)

    @app.post("/compute", responses=_ERRORS, response_model_exclude_none=True)
    async def compute_rewards(body: ComputeRequest, request: Request) -> ComputeReply:
        """Reward candidates in the protocol of Flow-Factory."""
        return await _while_present(request, compute(body, service), telemetry)

    @app.post("/v1/chat/completions", response_model=ChatReply, responses={**_CHAT_ERRORS, 200: _EVENTS})
    async def chat(body: ChatRequest, request: Request) -> ChatReply | Response:
        """Answer an OpenAI chat completion."""
        reply = await _while_present(request, service.chat(body), telemetry)
        if not body.stream:
            return reply
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Response(events(reply, usage=usage), media_type="text/event-stream")


def _add_watching(app: FastAPI, service: Service, telemetry: Telemetry) -> None:
    @app.get("/v1/models", responses=_GET_ERRORS)
    async def models() -> ModelList:
        """List the names under which chats may call the judge."""
        return ModelList(data=[ServedModel(id=name) for name in service.settings.names])

    @app.get(
        "/health",
        response_model=Health,
        responses={**_GET_ERRORS, 503: {"model": Health, "description": "the canary failed"}},
    )
    async def health() -> JSONResponse:
        """Say whether the judge answers: 503 where a judgment of drawn pictures fails."""
        health = await service.health()
        return JSONResponse(health.model_dump(), status_code=503 if health.status == "error" else 200)

    @app.get("/metrics", responses=_GET_ERRORS, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _while_present(request: Request, work: Coroutine[Any, Any, T], telemetry: Telemetry) -> T:
    """Return what `work` returns; when the client leaves, stop it, so that nobody judges what nobody reads."""
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            telemetry.left.inc()
            raise Refused("the client left", status=499)
        return await task
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The input is not sent back: it may hold megabytes of pictures.
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]]
    malformed = any(problem["type"] == "json_invalid" for problem in error.errors())
    return refusal(Refused("; ".join(problems), status=400 if malformed else 422))


async def _refused(_: Request, error: Exception) -> Response:
    return refusal(error if isinstance(error, Refused) else Refused(str(error)))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reply = refusal(Refused(str(error.detail), status=error.status_code))
    reply.headers.update(error.headers or {})
    return reply
