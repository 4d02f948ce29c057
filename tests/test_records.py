"""Records, traces and judgments: round trips, errors that name the record, the order shown."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifiedreward_think.data.rows import shown_orders
from unifiedreward_think.errors import RecordError
from unifiedreward_think.order import ORDERS, as_stored
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace, digest
from unifiedreward_think.scores import Dimension
from unifiedreward_think.strict_json import json_lines, read_json_lines
from unifiedreward_think.tasks import TASK_NAMES, TASKS
from unifiedreward_think.verdict import Verdict

KITE = PreferenceRecord(
    id="kite-1", task="image_generation", prompt="a red kite", media=(("a.png",), ("b.png",)), preferred=2
)
QUESTION = PreferenceRecord(
    id="q-1",
    task="video_understanding",
    prompt="Which way?",
    media=(("1.png", "2.png"),),
    answers=("left", "right"),
    preferred=1,
)
READY = replace(QUESTION, id="r-1", answers=(), instruction="Answer 1: left. Answer 2: right. Which is better?")

TEXT = st.text(max_size=20)
WORD = st.text(min_size=1, max_size=20)
MEDIUM = st.lists(WORD, min_size=1, max_size=4).map(tuple)


@st.composite
def records(draw):
    task = draw(st.sampled_from(TASK_NAMES))
    generation = TASKS[task].compares_media
    instruction = draw(TEXT)
    return PreferenceRecord(
        id=draw(WORD),
        task=task,
        prompt=draw(TEXT),
        media=tuple(draw(st.lists(MEDIUM, min_size=2 if generation else 1, max_size=2))),
        answers=() if generation or (instruction and draw(st.booleans())) else (draw(TEXT), draw(TEXT)),
        preferred=draw(st.sampled_from([1, 2, "tie", None])),
        source=draw(TEXT),
        group=draw(TEXT),
        instruction=instruction,
    )


POINTS = st.floats(0, 10)
VERDICTS = st.builds(
    Verdict,
    winner=st.sampled_from([1, 2, None]),
    strict=st.booleans(),
    dimensions=st.lists(st.builds(Dimension, TEXT, st.tuples(POINTS, POINTS)), max_size=3).map(tuple),
    totals=st.none() | st.tuples(POINTS, POINTS),
    problems=st.lists(TEXT, max_size=3).map(tuple),
)
JUDGMENTS = st.builds(
    Judgment,
    record_id=WORD,
    order=st.sampled_from(ORDERS),
    sample=st.integers(0, 7),
    completion=st.none() | TEXT,
    finish_reason=st.sampled_from(["stop", "length"]),
    verdict=VERDICTS,
    preferred=st.sampled_from([1, 2, "tie", None]),
    task=st.sampled_from(TASK_NAMES),
    source=TEXT,
    group=TEXT,
    model=TEXT,
    settings=st.dictionaries(TEXT, st.integers() | st.floats(allow_nan=False) | TEXT, max_size=3),
    decoder=TEXT,
    seconds=st.floats(0, 1e6),
    error=TEXT,
)


def through_json(value):
    return json.loads(json.dumps(value))


@settings(deadline=None)
@given(records())
def test_a_record_survives_json(record):
    assert PreferenceRecord.from_json(record.to_json()) == record
    assert PreferenceRecord.from_json(through_json(record.to_json())) == record


@settings(deadline=None)
@given(records(), st.sampled_from(ORDERS), WORD.filter(str.strip))
def test_a_trace_survives_json(record, order, completion):
    trace = Trace(record=record, order=order, completion=completion)
    assert Trace.from_json(through_json(trace.to_json())) == trace


@settings(deadline=None)
@given(JUDGMENTS)
def test_a_judgment_survives_json(judgment):
    assert Judgment.from_json(through_json(judgment.to_json())) == judgment


def test_json_stays_short():
    assert KITE.to_json() == {
        "id": "kite-1",
        "task": "image_generation",
        "prompt": "a red kite",
        "media": ["a.png", "b.png"],
        "preferred": 2,
    }
    assert QUESTION.to_json()["media"] == [["1.png", "2.png"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "music_generation"}, ["music_generation", "image_generation", "video_understanding"]),
        ({"task": 3}, ["task must be a string"]),
        ({"prompt": None}, ["prompt must be a string"]),
        ({"source": 1}, ["source must be a string"]),
        ({"media": ["a.png"]}, ["needs media of 2 candidates, found 1"]),
        ({"media": ["a.png", "b.png", "c.png"]}, ["needs media of 2 candidates, found 3"]),
        ({"media": "a.png"}, ["media and answers must be lists"]),
        ({"media": None}, ["media and answers must be lists"]),
        ({"media": ["a.png", ""]}, ["empty media path", "name a file"]),
        ({"media": ["a.png", []]}, ["empty media path", "name a file"]),
        ({"media": ["a.png", {"path": "b.png"}]}, ["empty media path", "name a file"]),
        ({"media": ["a.png", ["b.png", ""]]}, ["empty media path", "name a file"]),
        ({"media": ["a.png", [3]]}, ["media paths must be strings"]),
        ({"task": "image_understanding", "media": []}, ["needs the media the question is about, found none"]),
        ({"task": "image_understanding", "media": ["a.png"]}, ["needs 2 answers, found 0"]),
        ({"task": "image_understanding", "media": ["a.png"], "answers": ["x"]}, ["needs 2 answers, found 1"]),
        ({"answers": [1, 2]}, ["answers must be strings"]),
        ({"answers": "yes"}, ["media and answers must be lists"]),
        ({"preferred": 3}, ["preferred is 3", 'write 1, 2 or "tie"']),
        ({"preferred": 0}, ["preferred is 0", 'write 1, 2 or "tie"']),
        ({"preferred": "1"}, ["preferred is '1'", 'write 1, 2 or "tie"']),
        ({"preferred": True}, ["preferred is True", 'write 1, 2 or "tie"']),
        ({"preferred": 1.0}, ["preferred is 1.0", 'write 1, 2 or "tie"']),
        ({"preferred": [1]}, ["preferred is [1]", 'write 1, 2 or "tie"']),
        ({"preferd": 1}, ["unknown key 'preferd'", "known: id, task, prompt"]),
    ],
)
def test_a_broken_record_is_refused_by_name_with_the_mend(change, words):
    with pytest.raises(RecordError) as caught:
        PreferenceRecord.from_json({**KITE.to_json(), **change})
    for word in ["record 'kite-1'", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["task", "prompt", "media"])
def test_a_missing_key_is_named(key):
    row = KITE.to_json()
    del row[key]
    with pytest.raises(RecordError, match=rf"record 'kite-1': '{key}' is missing; add it"):
        PreferenceRecord.from_json(row)


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_record_needs_an_id(name):
    with pytest.raises(RecordError, match="every record needs a non-empty string id"):
        PreferenceRecord.from_json({**KITE.to_json(), "id": name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": None}, "record 'kite-1': completion must be a non-empty string"),
        ({"completion": " \n"}, "record 'kite-1': completion must be a non-empty string"),
        ({"order": "AB"}, "record 'kite-1': order is 'AB'; write letters of its candidates, as 'ba'"),
        ({"order": None}, "record 'kite-1': order is None; write letters of its candidates, as 'ba'"),
        ({"record": None}, "a trace holds its record as an object under 'record', found None"),
        ({"record": {**KITE.to_json(), "preferred": 5}}, "record 'kite-1': preferred is 5"),
    ],
)
def test_a_broken_trace_is_refused_by_name_with_the_mend(change, message):
    row = {"record": KITE.to_json(), "order": "ab", "completion": "<think>"}
    with pytest.raises(RecordError) as caught:
        Trace.from_json({**row, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize("change", [{"verdict": None}, {"verdict": {}}, {"colour": "red"}])
def test_a_broken_judgment_is_refused_by_name_with_the_mend(change):
    row = Judgment(record_id="kite-1", order="ab", completion="", verdict=Verdict(None, False), task="x").to_json()
    with pytest.raises(RecordError, match=r"record 'kite-1': not a judgment .*judge again"):
        Judgment.from_json({**row, **change})


def test_the_preferred_candidate_moves_with_the_order():
    assert [KITE.shown(order).winner for order in ORDERS] == [2, 1]
    assert [replace(KITE, preferred=1).shown(order).winner for order in ORDERS] == [1, 2]
    for label in ("tie", None):
        assert [replace(KITE, preferred=label).shown(order).winner for order in ORDERS] == [None, None]


@pytest.mark.parametrize(
    ("order", "winner", "preferred", "candidate", "correct"),
    [
        ("ab", 1, 1, 1, True),
        ("ab", 2, 1, 2, False),
        ("ba", 1, 1, 2, False),
        ("ba", 2, 1, 1, True),
        ("ba", 1, 2, 2, True),
        ("ab", None, 1, None, False),
        ("ba", None, 2, None, False),
        ("ba", 1, "tie", 2, None),
        ("ab", 1, None, 1, None),
        ("ab", None, "tie", None, None),
    ],
)
def test_a_judgment_is_scored_in_the_order_of_the_record(order, winner, preferred, candidate, correct):
    judgment = Judgment(
        record_id="kite-1",
        order=order,
        completion="",
        verdict=Verdict(winner, False),
        preferred=preferred,
        task=KITE.task,
    )
    assert (judgment.choice, judgment.correct) == (candidate, correct)


def order_shown(record, seed):
    (order,) = shown_orders(record, "one", seed)
    return order


def test_the_order_shown_never_changes():
    # Golden values: another order would make every stored judgment and every published number a different run.
    shown = [
        "".join(shown_orders(replace(KITE, id=f"row-{i}"), "one", seed)[0][0] for i in range(24)) for seed in (0, 1)
    ]
    assert shown == ["aabaaabbaaaaaabbaababaab", "aaaaabbbaababababbababaa"]
    assert digest("order", 0, "row-0") == 4372484832554715578


def test_half_of_the_rows_are_shown_in_either_order():
    for seed in range(5):
        swapped = sum(order_shown(replace(KITE, id=f"row-{i}"), seed) == "ba" for i in range(1000))
        assert 450 < swapped < 550


def test_a_ready_made_instruction_with_its_answers_inside_is_never_swapped():
    assert not READY.swappable and replace(KITE, instruction="Which image?").swappable
    assert {order_shown(replace(READY, id=f"row-{i}"), 0) for i in range(50)} == {"ab"}


def test_a_digest_tells_its_parts_apart():
    assert len({digest("a", "b"), digest("ab"), digest("a", "b", ""), digest('a", "b'), digest("b", "a")}) == 5
    assert 0 <= digest() < 2**64


def test_json_lines_are_numbered_and_blank_ones_skipped(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xe7\x8c\xab"}\r\n\n  \n{"a": 2}')
    assert list(read_json_lines(file)) == [(1, {"a": "\u732b"}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "half', "not valid JSON"),
        (b'{"id": "latin \xe9"}', "not valid JSON"),
        (b"\x00\x00\x00\x00", "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b'"text"', "expected a JSON object, found str"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, words):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": "fine"}\n' + line + b"\n")
    rows = read_json_lines(file)
    assert next(rows) == (1, {"id": "fine"})
    with pytest.raises(RecordError) as caught:
        next(rows)
    assert f"{file}:2: " in str(caught.value) and words in str(caught.value)


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("name", "row"), [("records", PreferenceRecord), ("traces", Trace), ("judgments", Judgment)])
def test_files_of_version_0_1_are_read_and_written_under_the_names_of_today(name, row):
    text = (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8")
    today = text.replace('"sampling": {', '"settings": {')
    for source in (text, today):
        written = json_lines(row.from_json(json.loads(line)) for line in source.splitlines())
        assert re.sub(r', "sum": "\w{8}"', "", written) == today  # which judgments have had since
        assert json_lines(row.from_json(json.loads(line)) for line in written.splitlines()) == written


THREE = PreferenceRecord(
    id="k1",
    task="image_generation",
    prompt="a kite",
    media=(("a.png",), ("b.png",), ("c/1.png", "c/2.png")),
    ranks=(2, 1, 2),
    scores=(3.5, 4.7, None),
    scale=(1, 5),
)


def test_candidates_of_any_number_are_written_as_such_and_read_again():
    row = THREE.to_json()
    assert row["candidates"] == [{"media": "a.png"}, {"media": "b.png"}, {"media": ["c/1.png", "c/2.png"]}]
    assert "media" not in row and row["preferred"] == 2
    assert PreferenceRecord.from_json(json.loads(json.dumps(row))) == THREE
    question = {"id": "q", "task": "image_understanding", "prompt": "What?", "context": ["a.png"]}
    texts = [{"text": "A cat."}, {"text": "A dog."}, {"text": "A fox."}]
    for count in (1, 2, 3):
        record = PreferenceRecord.from_json({**question, "candidates": texts[:count]})
        assert record.count == count and record.media == (("a.png",),)
        assert PreferenceRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferred": 1}, "preferred is 1, but the ranks say 2"),
        ({"ranks": (1, 2, 3)}, "the ranks say 1, the scores 2"),
        ({"ranks": (2, 1)}, "2 ranks for 3 candidates"),
        ({"scores": (3.5, 9, 2)}, "score 9 lies outside its scale 1 to 5"),
        ({"preferred": 4}, 'write 1, 2, 3 or "tie"'),
        ({"ranks": (0, 1, 2)}, "whole numbers from 1"),
    ],
)
def test_labels_that_contradict_each_other_name_the_record(change, message):
    whole = {"scores": (3.5, 4.7, 2.0)} if "ranks" in change else {}
    with pytest.raises(RecordError, match=re.escape(message)) as error:
        replace(THREE, **{"preferred": None, **whole, **change})
    assert "record 'k1'" in str(error.value)


@given(st.permutations([1, 2, 3, 4]), st.permutations("abcd").map("".join))
def test_the_label_follows_the_candidates_wherever_they_are_shown(ranks, order):
    record = PreferenceRecord(
        id="k",
        task="image_generation",
        prompt="",
        media=tuple((f"{k}.png",) for k in ranks),
        ranks=tuple(ranks),
        scores=tuple(10.0 - rank for rank in ranks),
    )
    shown = record.shown(order)
    assert [entry[0] for entry in shown.media] == [f"{rank}.png" for rank in shown.ranks]
    assert shown.media[shown.winner - 1] == ("1.png",) and as_stored(shown.media, order) == record.media
    back = "".join("abcd"[order.index(letter)] for letter in "abcd")
    assert shown.shown(back) == record
    alone = record.shown(order[0])
    assert (alone.count, alone.preferred, alone.ranks) == (1, None, ()) and len(alone.scores) == 1


@pytest.mark.parametrize("scores", [[[]], ["Light"], [3], None])
def test_a_judgment_with_broken_scores_names_its_record(scores):
    row = json.loads((GOLDEN / "judgments.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row["verdict"]["scores"] = scores
    with pytest.raises(RecordError, match="record 'kite-1': not a judgment"):
        Judgment.from_json(row)
