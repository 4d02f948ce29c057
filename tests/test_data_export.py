"""What is exported is what other tools read by their documented rules, and what the importer reads back."""

import json
from functools import partial
from pathlib import Path

import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset

from helpers import data_sources
from helpers.data import NO_MAP, imported
from unifiedreward_think.data import export_files
from unifiedreward_think.data.exporting import main
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_checked_records, load_traces
from unifiedreward_think.data.importing import Input, import_source
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.data.sources.declaration import load_source
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.tasks import TASKS

# The four tasks, videos as frames and as folders, traces, and ties.
NAMES = ("hpdv2_train", "unifiedreward_v1_videos", "llava_critic", "sharegptvideo_dpo", "imagegen_cot_reward_5k")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Folders of imported records by source."""
    root = tmp_path_factory.mktemp("records")
    for name in NAMES:
        imported(name, root / name)
    return {name: root / name / "out" for name in NAMES}


def exported(folder, form, output, *options):
    main(["--input", str(folder), "--format", form, "--output", str(output), "--frames", "3", *options])
    return json.loads((output / "manifest.json").read_text())["counts"]


def decided(folder):
    return [row.record for _, _, row in read_stored([folder]) if row.record.preferred in (1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_llama_factory_finds_a_placeholder_for_every_picture_and_turns_in_order(name, records, tmp_path, capsys):
    style = "cot" if name == "imagegen_cot_reward_5k" else "direct"
    exported(records[name], "llamafactory", tmp_path, "--style", style)
    info = json.loads((tmp_path / "dataset_info.json").read_text())["unifiedreward_think"]
    rows = json.loads((tmp_path / info["file_name"]).read_text())
    assert len(rows) == len(decided(records[name]))
    tags, columns = info["tags"], info["columns"]
    for row in rows:
        turns = row[columns["messages"]]
        # data/README.md of LLaMA-Factory: human turns at odd places, gpt turns at even ones, one <image> a picture.
        assert [turn[tags["role_tag"]] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]]
        assert sum(turn[tags["content_tag"]].count("<image>") for turn in turns) == len(row[columns["images"]])
        assert all(Path(path).is_file() for path in row[columns["images"]])


@pytest.mark.parametrize("name", NAMES)
def test_easyr1_splits_the_problem_at_the_pictures_it_holds(name, records, tmp_path, capsys):
    exported(records[name], "easyr1", tmp_path)
    folder = tmp_path / "train"
    assert {file.suffix for file in folder.iterdir()} == {".parquet"}  # it takes the kind of file from the first name
    rows = load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows.column_names) == {"problem", "answer", "images"}
    assert len(rows) == len(decided(records[name]))
    raw = rows.cast_column("images", [ImageFeature(decode=False)])
    for row, stored in zip(rows, raw, strict=True):
        assert row["problem"].count("<image>") == len(row["images"])
        assert all(image["bytes"] for image in stored["images"])
        assert row["answer"] in {f"{noun} {k} is better" for noun in ("Image", "Video", "Answer") for k in (1, 2)}


@pytest.mark.parametrize("name", NAMES)
def test_the_released_grpo_format_comes_back_as_the_same_pairs(name, records, tmp_path, capsys):
    exported(records[name], "released-grpo", tmp_path / "out")
    entry = Input(str(tmp_path / "out" / "train_data.json"), Path("/"))
    import_source(load_source("released"), [entry], tmp_path / "back", NO_MAP)
    before, after = decided(records[name]), decided(tmp_path / "back")
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        kept = old.preferred == new.preferred
        assert new.task == old.task
        if TASKS[old.task].compares_media:
            assert (new.media if kept else new.media[::-1]) == tuple(map(frames, old.media))
        else:  # its answers are inside the instruction, so it cannot be swapped
            assert kept
            assert all(answer in new.instruction for answer in old.answers)
        assert old.prompt in new.instruction


def frames(entry):
    """The files of an entry, a folder of frames being its files."""
    return tuple(sorted(map(str, Path(entry[0]).iterdir()))) if Path(entry[0]).is_dir() else entry


def test_a_video_of_two_frames_would_come_back_as_two_pictures_so_it_is_left_out(records, tmp_path, capsys):
    counts = exported(records["sharegptvideo_dpo"], "released-grpo", tmp_path, "--frames", "2")
    assert counts["written"] == {"train_data.json": 0}
    assert list(counts["left out"]) == ["a video of * frames is read back as pictures"]


def test_the_released_sft_format_comes_back_as_the_same_traces(records, tmp_path, capsys):
    name = "imagegen_cot_reward_5k"
    root = records[name].parent
    exported(records[name], "released-sft", tmp_path / "out", "--media-root", str(root))
    rows = json.loads((tmp_path / "out" / "train_data.json").read_text())
    assert all(not path.startswith(("/", "..")) for row in rows for path in row["images"])
    entry = Input(str(tmp_path / "out" / "train_data.json"), root)
    import_source(load_source("released"), [entry], tmp_path / "back", NO_MAP)
    before, after = ([row for _, _, row in read_stored([folder])] for folder in (records[name], tmp_path / "back"))
    assert [row.completion for row in after] == [row.completion for row in before]
    assert [row.record.media for row in after] == [row.record.media for row in before]
    assert [row.record.preferred for row in after] == [2] * data_sources.PAIRS


def test_records_and_traces_are_what_the_stages_load(records, tmp_path, capsys):
    sampling = FrameSampling(frames=3, cache=tmp_path / "frames", decoder="pyav")
    exported(records["llava_critic"], "records", tmp_path / "pairs")
    loaded = load_checked_records([str(tmp_path / "pairs" / "records.jsonl")], sampling=sampling)
    assert loaded.rows == [row.record for _, _, row in read_stored([records["llava_critic"]])]
    assert "tie" in {record.preferred for record in loaded.rows}
    exported(records["imagegen_cot_reward_5k"], "records", tmp_path / "traces")
    traces = load_traces([str(tmp_path / "traces" / "traces.jsonl")])
    assert [trace.completion for trace in traces.rows] == [data_sources.COT] * data_sources.PAIRS


def test_trl_rows_hold_their_pictures_and_the_columns_the_rewards_need(records, tmp_path, capsys):
    exported(records["imagegen_cot_reward_5k"], "trl", tmp_path)
    grpo, sft = (
        load_dataset(str(tmp_path / n), split="train", cache_dir=str(tmp_path / n[0])) for n in ("train", "sft")
    )
    assert {"prompt", "images", "solution", "task", "style", "id", "order"} <= set(grpo.column_names)
    assert {"prompt", "completion", "images"} <= set(sft.column_names)
    places = sum(part["type"] == "image" for part in grpo[0]["prompt"][0]["content"])
    assert places == len(grpo[0]["images"]) == 2
    assert sft[0]["completion"][0]["content"][0]["text"] == data_sources.COT


@pytest.mark.slow  # importing trl takes most of it
def test_trl_puts_every_picture_of_an_exported_import_in_its_place_and_takes_no_record_for_a_row(
    records, tmp_path, capsys
):
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    exported(records["hpdv2_train"], "trl", tmp_path / "out")
    row = load_dataset(str(tmp_path / "out" / "train"), split="train", cache_dir=str(tmp_path / "rows"))[0]
    assert is_conversational(row)  # GRPOTrainer refuses other prompts beside pictures
    (turn,) = prepare_multimodal_messages(row["prompt"], images=row["images"])
    assert [part["image"] for part in turn["content"] if part["type"] == "image"] == row["images"]
    record = load_dataset(str(records["hpdv2_train"]), split="train", cache_dir=str(tmp_path / "records"))[0]
    assert not is_conversational(record)
    assert not {"image", "images"} & set(record)


def test_another_export_into_the_same_folder_is_refused_and_the_same_one_changes_nothing(records, tmp_path, capsys):
    counts = exported(records["hpdv2_train"], "released-grpo", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != "settings.json"}
    assert exported(records["hpdv2_train"], "released-grpo", tmp_path) == counts
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for folder, options in ((records["llava_critic"], []), (records["hpdv2_train"], ["--layout", "three_line"])):
        with pytest.raises(DataError, match="holds the output of other settings or inputs"):
            exported(folder, "released-grpo", tmp_path, *options)


def test_a_killed_export_reads_no_picture_twice_that_is_in_a_file_already(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_files, "PARQUET_ROWS", 2)
    write, written = export_files.write_parquet, []

    def dies(dataset, file, after):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(file.name)
        write(dataset, file)

    monkeypatch.setattr(export_files, "write_parquet", partial(dies, after=2))
    with pytest.raises(KeyboardInterrupt):
        exported(records["hpdv2_train"], "trl", tmp_path / "out")
    monkeypatch.setattr(export_files, "write_parquet", partial(dies, after=None))
    counts = exported(records["hpdv2_train"], "trl", tmp_path / "out")
    assert len(written) > 2 and written == [f"train-{number:05d}.parquet" for number in range(len(written))]
    assert counts["written"]["train"] == len(decided(records["hpdv2_train"])) > 4


def test_what_cannot_be_exported_is_listed_with_its_reason(records, tmp_path, capsys):
    counts = exported(records["llava_critic"], "released-grpo", tmp_path / "ties")
    assert counts["left out"] == {"a tie": 4}
    counts = exported(records["hpdv2_train"], "released-sft", tmp_path / "cot")
    assert counts["written"] == {"train_data.json": 0}
    assert json.loads((tmp_path / "cot" / "train_data.json").read_text()) == []
    lines = [json.loads(line) for line in (tmp_path / "cot" / "left_out.jsonl").read_text().splitlines()]
    assert {line["reason"][:31] for line in lines} == {"the row has no chain of thought"}
    assert len(lines) == data_sources.PAIRS


def test_a_placeholder_in_a_text_is_not_taken_for_a_picture(tmp_path, capsys):
    root = tmp_path / "in"
    data_sources.save_pictures(root, ["a.png"])
    turns = [
        {"from": "human", "value": "Question: [What?]\nResponse 1: [It shows <image>.]\nResponse 2: [A cat.]"},
        {"from": "gpt", "value": "The better response: [1]"},
    ]
    row = {"id": "x", "source": "y", "conversations": turns, "image": data_sources.image(1)}
    file = data_sources.save_parquet(root / "rows.parquet", [row])
    import_source(load_source("llava_critic"), [Input(str(file), root)], tmp_path / "out", NO_MAP)
    counts = exported(tmp_path / "out", "llamafactory", tmp_path / "export", "--style", "direct")
    assert counts["written"] == {"train_data.json": 1}
    (exported_row,) = json.loads((tmp_path / "export" / "train_data.json").read_text())
    problem = exported_row["conversations"][0]["value"]
    assert "It shows < image>." in problem and problem.count("<image>") == len(exported_row["images"]) == 1
    back = load_traces([str(tmp_path / "export" / "train_data.json")]).rows[0].record
    assert "It shows <image>." in back.instruction
