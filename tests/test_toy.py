"""The toy world: the same seed gives the same bytes, nothing leaks, labels and chains of thought are true."""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.decoders import decode
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.media import open_image, pixel_sha256
from unifiedreward_think.order import ORDERS
from unifiedreward_think.prompting import build_parts, load_prompts
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.toy import base, dataset
from unifiedreward_think.toy.dataset import random_pair, write
from unifiedreward_think.toy.teacher import Reply, observe, score_candidate, score_reply, total
from unifiedreward_think.toy.world import CLIP_FRAMES, SIDE, Scene, draw_frames, random_scene, write_scene
from unifiedreward_think.verdict import parse

ROOT = Path(__file__).parents[1]
JUDGE = ROOT / "src/unifiedreward_think/toy/judge"
COUNTS = {"cold_start": 40, "train": 80, "heldout": 60}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write(folder, **COUNTS, seed=3)
    return folder


def bytes_of(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def traces(folder):
    return [Trace.from_json(row) for _, row in read_json_lines(folder / "cold_start.jsonl")]


def records(folder, split):
    if split == "cold_start":
        return [trace.record for trace in traces(folder)]
    return [PreferenceRecord.from_json(row) for _, row in read_json_lines(folder / f"{split}.jsonl")]


def pictures(folder, split):
    """The pixels of every image and frame of a split."""
    files = [folder / path for record in records(folder, split) for entry in record.media for path in entry]
    images = [file for file in files if file.suffix == ".png"]
    assert len(images) < len(files)
    hashes = [pixel_sha256(open_image(file)) for file in images]
    clips = [decode(file, CLIP_FRAMES, "decord").frames for file in files if file.suffix == ".mp4"]
    return hashes + [pixel_sha256(frame) for clip in clips for frame in clip]


def test_every_decoder_gives_the_frames_of_the_clips(data):
    """The toy configs name PyAV, which every machine has."""
    clips = sorted((data / "media").rglob("*.mp4"))
    for clip in clips:
        theirs, ours = (map(pixel_sha256, decode(clip, 4, decoder).frames) for decoder in ("decord", "pyav"))
        assert list(ours) == list(theirs)
    assert len(clips) > 4


def test_no_part_of_the_toy_world_asks_for_decord():
    configs = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "toy").glob("*.yaml")]
    assert {config["decoder"] for config in configs if "train_files" in config} == {"pyav"}  # an overlay has neither
    scripts = [(ROOT / "scripts" / name).read_text().replace("\\\n", "") for name in ("toy.sh", "quickstart.sh")]
    calls = re.findall(r"python -m unifiedreward_think\.evaluation.*", "\n".join(scripts))
    assert len(calls) == 3 and all("--decoder pyav" in call for call in calls)


def test_a_seed_decides_every_byte(data, tmp_path):
    write(tmp_path / "again", **COUNTS, seed=3)
    assert bytes_of(tmp_path / "again") == bytes_of(data)
    write(tmp_path / "other", **COUNTS, seed=4)
    ours, theirs = bytes_of(data), bytes_of(tmp_path / "other")
    assert all(ours[name] != theirs.get(name) for name in ours)


