"""Pictures that the transformers backend remembers: the same answers with less work, and nothing stale or mixed up."""

import asyncio
import importlib
import io
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.judging import inputs_of, protocol
from helpers.reward_server import run
from unifiedreward_think.backends import Failure
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.prepare import open_items
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.models import tiny
from unifiedreward_think.order import ORDERS
from unifiedreward_think.serving.client import data_url, request_body
from unifiedreward_think.serving.questions import Settings
from unifiedreward_think.toy import dataset

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
GREEDY = Sampling(max_new_tokens=12)
SIDE = 32


@pytest.fixture(scope="module")
def backend(models):
    """A new backend of a family; weights are read once for the module."""
    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.models import loading

    read = cache(lambda path: loading.load_model(path, dtype="float32"))

    def made(family="qwen2_5_vl", **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unifiedreward_think.backends.transformers.load_model", lambda path, **_: read(path))
            return TransformersBackend(str(models[family]), device="cpu", **options)

    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Prompts of pairs of each task in both orders: one to eight pictures, most of them shown twice."""
    root = tmp_path_factory.mktemp("pairs")
    dataset.write(root, cold_start=4, train=4, heldout=8)
    records = load_records([str(root / "heldout.jsonl")]).rows
    asked = protocol(sampling=GREEDY, frames=FrameSampling(frames=4, cache=root / "frames"))
    return [row for _, row in open_items([(one, order) for one in records for order in ORDERS], asked, {})]


def drawn(*numbers):
    """Pictures of equal size; neighbours differ in one square of the model's patches."""
    pictures = []
    for number in numbers:
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        for place in range(4):
            colour = ("red", "green", "blue")[number // 3**place % 3]
            picture.paste(colour, (16 * (place % 2), 16 * (place // 2), 16 * (place % 2) + 16, 16 * (place // 2) + 16))
        pictures.append(picture)
    return pictures


def shows(*pictures, text="Which?", before=""):
    content = [{"type": "image", "text": None}] * len(pictures)
    content = [{"type": "text", "text": before}, *content, {"type": "text", "text": text}]
    return {"id": "a", "order": "ab", "prompt": [{"role": "user", "content": content}], "images": list(pictures)}


def first_scores(backend, prompts, monkeypatch):
    """Log-probabilities of the first token of each prompt."""
    seen = []
    engine = importlib.import_module("unifiedreward_think.engine.prefill")
    prefill = engine.prefill
    with monkeypatch.context() as patch:
        patch.setattr(engine, "prefill", lambda *args: seen.append(prefill(*args)) or seen[-1])
        backend.complete(prompts, sampling=Sampling(max_new_tokens=1), seeds=[[0]] * len(prompts))
    (found,) = seen
    return found.logits.log_softmax(-1)


def watch_tower(backend, monkeypatch):
    """A list that grows by the number of pictures whenever some are encoded."""
    from functools import wraps

    encoded, model = [], backend._network.model
    encode = model.get_image_features

    @wraps(encode)
    def noting(*args, **fields):
        encoded.append(len(fields["image_sizes"] if "image_sizes" in fields else fields["image_grid_thw"]))
        return encode(*args, **fields)

    monkeypatch.setattr(model, "get_image_features", noting)
    return encoded


@FAMILIES
def test_a_model_says_the_same_of_pictures_that_are_new_known_or_some_of_each(family, backend, pairs, monkeypatch):
    plain, remembering = backend(family, cache_mib=0, batch_size=16), backend(family, batch_size=16)
    assert plain.cache is None
    wanted = plain.complete(pairs, sampling=GREEDY, seeds=[[0]] * 16)
    assert len(set(map(str, wanted))) > 1
    known = pairs[::3]
    for rows in (known, pairs, pairs):  # new, some of each, known
        inputs, expected = inputs_of(remembering, rows), inputs_of(plain, rows)
        shared = inputs.keys() & {"input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"}
        assert shared == expected.keys() - {"pixel_values", "image_sizes", "batch_num_images"}
        assert all(inputs[name].equal(expected[name]) for name in shared)
    assert remembering.cache.misses == sum(len(row["images"]) for row in pairs) // 2  # both orders show the same
    fresh = backend(family, batch_size=16)
    fresh.complete(known, sampling=GREEDY, seeds=[[0]] * len(known))
    assert fresh.complete(pairs, sampling=GREEDY, seeds=[[0]] * 16) == wanted
    for rows in (pairs, pairs[::-1]):
        scores = [first_scores(one, rows, monkeypatch) for one in (plain, fresh)]
        assert scores[0].sub(scores[1]).abs().max() < 1e-5
    several = {"sampling": Sampling(max_new_tokens=12, temperature=1.0), "seeds": [[i, i + 100] for i in range(16)]}
    said = fresh.complete(pairs, **several)
    assert said == plain.complete(pairs, **several) and len({one.text for own in said for one in own}) > 16


@FAMILIES
def test_a_picture_goes_through_the_tower_once(family, backend, monkeypatch):
    remembering = backend(family)
    encoded = watch_tower(remembering, monkeypatch)
    a, b, c = drawn(1, 2, 3)
    ask = lambda *rows: remembering.complete(list(rows), sampling=GREEDY, seeds=[[0]] * len(rows))  # noqa: E731
    ask(shows(a, b), shows(b, a), shows(a, a))
    ask(shows(b, a), shows(a.copy(), c))
    # LLaVA-OneVision sees a lone picture in tiles; one that joins others is encoded beside itself.
    assert encoded == ([2, 2] if family == "llava_onevision" else [2, 1])
    assert (remembering.cache.misses, remembering.cache.hits) == (3, 7)
    before = len(encoded)
    ask(shows(a))
    assert len(encoded) - before == (family == "llava_onevision")


def ranked(count):
    """The prompts of a ranking in both orders, by the candidate shown first, as the server queues them."""
    return [
        shows(a, b, before="You compare two images. ")
        for a in drawn(*range(count))
        for b in drawn(*range(count))
        if a != b
    ]


def watch_reading(backend, monkeypatch):
    """A list that grows by (rows, columns) of whatever the model reads, one token at a time excepted."""
    read = []

    def noting(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            read.append(tuple(kwargs["input_ids"].shape))

    hook = backend._network.register_forward_pre_hook(noting, with_kwargs=True)
    monkeypatch.setattr(backend, "stop_watching", hook.remove, raising=False)
    return read


@FAMILIES
def test_what_prompts_of_a_ranking_share_is_read_once(family, backend, monkeypatch):
    plain, sharing = backend(family, cache_mib=0, batch_size=12), backend(family, batch_size=12)
    prompts = ranked(4)
    read = watch_reading(sharing, monkeypatch)
    scores = first_scores(sharing, prompts, monkeypatch)
    sharing.stop_watching()
    length = inputs_of(sharing, prompts)["input_ids"].shape[1]
    if family == "qwen3_5":  # linear attention keeps no single tokens
        assert read == [(12, length)]
    else:
        (heads, head), (tails, tail) = read
        assert (heads, tails) == (4, 12) and head + tail == length and head > 0.25 * length
    assert scores.sub(first_scores(plain, prompts, monkeypatch)).abs().max() < 1e-5
    several = {"sampling": Sampling(max_new_tokens=12, temperature=1.0), "seeds": [[i, i + 50] for i in range(12)]}
    assert sharing.complete(prompts, **several) == plain.complete(prompts, **several)


WORDS = st.sampled_from(["", "Which?", "Which is it? " * 8, "Look: "])
PROMPTS = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=3), WORDS), min_size=2, max_size=6)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@given(shown=PROMPTS)
@settings(deadline=None, max_examples=12)
def test_prompts_that_share_anything_or_nothing_are_read_as_if_alone(family, backend, shown):
    plain, sharing = backend(family, cache_mib=0, batch_size=6), backend(family, batch_size=6)
    prompts = [shows(*drawn(*numbers), text=text) for numbers, text in shown]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unifiedreward_think.engine.prefill.MIN_SHARED_FRACTION", 0.0)
        together = first_scores(sharing, prompts, patch)
        alone = [first_scores(plain, [prompt], patch)[0] for prompt in prompts]
    assert all(a.sub(b).abs().max() < 1e-5 for a, b in zip(together, alone, strict=True))


def test_prompts_that_share_little_are_read_in_one_go(backend, monkeypatch):
    sharing = backend(batch_size=4)
    read = watch_reading(sharing, monkeypatch)
    a, b, c, d = drawn(1, 2, 3, 4)
    rows = [shows(a, b, text="Which? " * 30), shows(a, c), shows(d, a), shows(c, d)]
    sharing.complete(rows, sampling=GREEDY, seeds=[[0]] * 4)
    sharing.stop_watching()
    assert len(read) == 1


def test_native_videos_and_prompts_without_pictures_take_the_plain_path(backend, toy_data, tmp_path):
    remembering, plain = backend(), backend(cache_mib=0)
    films = [row for row in load_records([str(toy_data / "heldout.jsonl")]).rows if row.task.startswith("video")]
    asked = protocol(sampling=GREEDY, frames=FrameSampling(frames=4, cache=tmp_path), native_video=True)
    rows = [row for _, row in open_items([(film, "ab") for film in films], asked, {})]
    assert all(row["videos"] for row in rows)
    for prompts in (rows, [shows(text="No picture.")]):
        said = [one.complete(prompts, sampling=GREEDY, seeds=[[0]] * len(prompts)) for one in (remembering, plain)]
        assert said[0] == said[1]
    assert remembering.cache.misses == 0


@pytest.mark.parametrize("cache_mib", [0, 8])
def test_a_text_that_holds_the_sign_of_a_picture_is_no_picture(cache_mib, backend):
    sly = shows(*drawn(1), text="<|image_pad|>")
    ((said,),) = backend(cache_mib=cache_mib).complete([sly], sampling=GREEDY, seeds=[[0]])
    assert "the chat template writes 2 places (<|image_pad|>) for 1 images" in said.reason


@given(st.lists(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=3), min_size=1, max_size=3), max_size=5))
@settings(deadline=None, max_examples=25)
def test_every_picture_keeps_its_own_features_within_the_budget(backend, batches):
    """Whatever is shown in whatever order, with room for five of twelve pictures of equal size."""
    from unifiedreward_think.engine.features import FeatureCache

    model = backend()
    one = model.cache.features([drawn(0)])[0][0].bytes
    small = FeatureCache(model._network, model._processor.image_processor, 5 * one)
    truth = [picture.layers[0] for (picture,) in model.cache.features([[picture] for picture in drawn(*range(12))])]
    assert all(a.sub(b).abs().max() > 1e-3 for i, a in enumerate(truth) for b in truth[:i])
    for batch in batches:
        for numbers, found in zip(batch, small.features([drawn(*numbers) for numbers in batch]), strict=True):
            for number, picture in zip(numbers, found, strict=True):
                assert picture.layers[0].sub(truth[number]).abs().max() < 1e-5
        held = [layer for picture in small._known.values() for layer in picture.layers]
        assert small.bytes == sum(layer.untyped_storage().nbytes() for layer in held) <= 5 * one
        last = list(dict.fromkeys(reversed([number for numbers in batch for number in numbers])))
        assert len(small._known) >= min(5, len(last))
    assert small.hits + small.misses == sum(len(numbers) for batch in batches for numbers in batch)


def test_a_budget_below_one_picture_keeps_none_and_answers_all_the_same(backend, pairs):
    from unifiedreward_think.engine.features import FeatureCache

    tight = backend()
    tight.cache = FeatureCache(tight._network, tight._processor.image_processor, 1)
    wanted = backend(cache_mib=0).complete(pairs, sampling=GREEDY, seeds=[[0]] * 16)
    for _ in range(2):
        assert tight.complete(pairs, sampling=GREEDY, seeds=[[0]] * 16) == wanted
    assert tight.cache.bytes == 0 and not tight.cache._known


def test_a_network_in_training_is_asked_anew_after_its_weights_have_changed(models, monkeypatch):
    import torch

    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.models.loading import load_model, load_processor

    path = str(models["qwen2_5_vl"])
    network, processor = load_model(path, dtype="float32"), load_processor(path)
    in_training = TransformersBackend(path, device="cpu", loaded=(network, processor), cache_mib=8)
    rows = [shows(*drawn(1, 2)), shows(*drawn(2, 1))]
    before = first_scores(in_training, rows, monkeypatch)
    with torch.no_grad():
        for weight in network.model.visual.parameters():
            weight.data.mul_(-1.5)  # as ZeRO writes them, which tells no version counter
    after = first_scores(in_training, rows, monkeypatch)
    network.save_pretrained(folder := models["qwen2_5_vl"].parent / "trained")
    processor.save_pretrained(folder)
    anew = TransformersBackend(str(folder), device="cpu", dtype="float32")
    assert anew.cache is not None and in_training.cache is None
    assert before.sub(after).abs().max() > 1e-2
    assert after.sub(first_scores(anew, rows, monkeypatch)).abs().max() < 1e-5


def test_a_server_ranks_the_same_from_several_clients_at_once_and_counts_what_it_spared(backend):
    """The backend runs in one thread at a time, as `Batcher` runs it, while others read the metrics."""
    judging = Settings(JudgingArguments(max_new_tokens=GREEDY.max_new_tokens).config())
    bodies = [
        request_body("image_generation", "squares", list(map(data_url, drawn(*numbers))), orders="both", reasoning=True)
        for numbers in ((0, 1, 2, 3), (2, 3, 4, 5), (5, 1, 6, 0))
    ]

    async def rank_all(http):
        asked = [http.post("/v1/rank", json=body) for body in bodies]
        replies = await asyncio.gather(*asked, *(http.get("/metrics") for _ in range(5)))
        metrics = (await http.get("/metrics")).text
        said = [[row["reasoning"] for row in reply.raise_for_status().json()["judgments"]] for reply in replies[:3]]
        return said, dict(line.rsplit(" ", 1) for line in io.StringIO(metrics) if line.startswith("unifiedreward_vis"))

    remembering = backend(batch_size=5)
    wanted, none = run(rank_all, backend(cache_mib=0, batch_size=5), judging)
    found, counts = run(rank_all, remembering, judging)
    assert found == wanted and len({text for texts in wanted for text in texts}) > 4 and none == {}
    shown = 2 * (3 * 12 - 4)  # the pairs 2-3 and 0-1 are in two groups, whichever comes first, and judged once
    name = 'unifiedreward_vision_cache{what="%s"}'
    assert {key: float(value) for key, value in counts.items()} == {
        name % "hits": shown - 7,
        name % "misses": 7,
        name % "bytes": remembering.cache.bytes,
    }


def test_a_prompt_that_cannot_be_encoded_takes_no_other_with_it(backend):
    from unifiedreward_think.serving.batching import Batcher
    from unifiedreward_think.serving.jobs import Question
    from unifiedreward_think.serving.telemetry import Telemetry

    rows = [shows(*drawn(1, 2)), shows(*drawn(1), text="<|image_pad|>"), shows(*drawn(3, 4))]
    batcher = Batcher(backend(), telemetry=Telemetry())
    questions = [Question(key=number, row=row, sampling=GREEDY, seed=0) for number, row in enumerate(rows)]

    async def ask():
        async with batcher.running():
            return await batcher.ask(questions, seconds=60)

    first, sly, last = asyncio.run(ask())
    assert isinstance(sly, Failure) and "writes 2 places (<|image_pad|>) for 1 images" in sly.reason
    alone = backend(cache_mib=0).complete([rows[0], rows[2]], sampling=GREEDY, seeds=[[0]] * 2)
    assert [first, last] == [said for (said,) in alone]
