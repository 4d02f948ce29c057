"""What the server does for a request: compare a pair, rank a group, answer a chat, judge a canary."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from PIL import Image

from unifiedreward_think import ranking
from unifiedreward_think.judging.judge import judgment
from unifiedreward_think.serving.batching import Batcher, Question
from unifiedreward_think.serving.chat import answer_chat
from unifiedreward_think.serving.intake import Intake, Picture, RequestMedia, opening
from unifiedreward_think.serving.limits import Refused
from unifiedreward_think.serving.questions import (
    Entry,
    Settings,
    Shown,
    pair_record,
    question,
    shown,
    status_of,
)
from unifiedreward_think.serving.replies import Judged, compare_reply, game, rank_reply
from unifiedreward_think.serving.schemas import (
    ChatReply,
    ChatRequest,
    CompareReply,
    CompareRequest,
    Health,
    ImageItem,
    RankReply,
    RankRequest,
    TextItem,
    VideoItem,
)
from unifiedreward_think.serving.telemetry import Telemetry
from unifiedreward_think.tasks import TASKS


class Service:
    """Answer requests.

    Args:
        batcher: asks the backend.
        intake: opens pictures.
        settings: how to judge.
        telemetry: counts judgments.
    """

    def __init__(self, batcher: Batcher, intake: Intake, settings: Settings, telemetry: Telemetry) -> None:
        self.settings = settings
        self.model = batcher.backend.model
        self._batcher = batcher
        self._intake = intake
        self._telemetry = telemetry
        self._canary: tuple[float, Health] | None = None
        self._canary_lock = asyncio.Lock()

    async def compare(self, asked: CompareRequest) -> CompareReply:
        """Judge a pair.

        Raises:
            InputError: the request cannot be judged.
        """
        with self._intake.request() as media:
            until = self._until(asked.deadline)
            about, pair = await self._open(asked, media, until)
            record = pair_record(asked.task, asked.prompt, about, pair)
            rows = await self._judge(
                shown(0, 1, record, asked.orders, self.settings), [*about, *pair], until, admitted=False
            )
        return compare_reply(rows, reasoning=asked.reasoning, model=self.model)

    async def rank(self, asked: RankRequest) -> RankReply:
        """Judge the pairs of a group and say how its candidates did.

        Raises:
            InputError: the request cannot be judged.
        """
        self._check_rank(asked)
        count = len(asked.candidates)
        with self._intake.request() as media:
            until = self._until(asked.deadline)
            about, candidates = await self._open(asked, media, until)
            entries = [*about, *candidates]

            async def play(pairs: Sequence[ranking.Pair], *, admitted: bool = False) -> list[Judged]:
                found = []
                for a, b in pairs:
                    record = pair_record(asked.task, asked.prompt, about, (candidates[a], candidates[b]))
                    found += shown(a, b, record, asked.orders, self.settings)
                # Prompts that begin alike stand together: a server's prefix cache then holds their first candidate.
                return await self._judge(sorted(found, key=lambda pair: pair.first), entries, until, admitted=admitted)

            if asked.schedule == "swiss":
                rows: list[Judged] = []
                for _ in range(asked.rounds or ranking.swiss_rounds(count)):
                    games = [game(*row) for row in rows]
                    if not (pairs := await asyncio.to_thread(ranking.swiss_round, count, games, asked.seed)):
                        break
                    rows += await play(pairs, admitted=bool(rows))
            elif asked.schedule == "k_opponents":
                rows = await play(ranking.k_opponents(count, asked.opponents or 1, asked.seed))
            else:
                rows = await play(ranking.round_robin(count))
        return rank_reply(count, rows, reasoning=asked.reasoning, model=self.model)

    async def chat(self, asked: ChatRequest) -> ChatReply:
        """Answer a chat completion; see `chat.answer_chat`."""
        return await answer_chat(asked, self._batcher, self._intake, self.settings)

    async def health(self) -> Health:
        """Judge drawn pictures, unless that was done a short while ago."""
        async with self._canary_lock:
            now = time.monotonic()
            if self._canary is None or now - self._canary[0] > self.settings.canary_seconds:
                self._canary = (now, await self._judge_canary())
            judged, health = self._canary
        return health.model_copy(update={"age": time.monotonic() - judged})

    async def _judge_canary(self) -> Health:
        task = next(iter(self.settings.prompts))
        red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        entries = [Entry((Picture("red", red),), "It is red."), Entry((Picture("blue", blue),), "It is blue.")]
        record = pair_record(task, "What is red?", entries[:1], entries)
        started = time.monotonic()
        asked = question(Shown(0, 1, record, "ab"), entries, self.settings)
        # A key of its own: a remembered answer would say nothing of the backend's health.
        fresh = Question(key=secrets.randbits(64), row=asked.row, sampling=asked.sampling, seed=asked.seed)
        (answer,) = await self._batcher.ask([fresh], seconds=self.settings.canary_deadline, urgent=True)
        status, reason = status_of(judgment(record, "ab", answer, style=self.settings.style, model=self.model))
        return Health(
            status="error" if status == "error" else "ok" if status == "ok" else "degraded",
            canary=status,
            reason=reason,
            seconds=time.monotonic() - started,
            age=0,
            model=self.model,
        )

    def _until(self, seconds: float | None) -> float:
        limit = self.settings.limits.deadline
        return time.monotonic() + min(seconds or limit, limit)

    def _check_rank(self, asked: RankRequest) -> None:
        count, limit = len(asked.candidates), self.settings.limits.candidates
        if count > limit:
            raise Refused(f"candidates: {count} of them; the limit is {limit}")
        if (asked.opponents is None) == (asked.schedule == "k_opponents"):
            raise Refused("opponents: give it with the schedule 'k_opponents', and only there")
        if asked.rounds is not None and asked.schedule != "swiss":
            raise Refused("rounds: only the schedule 'swiss' has rounds")

    async def _open(
        self, asked: CompareRequest | RankRequest, media: RequestMedia, until: float
    ) -> tuple[list[Entry], list[Entry]]:
        """Return the media and the candidates, opened."""
        generation, kind = TASKS[asked.task].compares_media, TASKS[asked.task].media_kind
        if asked.task not in self.settings.prompts:
            raise Refused(f"task: this server has no prompt for {asked.task}")
        if generation == bool(asked.media):
            raise Refused("media: understanding tasks need what the question is about, generation tasks have none")
        if sum(map(len, [asked.prompt, *_texts(asked)])) > self.settings.limits.prompt_chars:
            raise Refused(f"prompt: over {self.settings.limits.prompt_chars} characters with the answers", status=413)
        wanted = {"image": ImageItem, "video": VideoItem}[kind]
        if not all(isinstance(entry, wanted) for entry in asked.media):
            raise Refused(f"media: {asked.task} takes {kind}s")
        if not all(isinstance(entry, wanted if generation else TextItem) for entry in asked.candidates):
            raise Refused(f"candidates: {asked.task} takes {f'{kind}s' if generation else 'texts'}")
        async with opening(until):
            about = [await self._entry(item, f"media[{i}]", media) for i, item in enumerate(asked.media)]
            found = [await self._entry(item, f"candidates[{i}]", media) for i, item in enumerate(asked.candidates)]
        return about, found

    async def _entry(self, item: ImageItem | VideoItem | TextItem, where: str, media: RequestMedia) -> Entry:
        if isinstance(item, TextItem):
            return Entry(text=item.text)
        if isinstance(item, ImageItem):
            return Entry((await media.picture(item.image, f"{where}.image"),))
        return Entry(tuple(await media.video(item.frames, f"{where}.frames", frames=self.settings.frames)))

    async def _judge(
        self, pairs: Sequence[Shown], entries: Sequence[Entry], until: float, *, admitted: bool
    ) -> list[Judged]:
        questions = [question(pair, entries, self.settings) for pair in pairs]
        left = max(0.0, until - time.monotonic())
        answers = await self._batcher.ask(questions, seconds=left, admitted=admitted)
        rows = []
        for pair, answer in zip(pairs, answers, strict=True):
            row = judgment(pair.record, pair.order, answer, style=self.settings.style, model=self.model)
            rows.append((pair, row))
            self._telemetry.judgments.labels(row.task, status_of(row)[0]).inc()
            if row.verdict.winner is not None:
                self._telemetry.winners.labels("first" if row.verdict.winner == 1 else "second").inc()
        return rows


def _texts(asked: CompareRequest | RankRequest) -> list[str]:
    return [item.text for item in asked.candidates if isinstance(item, TextItem)]
