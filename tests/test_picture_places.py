"""Marks of released rows: pictures go where the marks stand, and there are as many marks as pictures."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from helpers.data import row as source_row
from helpers.data import run_import
from unifiedreward_think.data.exporting import main as export_main
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_records, load_traces
from unifiedreward_think.data.importing import main as import_main
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.errors import RecordError
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.models.loading import load_processor
from unifiedreward_think.prompting import Media, build_parts
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.verdict import render


def read(folder, text, images=("a.png", "b.png"), noun="Image", key="images"):
    """Read one released row with the text `text`, both as GRPO and as SFT row; they must be the same record."""
    media = {key: list(map(str, images))}
    trace = render(1, [("Aesthetics", 9, 4)], noun=noun)
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": trace}]
    problem, conversation = folder / "rows.jsonl", folder / "rows.json"
    row = {"id": "kite-1", "source": "made up"}
    problem.write_text(json.dumps({**row, "problem": text, "solution": f"{noun} 1 is better", **media}))
    conversation.write_text(json.dumps([{**row, "conversations": turns, **media}]))
    (record,) = load_records([str(problem)]).rows
    assert load_traces([str(conversation)]).rows[0].record == record
    return record


def parts_of(record, order="ab"):
    """Return the parts of the prompt, media as the names of their files."""
    parts = build_parts(record, order=order, prompts={})
    return [[Path(path).name for path in part.paths] if isinstance(part, Media) else part for part in parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Image 1: <image>\nImage 2: <image>", ["Image 1: ", ["a.png"], "\nImage 2: ", ["b.png"]]),
        ("<image><image>Which fits?", [["a.png"], ["b.png"], "Which fits?"]),
        (" <image>\n<image>\nWhich fits?\n", [["a.png"], "\n", ["b.png"], "\nWhich fits?"]),
        ("Which fits? <image><image>", ["Which fits? ", ["a.png"], ["b.png"]]),
        ("First <image> or <image>?", ["First ", ["a.png"], " or ", ["b.png"], "?"]),
    ],
)
def test_pictures_stand_where_the_marks_are(text, parts, tmp_path):
    record = read(tmp_path, text)
    assert parts_of(record) == parts
    assert PreferenceRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_swapped_candidates_change_places_and_the_text_does_not(tmp_path):
    record = read(tmp_path, "Image 1: <image>\nImage 2: <image>")
    assert parts_of(record, "ba") == ["Image 1: ", ["b.png"], "\nImage 2: ", ["a.png"]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image><image><image><image> Which?", [["0", "1"], ["2", "3"], " Which?"]),  # a mark for each frame
        ("A: <image><image> B: <image><image>", ["A: ", ["0", "1"], " B: ", ["2", "3"]]),
        ("A: <video> B: <video>", ["A: ", ["0", "1"], " B: ", ["2", "3"]]),  # a mark for each video
        (
            "A: 0s <image> 1s <image> B: <image>, <image>",
            ["A: 0s ", ["0"], " 1s ", ["1"], " B: ", ["2"], ", ", ["3"]],
        ),
    ],
)
def test_frames_stand_where_the_marks_are(text, parts, tmp_path):
    assert parts_of(read(tmp_path, text, images="0123", noun="Video")) == parts


def test_one_mark_may_stand_for_a_clip(tmp_path):
    record = read(tmp_path, "<video>\nWhat jumps?", images=["dog.mp4"], noun="Answer", key="video")
    assert parts_of(record) == [["dog.mp4"], "\nWhat jumps?"]


@pytest.mark.parametrize(
    ("text", "images", "noun", "message"),
    [
        ("<image><image><image>Which?", ["a.png", "b.png"], "Image", "3 marks .* 2 pictures"),
        ("Which?", ["a.png", "b.png"], "Image", "0 marks .* 2 pictures"),
        ("<image>Which?", ["a.png", "b.png"], "Image", "1 mark .* 2 pictures"),
        ("<image>Which?", list("0123"), "Video", "1 mark .* 4 pictures"),
        ("<image><image><image>Which?", list("0123"), "Video", "3 marks .* 4 pictures"),
        ("Draw <image>: <image><image>", ["a.png", "b.png"], "Image", "3 marks .* 2 pictures"),
        ("Which answer?", ["a.png"], "Answer", "0 marks .* 1 picture"),
    ],
)
def test_another_number_of_marks_than_of_pictures_is_an_error_of_the_row(text, images, noun, message, tmp_path):
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: record 'kite-1': .*{message}"):
        read(tmp_path, text, images=images, noun=noun)


OWN = {
    "id": "kite-1",
    "task": "image_generation",
    "prompt": "a kite",
    "media": ["a.png", "b.png"],
    "preferred": 1,
    "instruction": "Which <image> fits?",
}


def own(folder, **changes):
    file = folder / "own.jsonl"
    file.write_text(json.dumps({**OWN, **changes}))
    return load_records([str(file)]).rows[0]


def test_a_mark_in_a_record_of_ours_is_text(tmp_path):
    assert parts_of(own(tmp_path)) == [["a.png"], ["b.png"], "Which < image> fits?"]


@pytest.mark.parametrize("places", [[1], [1, 2, 3], [2, 1], [0, 99], [-1, 3], [True, 3], ["1", 3], "12", [0.0, 1.0]])
def test_places_that_fit_no_pictures_are_an_error_of_the_row(places, tmp_path):
    with pytest.raises(DataError, match=r"own\.jsonl:1: record 'kite-1': .*places"):
        own(tmp_path, places=places)


def test_places_without_an_instruction_are_refused(tmp_path):
    with pytest.raises(DataError, match="places"):
        own(tmp_path, instruction="", places=[0, 0])


def test_frames_of_unequal_number_in_places_of_their_own_cannot_change_places(tmp_path):
    with pytest.raises(DataError, match="as many frames"):
        own(tmp_path, task="video_generation", media=[["0", "1", "2"], ["3"]], places=[0, 1, 2, 3])


def test_one_candidate_alone_is_refused_where_the_instruction_has_places_for_two(tmp_path):
    record = read(tmp_path, "Image 1: <image>\nImage 2: <image>")
    with pytest.raises(RecordError, match="places"):
        build_parts(record, order="a", prompts={})


def test_places_survive_import_and_come_back_from_an_export(tmp_path, capsys):
    texts = ["Image 1: <image>\nImage 2: <image>", "<image><image>Which?"]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    rows = [{"problem": text, "solution": "Image 1 is better", "images": ["a.png", "b.png"]} for text in texts]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = ["--source", "released", "--input", str(tmp_path / "rows.json"), "--output", str(tmp_path / "in")]
    import_main(arguments)
    stored = [row.record for _, _, row in read_stored([tmp_path / "in"])]
    assert [len(record.places) for record in stored] == [2, 2]
    export_main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--format", "released-grpo"])
    assert [row["problem"] for row in json.loads((tmp_path / "out" / "train_data.json").read_text())] == texts


def test_the_processor_of_every_family_gets_the_pictures_where_the_marks_are(models, tmp_path):
    record = read(tmp_path, "Image 1: <image>\nImage 2: <image>", images=[tmp_path / "a.png", tmp_path / "b.png"])
    for name, colour in (("a.png", "white"), ("b.png", "black")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    row = prompt_row(record, "ab", {}, FrameSampling(frames=2, cache=tmp_path / "cache"))
    for family, folder in models.items():
        processor = load_processor(str(folder))
        pictures = [Image.open(path) for path in row["images"]]
        text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        batch = processor(text=[text], images=pictures, return_tensors="pt")
        shown = processor.tokenizer.decode(batch["input_ids"][0])
        mark = re.escape(processor.tokenizer.decode([processor.image_token_id]))
        shown = re.sub(rf"(<\|vision_start\|>)?({mark})+(<\|vision_end\|>)?", "[picture]", shown)
        assert "Image 1: [picture]\nImage 2: [picture]" in shown, family
        white, black = batch["pixel_values"].flatten().chunk(2)
        assert white.mean() > black.mean(), family


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("<image>\n<image> What is it?\n<video>", "What is it?"),
        ("draw the tag <image> of HTML", "draw the tag <image> of HTML"),
        ("<image>\nwhat does <image> do?", "what does <image> do?"),
    ],
)
def test_in_a_caption_only_the_marks_around_it_are_marks(caption, prompt, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(source_row(prompt=caption)))
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    run_import(rows, tmp_path / "out")
    assert [row.record.prompt for _, _, row in read_stored([tmp_path / "out"])] == [prompt]
