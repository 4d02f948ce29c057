"""Every format is read, and every unusable row is found and named before any training starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from unifiedreward_think.data.formats.files import BadRow, DataError, format_bad_rows, report_left_out
from unifiedreward_think.data.formats.loading import (
    load_checked_records,
    load_checked_traces,
    load_records,
    load_traces,
    main,
)
from unifiedreward_think.errors import RecordError
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.toy.world import Scene, write_scene
from unifiedreward_think.training import sft
from unifiedreward_think.verdict import render

MISSING = object()


def draw(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * i, 90, 60)).save(folder / name)


def clip(folder: Path, stem: str) -> Path:
    return write_scene(Scene("red", "circle", motion="left"), seed=0, stem=folder / stem)


def write(file: Path, *rows: object) -> str:
    """Write rows as a JSON list or as JSONL, after the suffix; a str goes into a JSONL file as it is."""
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def record(name: str = "r1", **changes: object) -> dict:
    row = {"id": name, "task": "image_generation", "prompt": "a kite", "media": ["a.png", "b.png"], "preferred": 1}
    return {key: value for key, value in {**row, **changes}.items() if value is not MISSING}


def trace(row: dict, order: str = "ab") -> dict:
    return {"record": row, "order": order, "completion": completion(1 if order == "ab" else 2)}


def completion(winner: int = 1, noun: str = "Image") -> str:
    return render(winner, [("Aesthetics", 9 if winner == 1 else 4, 4 if winner == 1 else 9)], noun=noun)


def marks(changes: dict) -> str:
    """As many marks as the row has pictures."""
    media = {"images": ["a.png", "b.png"], **changes}
    files = next((media[k] for k in ("image", "video", "images") if isinstance(media.get(k), str | list)), [])
    return "<image>" * (1 if isinstance(files, str) else len(files))


def problem(noun: str = "Image", winner: int = 2, **changes: object) -> dict:
    row = {
        "problem": f"{marks(changes)}\nWhich fits? Text Caption: [a [red] kite]\nAnswer.",
        "solution": f"{noun} {winner} is better",
        "images": ["a.png", "b.png"],
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not MISSING}


def conversation(noun: str = "Image", winner: int = 2, **changes: object) -> dict:
    human = {"from": "human", "value": f"{marks(changes)}\nWhich fits?"}
    turns = [human, {"from": "gpt", "value": completion(winner, noun)}]
    row = {"conversations": turns, "images": ["a.png", "b.png"]}
    return {key: value for key, value in {**row, **changes}.items() if value is not MISSING}


@pytest.fixture
def sampling(tmp_path: Path) -> FrameSampling:
    return FrameSampling(frames=4, cache=tmp_path / "cache")


# --- what can be read ---


def test_records_and_the_records_of_traces_are_read_from_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", record("r1"), "", trace(record("r2", preferred="tie")))
    loaded = load_records([file])
    assert [(row.id, row.preferred) for row in loaded.rows] == [("r1", 1), ("r2", "tie")]
    assert loaded.bad == []
    assert [place.line for place in loaded.places] == [1, 3]


def test_records_are_read_from_a_list_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.JSON"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps([record("r1"), record("r2")]).encode())
    assert [row.id for row in load_records([str(file)]).rows] == ["r1", "r2"]


def test_media_start_at_the_data_file_or_at_the_media_root_and_absolute_paths_stay(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", record(media=["sub/a.png", "/else/b.png"]))
    monkeypatch.chdir(tmp_path)
    expected = ((f"{tmp_path}/sub/a.png",), ("/else/b.png",))
    assert load_records(["a.jsonl"]).rows[0].media == expected
    assert load_records(["a.jsonl"], media_root="root").rows[0].media[0] == (f"{tmp_path}/root/sub/a.png",)


def test_our_traces_come_back_equal_but_for_absolute_paths(tmp_path):
    made = Trace.from_json(trace(record(media=["/m/a.png", ["/m/b0.png", "/m/b1.png"]]), "ba"))
    assert load_traces([write(tmp_path / "t.jsonl", made.to_json())]).rows == [made]


def test_a_record_may_have_several_traces_but_none_twice(tmp_path):
    other = {**trace(record()), "completion": "<think>shorter</think>\n<answer>Image 1 is better</answer>"}
    file = write(tmp_path / "t.jsonl", trace(record()), trace(record(), "ba"), other)
    assert [row.order for row in load_traces([file]).rows] == ["ab", "ba", "ab"]
    with pytest.raises(
        DataError, match=r"t.jsonl:2: record 'r1': the same trace in order 'ab'.*first is at .*t.jsonl:1"
    ):
        load_traces([write(tmp_path / "t.jsonl", trace(record()), trace(record()))])


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_released_grpo_rows_become_records(tmp_path, suffix):
    file = write(tmp_path / f"grpo.{suffix}", problem(extra_column=0.5), problem(id=7, solution=" image 1 is better."))
    first, second = load_records([file]).rows
    assert first == PreferenceRecord(
        id="grpo-1",
        task="image_generation",
        prompt="a [red] kite",
        media=((str(tmp_path / "a.png"),), (str(tmp_path / "b.png"),)),
        preferred=2,
        source="grpo",
        instruction="\nWhich fits? Text Caption: [a [red] kite]\nAnswer.",
        places=(0, 0),
    )
    assert (second.id, second.preferred) == ("7", 1)


def test_released_sft_rows_become_traces_and_records(tmp_path):
    file = write(tmp_path / "sft.json", conversation(), conversation(winner=1, id="x"))
    first, second = load_traces([file]).rows
    assert (first.record.id, first.record.preferred, first.order) == ("sft-1", 2, "ab")
    assert first.completion == completion(2)
    assert (first.record.instruction, first.record.prompt) == ("\nWhich fits?", "Which fits?")
    assert (second.record.id, second.record.preferred) == ("x", 1)
    assert load_records([file]).rows == [first.record, second.record]


@pytest.mark.parametrize(
    ("noun", "media", "task", "entries"),
    [
        ("Image", {"images": ["a", "b"]}, "image_generation", [["a"], ["b"]]),
        ("Image", {"image": ["a", "b"]}, "image_generation", [["a"], ["b"]]),
        ("Video", {"images": ["a", "b", "c", "d"]}, "video_generation", [["a", "b"], ["c", "d"]]),
        ("Video", {"images": ["a", "b"]}, "video_generation", [["a"], ["b"]]),
        ("Video", {"video": ["a.mp4", "b.mp4"]}, "video_generation", [["a.mp4"], ["b.mp4"]]),
        ("Answer", {"image": "a"}, "image_understanding", [["a"]]),
        ("Answer", {"images": ["a"], "video": None}, "image_understanding", [["a"]]),
        ("Answer", {"images": ["a", "b"]}, "image_understanding", [["a"], ["b"]]),
        ("Answer", {"images": ["a", "b", "c"]}, "video_understanding", [["a", "b", "c"]]),
        ("Answer", {"video": "clip.mp4"}, "video_understanding", [["clip.mp4"]]),
    ],
)
def test_the_task_of_a_released_row_follows_from_noun_and_media(tmp_path, noun, media, task, entries):
    changes = {"images": MISSING, **media}
    records = [load_records([write(tmp_path / "p.jsonl", problem(noun, **changes))]).rows[0]]
    records += [row.record for row in load_traces([write(tmp_path / "s.json", conversation(noun, **changes))]).rows]
    for row in records:
        assert row.task == task
        assert [[Path(path).name for path in entry] for entry in row.media] == entries


def test_released_files_of_one_name_in_several_folders_give_distinct_ids(tmp_path):
    files = []
    for folder in ("HPD", "OIP"):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder / "train.json", problem()))
    assert [row.id for row in load_records(files).rows] == ["HPD/train-1", "OIP/train-1"]


def test_the_toy_data_set_loads_with_all_of_its_media(tmp_path, sampling):
    from unifiedreward_think.toy import dataset

    dataset.write(tmp_path, cold_start=4, train=4, heldout=4)
    assert len(load_checked_traces([str(tmp_path / "cold_start.jsonl")], sampling=sampling).rows) == 4
    assert len(load_checked_records([str(tmp_path / "train.jsonl")], sampling=sampling).rows) == 4


# --- what is refused ---


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"id": "r1", ', "not valid JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("null", "expected a JSON object, found NoneType"),
        ({}, "unknown shape with the keys none"),
        ({"id": "x", "chosen": "a.png"}, "unknown shape with the keys 'id', 'chosen'; expected a record (id, task"),
        (record(labl=1), "unknown key 'labl'; known: id, task"),
        (record(preferred=MISSING), 'preferred is missing; write 1, 2 or "tie"'),
        (record(preferred=None), 'preferred is missing; write 1, 2 or "tie"'),
        (record(preferred=3), 'preferred is 3; write 1, 2 or "tie"'),
        (record(preferred="1"), "preferred is '1'"),
        (record(preferred=1.0), "preferred is 1.0"),
        (record(preferred=True), "preferred is True"),
        (record(preferred=[1]), "preferred is [1]"),
        (record(preferred=float("nan")), "preferred is nan"),
        (record(prompt=float("nan")), "prompt must be a string, found nan"),
        (record(prompt=MISSING), "'prompt' is missing"),
        (record(task=MISSING), "'task' is missing"),
        (record(task="image"), "task 'image' is not one of"),
        (record(media=MISSING), "'media' is missing"),
        (record(media="a.png"), "media and answers must be lists"),
        (record(media=["a.png"]), "needs media of 2 candidates, found 1"),
        (record(media=["a.png", ""]), "an empty media path"),
        (record(media=["a.png", []]), "an empty media path"),
        (record(media=["a.png", 1]), "an empty media path"),
        (record(media=["a.png", [1]]), "media paths must be strings"),
        (record(media=["a.png", "https://x.org/b.png"]), "'https://x.org/b.png' is no path; save it"),
        (record(media=["a.png", "data:image/png;base64,AA"]), "is no path; save it"),
        (record(media=["a.png", "A" * 300]), "is no path; save it"),
        (record(media=["a.png", "/9j/4AAQ" * 1000]), "media '/9j/4AAQ"),
        (record(task="image_understanding", media=[]), "needs the media the question is about"),
        (record(task="image_understanding", media=["a.png"]), "needs 2 answers, found 0"),
        (record(prompt="cut \ud83d emoji"), r"a text holds '\ud83d', half of a character"),
        (record(id=""), "id is ''; every record needs"),
        (record(id=5), "id is 5; every record needs"),
        (problem(solution=MISSING), "solution is None; write 'Image|Video|Answer 1 is better'"),
        (problem(solution="Image 3 is better"), "solution is 'Image 3 is better'; write"),
        (problem(solution="Image 1 is better than Image 2"), "solution is 'Image 1 is better than Image 2'; write"),
        (problem(solution=float("nan")), "solution is nan; write"),
        (problem(problem=None), "the instruction must be a text that is not empty, found None"),
        (problem(problem="<image>\n"), "the instruction must be a text that is not empty"),
        (problem(id=[1]), "id is [1]; write a string"),
        (problem(id=True), "id is True; write a string"),
        (problem(images=MISSING), "needs exactly one of images, image, video; found none"),
        (problem(video="v.mp4"), "needs exactly one of images, image, video; found images and video"),
        (problem(images=[]), "images holds no path or an empty one"),
        (problem(images=["a.png", ""]), "images holds no path or an empty one"),
        (problem(images="a.png"), "images must be a list of paths, found 'a.png'"),
        (problem(images=["a.png", 2]), "images must be a list of paths, found ['a.png', 2]"),
        (problem(images=MISSING, image=float("nan")), "image must be a path, found nan"),
        (problem(images=["a.png"]), "so 2 images are needed; found 1"),
        (problem(images=["a.png", "b.png", "c.png"]), "so 2 images are needed; found 3"),
        (problem("Video", images=["a.png", "b.png", "c.png"]), "found an odd number (3)"),
        (problem("Video", images=MISSING, video="a.mp4"), "found an odd number (1)"),
    ],
)
def test_an_unusable_record_is_refused_with_its_line_and_reason(tmp_path, row, reason):
    file = write(tmp_path / "d.jsonl", record("good"), row)
    with pytest.raises(DataError) as error:
        load_records([file])
    message = str(error.value)
    assert message.startswith(f"1 of 2 rows cannot be used:\n{file}:2: ")
    assert reason in message
    assert message.endswith("fix these rows, or leave them out on purpose with skip_bad")
    skipped = load_records([file], skip_bad=True)
    assert [row.id for row in skipped.rows] == ["good"]
    assert [(bad.file, bad.line) for bad in skipped.bad] == [(file, 2)]
    assert reason in skipped.bad[0].reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record(), "no trace, found the keys 'id', 'task'"),
        (problem(), "no trace, found the keys 'problem', 'solution'"),
        (trace(record(media=[])), "needs media of 2 candidates, found 0"),
        ({"record": "r1", "completion": "x"}, "record"),
        ({"record": record(), "completion": " "}, "completion must be a non-empty string"),
        ({"record": record()}, "completion must be a non-empty string"),
        ({**trace(record()), "order": "12"}, "order is '12'; write letters of its candidates, as 'ba'"),
        ({**trace(record()), "order": "a"}, "order is 'a'; write 'ab' or 'ba'"),
        ({**trace(record()), "ordr": "ba"}, "unknown key 'ordr'; known: record, completion, order"),
        ({**trace(record()), "completion": "\udc00"}, r"a text holds '\udc00'"),
        (
            trace(record(task="image_understanding", media=["a.png"], instruction="A or B?"), "ba"),
            "order is 'ba', but the answers are inside",
        ),
        (conversation(conversations=None), "conversations must be a list"),
        (conversation(conversations=["hi"]), "conversations must be a list"),
        (conversation(conversations=[]), "must be one 'human' and one 'gpt' turn, found []"),
        (
            conversation(conversations=conversation()["conversations"][::-1]),
            "must be one 'human' and one 'gpt' turn, found ['gpt', 'human']",
        ),
        (
            conversation(conversations=[{"from": "human", "value": "hi"}, {"from": "gpt"}]),
            "the gpt turn must be a string, found None",
        ),
        (
            conversation(conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Image 1"}]),
            "the gpt turn must end with an <answer> block",
        ),
    ],
)
def test_an_unusable_trace_is_refused_with_its_item_and_reason(tmp_path, row, reason):
    file = write(tmp_path / "d.json", conversation(), row)
    with pytest.raises(DataError) as error:
        load_traces([file])
    assert f"{file}: item 2: " in str(error.value)
    assert reason in str(error.value)
    skipped = load_traces([file], skip_bad=True)
    assert (len(skipped.rows), [(bad.file, bad.line) for bad in skipped.bad]) == (1, [(file, 2)])


NO_TRACES = {
    "contradicts its label": ({"preferred": 2}, completion(1), "wrong winner"),
    "names a winner of a tie": ({"preferred": "tie"}, completion(1), "wrong winner"),
    "cut in the thinking": ({}, completion(1)[:40], "no readable answer"),
    "cut in the answer": ({}, completion(1)[:-3], "no readable answer"),
    "another noun": ({}, completion(1, "Video"), "no readable answer"),
    "no form": ({}, "The first picture is clearly sharper.", "no readable answer"),
    "an answer in the thinking": ({}, "<think><answer>Image 1 is better</answer>", "no readable answer"),
}


@pytest.mark.parametrize("kind", NO_TRACES)
def test_a_trace_that_would_teach_something_wrong_is_refused(kind, tmp_path):
    changes, text, reason = NO_TRACES[kind]
    row = {"record": record(**changes), "order": "ab", "completion": text}
    file = write(tmp_path / "t.jsonl", trace(record("good")), row)
    with pytest.raises(DataError, match=rf"t\.jsonl:2: record 'r1': .*{reason}"):
        load_traces([file])
    assert [row.record.id for row in load_traces([file], skip_bad=True).rows] == ["good"]
    assert len(load_records([file]).rows) == 2  # the record alone is sound


def test_a_trace_is_held_against_the_label_in_the_order_shown(tmp_path):
    swapped = {"record": record(preferred=2), "order": "ba", "completion": completion(1)}
    unlabelled = {"record": record("r2", preferred=None), "completion": completion(1)}
    assert len(load_traces([write(tmp_path / "t.jsonl", swapped, unlabelled)]).rows) == 2
    with pytest.raises(DataError, match="wrong winner"):
        load_traces([write(tmp_path / "t.jsonl", {**swapped, "order": "ab"})])


def test_the_check_of_a_stage_refuses_such_traces(tmp_path, monkeypatch):
    draw(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "t.jsonl", trace(record("good")), trace(record("bad", preferred=2)))
    config = Path(__file__).parents[1] / "configs" / "toy" / "cold_start.yaml"
    monkeypatch.setattr(sys, "argv", ["sft", "--config", str(config), "--train_files", file, "--check_data", "true"])
    with pytest.raises(DataError, match=r"record 'bad': .*wrong winner"):
        sft.main()


def test_unlabelled_records_pass_where_no_label_is_needed(tmp_path):
    file = write(tmp_path / "d.jsonl", record(preferred=None))
    assert load_records([file], need_label=False).rows[0].preferred is None


def test_a_duplicate_id_names_both_places_across_files(tmp_path):
    one = write(tmp_path / "one.jsonl", record("x"), record("y"))
    two = write(tmp_path / "two.json", record("z"), record("y"))
    with pytest.raises(DataError) as error:
        load_records([one, two])
    assert f"{two}: item 2: record 'y': duplicate id 'y'; the first is at {one}:2" in str(error.value)
    assert [row.id for row in load_records([one, two], skip_bad=True).rows] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.jsonl", None, "no such file"),
        ("gone.json", None, "no such file"),
        ("empty.jsonl", "", "holds no row"),
        ("blank.jsonl", "\n \n", "holds no row"),
        ("empty.json", "", "holds no row"),
        ("empty_list.json", "[]", "holds no row"),
        ("cut.json", '[{"id": 1}', "not valid JSON"),
        ("lines.json", '{"id": "a"}\n{"id": "b"}\n', "name it .jsonl if each line is an object"),
        ("object.json", '{"id": "a"}', "expected a JSON list of rows, found dict"),
        ("table.csv", "id,task", "unknown kind of file '.csv'; expected .json (list) or .jsonl (lines)"),
    ],
)
def test_a_file_that_is_no_data_file_is_an_error_even_when_bad_rows_are_skipped(tmp_path, name, content, reason):
    good = write(tmp_path / "good.jsonl", record())
    if content is not None:
        (tmp_path / name).write_text(content)
    for skip_bad in (False, True):
        with pytest.raises(DataError) as error:
            load_records([good, str(tmp_path / name)], skip_bad=skip_bad)
        assert str(error.value).startswith(str(tmp_path / name))
        assert reason in str(error.value)


def test_a_folder_and_an_empty_list_of_files_are_errors(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="no such file"):
        load_records([str(tmp_path / "folder.json")])
    with pytest.raises(DataError, match="no data file is given"):
        load_records([])


def test_a_line_that_is_not_utf8_is_a_bad_row_and_the_others_are_read(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"id": "\xff"}\n' + json.dumps(record()).encode())
    loaded = load_records([str(file)], skip_bad=True)
    assert (len(loaded.rows), loaded.bad[0].line, loaded.bad[0].record_id) == (1, 1, "")


def test_all_bad_rows_of_all_files_are_counted_and_the_first_twenty_listed(tmp_path):
    one = write(tmp_path / "one.jsonl", *(record(f"a{i}", preferred=7) for i in range(15)), record("good"))
    two = write(tmp_path / "two.jsonl", *(record(f"b{i}", preferred=7) for i in range(10)))
    with pytest.raises(DataError) as error:
        load_records([one, two])
    lines = str(error.value).splitlines()
    assert lines[0] == "25 of 26 rows cannot be used:"
    assert lines[1] == f"{one}:1: record 'a0': preferred is 7; write 1, 2 or \"tie\""
    assert lines[20].startswith(f"{two}:5: record 'b4'")
    assert lines[21] == "... and 5 more"
    assert len(lines) == 23


def test_nothing_is_skipped_in_silence(tmp_path):
    rows = [
        record("a"),
        "{",
        record("b", preferred=0),
        record("a"),
        problem(),
        5,
        trace(record("c")),
        problem(images=[]),
    ]
    file = write(tmp_path / "d.jsonl", *(row if isinstance(row, str) else json.dumps(row) for row in rows))
    loaded = load_records([file], skip_bad=True)
    assert sorted([place.line for place in loaded.places] + [bad.line for bad in loaded.bad]) == list(range(1, 9))
    assert [row.id for row in loaded.rows] == ["a", "d-5", "c"]
    assert [bad.line for bad in loaded.bad] == [2, 3, 4, 6, 8]


def test_files_without_a_single_usable_row_are_an_error_even_when_bad_rows_are_skipped(tmp_path):
    file = write(tmp_path / "d.jsonl", record(preferred=7))
    with pytest.raises(DataError, match=r"no usable row is left:\n.*preferred is 7"):
        load_records([file], skip_bad=True)


def test_a_bad_row_is_one_short_line_and_keeps_its_parts_as_json(tmp_path):
    file = write(tmp_path / "d.jsonl", record("ok"), record("long", preferred="x" * 10_000))
    (bad,) = load_records([file], skip_bad=True).bad
    assert len(format_bad_rows([bad])) < 700


# --- media ---


def test_missing_and_unreadable_media_are_named_with_their_row(tmp_path, sampling):
    draw(tmp_path, "a.png", "b.png")
    Image.effect_noise((32, 32), 60).save(tmp_path / "noise.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:600])
    (tmp_path / "text.png").write_text("no image")
    whole = clip(tmp_path, "whole").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "frames").mkdir()
    pairs = {
        "gone.png": "gone.png: no such file",
        "cut.png": "cut.png: not a readable image",
        "text.png": "text.png: not a readable image",
        "gone.mp4": "gone.mp4: no such file",
        "cut.mp4": "cut.mp4: FFmpeg cannot read this video",
        "text.mp4": "text.mp4: FFmpeg cannot read this video",
        "frames": "frames: a folder without image files",
    }
    rows = [record("good")]
    for name in pairs:
        video = {"task": "video_generation", "media": ["whole.mp4", name]}
        rows.append(record(name, **(video if "png" not in name else {"media": ["a.png", name]})))
    file = write(tmp_path / "d.jsonl", *rows)
    with pytest.raises(DataError, match="7 of 8 rows cannot be used"):
        load_checked_records([file], sampling=sampling)
    loaded = load_checked_records([file], sampling=sampling, skip_bad=True)
    assert [row.id for row in loaded.rows] == ["good"]
    assert [place.line for place in loaded.places] == [1]
    assert [(bad.record_id, bad.line) for bad in loaded.bad] == [(name, i) for i, name in enumerate(pairs, start=2)]
    for bad, reason in zip(loaded.bad, pairs.values(), strict=True):
        assert reason in bad.reason


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_clips_folders_of_frames_and_lists_of_frames_are_checked_as_videos(tmp_path, decoder):
    draw(tmp_path, *(f"frames/{i}.png" for i in range(6)))
    clip(tmp_path, "clip")
    frames = [f"frames/{i}.png" for i in range(6)]
    rows = [
        problem("Answer", images=MISSING, video="clip.mp4"),
        problem("Answer", images=MISSING, video="frames"),
        problem("Answer", images=frames),
        problem("Video", images=frames),
    ]
    sampling = FrameSampling(frames=3, cache=tmp_path / "cache", decoder=decoder)
    loaded = load_checked_records([write(tmp_path / "d.json", *rows)], sampling=sampling)
    assert len(loaded.rows) == 4
    assert len(list((tmp_path / "cache").glob("*/*.png"))) == 3


def test_every_media_entry_is_opened_once_however_many_rows_share_it(tmp_path, sampling, monkeypatch):
    opened = []
    monkeypatch.setattr("unifiedreward_think.data.formats.opening.check_media", lambda *args: opened.append(args[0]))
    file = write(tmp_path / "d.jsonl", *(record(f"r{i}") for i in range(5)))
    assert len(load_checked_records([file], sampling=sampling).rows) == 5
    assert sorted(Path(entry[0]).name for entry in opened) == ["a.png", "b.png"]


def test_a_record_with_two_unusable_files_is_one_bad_row(tmp_path, sampling):
    draw(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "d.jsonl", record("r1", media=["x.png", "y.png"]), record("r2"))
    loaded = load_checked_records([file], sampling=sampling, skip_bad=True)
    (bad,) = loaded.bad
    assert (bad.file, bad.line, bad.record_id) == (file, 1, "r1") and [row.id for row in loaded.rows] == ["r2"]
    assert "x.png" in bad.reason
    assert "y.png" in bad.reason


def test_traces_with_a_missing_picture_are_refused_or_left_out(tmp_path, sampling):
    draw(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "s.json", conversation(), conversation(images=["a.png", "gone.png"]))
    with pytest.raises(DataError, match=r"s.json: item 2: record 's-2': .*gone.png: no such file"):
        load_checked_traces([file], sampling=sampling)
    loaded = load_checked_traces([file], sampling=sampling, skip_bad=True)
    assert (len(loaded.rows), len(loaded.bad)) == (1, 1)


# --- any input at all ---

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["ab", "ba", "tie", "a.png", "human", "gpt", "Image 1 is better", completion(), *("\ud800", "\0")]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["from", "value", "id"]), inner),
    max_leaves=6,
)
KEYS = [
    *record(),
    *problem(),
    *conversation(),
    *trace({}),
    "answers",
    "instruction",
    "image",
    "video",
    "source",
    "group",
]


@given(
    start=st.sampled_from([{}, record(), problem("Video"), conversation("Answer"), trace(record())]),
    changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), VALUES, max_size=3),
    inner=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
)
@example(start=record(), changes={"media": ["\0", "b.png"]}, inner={})
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_object_raises_anything_but_a_data_error(tmp_path, start, changes, inner):
    row = {**start, **changes}
    if isinstance(row.get("record"), dict):
        row["record"] = {**row["record"], **inner}
    file = write(tmp_path / "any.jsonl", row)
    sampling = FrameSampling(frames=2, cache=tmp_path / "cache")
    for load in (load_checked_records, load_checked_traces):
        try:
            loaded = load([file], sampling=sampling)
        except (DataError, RecordError) as error:
            str(error).encode()
            assert str(error)
        else:
            assert len(loaded.rows) == 1


@given(line=st.binary(max_size=30).filter(lambda line: line.strip() and b"\n" not in line))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_of_bytes_raises_anything_but_a_data_error(tmp_path, line):
    (tmp_path / "any.jsonl").write_bytes(line)
    (tmp_path / "any.json").write_bytes(b"[" + line)
    for name in ("any.jsonl", "any.json"):
        with pytest.raises(DataError):
            load_records([str(tmp_path / name)])


# --- the command ---


def test_the_checker_counts_by_task_and_label(tmp_path, capsys):
    draw(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "d.jsonl", record("r1"), record("r2", preferred="tie"), problem("Answer"))
    assert main([file]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["task", "1", "2", "tie", "None", "total"],
        ["image_generation", "1", "0", "1", "0", "2"],
        ["image_understanding", "0", "1", "0", "0", "1"],
    ]
    assert main([write(tmp_path / "t.jsonl", trace(record())), "--kind", "traces"]) == 0


def test_the_checker_fails_with_the_bad_rows_and_still_counts_the_others(tmp_path, capsys):
    draw(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "d.jsonl", record("r1"), record("r2", media=["a.png", "gone.png"]), "{")
    assert main([file]) == 1
    said = capsys.readouterr()
    assert "image_generation" in said.out
    assert said.err.startswith("2 rows cannot be used:\n")
    assert f"{file}:2: record 'r2': {tmp_path}/gone.png: no such file" in said.err
    assert main([str(tmp_path / "gone.jsonl")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_the_help_of_the_checker_loads_nothing_heavy():
    code = (
        "import sys\nfrom unifiedreward_think.data.formats.loading import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'PIL', 'decord', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--media-root" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_of_many_bad_rows_the_first_twenty_are_named_and_all_are_counted(capsys):
    report_left_out([BadRow("pairs.jsonl", line, "", "broken") for line in range(1, 26)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "25 bad rows left out:" and len(lines) == 22 and lines[-1] == "... and 5 more"
