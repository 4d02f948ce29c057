"""One queue for all requests: full batches for the backend, bounded waiting, each question asked once.

    batcher = Batcher(backend, max_wait=0.01)
    async with batcher.running():
        (answer,) = await batcher.ask([Question(key, row, Sampling(), seed=0)], seconds=60)

The backend runs in a thread. Everything else happens on the event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from unifiedreward_think.backends import Backend, BackendError, Completion, Failure
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.serving.limits import Refused
from unifiedreward_think.serving.telemetry import Telemetry

Answer = Completion | Failure
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One completion that is wanted.

    Attributes:
        key: equal for equal questions: same text, pictures, sampling and seed.
        row: what a backend takes: `prompt`, `images`, `id`, `order`.
        sampling, seed: how to draw it.
    """

    key: int
    row: Mapping[str, Any]
    sampling: Sampling
    seed: int


class _Job:
    """A question on its way, and how many wait for it."""

    def __init__(self, question: Question, now: float) -> None:
        self.question = question
        self.arrived = self.started = now
        self.waiting = 0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Batcher:
    """Collect questions into batches.

    Args:
        backend: answers them, `backend.batch_size` at a time.
        telemetry: counts what happens.
        max_wait: seconds that a question may wait for company while the backend is idle.
        max_queue: questions that may wait; over it, requests are refused with 429.
        parallel: batches given to the backend at a time; more than one only helps in front of a server.
        remembered: answers kept, so that a client that comes back after a timeout gets what was judged meanwhile.
        drain_seconds: at the end, for the questions that are left; a batch that takes longer hangs.

    Attributes:
        given_up: questions that the end has left without an answer; the thread of the backend that hangs on them lives
            on, and would keep the process.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        telemetry: Telemetry,
        max_wait: float = 0.01,
        max_queue: int = 4096,
        parallel: int = 1,
        remembered: int = 4096,
        drain_seconds: float = 300.0,
    ) -> None:
        self.backend = backend
        self.max_wait = max_wait
        self.max_queue = max_queue
        self._telemetry = telemetry
        self._parallel = parallel
        self._remembered = remembered
        self._drain_seconds = drain_seconds
        self.given_up = 0
        self._queue: OrderedDict[int, _Job] = OrderedDict()
        self._running: dict[int, _Job] = {}
        self._answers: OrderedDict[int, Answer] = OrderedDict()
        self._changed = asyncio.Event()
        self._speed = 0.0  # answers a second, of late
        telemetry.watch_queue(lambda: len(self._queue))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer questions inside this context; at its end those in the queue are still answered, if that can be."""
        self._threads = ThreadPoolExecutor(self._parallel, thread_name_prefix="backend")
        workers = [asyncio.create_task(self._work()) for _ in range(self._parallel)]
        try:
            yield
        finally:
            await self._drain()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._threads.shutdown(wait=not self.given_up, cancel_futures=True)

    async def _drain(self) -> None:
        """Wait until all is answered, or too long: since the end began, or since a batch did that still runs."""
        begun = time.monotonic()
        while left := [*self._queue.values(), *self._running.values()]:
            until = min([begun, *(job.started for job in self._running.values())]) + self._drain_seconds
            seconds = until - time.monotonic()
            if seconds <= 0:
                break
            await asyncio.wait([job.answer for job in left], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.given_up = len(left)
        if left:
            log.error("gave up %d questions: no answer within the %g s to drain", len(left), self._drain_seconds)
        for job in left:
            if not job.answer.done():
                job.answer.set_result(Failure("the server stopped before the backend answered"))

    async def ask(
        self, questions: Sequence[Question], *, seconds: float, urgent: bool = False, admitted: bool = False
    ) -> list[Answer]:
        """Return an answer or the reason why there is none for each question, within `seconds`.

        When the caller is cancelled, what nobody else waits for leaves the queue.

        Args:
            questions: what is asked, in the order in which it is best answered.
            seconds: after which the rest fails.
            urgent: go to the head of the queue.
            admitted: part of a request that was admitted before; the queue may grow over its limit.

        Raises:
            Refused: the queue is full (429), before anything was queued.
        """
        new = sum(q.key not in self._queue and q.key not in self._running for q in questions)
        if not (urgent or admitted) and self._queue and len(self._queue) + new > self.max_queue:
            raise Refused("the queue is full; try again", status=429, retry_after=self._patience())
        jobs = [self._enter(question, urgent) for question in questions]
        try:
            open_answers = {job.answer for job in jobs if not job.answer.done()}
            if open_answers:
                await asyncio.wait(open_answers, timeout=seconds)
            return [self._result(job, seconds) for job in jobs]
        finally:
            for job in jobs:
                job.waiting -= 1
                if not job.waiting and self._queue.get(job.question.key) is job:
                    del self._queue[job.question.key]
                    job.answer.cancel()

    def _result(self, job: _Job, seconds: float) -> Answer:
        if job.answer.done():
            return job.answer.result()
        self._telemetry.expired.inc()
        return Failure(f"no answer within the deadline of {seconds:g} s")

    def _patience(self) -> int:
        """Return the seconds after which half of the queue will be answered."""
        return min(60, max(1, ceil(len(self._queue) / 2 / self._speed))) if self._speed else 1

    def _enter(self, question: Question, urgent: bool) -> _Job:
        key = question.key
        job = self._queue.get(key) or self._running.get(key)
        if job is not None:
            self._telemetry.shared.labels("in flight").inc()
        else:
            job = _Job(question, time.monotonic())
            if (known := self._answers.get(key)) is not None:
                self._answers.move_to_end(key)
                self._telemetry.shared.labels("remembered").inc()
                job.answer.set_result(known)
            else:
                self._queue[key] = job
                self._changed.set()
        if urgent and key in self._queue:
            self._queue.move_to_end(key, last=False)
        job.waiting += 1
        return job

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            await self._company(next(iter(self._queue.values())).arrived + self.max_wait)
            if batch := self._take():
                await self._run(batch)

    async def _company(self, until: float) -> None:
        """Wait for a full batch, but no longer than `until`."""
        while 0 < len(self._queue) < self.backend.batch_size and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Job]:
        """Move the next batch from the queue to what is running: one call of a backend has one sampling."""
        batch: list[_Job] = []
        for job in self._queue.values():
            if len(batch) == self.backend.batch_size:
                break
            if not batch or job.question.sampling == batch[0].question.sampling:
                batch.append(job)
        for job in batch:
            job.started = time.monotonic()
            self._running[job.question.key] = self._queue.pop(job.question.key)
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self._threads, self._complete, [job.question for job in batch])
        finally:
            for job in batch:
                del self._running[job.question.key]
        took = time.monotonic() - started
        self._speed = 0.7 * self._speed + 0.3 * len(batch) / max(took, 1e-6)
        self._telemetry.batch(len(batch), took)
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Completion):  # a failure may pass: ask again next time
                self._answers[job.question.key] = answer
            if not job.answer.done():
                job.answer.set_result(answer)
        while len(self._answers) > self._remembered:
            self._answers.popitem(last=False)

    def _complete(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask the backend; a question that makes it raise fails alone, found by halving the batch."""
        try:
            said = self.backend.complete(
                [question.row for question in questions],
                sampling=questions[0].sampling,
                seeds=[[question.seed] for question in questions],
            )
            return [mine[0] for _, mine in zip(questions, said, strict=True)]
        except BackendError as error:  # nobody can be answered: no use in asking again
            return [Failure(str(error))] * len(questions)
        except Exception as error:  # whatever one odd question makes a model raise, the others get their answers
            if len(questions) == 1:
                log.exception("the backend failed on %s", questions[0].row["id"])
                return [Failure(f"the backend failed: {type(error).__name__}: {error}"[:300])]
            middle = len(questions) // 2
            return [*self._complete(questions[:middle]), *self._complete(questions[middle:])]
