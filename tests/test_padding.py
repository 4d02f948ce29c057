"""Which prompts go through a model together: one long prompt is its own batch and costs the others nothing."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_bad_items import GREEDY, LONG, short, shows  # noqa: F401
from unifiedreward_think.backends import Completion, Failure, padding
from unifiedreward_think.backends.padding import CELLS, SMALL, prefills, together
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.serving.batching import Batcher
from unifiedreward_think.serving.jobs import Question
from unifiedreward_think.serving.telemetry import Telemetry

LENGTHS = st.lists(st.integers(1, 40_000), max_size=70)


@given(LENGTHS, LENGTHS, st.integers(1, 300_000))
def test_a_batch_keeps_its_limit_and_is_at_most_half_padding(lengths, held, limit):
    chosen = together(lengths, held, limit=limit)
    assert chosen == sorted(set(chosen)) and (chosen or held or not lengths)
    if chosen and len(chosen) + len(held) > 1:
        inside = [*held, *(lengths[place] for place in chosen)]
        padded = len(inside) * max(inside)
        assert padded <= limit and (padded <= SMALL or padded <= 2 * sum(inside))
    if chosen:
        assert max(lengths[place] for place in chosen) <= min(
            [length for place, length in enumerate(lengths) if place not in chosen], default=40_000
        )


@given(LENGTHS)
def test_what_is_read_at_once_has_a_mask_of_bounded_size(lengths):
    groups = prefills(lengths)
    assert [place for group in groups for place in group] == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[p] for p in group) ** 2 <= CELLS for group in groups)


@pytest.fixture(scope="module")
def backend(short):  # noqa: F811
    return TransformersBackend(str(short), dtype="float32", device="cpu", batch_size=8)


@pytest.fixture
def read(monkeypatch):
    """The lengths of the prompts that each batch holds when some join it."""
    from unifiedreward_think.engine.decoding import DecodeBatch

    seen, insert = [], DecodeBatch.insert

    def noting(self, prefill, sequences):
        insert(self, prefill, sequences)
        seen.append(list(self._cache.layout.lengths))

    monkeypatch.setattr(DecodeBatch, "insert", noting)
    return seen


WORDS = "a kite " * 250  # 1,000 tokens or so
PROMPTS = [shows(), shows(WORDS), shows("Why?", "blue"), shows("Where?"), shows("When?"), shows("Who?")]


def test_one_long_prompt_is_a_batch_of_its_own_and_all_say_what_they_say_alone(backend, read):
    sampling, seeds = Sampling(max_new_tokens=6), [[0]] * len(PROMPTS)
    said = backend.complete(PROMPTS, sampling=sampling, seeds=seeds)
    crowd, alone = read
    assert len(crowd) == 5 and len(alone) == 1 and alone[0] > 4 * max(crowd)
    assert said == [backend.complete([prompt], sampling=sampling, seeds=[[0]])[0] for prompt in PROMPTS]


def test_a_prompt_that_does_not_fit_waits_and_nothing_overtakes_it(backend, read, monkeypatch):
    monkeypatch.setattr(backend, "batch_size", 3)
    monkeypatch.setattr(padding, "SMALL", 0)
    requests = [(prompt, [0]) for prompt in [*PROMPTS, *PROMPTS]]
    done = [
        number
        for some in backend.complete_each(requests, sampling=Sampling(max_new_tokens=6), samples=1)
        for number, _ in some
    ]
    assert sorted(done) == list(range(12)) and done.index(1) < 6
    assert all(len(held) * max(held) <= 2 * sum(held) for held in read)


def test_the_limit_of_tokens_cuts_a_batch(short, read):  # noqa: F811
    small = TransformersBackend(str(short), dtype="float32", device="cpu", batch_size=8, batch_tokens=100)
    said = small.complete(PROMPTS[2:], sampling=GREEDY, seeds=[[0]] * 4)
    assert len(read) > 1 and all(len(held) * max(held) <= 100 or len(held) == 1 for held in read)
    assert all(isinstance(one, Completion) for (one,) in said)


def test_who_asks_little_has_the_answer_before_the_long_prompt_is_read(backend):
    questions = [Question(key=n, row=row, sampling=GREEDY, seed=0) for n, row in enumerate([*PROMPTS, shows(LONG)])]
    order = []

    async def one(batcher, question):
        (answer,) = await batcher.ask([question], seconds=300)
        order.append(question.key)
        return answer

    async def work():
        batcher = Batcher(backend, telemetry=Telemetry(), max_wait=1.0)
        async with batcher.running():
            return await asyncio.gather(*(one(batcher, question) for question in questions))

    answers = asyncio.run(work())
    assert order[0] == 6 and order[-1] == 1  # what cannot be read is told first
    assert answers[6].refused and all(isinstance(answer, Completion) for answer in answers[:6])


def test_a_backend_that_breaks_while_it_tells_is_asked_again_for_the_rest_only():
    class Breaks:
        model, settings, batch_size = "breaks", {}, 8

        def __init__(self):
            self.asked = []

        def complete_each(self, requests, *, sampling, samples):
            requests = list(requests)
            self.asked.append([row["id"] for row, _ in requests])
            for number, (row, _) in enumerate(requests):
                if row["id"] == "bad":
                    raise RuntimeError("odd")
                yield [(number, [Completion(row["id"], "stop")])]

    backend = Breaks()
    rows = [{"id": name} for name in ("a", "b", "bad", "c")]
    questions = [Question(key=n, row=row, sampling=GREEDY, seed=0) for n, row in enumerate(rows)]

    async def work():
        batcher = Batcher(backend, telemetry=Telemetry(), max_wait=1.0)
        async with batcher.running():
            return await batcher.ask(questions, seconds=30)

    a, b, bad, c = asyncio.run(work())
    assert [a.text, b.text, c.text] == ["a", "b", "c"] and isinstance(bad, Failure) and not bad.refused
    assert backend.asked == [["a", "b", "bad", "c"], ["bad", "c"], ["bad"], ["c"]]
