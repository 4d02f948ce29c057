"""One queue for all requests: full batches for the backend, bounded waiting, each question asked once.

    batcher = Batcher(backend, max_wait=0.01)
    async with batcher.running():
        (answer,) = await batcher.ask([Question(key, row, Sampling(), seed=0)], seconds=60)

The backend runs in a thread. Everything else happens on the event loop, so nothing here needs a lock. A backend that
takes the next prompt when it has room tells each answer when it is done: who asks little waits for no long answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path

from unifiedreward_think.backends import Backend, BackendError, Completion, Failure, RefillingBackend
from unifiedreward_think.backends.isolation import apart
from unifiedreward_think.serving.jobs import Answer, Job, Question
from unifiedreward_think.serving.limits import Refused, Share
from unifiedreward_think.serving.telemetry import Telemetry

log = logging.getLogger(__name__)


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
        self._queue: OrderedDict[int, Job] = OrderedDict()
        self._running: dict[int, Job] = {}
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
        self,
        questions: Sequence[Question],
        *,
        seconds: float,
        urgent: bool = False,
        admitted: bool = False,
        held: Share | None = None,
    ) -> list[Answer]:
        """Return an answer or the reason why there is none for each question, within `seconds`.

        When the caller is cancelled, what nobody else waits for leaves the queue.

        Args:
            questions: what is asked, in the order in which it is best answered.
            seconds: after which the rest fails.
            urgent: go to the head of the queue.
            admitted: part of a request that was admitted before; the queue may grow over its limit.
            held: what the request has taken for its pictures; kept while the backend has one of its questions.

        Raises:
            Refused: the queue is full (429), before anything was queued.
        """
        new = sum(q.key not in self._queue and q.key not in self._running for q in questions)
        if not (urgent or admitted) and self._queue and len(self._queue) + new > self.max_queue:
            raise Refused("the queue is full; try again", status=429, retry_after=self._patience())
        jobs = [self._enter(question, urgent, held) for question in questions]
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
                    job.release()

    def _result(self, job: Job, seconds: float) -> Answer:
        if job.answer.done():
            return job.answer.result()
        self._telemetry.expired.inc()
        return Failure(f"no answer within the deadline of {seconds:g} s")

    def _patience(self) -> int:
        """Return the seconds after which half of the queue will be answered."""
        return min(60, max(1, ceil(len(self._queue) / 2 / self._speed))) if self._speed else 1

    def _enter(self, question: Question, urgent: bool, held: Share | None) -> Job:
        key = question.key
        job = self._queue.get(key) or self._running.get(key)
        if job is not None:
            self._telemetry.shared.labels("in flight").inc()
        else:
            known = self._answers.get(key)
            job = Job(question, time.monotonic(), held if known is None else None)
            if known is not None:
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

    def _take(self) -> list[Job]:
        """Move the next batch from the queue to what is running: one call of a backend has one sampling."""
        batch: list[Job] = []
        for job in self._queue.values():
            if len(batch) == self.backend.batch_size:
                break
            if not batch or job.question.sampling == batch[0].question.sampling:
                batch.append(job)
        for job in batch:
            job.started = time.monotonic()
            self._running[job.question.key] = self._queue.pop(job.question.key)
        return batch

    async def _run(self, batch: list[Job]) -> None:
        started = time.monotonic()
        loop = asyncio.get_running_loop()

        def tell(job: Job, answer: Answer) -> None:
            if not loop.is_closed():  # the server has given this batch up
                loop.call_soon_threadsafe(self._settle, job, answer)

        try:
            await loop.run_in_executor(self._threads, self._complete, batch, tell)
        finally:
            for job in batch:
                self._leave(job)
        took = time.monotonic() - started
        self._speed = 0.7 * self._speed + 0.3 * len(batch) / max(took, 1e-6)
        self._telemetry.batch(len(batch), took)

    def _settle(self, job: Job, answer: Answer) -> None:
        self._leave(job)
        if isinstance(answer, Completion) or answer.refused:  # another failure may pass: ask again next time
            self._answers[job.question.key] = answer
        if not job.answer.done():
            job.answer.set_result(answer)
        while len(self._answers) > self._remembered:
            self._answers.popitem(last=False)

    def _leave(self, job: Job) -> None:
        if self._running.get(job.question.key) is job:
            del self._running[job.question.key]
            job.release()

    def _complete(self, batch: Sequence[Job], tell: Callable[[Job, Answer], None]) -> None:
        """Ask the backend; whatever one odd question makes a model raise, the others get their answers."""
        left = {job.question.key: job for job in batch}

        def hear(job: Job, answer: Answer) -> None:
            del left[job.question.key]
            tell(job, answer)

        def together(jobs: Sequence[Job]) -> None:
            some = [job for job in jobs if job.question.key in left]
            try:
                if some:
                    self._together(some, hear)
            except BackendError as error:  # nobody can be answered: no use in asking again
                unheard = [job for job in some if job.question.key in left]
                log.error("the backend failed on a batch of %d: %s", len(unheard), " ".join(str(error).split())[:300])
                for job in unheard:
                    hear(job, Failure(str(error)))

        for (job, *_), failed in apart(together, batch, Exception):
            if failed is not None and job.question.key in left:
                said = f"{type(failed).__name__}: {' '.join(str(failed).split())}"[:300]
                log.error("the backend failed on %s: %s (%s)", job.question.row["id"], said, _place(failed))
                log.debug("the backend failed on %s", job.question.row["id"], exc_info=failed)
                hear(job, Failure(f"the backend failed: {said}"))

    def _together(self, jobs: Sequence[Job], hear: Callable[[Job, Answer], None]) -> None:
        rows, seeds = [job.question.row for job in jobs], [[job.question.seed] for job in jobs]
        sampling = jobs[0].question.sampling
        if isinstance(self.backend, RefillingBackend):
            requests = list(zip(rows, seeds, strict=True))
            for done in self.backend.complete_each(requests, sampling=sampling, samples=1):
                for number, (answer, *_) in done:
                    hear(jobs[number], answer)
        else:
            answers = self.backend.complete(rows, sampling=sampling, seeds=seeds)
            for job, samples in list(zip(jobs, answers, strict=True)):
                hear(job, samples[0])


def _place(error: Exception) -> str:
    """Return the file and line that raised an error."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{Path(last.filename).name}:{last.lineno}"
