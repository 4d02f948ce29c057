"""Every declaration reads files in its source's own layout, and says what is wrong with files in another."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from helpers import data_sources
from helpers.data import NO_MAP, imported
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.importing import Input, Settings, expand, import_source
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.data.sources.columns import Finder, closest
from unifiedreward_think.data.sources.declaration import CONFIGS, load_source, read_source
from unifiedreward_think.data.sources.labels import label_rule
from unifiedreward_think.data.table import RECORD_COLUMNS, TRACE_COLUMNS
from unifiedreward_think.errors import RecordError


def test_every_declaration_has_a_synthetic_file_and_names_its_facts():
    names = {file.stem for file in CONFIGS.glob("*.yaml")}
    assert names == set(data_sources.SOURCES)
    for name in names:
        source = load_source(name)
        assert source.name == name
        assert source.about
        assert source.judged_by
        assert source.facts or name == "own_data", f"{name}: where do its facts come from?"


@pytest.mark.parametrize("name", data_sources.SOURCES)
def test_a_source_is_imported_from_its_own_layout(name, tmp_path):
    manifest, rows = imported(name, tmp_path)
    _, pairs, first = data_sources.SOURCES[name]
    assert manifest["counts"]["broken"] == {}
    assert len(rows) == pairs
    assert sum(manifest["counts"]["preferred first as found"].values()) == first
    assert len({row.record.id for row in rows}) == pairs
    assert all(Path(path).exists() for row in rows for entry in row.record.media for path in entry)
    assert all(row.record.source == load_source(name).name for row in rows)
    assert all("<image>" not in row.record.prompt and "<video>" not in row.record.prompt for row in rows)


def test_the_label_follows_the_candidates_when_their_order_is_drawn(tmp_path):
    manifest, rows = imported("open_image_preferences", tmp_path)
    chosen = {data_sources.png(2 * i) for i in range(data_sources.PAIRS)}
    preferred = [Path(row.record.media[row.record.preferred - 1][0]).read_bytes() for row in rows]
    assert set(preferred) == chosen
    assert {row.record.preferred for row in rows} == {1, 2}
    assert manifest["counts"]["preferred first as found"] == {"open_image_preferences": 12}
    assert 0 < manifest["counts"]["preferred first"]["open_image_preferences"] < 12


def test_the_two_prompts_of_one_base_prompt_are_one_group(tmp_path):
    _, rows = imported("open_image_preferences", tmp_path)
    assert len({row.record.group for row in rows}) == data_sources.PAIRS // 2


def test_votes_and_margins_are_kept_where_the_source_has_them(tmp_path):
    _, rows = imported("hpd", tmp_path / "hpd")
    assert {row.record.votes for row in rows} == {26, 11}
    assert {round(row.record.margin, 3) for row in rows} == {round(12 / 26, 3), round(3 / 11, 3)}
    _, rows = imported("sharegptvideo_dpo", tmp_path / "sharegpt")
    assert {(row.record.votes, row.record.margin) for row in rows} == {(None, None)}


def test_ranked_pictures_become_all_pairs_of_different_rank(tmp_path):
    _, rows = imported("hpdv2_test", tmp_path)
    assert [row.record.id for row in rows[:4]] == [
        *(f"hpdv2_test-test-1-{part}" for part in (1, 2, 3)),
        "hpdv2_test-test-2-1",
    ]
    best = {Path(row.record.media[row.record.preferred - 1][0]).name for row in rows[:3]}
    assert best == {"00000001.jpg", "00000000.jpg"}  # rank 1 wins twice, rank 2 against rank 3


def test_the_best_and_the_worst_picture_of_a_prompt_make_its_pair(tmp_path):
    _, rows = imported("evalmuse", tmp_path)
    assert {round(row.record.margin, 6) for row in rows} == {2.0}
    first = rows[0].record
    order = [Path(entry[0]).read_bytes() for entry in first.media]
    assert order[first.preferred - 1] == data_sources.png(3)
    assert order[2 - first.preferred] == data_sources.png(1)


def test_rankings_without_a_difference_are_listed(tmp_path):
    data_sources.save_pictures(tmp_path / "test", ["a.jpg", "b.jpg"])
    rows = [{"prompt": "an owl", "image_path": ["a.jpg", "b.jpg"], "rank": rank} for rank in ([2, 2], [1, 2])]
    rows.append({"prompt": "an owl", "image_path": ["a.jpg"], "rank": [1]})
    manifest, _ = imported(
        "hpdv2_test", tmp_path, inputs=[Input(str(data_sources.save_json(tmp_path / "a.json", rows)), tmp_path)]
    )
    assert manifest["counts"]["kept"] == 1
    assert manifest["counts"]["left out"] == {"no two candidates of different rank": 2}


def test_a_prompt_is_left_out_if_most_annotators_of_all_its_pictures_call_it_meaningless(tmp_path):
    data_sources.save_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    rows = [
        {"prompt_id": name, "prompt": name, "img_path": file, "total_score": score, "promt_meaningless": flags}
        for name, pictures in {
            "two of four": (("a.jpg", 4, [1, 1]), ("b.jpg", 2, [0, 0])),  # most of one picture's, not of the prompt's
            "three of four": (("a.jpg", 4, [1, 1]), ("b.jpg", 2, [0, 1])),
        }.items()
        for file, score, flags in pictures
    ]
    file = data_sources.save_json(tmp_path / "train_list.json", rows)
    manifest, found = imported("evalmuse", tmp_path, inputs=[Input(str(file), tmp_path)])
    assert [row.record.prompt for row in found] == ["two of four"]
    assert manifest["counts"]["left out"] == {"most annotators call the prompt meaningless": 1}


def test_frames_given_as_the_files_of_an_image_are_an_error_of_the_row(tmp_path):
    file, _ = data_sources.unifiedreward_v1_videos(tmp_path)
    manifest, found = imported("unifiedreward_v1_images", tmp_path, inputs=[Input(str(file), tmp_path)])
    assert not found
    assert list(manifest["counts"]["broken"]) == ["a candidate has * files, an image has one"]


def test_a_caption_of_videodpo_may_be_a_text_or_a_list_of_one(tmp_path):
    file, _ = data_sources.videodpo(tmp_path)
    rows = json.loads(file.read_text())
    rows[0]["frame_caption"] = "a surfer as a text"
    data_sources.save_json(file, rows)
    _, found = imported("videodpo", tmp_path, inputs=[Input(str(file), tmp_path)])
    assert [row.record.prompt for row in found[:2]] == ["a surfer as a text", "a surfer 1"]


@pytest.mark.parametrize(
    ("said", "preferred"),
    [
        ("They are equally good at first sight. The better response: [2]", 2),
        ("The better response: [first].", 1),
        ("The better response: B\nIt is shorter.", 2),
        ("The better response: a matter of taste", None),
        ("They are not equally good, but I cannot say which is better", None),
        ("Both are equally good.", "tie"),
    ],
)
def test_a_verdict_of_llava_critic_is_read_as_it_is_meant_or_not_at_all(said, preferred):
    mapping = load_source("llava_critic").mapping(["id", "conversations", "image"])
    row = {"conversations": [{"value": ""}, {"value": said}]}
    if preferred is None:
        with pytest.raises(RecordError, match="none of the patterns fits"):
            mapping.label(row)
    else:
        assert mapping.label(row).preferred == preferred


def test_clips_shorter_than_a_second_do_not_count_for_the_indices_of_pairs(tmp_path):
    _, rows = imported("videodpo", tmp_path)
    record = rows[0].record
    assert Path(record.media[record.preferred - 1][0]).name == "000.mp4"


def test_the_answers_of_llava_critic_keep_their_brackets_and_ties_stay_ties(tmp_path):
    _, rows = imported("llava_critic", tmp_path)
    assert [row.record.preferred == "tie" for row in rows[:3]] == [False, False, True]
    record = rows[0].record
    assert record.prompt == "What is on table 0?"
    assert record.answers[record.preferred - 1] == "A [red] cup 0."
    assert set(record.answers) == {"A [red] cup 0.", "A blue [old] cup 0."}


def test_traces_keep_their_order_because_they_name_the_candidates(tmp_path):
    _, rows = imported("imagegen_cot_reward_5k", tmp_path)
    assert {row.record.preferred for row in rows} == {2}
    assert all(row.completion == data_sources.COT and row.order == "ab" for row in rows)
    assert rows[3].record.prompt == "a red [old] kite 3"


def test_a_released_yaml_is_expanded_with_its_folders_and_strategies(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    data_sources.released(tmp_path / "set")
    entry = {"json_path": "set/grpo_train_data.json", "image_folder": "set", "sampling_strategy": "end:25%"}
    (tmp_path / "grpo.yaml").write_text(json.dumps({"datasets": [entry]}))
    monkeypatch.chdir(tmp_path)
    import_source(load_source("released"), expand(["grpo.yaml"], None), tmp_path / "out", NO_MAP)
    ids = [row.record.id for _, _, row in read_stored([tmp_path / "out"])]
    assert ids == [f"released-grpo_train_data-{n}" for n in (10, 11, 12)]


def test_a_saved_hugging_face_data_set_is_read_like_a_file(tmp_path):
    from datasets import Dataset

    file, _ = data_sources.hpd(tmp_path)
    Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    manifest, _ = imported("hpd", tmp_path, inputs=[Input(str(tmp_path / "saved"), tmp_path)])
    assert manifest["counts"]["kept"] == 12


def test_a_missing_column_is_named_with_those_found_and_the_closest(tmp_path):
    table = pa.table({"prompt": ["a"], "Image_1": ["x"], "image2": ["y"], "votes_image1": [1], "votes_image2": [2]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError) as caught:
        import_source(load_source("hpd"), expand([str(tmp_path / "train.parquet")], None), tmp_path / "out", NO_MAP)
    said = str(caught.value)
    assert "needs the column image1" in said
    assert "--map image1=Image_1" in said
    for name in table.column_names:
        assert name in said


def test_a_column_of_another_name_is_mapped_on_request(tmp_path):
    file, _ = data_sources.hpd(tmp_path)
    table = parquet.read_table(file).rename_columns({"image1": "picture_one"})
    parquet.write_table(table, file)
    settings = Settings(renamed={"image1": "picture_one"})
    manifest = import_source(load_source("hpd"), expand([str(file)], None), tmp_path / "out", settings)
    assert manifest["counts"]["kept"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"facts": None}, "'facts' is missing"),
        ({"task": "music"}, "task is 'music'"),
        ({"label": {"rule": "guess"}}, "label.rule is 'guess'"),
        ({"fields": {"prompt": "p", "media": ["a"]}}, "2 columns for generation"),
        ({"fields": {"prompt": "p", "media": ["a", "b"], "mood": "c"}}, "unknown key 'mood'"),
        ({"pairs": {"kind": "ranked", "media": "m"}}, "pairs of kind 'ranked' take media, rank"),
        ({"media": {"location": "cloud"}}, "media.location is 'cloud'"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_with_what_is_known(change, message):
    good = {
        "name": "demo",
        "judged_by": "people",
        "facts": [],
        "unverified": [],
        "task": "image_generation",
        "fields": {"prompt": "p", "media": ["a", "b"]},
        "label": {"rule": "first"},
    }
    read_source(json.dumps(good), "demo.yaml")
    changed = {key: value for key, value in {**good, **change}.items() if value is not None}
    with pytest.raises(DataError, match=re.escape(message)):
        read_source(json.dumps(changed), "demo.yaml")


numbers = st.one_of(
    st.integers(), st.floats(), st.text(max_size=5), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)
)


@given(numbers, numbers, st.booleans())
@settings(deadline=None)
def test_a_label_is_a_winner_a_tie_or_an_error_whatever_the_votes_are(first, second, counts):
    rule = label_rule({"rule": "larger", "first": "a", "second": "b", "votes": counts}, Finder("demo", ["a", "b"], {}))
    try:
        label = rule({"a": first, "b": second})
    except RecordError:
        return
    assert label.preferred == (1 if float(first) > float(second) else 2 if float(first) < float(second) else "tie")
    assert label.margin >= 0


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_closest_column_is_one_of_those_found(wanted, found):
    assert closest(wanted, found) in {None, *found}


def test_a_dotted_path_and_a_list_index_lead_into_nested_values():
    finder = Finder("demo", ["turns", "a.b"], {})
    assert finder.column("turns.1.value", where="x").get({"turns": [{}, {"value": "yes"}]}) == "yes"
    assert finder.column("a.b", where="x").get({"a.b": 3}) == 3
    with pytest.raises(RecordError, match="holds no '1"):
        finder.column("turns.1.value", where="x").get({"turns": [{}]})


def test_the_folder_of_an_import_is_a_data_set_of_records_by_its_name_alone(tmp_path):
    from datasets import load_dataset

    imported("hpd", tmp_path)
    table = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == 12
    assert set(table["preferred"]) == {"1", "2"}
    assert set(table.column_names) == {*RECORD_COLUMNS, *TRACE_COLUMNS}
