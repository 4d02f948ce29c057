"""What the server does for a request: compare a pair, rank a group, score candidates, answer a chat, judge a canary."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from PIL import Image

from unifiedreward_think import ranking
from unifiedreward_think.backends import Failure
from unifiedreward_think.candidate_points import Points
from unifiedreward_think.errors import MediaError
from unifiedreward_think.judging.judge import judgment
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.records import Judgment
from unifiedreward_think.serving.batching import Batcher
from unifiedreward_think.serving.chat import answer_chat
from unifiedreward_think.serving.chat_schemas import ChatReply, ChatRequest
from unifiedreward_think.serving.intake import Intake, Picture, RequestMedia, opening
from unifiedreward_think.serving.jobs import Answer, Question
from unifiedreward_think.serving.limits import Refused
from unifiedreward_think.serving.public import public_name
from unifiedreward_think.serving.questions import (
    Entry,
    Settings,
    Shown,
    by_content,
    question,
    record_of,
    shown,
    status_of,
)
from unifiedreward_think.serving.replies import Judged, compare_reply, points_rank_reply, rank_reply
from unifiedreward_think.serving.schedules import check_rank, scheduled
from unifiedreward_think.serving.schemas import (
    CompareReply,
    CompareRequest,
    Health,
    ImageItem,
    RankReply,
    RankRequest,
    ScoreReply,
    ScoreRequest,
    TextItem,
    VideoItem,
)
from unifiedreward_think.serving.scoring import point_config, points_of, score_reply, scoring
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
        self.model = public_name(batcher.backend.model)
        self._batcher = batcher
        self._intake = intake
        self._telemetry = telemetry
        self._canary: tuple[float, Health] | None = None
        self._canary_lock = asyncio.Lock()

    async def compare(self, body: CompareRequest) -> CompareReply:
        """Judge a pair.

        Raises:
            InputError: the request cannot be judged.
        """
        with self._intake.request() as media:
            until = self._until(body.deadline)
            about, pair = await self._open(body, media, until, self.settings.judging)
            record = record_of(body.task, body.prompt, about, pair)
            questions = shown(0, 1, record, body.orders, self.settings)
            rows = await self._judge(questions, [*about, *pair], until, media, admitted=False)
        return compare_reply(rows, reasoning=body.reasoning, model=self.model)

    async def rank(self, body: RankRequest) -> RankReply:
        """Judge the pairs of a group and say how its candidates did.

        Raises:
            InputError: the request cannot be judged.
        """
        check_rank(body)
        self._check_count(body)
        scored = None if body.by == "pairs" else point_config(body, self.settings)
        asked = [*([scored] if scored else []), *([self.settings.judging] if body.by != "points" else [])]
        with self._intake.request() as media:
            until = self._until(body.deadline)
            about, candidates = await self._open(body, media, until, *asked)
            line = by_content(candidates)

            async def play(pairs: Sequence[ranking.Pair], admitted: bool) -> list[Judged]:
                questions = []
                for a, b in pairs:
                    record = record_of(body.task, body.prompt, about, (candidates[a], candidates[b]))
                    questions += shown(a, b, record, body.orders, self.settings)
                # Prompts that begin alike stand together: a server's prefix cache then holds their first candidate.
                ordered = sorted(questions, key=lambda pair: pair.first)
                return await self._judge(ordered, [*about, *candidates], until, media, admitted=admitted)

            if scored is None:
                rows = await scheduled(body, line, play)
                return rank_reply(len(line), rows, reasoning=body.reasoning, model=self.model)
            points = await self._score(body, scored, about, candidates, until, media)
            near = ranking.neighbours([each.share for each in points], line) if body.by == "points_then_pairs" else []
            rows = await play(near, True) if near else []
        return points_rank_reply(points, rows, reasoning=body.reasoning, model=self.model)

    async def score(self, body: ScoreRequest) -> ScoreReply:
        """Score candidates, each alone.

        Raises:
            InputError: the request cannot be judged.
        """
        self._check_count(body)
        config = point_config(body, self.settings)
        with self._intake.request() as media:
            until = self._until(body.deadline)
            about, candidates = await self._open(body, media, until, config)
            points = await self._score(body, config, about, candidates, until, media)
        return score_reply(points, reasoning=body.reasoning, model=self.model)

    async def chat(self, body: ChatRequest) -> ChatReply:
        """Answer a chat completion; see `chat.answer_chat`."""
        return await answer_chat(body, self._batcher, self._intake, self.settings)

    async def health(self) -> Health:
        """Judge drawn pictures, unless that was done a short while ago."""
        async with self._canary_lock:
            now = time.monotonic()
            if self._canary is None or now - self._canary[0] > self.settings.canary_seconds:
                self._canary = (now, await self._judge_canary())
            judged, health = self._canary
        return health.model_copy(update={"age": time.monotonic() - judged})

    async def _judge_canary(self) -> Health:
        task = next(iter(self.settings.judging.prompts))
        started = time.monotonic()
        pictures, problem = await self._draw_canary()
        entries = [Entry((picture,), f"It is {picture.sha256}.") for picture in pictures]
        record = record_of(task, "What is red?", entries[:1], entries)
        canary = question(Shown(0, 1, record, "ab"), entries, self.settings)
        # A key of its own: a remembered answer would say nothing of the backend's health.
        fresh = Question(key=secrets.randbits(64), row=canary.row, sampling=canary.sampling, seed=canary.seed)
        answer: Answer = Failure(problem)
        if not problem:
            (answer,) = await self._batcher.ask([fresh], seconds=self.settings.canary_deadline, urgent=True)
        status, reason = status_of(judgment(record, "ab", answer, self.settings.judging, model=self.model))
        return Health(
            status="error" if status == "error" else "ok" if status == "ok" else "degraded",
            canary=status,
            reason=reason,
            seconds=time.monotonic() - started,
            age=0,
            model=self.model,
        )

    async def _draw_canary(self) -> tuple[list[Picture], str]:
        """Return what the canary shows, and why pictures cannot be decoded, if that is so."""
        drawn = {name: Image.new("RGB", (64, 64), name) for name in ("red", "blue")}
        try:
            async with asyncio.timeout(self.settings.canary_deadline):
                drawn = {name: await self._intake.drawn(image) for name, image in drawn.items()}
        except (MediaError, TimeoutError) as error:
            why = str(error) or f"nothing within the deadline of {self.settings.canary_deadline:g} s"
            return [Picture(*item) for item in drawn.items()], f"pictures are not decoded: {why}"
        return [Picture(*item) for item in drawn.items()], ""

    def _until(self, seconds: float | None) -> float:
        limit = self.settings.limits.deadline
        return time.monotonic() + min(seconds or limit, limit)

    def _check_count(self, body: RankRequest | ScoreRequest) -> None:
        count, limit = len(body.candidates), self.settings.limits.candidates
        if count > limit:
            raise Refused(f"candidates: {count} of them; the limit is {limit}")

    async def _open(
        self,
        body: CompareRequest | RankRequest | ScoreRequest,
        media: RequestMedia,
        until: float,
        *asked: JudgingConfig,
    ) -> tuple[list[Entry], list[Entry]]:
        """Return the media and the candidates, opened, for what is asked of them."""
        generation, kind = TASKS[body.task].compares_media, TASKS[body.task].media_kind
        if any(body.task not in config.prompts for config in asked):
            raise Refused(f"task: this server has no prompt for {body.task}")
        if generation == bool(body.media):
            raise Refused("media: understanding tasks need what the question is about, generation tasks have none")
        if len(body.media) > self.settings.limits.media:
            raise Refused(f"media: {len(body.media)} of them; the limit is {self.settings.limits.media}", status=413)
        if sum(map(len, [body.prompt, *_texts(body)])) > self.settings.limits.prompt_chars:
            raise Refused(f"prompt: over {self.settings.limits.prompt_chars} characters with the answers", status=413)
        wanted = {"image": ImageItem, "video": VideoItem}[kind]
        if not all(isinstance(entry, wanted) for entry in body.media):
            raise Refused(f"media: {body.task} takes {kind}s")
        if not all(isinstance(entry, wanted if generation else TextItem) for entry in body.candidates):
            raise Refused(f"candidates: {body.task} takes {f'{kind}s' if generation else 'texts'}")
        async with opening(until):
            about = [await self._entry(item, f"media[{i}]", media) for i, item in enumerate(body.media)]
            candidates = [await self._entry(item, f"candidates[{i}]", media) for i, item in enumerate(body.candidates)]
        return about, candidates

    async def _entry(self, item: ImageItem | VideoItem | TextItem, where: str, media: RequestMedia) -> Entry:
        if isinstance(item, TextItem):
            return Entry(text=item.text)
        if isinstance(item, ImageItem):
            return Entry((await media.picture(item.image, f"{where}.image"),))
        return Entry(
            tuple(await media.video(item.frames, f"{where}.frames", frames=self.settings.judging.frames.frames))
        )

    async def _judge(
        self, pairs: Sequence[Shown], entries: Sequence[Entry], until: float, media: RequestMedia, *, admitted: bool
    ) -> list[Judged]:
        questions = [question(pair, entries, self.settings) for pair in pairs if not pair.equal]
        answers, rows = iter(await self._ask(questions, until, media, admitted=admitted)), list[Judged]()
        for pair in pairs:
            if pair.equal:
                rows.append((pair, None))
                continue
            answer = next(answers)
            row = judgment(pair.record, pair.order, answer, self.settings.judging, model=self.model)
            rows.append((pair, row))
            self._count(row)
            if isinstance(row.verdict.winner, int):
                self._telemetry.winners.labels("first" if row.verdict.winner == 1 else "second").inc()
        return rows

    async def _score(
        self,
        body: ScoreRequest | RankRequest,
        config: JudgingConfig,
        about: Sequence[Entry],
        candidates: Sequence[Entry],
        until: float,
        media: RequestMedia,
    ) -> list[Points]:
        asked = scoring(body, config, about, candidates)
        answers = await self._ask(asked.questions, until, media, admitted=False)
        points = points_of(asked, answers, model=self.model)
        for row in (row for each in points for row in each.samples):
            self._count(row)
        return points

    async def _ask(
        self, questions: Sequence[Question], until: float, media: RequestMedia, *, admitted: bool
    ) -> list[Answer]:
        left = max(0.0, until - time.monotonic())
        answered = await self._batcher.ask(questions, seconds=left, admitted=admitted, held=media.held)
        refused = [answer.reason for answer in answered if isinstance(answer, Failure) and answer.refused]
        if len(refused) == len(answered) > 0:
            raise Refused(refused[0])
        return answered

    def _count(self, row: Judgment) -> None:
        self._telemetry.judgments.labels(row.task, status_of(row)[0]).inc()


def _texts(body: CompareRequest | RankRequest | ScoreRequest) -> list[str]:
    return [item.text for item in body.candidates if isinstance(item, TextItem)]
