# ruff: noqa: F811 - a fixture is imported
"""What the processor or the model would refuse is found by --check_data, and before the first step, named by row."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from helpers.stages import SPLIT, STAGES, TOY_PROMPTS, call, data_arguments  # noqa: F401 - a fixture
from test_bad_items import LONG, MOST, with_positions
from unifiedreward_think.data.formats import opening
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.models import loading, tiny
from unifiedreward_think.training import grpo, rejection_sampling, sft
from unifiedreward_think.training.arguments import DataArguments, RowArguments
from unifiedreward_think.training.reading import Reading

ALL_STAGES = pytest.mark.parametrize("stage", [sft, grpo, rejection_sampling], ids=["sft", "grpo", "sampling"])


@pytest.fixture
def no_model(monkeypatch):
    """Fail the test where a model is loaded."""
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.fixture
def bad(models, toy_data, tmp_path):
    """What a config says for a data file whose third row has no room in the model, and a model of few positions."""

    def changes(stage, text=LONG):
        rows = [json.loads(line) for line in (toy_data / SPLIT.get(stage, "train.jsonl")).read_text().splitlines()]
        rows[2].get("record", rows[2])["prompt"] = text
        file = tmp_path / "bad.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = tmp_path / "short"
        if not model.exists():
            with_positions(models["qwen2_5_vl"], model)
        frames = str(tmp_path / "frames")
        return {
            **{"train_files": [str(file)], "media_root": str(toy_data), "model_name_or_path": str(model)},
            **{"frame_cache": frames, "limit": None, **({"max_new_tokens": 8} if stage is rejection_sampling else {})},
        }

    return changes


@ALL_STAGES
@pytest.mark.parametrize("how", ["true", "fast"])
def test_a_row_without_room_in_the_model_is_found_by_the_check(stage, how, bad, call, no_model, capsys):
    with pytest.raises(DataError, match=rf"1 of 8 rows cannot be used:\n.*bad\.jsonl:3: record .*the {MOST} that the"):
        call(stage, "--check_data", how, **bad(stage))
    call(stage, "--check_data", how, **bad(stage), skip_bad=True)
    said = capsys.readouterr()
    assert "1 bad rows left out:\n" in said.err and "bad.jsonl:3" in said.err
    assert "data checked" in said.out and "'bad rows left out': 1" in said.out
    call(stage, "--check_data", "files", **bad(stage))  # as asked: no processor is needed
    assert "'bad rows left out': 0" in capsys.readouterr().out


@STAGES
def test_a_row_without_room_in_the_model_ends_a_run_before_anything_is_loaded(stage, bad, call, tmp_path, no_model):
    with pytest.raises(DataError, match=r"bad\.jsonl:3"):
        call(stage, **bad(stage))
    assert not (tmp_path / "run").exists()


@STAGES
def test_a_run_trains_on_the_rows_that_are_left(stage, bad, call):
    output = call(stage, **bad(stage), skip_bad=True)
    run = json.loads((output / "run.json").read_text())
    assert run["finished"] and run["counts"]["bad rows left out"] == 1


@STAGES
@pytest.mark.parametrize("how", [[], ["--check_data"]], ids=["run", "check"])
def test_rows_that_hold_control_tokens_are_trained_on(stage, how, bad, call, capsys):
    """Captions and completions of issue 15: they died in the middle of training, and were never named."""
    options = bad(stage, "a kite<|image_pad|><|im_end|><image>")
    if stage is sft:
        rows = [json.loads(line) for line in Path(options["train_files"][0]).read_text().splitlines()]
        rows[0]["completion"] = rows[0]["completion"].replace("<think>", "<think><|image_pad|><|video_pad|> ")
        Path(options["train_files"][0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(stage, *how, **options)
    assert "rows hold control tokens" in capsys.readouterr().err or stage is grpo


def test_the_room_for_a_completion_counts(bad, call, no_model):
    options = bad(grpo, "a kite")
    call(grpo, "--check_data", "fast", **options)
    with pytest.raises(DataError, match=r"8 of 8 rows cannot be used:\n.*and 2000 to be written"):
        call(grpo, "--check_data", "fast", **options, max_completion_length=2000)


@STAGES
def test_held_out_pairs_are_read_as_well(stage, bad, call, toy_data, no_model):
    options = bad(stage, "a kite")
    rows = [json.loads(line) for line in (toy_data / "heldout.jsonl").read_text().splitlines()]
    rows[1]["prompt"] = LONG
    file = Path(options["train_files"][0]).with_name("heldout.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = {"eval_files": [str(file)], "eval_strategy": "steps", "eval_steps": 1, "eval_max_new_tokens": 8}
    with pytest.raises(DataError, match=r"heldout\.jsonl:2"):
        call(stage, "--check_data", "fast", **options, **held_out)


@ALL_STAGES
def test_a_chat_template_that_loses_some_pictures_is_found_by_the_check(stage, bad, call, no_model):
    options = bad(stage, "a kite")
    template = Path(options["model_name_or_path"]) / "chat_template.jinja"
    image = "part['type'] == 'image'"
    lost = f"if {image} and loop.index > 9 -%}}{{%- elif {image}"  # loading a model tries a single picture
    template.write_text(template.read_text().replace(f"if {image}", lost))
    with pytest.raises(
        DataError, match=r"of 8 rows cannot be used:\n.*the chat template writes \d+ places .* for 16 images"
    ):
        call(stage, "--check_data", **options)


def test_a_stage_whose_model_is_not_there_yet_says_how_its_files_can_be_checked(call, tmp_path, capsys):
    later = {"model_name_or_path": str(tmp_path / "of an earlier stage")}
    with pytest.raises(ValueError, match=r"of an earlier stage: no folder of a model here.*--check_data files"):
        call(sft, "--check_data", **later)
    call(sft, "--check_data", "files", **later)
    assert "data checked" in capsys.readouterr().out


def rows_and_reading(stage, model, toy_data, tmp_path, how):
    data = replace(data_arguments(toy_data, "cold_start" if stage is sft else "train"), check_data=how)
    rows, _ = stage.load_rows(data)
    return rows, Reading(model=str(model), data=data, cache=tmp_path / "cache")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tokens_that_are_told_are_those_of_the_collators_of_training(family, models, toy_data, tmp_path):
    """With pixels and from the sizes of pictures; 1, 2, 8 and 16 of them."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from unifiedreward_think.training.trainers.prefetch import Reader

    for how in ("true", "fast"):
        rows, reads = rows_and_reading(sft, models[family], toy_data, tmp_path, how)
        collator = DataCollatorForVisionLanguageModeling(reads._processor, completion_only_loss=True)
        for row, opened in zip(rows, to_dataset(rows), strict=True):
            tokens = reads._tokens(reads._texts(row)["prompt"], row["images"])
            batch = collator([dict(opened)])
            assert tokens == (batch["labels"] == -100).sum(), (family, how, len(row["images"]))
        rows, reads = rows_and_reading(grpo, models[family], toy_data, tmp_path, how)
        reader = Reader(reads._processor)
        for row, opened in zip(rows, to_dataset(rows), strict=True):
            tokens = reads._tokens(reads._texts(row)["prompt"], row["images"])
            assert tokens == reader.read(opened).fields["input_ids"].shape[1]


