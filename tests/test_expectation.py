"""Expected scores: equal to counting out whole sequences, exact about "1" and "10", null where too little is told."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.judging import ScoresRed, make_records
from helpers.servers import prompt, reply, serving
from unifiedreward_think.backends import BackendError, Completion
from unifiedreward_think.backends.choose import BackendArguments, make_backend
from unifiedreward_think.backends.numbers import Spoken, masses_from_top, masses_of
from unifiedreward_think.backends.server_replies import read_reply
from unifiedreward_think.candidate_points import points_of
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.expectation import NOT_STRICT, Expectation, Masses, Place, expect
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.models import tiny
from unifiedreward_think.point_metrics import summarize_points
from unifiedreward_think.points import number_places, parse_points, render_points
from unifiedreward_think.records import Judgment
from unifiedreward_think.scores import Score

DIGITS = tuple(map(str, range(1, 11)))
CHAIN = render_points([("Light", 8), ("Form", 10)], notes=["it is 3/10 dark", ""])
SCALES = st.lists(
    st.tuples(st.sampled_from(["Light", "Form of it", "Truth"]), st.integers(1, 10)), min_size=1, max_size=4
)


@given(SCALES, st.sampled_from(["one_line", "three_line"]), st.booleans())
def test_the_places_of_a_chain_are_those_of_its_dimensions(scores, layout, explained):
    notes = ["like 7/10 of it"] * len(scores) if explained else ()
    text = render_points(scores, layout=layout, notes=notes, preamble="A 5/10 day.")
    places = number_places(text)
    assert [(place.name, place.text[place.start : place.end]) for place in places] == [
        (name, str(value)) for name, value in scores
    ]
    assert {place.text[place.end : place.close] for place in places} == {"/10"}
    changed = places[-1].alternative("4") + text[places[-1].close :]
    assert parse_points(changed, "Image").dimensions[-1].scores == (4.0,)


def test_the_place_of_a_direct_answer_has_every_number_of_its_scale():
    (place,) = number_places(" <answer>24/30</answer>", style="direct")
    assert place.allowed == tuple(map(str, range(3, 31))) and place.alternative("9") == " <answer>9/30"


@pytest.mark.parametrize("text", ["", "8/10", CHAIN[:-3], CHAIN + " and so on", f"<think></think>{CHAIN}"])
def test_what_is_not_strict_has_no_places(text):
    assert number_places(text) == []
    assert expect([]) == Expectation(None, reason=NOT_STRICT)


def test_expectations_of_dimensions_add_up_on_their_own_scale():
    light, form = number_places(CHAIN)
    sure = Masses(tuple(float(n == "8") for n in DIGITS))
    half = Masses(tuple(0.4 if n in ("1", "10") else 0.0 for n in DIGITS))
    found = expect([(light, sure), (form, half)])
    assert found == Expectation(Score(13.5, 2.0, 20.0), 0.8, (("Light", 8.0), ("Form", 5.5)))
    assert Expectation.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert expect([(light, Masses((0.0,) * 10))]).reason == "no allowed number has any probability"
    nothing = expect([(light, replace_left(sure, 0.011))])
    assert nothing.score is None and nothing.reason == "1.1% of the probability at 'Light' is not told, 1% may be"
    assert Expectation.from_json(nothing.to_json()) == nothing
    assert expect([(light, replace_left(sure, 0.01))]).score is not None


def replace_left(masses, left_out):
    return masses._replace(left_out=left_out)


# --- a model in this process: equal to whole sequences, one at a time, without a cache ---


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model of a family, whose tokenizer has tokens that begin in one number and end in another place."""
    made = {}

    def model(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny.build(family, made[family], corpus=[CHAIN, "<answer>24/30</answer>", "How red is it? 10/10"] * 5)
        return made[family]

    return model


def shown():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "How red is it?"}]
    return {"prompt": [{"role": "user", "content": parts}], "images": [Image.new("RGB", (32, 32), "red")]}


def counted_out(backend, prompt, place):
    """The probability of each alternative, of its whole sequence after the prompt, over that of what all begin with."""
    import torch

    tokenizer, network = backend._processor.tokenizer, backend._network
    inputs = backend._reader._process([prompt])
    columns = inputs["input_ids"].shape[1]
    totals, sequences = [], []
    for number in place.allowed:
        wanted = len(place.text[: place.start] + number) + 1
        ids, text = [], place.alternative(number)
        for token in tokenizer.encode(text, add_special_tokens=False):
            if len(tokenizer.decode(ids)) < wanted:
                ids.append(token)
        row = dict(inputs)
        answer = torch.tensor([ids])
        row["input_ids"] = torch.cat([row["input_ids"], answer], 1)
        for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if key in row:
                row[key] = torch.cat([row[key], torch.full_like(answer, fill)], 1)
        with torch.no_grad():
            logits = network(**row).logits[0, columns - 1 : -1].double()
        totals.append(logits.log_softmax(-1).gather(1, answer.T)[:, 0])
        sequences.append(ids)
    shared = next(i for i, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1)
    return [math.exp(float(total[shared:].sum())) for total in totals]


