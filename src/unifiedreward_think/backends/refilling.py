"""Continuous batching of prompts: places that get free are filled again, and one bad prompt fails alone.

A prompt that the processor refuses, or that is too long for the model, becomes a Failure, and those read with it go on.
One much longer than the others waits until they are done (`padding`): they would be padded to it.
Where memory runs out, all that was under way starts over, half as many prompts at a time; a prompt for which there is
too little even alone becomes a Failure. Every completion has a seed of its own, so starting over changes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from unifiedreward_think.backends import Failure, Request
from unifiedreward_think.backends.isolation import apart, out_of_memory
from unifiedreward_think.backends.padding import prefills, together
from unifiedreward_think.terminal import note

if TYPE_CHECKING:
    from unifiedreward_think.engine.decoding import DecodeBatch, TokenSequence
    from unifiedreward_think.engine.prefix_cache import Prefill

REFILL = 0.25  # share of the batch that must be free: reading prompts one by one would cost more than waiting
NO_MEMORY = (
    "out of memory even when it is judged alone; lower max_pixels, frames, samples or the limit of a completion, or "
    "take a larger device"
)
Item = tuple[int, Request]
Written = list[tuple[int, "list[TokenSequence] | Failure"]]


class Reading(NamedTuple):
    """What is known of prompts that were read together.

    Attributes:
        lengths: tokens of each, or what is wrong with it.
        inputs: makes the model's inputs of those at some of the places.
    """

    lengths: Sequence[int | str]
    inputs: Callable[[Sequence[int]], Any]


class Engine(NamedTuple):
    """What answering takes of a model.

    Attributes:
        batch: makes an empty batch.
        read: reads prompts; its ValueError says what is wrong with them.
        prefill: passes inputs through the model.
        sequences: makes the sequences of a prompt with these seeds.
        tokens: of the prompts of a batch, padded.
    """

    batch: Callable[[], DecodeBatch]
    read: Callable[[Sequence[Mapping[str, Any]]], Reading]
    prefill: Callable[[Any], Prefill]
    sequences: Callable[[Sequence[int]], list[TokenSequence]]
    tokens: int


def refilled(requests: Iterable[Request], engine: Engine, *, size: int, copies: int) -> Iterator[Written]:
    """Yield the finished sequences of prompts as they are done, each with the number of its prompt; often none are.

    Args:
        requests: prompts with their seeds; taken while there is room, and while none waits for a batch of its own.
        engine: the model.
        size: prompts that are under way at a time.
        copies: sequences of each.
    """
    waiting: Iterator[Item] = enumerate(requests)
    most, flight = size, _Flight(engine)
    while True:
        room = most - math.ceil(len(flight.batch.sequences) / copies)
        ready = not flight.items or (not flight.waiting and room >= most * REFILL)
        new = list(islice(waiting, room)) if ready and not flight.waiting else []
        if not new and not flight.items and not flight.waiting:
            return
        written: Written | None = None
        try:
            refused = flight.read(new)
            if ready:
                flight.admit()
            written = refused or flight.advance()  # last: what fails before is tried again with fewer prompts
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if written is not None:
            yield written
            continue
        tried = sorted({**flight.all, **dict(new)}.items())
        flight = _Flight(engine)
        if len(tried) == 1:
            most = size  # it was this prompt, not their number
            yield [(tried[0][0], Failure(NO_MEMORY))]
        else:
            most = len(tried) // 2
            note(f"out of memory with {len(tried)} prompts at a time; going on with {most}")
            waiting = chain(tried, waiting)


class _Waiting(NamedTuple):
    """A prompt that was read, at a place of what was read with it."""

    request: Request
    length: int
    reading: Reading
    place: int


class _Flight:
    """What is under way: prompts by their number, their sequences, and the batch that decodes these.

    Attributes:
        items: prompts in the batch, with their tokens.
        waiting: prompts that were read, and are not in the batch.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self.batch = engine, engine.batch()
        self.items: dict[int, tuple[Request, int]] = {}
        self.waiting: dict[int, _Waiting] = {}
        self._writing: dict[int, list[TokenSequence]] = {}

    @property
    def all(self) -> dict[int, Request]:
        """The prompts that are in the batch or wait, by their number."""
        inside = {number: request for number, (request, _) in self.items.items()}
        return {**inside, **{number: one.request for number, one in self.waiting.items()}}

    def read(self, new: Sequence[Item]) -> Written:
        """Let prompts wait, and return those that cannot be read, with the reason."""
        refused: Written = []
        for group, made in apart(lambda some: self._engine.read([prompt for _, (prompt, _) in some]), new, ValueError):
            if isinstance(made, Exception):
                refused.append((group[0][0], Failure(str(made), refused=True)))
                continue
            for place, ((number, request), length) in enumerate(zip(group, made.lengths, strict=True)):
                if isinstance(length, str):
                    refused.append((number, Failure(length, refused=True)))
                else:
                    self.waiting[number] = _Waiting(request, length, made, place)
        return refused

    def admit(self) -> None:
        """Prefill the prompts that go well together with those in the batch."""
        numbers, held = list(self.waiting), [length for _, length in self.items.values()]
        lengths = [one.length for one in self.waiting.values()]
        chosen = [numbers[place] for place in together(lengths, held, limit=self._engine.tokens)]
        for _, alike in groupby(chosen, key=lambda number: id(self.waiting[number].reading)):
            of_reading = list(alike)
            for places in prefills([self.waiting[number].length for number in of_reading]):
                self._prefill([of_reading[place] for place in places])

    def _prefill(self, numbers: Sequence[int]) -> None:
        joining = {number: self.waiting[number] for number in numbers}
        reading = joining[numbers[0]].reading
        inputs = reading.inputs([one.place for one in joining.values()])
        sequences = {number: self._engine.sequences(one.request[1]) for number, one in joining.items()}
        for number, samples in sequences.items():
            for one in samples:
                one.prompt_tokens = joining[number].length
        self.batch.insert(self._engine.prefill(inputs), list(sequences.values()))
        self._writing |= sequences
        self.items |= {number: (one.request, one.length) for number, one in joining.items()}
        for number in numbers:
            del self.waiting[number]

    def advance(self) -> Written:
        """Return the prompts whose sequences are finished; where there is none, let every sequence write a token."""
        self.batch.evict_finished()
        done = [number for number, samples in self._writing.items() if all(one.finished for one in samples)]
        if not done and self.batch.sequences:
            self.batch.decode_step()
        for number in done:
            del self.items[number]
        return [(number, self._writing.pop(number)) for number in done]