def test_every_split_holds_every_task_as_its_manifest_says(data):
    manifest = json.loads((data / "manifest.json").read_text())
    for split, count in COUNTS.items():
        rows = records(data, split)
        assert Counter(row.task for row in rows) == dict.fromkeys(TASKS, count // 4) == manifest["counts"][split]
        assert Counter(str(row.preferred) for row in rows) == manifest["preferred"][split]


def test_the_media_of_every_record_are_there_and_no_others(data):
    named = [p for split in COUNTS for row in records(data, split) for entry in row.media for p in entry]
    assert len(set(named)) == len(named)
    assert {f"media/{file.name}" for file in (data / "media").iterdir()} == set(named)
    for split in COUNTS:
        for row in records(data, split):
            suffix = ".mp4" if row.task.startswith("video") else ".png"
            assert all(path.endswith(suffix) for entry in row.media for path in entry)


def test_ids_are_unique_and_no_pair_occurs_twice_in_a_split(data):
    ids = [row.id for split in COUNTS for row in records(data, split)]
    assert len(set(ids)) == len(ids) == sum(COUNTS.values())
    for split in COUNTS:
        groups = [row.group for row in records(data, split)]
        assert len(set(groups)) == len(groups)


def test_heldout_shares_no_content_and_no_pixels_with_training(data):
    heldout = {row.group for row in records(data, "heldout")}
    training = {row.group for split in ("cold_start", "train") for row in records(data, split)}
    assert not heldout & training
    shown = pictures(data, "heldout")
    assert not set(shown) & set(pictures(data, "cold_start") + pictures(data, "train"))


@pytest.mark.parametrize("task", TASKS)
def test_a_pair_and_its_mirror_image_are_the_same_content(task):
    rng = random.Random(0)
    for _ in range(50):
        pair = random_pair(rng, task)
        mirrored = replace(
            pair, scenes=pair.scenes[::-1], replies=pair.replies[::-1], scores=(pair.scores[1], pair.scores[0])
        )
        assert mirrored.content == pair.content and mirrored.heldout == pair.heldout
        assert mirrored.preferred == 3 - pair.preferred


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_splits_are_balanced(task):
    rng = random.Random(1)
    pairs = [random_pair(rng, task) for _ in range(2000)]
    assert 900 < sum(pair.preferred == 1 for pair in pairs) < 1100
    assert 300 < sum(pair.heldout for pair in pairs) < 700
    heldout = [pair.preferred for pair in pairs if pair.heldout]
    assert 0.4 < heldout.count(1) / len(heldout) < 0.6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_teacher_writes_strict_true_chains_of_thought(task, order):
    rng = random.Random(2)
    for _ in range(200):
        pair = random_pair(rng, task)
        verdict = parse(pair.trace(order), TASKS[task].noun)
        first, second = pair.scores if order == "ab" else pair.scores[::-1]
        assert verdict.strict and verdict.arithmetic_ok and verdict.problems == ()
        assert verdict.winner == (pair.preferred if order == "ab" else 3 - pair.preferred)
        assert verdict.totals == (total(first), total(second))
        assert [s.scores for s in verdict.dimensions] == [(a[0], b[0]) for a, b in zip(first, second, strict=True)]
        assert tuple(score.name for score in verdict.dimensions) == TASKS[task].dimensions


def test_cold_start_traces_agree_with_their_labels_in_the_order_shown(data):
    rows = traces(data)
    for row in rows:
        verdict = parse(row.completion, TASKS[row.record.task].noun)
        assert verdict.strict and verdict.arithmetic_ok
        assert verdict.winner == row.record.shown(row.order).winner
        assert build_parts(row.record, order=row.order, prompts=load_prompts())
    assert {row.order for row in rows} == set(ORDERS)


def test_label_noise_flips_training_labels_only(data, tmp_path):
    write(tmp_path, **COUNTS, seed=3, label_noise=0.3)
    clean, noisy = (
        {split: [row.preferred for row in records(folder, split)] for split in COUNTS} for folder in (data, tmp_path)
    )
    assert noisy["cold_start"] == clean["cold_start"] and noisy["heldout"] == clean["heldout"]
    flipped = sum(a != b for a, b in zip(clean["train"], noisy["train"], strict=True))
    assert 0.15 < flipped / COUNTS["train"] < 0.45
    assert bytes_of(data / "media") == bytes_of(tmp_path / "media")


def test_more_pairs_than_the_world_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "PATIENCE", 50)
    monkeypatch.setattr(dataset, "HELDOUT_SHARE", 0.0)
    with pytest.raises(
        ValueError, match="heldout: no new image_generation pair left after 0 pairs in all; ask for fewer"
    ):
        write(tmp_path, cold_start=0, train=0, heldout=4)


# Drawings