def backend_of(folder, **more):
    from unifiedreward_think.backends.transformers import TransformersBackend

    return TransformersBackend(str(folder), dtype="float32", device="cpu", **more)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "llava_onevision"])
def test_masses_are_those_of_whole_sequences_counted_out(models, family):
    from unifiedreward_think.engine.alternatives import Alternatives
    from unifiedreward_think.engine.prefill import prefill

    backend, prompt = backend_of(models(family)), shown()
    alternatives = Alternatives(
        backend._network, prefill(backend._network, *backend._reader.read([prompt], 1).inputs([0]))
    )
    places = [*number_places(CHAIN), *number_places("<answer>24/30</answer>", style="direct")]
    assert [len(place.allowed) for place in places] == [10, 10, 28]
    for place in places:
        masses = masses_of(place, "", backend._processor.tokenizer, alternatives)
        assert masses.of_allowed == pytest.approx(counted_out(backend, prompt, place), rel=1e-3, abs=1e-12)
        assert 0 < sum(masses.of_allowed) < 1 and masses.left_out == 0
    again = masses_of(places[0], "", backend._processor.tokenizer, alternatives)
    assert again == masses_of(places[0], "", backend._processor.tokenizer, alternatives)  # the cache is left as it was


def test_the_judge_stores_expectations_and_points_report_them(models, tmp_path):
    """The model is made to say a direct answer; its probabilities are its own."""
    backend = backend_of(models("qwen2_5_vl"), numbers=lambda text: number_places(text, style="direct"), batch_size=2)
    said = iter(["<answer>24/30</answer>", "<answer>12/30</answer>", "nothing", "<answer>7/10</answer>"])
    backend._completion = lambda written: Completion(next(said), "stop")
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
    config = JudgingArguments(
        form="pointwise", style="direct", max_new_tokens=2, expectation=True, frame_cache=str(tmp_path / "frames")
    ).config()
    rows = judge(make_records(tmp_path, 2), backend, config, tmp_path / "j.jsonl")
    assert [row.expectation.score and row.expectation.score[1:] for row in rows] == [(3, 30), (3, 30), None, (1, 10)]
    assert rows[2].expectation.reason == NOT_STRICT and rows[0].settings["expectation"] is True
    assert all(
        1 < row.expectation.score.value < 30 and 0 < row.expectation.mass < 1 for row in rows if row.verdict.score
    )
    assert [Judgment.from_json(json.loads(json.dumps(row.to_json()))) for row in rows] == rows
    points = points_of(rows)["r0"][1]
    assert points.expected == rows[0].expectation.score.share != points.share
    assert points.to_json()["expected"] == points.expected
    found = summarize_points(rows)["expectation"]
    assert found["unscored"] == 1 and found["candidates"] == 4 and found["pair_accuracy"]["total"] == 2


def test_expectations_order_pairs_that_say_the_same():
    def row(order, expected):
        verdict = parse_points("<answer>24/30</answer>", "Image", style="direct")
        expectation = Expectation(Score(expected, 3, 30), 1.0, (("", expected),))
        shared = {"record_id": "kite", "form": "pointwise", "completion": "", "preferred": 2, "task": ""}
        return Judgment(**shared, order=order, verdict=verdict, expectation=expectation)

    found = summarize_points([row("a", 22.0), row("b", 25.0)])
    assert found["pair_accuracy"]["value"] == 0.5 and found["equal_points"] == 1
    assert found["expectation"]["pair_accuracy"]["value"] == 1.0 and found["expectation"]["equal_points"] == 0


# --- a server: what top tokens tell, against a language whose every string has a known probability ---


def language(seed, alphabet="0123456789/.", sharp=4.0):
    """Next-character probabilities that depend on the two characters before."""

    def chances(before):
        coin = random.Random(f"{seed} {before[-2:]}")
        odds = [math.exp(sharp * coin.random() * (3 if letter in "/89" else 1)) for letter in alphabet]
        return dict(zip(alphabet, (odd / sum(odds) for odd in odds), strict=True))

    return chances


def spoken_by(chances, text, top=20):
    """What a server tells of a text of single characters."""
    found = []
    for at, letter in enumerate(text):
        ranked = sorted(chances(text[:at]).items(), key=lambda item: -item[1])[:top]
        found.append(Spoken(letter, {**dict(ranked), letter: chances(text[:at])[letter]}))
    return found


