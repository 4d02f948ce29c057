"""Ask for a judgment and hear the reasoning while it is written.

    asking = Asking(record, "ab", setup.backend, setup.sampled(3, temperature=0.7))
    for text in asking:                 # what the model has written so far
        ...
    judgments = asking.judgments

The judgments are those that the judge would write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

from unifiedreward_think.backends import Backend, Completion, Failure, StreamingBackend
from unifiedreward_think.bounded import open_bounded
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge_item
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.order import Order, letters
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS

PACE = 0.05  # seconds between two updates of the page
BATCH = 16  # pairs at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the page is about.

    Attributes:
        backend: the model.
        config: how one pair is judged, in one order and by one vote.
        points: how one candidate is scored; None where there are no prompts for that, and no such tab.
        media_root: media of an uploaded file of pairs lie in this folder; nothing outside it is opened.
        work: folder for the files that are offered for download, within the system's folder for temporary files.
        examples: pairs to try.
        known: the examples by their content; asked about, they keep their own id, by which a stored run is replayed.
        judge: which model it is, shown above the tabs.
        note: what is to be known of it, likewise.
    """

    backend: Backend
    config: JudgingConfig
    media_root: Path
    work: Path
    examples: Sequence[PreferenceRecord] = ()
    known: Mapping[str, PreferenceRecord] = field(default_factory=dict)
    judge: str = ""
    note: str = ""
    points: JudgingConfig | None = None

    def sampled(self, samples: int, temperature: float) -> JudgingConfig:
        """Return how a pair is judged by so many votes: one is greedy, more are sampled."""
        return sampled(self.config, samples, temperature)


def sampled(config: JudgingConfig, samples: int, temperature: float) -> JudgingConfig:
    """Return how so many answers are asked for: one is greedy, more are sampled."""
    sampling = replace(config.sampling, temperature=temperature if samples > 1 else 0.0)
    return replace(config, samples=samples, sampling=sampling)


def make_record(task: str, prompt: str, media: Sequence[str | None], answers: Sequence[str] = ()) -> PreferenceRecord:
    """Return what the fields of the page hold as a record of two candidates or of one, named by its content.

    Raises:
        InputError: a field is empty; the message says which.
    """
    noun, kind = TASKS[task].noun, TASKS[task].media_kind
    generation = TASKS[task].compares_media
    fields = {("caption" if generation else "question"): prompt.strip()}
    names = _called(noun.lower(), len(media)) if generation else [kind]
    fields |= dict(zip(names, (path or "" for path in media), strict=True))
    fields |= dict(zip(_called("answer", len(answers)), (answer.strip() for answer in answers), strict=True))
    if empty := [name for name, value in fields.items() if not value]:
        raise InputError(f"Something is missing: {', '.join(empty)}.")
    return PreferenceRecord(
        id=_content_id(task, prompt, [str(path) for path in media], answers),
        task=task,
        prompt=prompt.strip(),
        media=tuple((str(path),) for path in media),
        answers=tuple(answers),
        source="demo",
    )


def _called(noun: str, count: int) -> list[str]:
    return [noun] if count == 1 else [f"{noun} {letter}" for letter in letters(count).upper()]


def by_content(records: Sequence[PreferenceRecord]) -> dict[str, PreferenceRecord]:
    """Return records by the names that their contents would give them on the page, which takes files only."""
    shown = [(record, [entry[0] for entry in record.media]) for record in records]
    return {
        _content_id(record.task, record.prompt, paths, record.answers): record
        for record, paths in shown
        if all(Path(path).is_file() for path in paths)
    }


def _content_id(task: str, prompt: str, media: Sequence[str], answers: Sequence[str]) -> str:
    return f"{digest(task, prompt.strip(), *answers, *(Path(path).read_bytes() for path in media)):016x}"


class Stopped(Exception):  # nothing went wrong
    """Nobody listens any more."""


class Stops:
    """What the stop buttons are to end, by session and tab.

    The work itself says on the page that it was stopped: were that the button's doing, something written just before
    could arrive after it.
    """

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], Event] = {}

    def event(self, session: str, tab: str) -> Event:
        """Return what is set when a session stops what it asked in a tab."""
        return self._events.setdefault((session, tab), Event())

    def begin(self, session: str, tab: str) -> None:
        """Forget an earlier stop, as something is asked anew."""
        if self.event(session, tab).is_set():
            del self._events[session, tab]

    def leave(self, session: str) -> None:
        """End whatever a session has asked, as nobody is there to see it."""
        for key in [key for key in self._events if key[0] == session]:
            self._events.pop(key).set()


class Watched:
    """A backend that can be stopped, and whose first completion can be heard while it is written.

    Its batches are small: between two of them one sees the progress, and can stop.

    Args:
        backend: writes; one that cannot tell what it writes is heard at its end only.
        stopped: once set, the next word or batch raises Stopped.
        hear: takes the pieces of the first sample of a single prompt; the other samples follow in one batch.
    """

    def __init__(self, backend: Backend, stopped: Event, hear: Callable[[str], object] | None = None) -> None:
        self.model, self.settings = backend.model, backend.settings
        self.batch_size = min(backend.batch_size, BATCH)
        self._backend, self._stopped, self._hear = backend, stopped, hear

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[Completion | Failure]]:
        """Return what the backend completes."""
        self._check()
        if self._hear is None or not isinstance(self._backend, StreamingBackend):
            return self._backend.complete(prompts, sampling=sampling, seeds=seeds)
        (prompt,), ((seed, *others),) = prompts, seeds
        first = self._backend.stream(prompt, sampling=sampling, seed=seed, on_text=self._pass_on)
        self._check()
        if not others:
            return [[first]]
        (rest,) = self._backend.complete([{**prompt, "sample": 1}], sampling=sampling, seeds=[others])
        return [[first, *rest]]

    def _pass_on(self, piece: str) -> None:
        self._check()
        if self._hear is not None:
            self._hear(piece)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped


@dataclass
class Asking:
    """An iterator over what the model has written so far; at its end `judgments` holds the rows.

    Setting `stopped`, or closing the iterator, ends the writing at the next word, or where a backend does not stream,
    at the next batch. A stop is told at once, by one more text; the iterator ends when the model is free again.
    """

    record: PreferenceRecord
    order: Order
    backend: Backend
    config: JudgingConfig
    stopped: Event = field(default_factory=Event)
    judgments: list[Judgment] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        """Yield the text so far, at most every PACE seconds.

        Raises:
            InputError: the backend cannot judge anything.
            Stopped: before the answer was whole.
        """
        pieces: SimpleQueue[str | None] = SimpleQueue()
        backend = Watched(self.backend, self.stopped, pieces.put)
        with ThreadPoolExecutor(max_workers=1) as thread:
            judging = thread.submit(judge_item, self.record, self.order, backend, self.config, open_bounded)
            judging.add_done_callback(lambda _: pieces.put(None))
            try:
                yield from _texts(pieces, self.stopped)
            except GeneratorExit:
                self.stopped.set()
                raise
        if self.stopped.is_set():
            raise Stopped  # also where all was written by then: the page has said so
        self.judgments = judging.result()


def _texts(pieces: SimpleQueue[str | None], stopped: Event) -> Iterator[str]:
    """Yield the text so far whenever there is more of it, until None is said or it is stopped."""
    text, done = "", False
    while not done:
        before = text
        done = stopped.wait(PACE)
        try:
            while (piece := pieces.get_nowait()) is not None:
                text += piece
            done = True
        except Empty:
            pass
        if done or text != before:
            yield text
