"""A reward server of this process, and what to ask it."""

import asyncio
import contextlib
import threading
import time

import httpx

from helpers.bench import script
from unifiedreward_think.backends import Completion
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.points import render_points
from unifiedreward_think.serving.app import create_app
from unifiedreward_think.serving.questions import Settings

bench, scripted = script("serving"), script("scripted_judge")


SETTINGS = Settings(JudgingArguments().config(), points=JudgingArguments().point_config())


@contextlib.asynccontextmanager
async def served(backend=None, settings=SETTINGS, **options):
    """A client of a running application, without a socket."""
    app = create_app(backend or scripted.ScriptedBackend(), settings, **options)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http:
            yield http


def run(work, *arguments, **options):
    """Run `work(client)` against a server and return what it returns."""

    async def main():
        async with served(*arguments, **options) as http:
            return await work(http)

    return asyncio.run(main())


def pair(*numbers, **more):
    candidates = [{"image": scripted.picture(n)} for n in numbers]
    return {"task": "image_generation", "prompt": "one colour", "candidates": candidates, **more}


def marks(colour):
    """The three scores of a picture of one colour: a fixed function of it."""
    return [1 + scripted.quality(colour) // 10**k % 10 for k in range(3)]


def say_points(colour):
    """The completion that scores a picture, whose colour it names."""
    names = ("Semantic consistency", "Aesthetics", "Authenticity")
    return render_points(list(zip(names, marks(colour), strict=True)), preamble=f"saw {colour}")


class Scores(scripted.ScriptedBackend):
    """A judge that scores one picture and compares two."""

    def complete(self, prompts, *, sampling, seeds):
        pairs = super().complete(prompts, sampling=sampling, seeds=seeds)
        shown = [row["images"] for row in prompts]
        return [
            [Completion(say_points(scripted.seen(images[0])), "stop")] if len(images) == 1 else pair
            for images, pair in zip(shown, pairs, strict=True)
        ]


def best(*numbers):
    return max(range(len(numbers)), key=lambda i: scripted.quality(scripted.colour_of(numbers[i])))


class Says(scripted.ScriptedBackend):
    """A judge whose answer a function of the row makes."""

    def __init__(self, answer, **options):
        super().__init__(**options)
        self.answer = answer

    def complete(self, prompts, *, sampling, seeds):
        self.calls.append(len(prompts))
        time.sleep(self.seconds)
        return [[self.answer(row)] for row in prompts]


class LiveServer:
    """The application, or the one that is given, behind a real socket, so that clients can really leave."""

    def __init__(self, backend=None, settings=SETTINGS, *, app=None, **options):
        import uvicorn

        app = app or create_app(backend, settings, **options)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