@given(st.integers(0, 200), st.sampled_from(DIGITS))
def test_top_tokens_leave_out_what_they_cannot_tell_and_no_more(seed, said):
    chances, place = language(seed), Place("", f"{said}/10", 0, len(said), len(said) + 3, DIGITS)
    found = masses_from_top(place, spoken_by(chances, place.text))
    for number, mass in zip(DIGITS, found.of_allowed, strict=True):
        whole = math.prod(chances(number[:i])[letter] for i, letter in enumerate(number)) * chances(number)["/"]
        begun = math.prod(chances(number[:i])[letter] for i, letter in enumerate(number))
        if number == said or (number, said) == ("1", "10"):
            assert mass == pytest.approx(whole, abs=1e-11)  # the written path is told to its end
        elif number in ("1", "10") and said != "1":
            assert mass == 0  # "1" could become either, so its mass is left out
        else:
            assert mass == pytest.approx(begun, abs=1e-11)  # how it would have ended is not told
    expected = 0.0 if said in ("1", "10") else chances("")["1"]
    assert found.left_out == pytest.approx(expected, abs=1e-9)


def test_tokens_of_several_characters_are_read_where_they_end():
    place = Place("Light", "Light: 8/10", 7, 8, 11, DIGITS)
    top = {" 8": 0.5, " 10": 0.3, " 9/": 0.1, " no": 0.06, " 1": 0.04}
    spoken = [
        Spoken("Light", {}),
        Spoken(":", {}),
        Spoken(" 8", top),
        Spoken("/", {"/": 0.8, "0": 0.2}),
        Spoken("10", {}),
    ]
    found = masses_from_top(place, spoken)
    assert dict(zip(DIGITS, found.of_allowed, strict=True)) == {
        **dict.fromkeys(DIGITS, 0.0),
        "8": 0.4,
        "9": 0.1,
        "10": 0.3,
    }
    assert found.left_out == pytest.approx(0.04)


def test_a_server_that_tells_too_little_gives_the_reason_in_place_of_a_value():
    text = "<answer>8/10</answer>"
    for logprobs, share in ((None, "100.0%"), ({"content": [told(text, {text: 1.0})]}, None)):
        body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}]})
        completion = read_reply(body, numbers=lambda said: number_places(said, style="direct"))
        found = expect(completion.numbers)
        if share:
            assert found.score is None and found.reason.startswith(f"{share} of the probability is not told")
        else:
            assert found.score is not None and found.score.value == 8
    pieces = [told("<answer>", {}), told("8", {"8": 0.7, "9": 0.28}), told("/10</answer>", {"/10</answer>": 1.0})]
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": pieces}}]}
    found = expect(read_reply(json.dumps(body), numbers=lambda said: number_places(said, style="direct")).numbers)
    assert found.reason == "2.0% of the probability is not told, 1% may be"
    pieces[1] = told("8", {"8": 0.7, "9": 0.295})
    found = expect(read_reply(json.dumps(body), numbers=lambda said: number_places(said, style="direct")).numbers)
    assert found.score.value == pytest.approx((8 * 0.7 + 9 * 0.295) / 0.995) and found.mass == pytest.approx(0.995)


def told(text, top):
    top = [{"token": token, "logprob": math.log(chance)} for token, chance in top.items()]
    own = next((each["logprob"] for each in top if each["token"] == text), 0.0)
    return {"token": text, "logprob": own, "top_logprobs": top}


def test_the_server_backend_asks_for_top_tokens_and_brings_what_they_tell():
    def respond(body, nth):
        pieces = [told("<answer>", {}), told("8", {"8": 0.7, "9": 0.3}), told("/10</answer>", {"/10</answer>": 1.0})]
        answer = json.loads(reply("<answer>8/10</answer>"))
        answer["choices"][0]["logprobs"] = {"content": pieces}
        return 200, {}, json.dumps(answer).encode()

    config = JudgingArguments(form="pointwise", style="direct", expectation=True).config()
    with serving(respond) as server:
        for numbers in (None, config.numbers):
            backend = make_backend(
                BackendArguments(backend="server", model="judge", server=[server.url]), numbers=numbers
            )
            ((answer,),) = backend.complete([prompt(images=1)], sampling=Sampling(), seeds=[[0]])
            asked = server.bodies[-1]
            assert (asked.get("logprobs"), asked.get("top_logprobs")) == ((True, 20) if numbers else (None, None))
            assert bool(answer.numbers) == bool(numbers)
    assert expect(answer.numbers).score == Score(pytest.approx(8.3), 1, 10)


# --- where it is asked for ---


def test_expectations_are_refused_where_nothing_tells_them(tmp_path):
    with pytest.raises(InputError, match="expectation: it is that of a score, so it needs form 'pointwise'"):
        JudgingArguments(expectation=True)
    config = JudgingArguments(form="pointwise", expectation=True).config()
    assert config.numbers is not None and JudgingArguments(form="pointwise").config().numbers is None
    with pytest.raises(BackendError, match="ScoresRed with red tells no probabilities; leave --expectation out"):
        judge([], ScoresRed(), config, tmp_path / "j.jsonl")
    with pytest.raises(BackendError, match="--backend replay tells no probabilities"):
        make_backend(BackendArguments(backend="replay", model="j.jsonl"), numbers=config.numbers)