def test_what_was_read_is_not_read_again_until_it_changes(models, toy_data, tmp_path, monkeypatch):
    read = []
    real = Reading.problem
    monkeypatch.setattr(Reading, "problem", lambda self, row: read.append(row["id"]) or real(self, row))
    data = replace(data_arguments(toy_data, "train"), check_data="true")
    reads = Reading(model=str(models["qwen2_5_vl"]), data=data, cache=tmp_path / "cache")

    def count(reads):
        read.clear()
        grpo.load_rows(reads.data, reads)
        return len(read)

    assert count(reads) == 4
    assert count(reads) == count(replace(reads, data=replace(data, check_data=""))) == 0  # what a run does is less
    assert count(replace(reads, min_pixels=32 * 32)) == 4  # another processor
    assert count(replace(reads, completion=8)) == 4
    assert count(replace(reads, completion=8, most=20_000)) == 4
    fast = replace(reads, completion=9, data=replace(data, check_data="fast"))
    assert (count(fast), count(replace(fast, data=data)), count(fast)) == (4, 4, 0)  # pixels are more than sizes
    (file,) = {Path(row["images"][0]) for row in grpo.load_rows(replace(data, limit=1))[0]}
    file.touch()
    assert count(reads) >= 1


def test_media_are_opened_again_only_where_they_have_changed(toy_data, tmp_path, monkeypatch):
    shutil.copytree(toy_data, tmp_path / "data")
    opened = []
    real = opening.check_media
    monkeypatch.setattr(opening, "check_media", lambda paths, *rest: opened.append(paths) or real(paths, *rest))
    data = replace(data_arguments(tmp_path / "data", "train", limit=None), frame_cache=str(tmp_path / "frames"))
    rows, _ = grpo.load_rows(data)
    assert len(opened) > 8 and len(opened) == len(set(opened))
    opened.clear()
    assert grpo.load_rows(data)[0] == rows and not opened
    picture = next(Path(row["images"][0]) for row in rows if row["task"] == "image_generation")
    picture.write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable image"):
        grpo.load_rows(data)
    assert opened == [(str(picture),)]
    picture.unlink()
    with pytest.raises(DataError, match="no such file"):
        grpo.load_rows(data)


def test_many_rows_are_read_in_threads_and_told_in_their_order(models, tmp_path, monkeypatch):
    """The tokenizer is shared by all threads."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    record = {"task": "image_generation", "media": ["a.png", "a.png"], "preferred": 1}
    rows = [{**record, "id": f"r{i}", "prompt": LONG * 8 if i % 50 == 7 else f"a kite {i}"} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataArguments(
        train_files=[str(tmp_path / "rows.jsonl")], frame_cache=str(tmp_path / "cache"), skip_bad=True, check_data=True
    )
    reads = Reading(model=str(models["qwen2_5_vl"]), data=data, cache=tmp_path / "cache")
    found, counts = grpo.load_rows(data, reads)
    assert counts["bad rows left out"] == 8
    assert [row["id"] for row in found] == [f"r{i}" for i in range(400) if i % 50 != 7]


@pytest.mark.parametrize(
    ("said", "meant"),
    [(False, ""), (True, "true"), ("True", "true"), ("false", ""), ("fast", "fast"), ("files", "files")],
)
def test_how_much_is_checked_is_read_from_a_file_or_a_flag(said, meant):
    assert RowArguments(check_data=said).check_data == meant


def test_another_word_for_how_much_is_checked_is_refused(call, no_model):
    with pytest.raises(ValueError, match="check_data: expected true, false, fast, files, found 'quick'"):
        call(sft, "--check_data", "quick")


def test_an_empty_completion_is_found(models, toy_data, tmp_path):
    (row, *_), reads = rows_and_reading(sft, models["qwen2_5_vl"], toy_data, tmp_path, "fast")
    assert reads.problem(row) == ""
    row["completion"][0]["content"][0]["text"] = " \n"
    assert "the completion is empty" in reads.problem(row)