def test_drawings_of_one_scene_differ_in_their_pixels_by_seed_only():
    scene = Scene("red", "circle", motion="left")
    one, same, other = (draw_frames(scene, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not all((a == b).all() for a, b in zip(one, other, strict=True))
    assert len(one) == CLIP_FRAMES and one[0].shape == (SIDE, SIDE, 3) and one[0].dtype.name == "uint8"
    assert len(draw_frames(replace(scene, motion=""), 1)) == 1


@pytest.mark.parametrize("change", [{"colour": "blue"}, {"shape": "bar"}, {"clean": False}, {"whole": False}])
def test_every_property_of_a_picture_can_be_seen(change):
    scene = Scene("red", "circle")
    assert (draw_frames(scene, 5)[0] != draw_frames(replace(scene, **change), 5)[0]).any()


def test_motion_and_flicker_can_be_seen_in_the_file(tmp_path):
    def centre(frame):
        pixels = [(x, y) for x in range(SIDE) for y in range(SIDE) if frame.getpixel((x, y))[1] < 150]
        return [sum(values) / len(pixels) for values in zip(*pixels, strict=True)]

    for motion, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        file = write_scene(Scene("red", "circle", motion=motion), 7, tmp_path / motion)
        frames = decode(file, CLIP_FRAMES, "pyav").frames
        assert len(frames) == CLIP_FRAMES
        assert sign * (centre(frames[-1])[axis] - centre(frames[0])[axis]) > 8
        assert abs(centre(frames[-1])[1 - axis] - centre(frames[0])[1 - axis]) < 2
    flicker = decode(
        write_scene(Scene("red", "circle", motion="up", steady=False), 7, tmp_path / "f"), CLIP_FRAMES, "pyav"
    ).frames
    corners = [frame.getpixel((0, 15))[0] for frame in flicker]
    assert max(corners[1::2]) < 60 and min(corners[::2]) > 190


# Scores


def test_the_teacher_scores_what_the_scene_shows():
    caption = Scene("red", "circle")
    assert score_candidate(caption, caption) == [(9, "as asked"), (8, "clean"), (7, "whole")]
    spoiled = Scene("blue", "circle", clean=False, whole=False)
    assert score_candidate(caption, spoiled) == [(6, "wrong colour"), (4, "noisy"), (2, "broken")]
    moving = replace(caption, motion="up")
    odd = Scene("blue", "bar", motion="down", steady=False)
    assert score_candidate(moving, odd) == [(1, "all wrong"), (2, "flickering"), (8, "clean")]
    assert score_candidate(moving, replace(odd, colour="red"))[0] == (3, "mostly wrong")


def test_the_teacher_scores_what_an_answer_says():
    assert total(score_reply("red", Reply("red", clear=True))) == 24
    assert total(score_reply("red", Reply("red", clear=False))) == 21
    assert total(score_reply("red", Reply("blue", clear=True))) == 12
    assert total(score_reply("red", Reply("blue", clear=False))) == 9


def test_a_scene_is_described_completely():
    rng = random.Random(0)
    for moving in (False, True):
        scenes = [random_scene(rng, moving=moving) for _ in range(300)]
        assert len({observe(scenes[0], scene) for scene in scenes}) == len(set(scenes))


def test_no_lesson_of_the_base_shows_a_heldout_content_or_a_score(monkeypatch):
    drawn = []
    original = base.training_pair
    monkeypatch.setattr(base, "training_pair", lambda rng, task: drawn.append(pair := original(rng, task)) or pair)
    rng = random.Random(0)
    completions = {lesson: [lesson(rng)[1] for _ in range(60)] for lesson, _ in base.LESSONS}
    assert len(drawn) == 180 and not any(pair.heldout for pair in drawn)
    # Sums are of numbers drawn at random: they tell nothing about how a candidate is scored.
    sums = completions.pop(base.compare_totals)
    assert all(text.startswith("Total score:") for text in sums)
    assert not any("/10" in text or "think" in text for texts in completions.values() for text in texts)
    guesses = Counter(text for text in (base.guess_winner(rng)[1] for _ in range(400)))
    assert 150 < sum(count for text, count in guesses.items() if " 1 is" in text) < 250


@pytest.mark.slow
def test_the_shipped_judge_judges_the_held_out_pairs_as_its_card_says(tmp_path):
    """The first 20 held-out pairs of each task, in both orders; more would take minutes."""
    write(tmp_path, cold_start=0, train=0, heldout=800)
    rows = [PreferenceRecord.from_json(row) for _, row in read_json_lines(tmp_path / "heldout.jsonl")]
    placed = [replace(row, media=tuple(tuple(str(tmp_path / p) for p in e) for e in row.media)) for row in rows]
    records = [record for task in TASKS for record in [r for r in placed if r.task == task][:20]]
    config = JudgingArguments(
        prompts=str(ROOT / "configs/toy/prompts"),
        frames=4,
        decoder="pyav",
        max_new_tokens=192,
        orders="both",
        frame_cache=str(tmp_path / "frames"),
    ).config()
    backend = TransformersBackend(str(JUDGE), dtype="float32", device="cpu", batch_size=32)
    judgments = judge(records, backend, config, tmp_path / "judgments.jsonl")
    figures = json.loads((JUDGE / "training_log.json").read_text())["held out"]["grpo"]["overall"]
    accuracy = sum(row.correct for row in judgments) / len(judgments)
    assert len(judgments) == 160 and abs(accuracy - figures[0]) < 0.09  # two standard errors of 80 pairs
    assert sum(row.verdict.strict for row in judgments) >= 157


def test_the_card_of_the_shipped_judge_names_its_figures_and_how_it_was_made():
    log = json.loads((JUDGE / "training_log.json").read_text())
    card = (JUDGE / "README.md").read_text()
    for stage in ("base", "cold_start", "rejection_sft", "grpo"):
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*log["held out"][stage]["overall"]) in card
    assert f"quickstart.sh {log['seed']}" in card and log["commit"] in card
    assert log["grpo"][-1]["step"] == 160 and sum(file.stat().st_size for file in JUDGE.iterdir()) < 6e6
