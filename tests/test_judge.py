"""The judge against a backend in memory: orders, resuming, bad files, bad media."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.judging import LooksForRed, make_records, protocol, told
from unifiedreward_think.backends import BackendError, Completion
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.rows import shown_orders
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import RecordError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.prepare import WINDOW, cut_batches
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import OutputError

REPO = Path(__file__).parents[1]
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def records(pictures):
    return make_records(pictures, 10)


def test_both_orders_are_judged_and_swapped_winners_mapped_back(records, tmp_path):
    rows = judge(records, LooksForRed(), protocol(orders="both", samples=1, sampling=Sampling()), tmp_path / "j.jsonl")
    assert [(row.record_id, row.order) for row in rows] == [(r.id, order) for r in records for order in ("ab", "ba")]
    assert all(row.correct for row in rows)
    assert all(row.verdict.winner == (row.choice if row.order == "ab" else 3 - row.choice) for row in rows)
    assert {row.verdict.winner for row in rows} == {1, 2}


def test_one_order_is_the_order_of_the_seed(records, tmp_path):
    for seed in (0, 1):
        rows = judge(records, LooksForRed(), protocol(samples=1, order_seed=seed), tmp_path / f"{seed}.jsonl")
        assert [row.order for row in rows] == [shown_orders(record, "one", seed)[0] for record in records]


def test_a_row_that_cannot_be_swapped_is_judged_in_its_one_order(pictures, tmp_path):
    record = PreferenceRecord(
        id="q", task="image_understanding", prompt="", media=((str(pictures / "red.png"),),), instruction="Which?"
    )

    class Silent(LooksForRed):
        def answer(self, row, seed, sampling):
            return Completion("...", "length")

    (row,) = judge([record], Silent(), protocol(orders="both", samples=1), tmp_path / "j.jsonl")
    assert (row.order, row.verdict.winner, row.finish_reason) == ("ab", None, "length")


def test_the_judgment_says_how_it_came_about(records, tmp_path):
    backend = LooksForRed(settings={"max_pixels": 64})
    row = judge(records, backend, protocol(), tmp_path / "j.jsonl")[0]
    assert row.model == "red"
    assert {"temperature", "top_p", "max_new_tokens", "seed", "style", "prompts", "frames", "max_pixels"} == {
        *row.settings
    }
    assert row.seconds >= 0 and row.decoder == "" and row.error == ""


def test_every_sample_has_the_seed_of_its_record_order_and_number(records, tmp_path):
    seen = {}

    class Noting(LooksForRed):
        def answer(self, row, seed, sampling):
            seen.setdefault(row["id"], []).append(seed)
            return super().answer(row, seed, sampling)

    judge(records, Noting(), protocol(orders="both"), tmp_path / "j.jsonl")
    assert seen["r4"] == [digest(0, "r4", order, sample) for order in ("ab", "ba") for sample in (0, 1)]
    assert len({seed for seeds in seen.values() for seed in seeds}) == 40


def test_the_result_depends_neither_on_the_batch_size_nor_on_the_limit(records, tmp_path):
    whole = told(judge(records, LooksForRed(batch_size=3), protocol(), tmp_path / "whole.jsonl"))
    for size in (1, 4, 100):
        assert told(judge(records, LooksForRed(batch_size=size), protocol(), tmp_path / f"{size}.jsonl")) == whole
    part = judge(records[:4], LooksForRed(), protocol(), tmp_path / "part.jsonl")
    assert told(part) == whole[:8]
    assert told(judge(records, LooksForRed(), protocol(), tmp_path / "part.jsonl")) == whole


def test_more_samples_are_added_to_those_there_are(records, tmp_path):
    few = told(judge(records, LooksForRed(), protocol(samples=2), tmp_path / "j.jsonl"))
    many = told(judge(records, LooksForRed(), protocol(samples=4), tmp_path / "j.jsonl"))
    assert [row for row in many if row.sample < 2] == few and len(many) == 40


def test_a_finished_file_is_not_judged_again(records, tmp_path):
    output = tmp_path / "j.jsonl"
    first = judge(records, LooksForRed(), protocol(), output)
    text = output.read_bytes()
    backend = LooksForRed()
    assert judge(records, backend, protocol(), output) == first
    assert backend.batches == [] and output.read_bytes() == text


def test_a_file_cut_at_any_byte_is_completed_with_nothing_lost_or_doubled(records, tmp_path):
    output = tmp_path / "j.jsonl"
    whole = told(judge(records, LooksForRed(), protocol(orders="both"), output))
    text = output.read_bytes()
    chosen = random.Random(0).sample(range(len(text)), 60)
    ends = [i + shift for i, byte in enumerate(text) if byte == 10 for shift in (0, 1)]
    for cut in sorted({0, 1, *chosen, *ends[::5]}):
        output.write_bytes(text[:cut])
        assert told(judge(records, LooksForRed(), protocol(orders="both"), output)) == whole
        assert told(load_judgments(output).values()) == whole
        assert output.read_bytes().count(b"\n") == len(whole)


def test_a_resumed_run_has_the_batches_of_a_whole_one(records, tmp_path):
    output, whole = tmp_path / "j.jsonl", LooksForRed()
    judge(records, whole, protocol(), output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:6]))
    resumed = LooksForRed()
    judge(records, resumed, protocol(), output)
    assert resumed.batches == whole.batches[1:]


@given(
    st.lists(st.tuples(st.sampled_from(list(TASKS)), st.integers(0, 40)), max_size=60),
    st.integers(1, 5),
)
def test_batches_hold_every_item_once_and_items_of_one_length_together(kinds, size):
    work = [(of_length(i, *kind), "ab") for i, kind in enumerate(kinds)]
    batches = cut_batches(work, size, 8)
    items = [record.id for batch in batches for record, _ in batch]
    assert sorted(items) == sorted(record.id for record, _ in work)
    assert all(len(batch) <= size for batch in batches)
    step = WINDOW * size
    for start in range(0, len(work), step):  # a window is sorted, and holds the items of its place
        inside = [record for record, _ in work[start : start + step]]
        assert set(items[start : start + step]) == {record.id for record in inside}
    if len(work) <= step:
        pictures = [sum(8 if "video" in record.task else 1 for _ in record.media) for b in batches for record, _ in b]
        assert pictures == sorted(pictures, reverse=True)


def of_length(number, task, letters):
    sides = 2 if TASKS[task].compares_media else 1
    answers = () if sides == 2 else ("yes", "no")
    return PreferenceRecord(id=str(number), task=task, prompt="x" * letters, media=(("m",),) * sides, answers=answers)


def test_a_backend_without_native_video_is_refused_by_name(records, tmp_path):
    with pytest.raises(BackendError, match="LooksForRed with red takes no native video"):
        judge(records, LooksForRed(), protocol(native_video=True), tmp_path / "j.jsonl")
    assert not (tmp_path / "j.jsonl").exists()


@pytest.mark.parametrize(("takes", "decoder"), [("frames", "decord"), ("file", "server")])
def test_native_video_gives_the_backend_the_frames_and_timing_of_each_video(takes, decoder, toy_data, tmp_path):
    seen = {}

    class Films(LooksForRed):
        native_video = takes

        def answer(self, row, seed, sampling):
            seen[row["id"]] = row
            return Completion("...", "stop")

    records = load_records([str(toy_data / "heldout.jsonl")]).rows
    asked = protocol(frames=FrameSampling(frames=4, cache=tmp_path / "frames"), native_video=True, orders="both")
    rows = judge(records, Films(), asked, tmp_path / "j.jsonl")
    assert not any(row.error for row in rows) and rows[0].settings["native_video"] is True
    for record in records:
        kinds = [part["type"] for part in seen[record.id]["prompt"][0]["content"] if part["type"] != "text"]
        film = "video" in record.task
        assert kinds == (["video"] if film else ["image"]) * len(record.media)
        videos = seen[record.id].get("videos", [])
        assert len(videos) == (len(record.media) if film else 0) and bool(seen[record.id]["images"]) is not film
        for video, entry in zip(videos, record.media[::-1], strict=False):  # the order shown last is "ba"
            assert str(video.clip.video) == entry[0] and len(video.images) == 4 == len(video.clip.indices)
        assert {row.decoder for row in rows if row.record_id == record.id} == {decoder if film else ""}
    with pytest.raises(RecordError, match="made with native_video = True, now it is None"):
        judge(records, Films(), replace(asked, native_video=False), tmp_path / "j.jsonl")


def test_a_place_that_cannot_be_written_is_named_before_anything_is_judged(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"judgments\.jsonl\S*: cannot be written"):
        judge([], LooksForRed(), protocol(), tmp_path / "file" / "judgments.jsonl")


def test_a_killed_process_loses_at_most_the_batch_in_flight(pictures, tmp_path):
    records = make_records(pictures, 120)
    whole = told(judge(records, LooksForRed(), protocol(), tmp_path / "whole.jsonl"))
    output, chance = tmp_path / "killed.jsonl", random.Random(1)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_judge as t;"
        "t.judge(t.make_records(Path(sys.argv[2]), 120), t.LooksForRed(wait=0.02), t.protocol(), Path(sys.argv[3]))"
    )
    before = 0
    for _ in range(4):
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(pictures), str(output)]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") <= before):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        child.kill()
        assert child.wait() in (0, -signal.SIGKILL)
        rows = load_judgments(output)
        assert len(rows) > before and told(rows.values()) == whole[: len(rows)]
        before = len(rows)
    assert told(judge(records, LooksForRed(), protocol(), output)) == whole
    assert output.read_bytes().count(b"\n") == len(whole)


def test_a_broken_line_in_the_middle_is_an_error_that_names_file_and_line(records, tmp_path):
    output = tmp_path / "j.jsonl"
    judge(records, LooksForRed(), protocol(), output)
    lines = output.read_text().splitlines()
    for broken, reason in [
        (lines[2][:30], "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"record_id": "r1"}', "not a judgment"),
    ]:
        output.write_text("\n".join([*lines[:2], broken, *lines[3:]]) + "\n")
        with pytest.raises(RecordError, match=rf"j\.jsonl:3: .*{reason}"):
            judge(records, LooksForRed(), protocol(), output)


OTHERS = {
    "model": (LooksForRed(model="blue"), protocol()),
    "temperature": (LooksForRed(), protocol(sampling=Sampling(temperature=0.7))),
    "seed": (LooksForRed(), protocol(sampling=Sampling(temperature=1.0, seed=1))),
    "style": (LooksForRed(), protocol(style="direct")),
    "prompts": (LooksForRed(), protocol(prompts=load_prompts("cot", layout="three_line"))),
    "frames": (LooksForRed(), protocol(frames=FrameSampling(frames=8, cache=Path("unused")))),
    "weights": (LooksForRed(settings={"weights": "5eed"}), protocol()),
}


@pytest.mark.parametrize("setting", OTHERS)
def test_judgments_made_with_other_settings_are_refused_and_left_alone(setting, records, tmp_path):
    output = tmp_path / "j.jsonl"
    judge(records, LooksForRed(), protocol(), output)
    text = output.read_bytes()
    with pytest.raises(RecordError, match=rf"j\.jsonl: holds judgments made with {setting} = .* another output folder"):
        judge(records, *OTHERS[setting], output)
    assert output.read_bytes() == text


def test_the_config_is_there_from_the_start_and_a_refused_run_leaves_it(records, tmp_path):
    output = tmp_path / "run" / "judgments.jsonl"
    config = output.with_name("config.yaml")

    class Killed(LooksForRed):
        def complete(self, prompts, *, sampling, seeds):
            assert config.read_text() == "first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(records, Killed(), protocol(), output, config_yaml="first")
    assert config.read_text() == "first"
    judge(records, LooksForRed(), protocol(), output, config_yaml="second")
    with pytest.raises(RecordError, match="made with model"):
        judge(records, LooksForRed(model="blue"), protocol(), output, config_yaml="third")
    assert config.read_text() == "second"


@pytest.mark.parametrize("damage", [lambda film: film[: len(film) // 2], lambda film: b"\0" * len(film)])
def test_a_corrupt_video_fails_its_pair_alone(damage, toy_data, tmp_path):
    films = [row for row in load_records([str(toy_data / "heldout.jsonl")]).rows if row.task == "video_generation"]
    (tmp_path / "cut.mp4").write_bytes(damage(Path(films[0].media[0][0]).read_bytes()))
    broken = replace(films[0], id="broken", media=((str(tmp_path / "cut.mp4"),), films[0].media[1]))
    asked = protocol(samples=1, frames=FrameSampling(frames=4, cache=tmp_path / "frames"))
    rows = judge([broken, *films], LooksForRed(), asked, tmp_path / "j.jsonl")
    assert [row.record_id for row in rows if row.error] == ["broken"] and "cut.mp4" in rows[0].error


class Refilled(LooksForRed):
    """Completes the later of two prompts first, as a backend does that refills its batch."""

    def complete_each(self, asked, *, sampling, samples):
        waiting = []
        for number, (row, seeds) in enumerate(asked):
            self.batches.append([row["id"]])
            waiting.append((number, [self.answer(row, seed, sampling) for seed in seeds]))
            if len(waiting) == 2:
                yield [waiting.pop()]
        yield from ([done] for done in waiting)


def test_a_backend_that_refills_its_batch_judges_the_same(records, pictures, tmp_path):
    records[4] = replace(records[4], media=((str(tmp_path / "late.png"),), records[4].media[1]))
    whole = judge(records, LooksForRed(), protocol(orders="both"), tmp_path / "batches")
    backend = Refilled()
    rows = judge(records, backend, protocol(orders="both"), tmp_path / "refilled")
    assert told(rows) == told(whole) and {row.record_id for row in rows if row.error} == {"r4"}
    shutil.copy(pictures / "red.png", tmp_path / "late.png")
    asked = len(backend.batches)
    rows = judge(records, backend, protocol(orders="both"), tmp_path / "refilled")
    assert backend.batches[asked:] == [["r4"], ["r4"]] and not any(row.error for row in rows)
    assert list(load_judgments(tmp_path / "refilled").values()) == rows  # in the order of the records


@pytest.mark.parametrize("gone", range(1, 19, 4))
def test_a_refilled_run_that_is_cut_goes_on_with_nothing_lost_or_doubled(gone, records, tmp_path):
    class Dies(Refilled):
        def answer(self, row, seed, sampling):
            if len(self.batches) > gone:
                raise KeyboardInterrupt
            return super().answer(row, seed, sampling)

    output = tmp_path / "j"
    with pytest.raises(KeyboardInterrupt):
        judge(records, Dies(), protocol(orders="both", samples=1), output)
    before = load_judgments(output)
    assert len(before) == gone - 1 and output.read_bytes().count(b"\n") == gone - 1
    rows = judge(records, backend := Refilled(), protocol(orders="both", samples=1), output)
    assert len(backend.batches) == 20 - len(before) and all(row in rows for row in before.values())
    assert told(rows) == told(judge(records, LooksForRed(), protocol(orders="both", samples=1), tmp_path / "whole"))


def test_unreadable_media_fail_one_item_which_the_next_run_tries_again(records, pictures, tmp_path):
    late = tmp_path / "late.png"
    records[4] = replace(records[4], media=((str(late),), records[4].media[1]))
    output, backend = tmp_path / "j.jsonl", LooksForRed()
    for broken in (None, b"no picture"):
        if broken:
            late.write_bytes(broken)
        rows = judge(records, backend, protocol(), output)
        failed = [row for row in rows if row.error]
        assert [(row.record_id, row.sample) for row in failed] == [("r4", 0), ("r4", 1)]
        assert all(row.completion is None and row.verdict.winner is None and not row.correct for row in failed)
        assert all("late.png" in row.error for row in failed)
        assert load_judgments(output) == {(row.record_id, row.order, row.sample): row for row in rows}
    assert not any("r4" in batch for batch in backend.batches)
    late.write_bytes((pictures / "red.png").read_bytes())
    assert not any(row.error for row in judge(records, backend, protocol(), output))
    assert output.read_bytes().count(b"\n") == len(records) * 2


def test_a_batch_of_unreadable_media_does_not_reach_the_model(records, tmp_path):
    gone = [replace(record, media=(("gone.png",), ("gone.png",))) for record in records[:3]]
    backend = LooksForRed()
    assert all(row.error for row in judge(gone, backend, protocol(), tmp_path / "j.jsonl"))
    assert backend.batches == []


def test_a_missing_template_is_found_before_the_first_judgment(records, tmp_path):
    prompts = {"video_generation": "{prompt}"}
    backend = LooksForRed()
    with pytest.raises(RecordError, match="no prompt template for task image_generation"):
        judge(records, backend, protocol(prompts=prompts), tmp_path / "j.jsonl")
    assert backend.batches == [] and not (tmp_path / "j.jsonl").exists()


def test_a_crash_of_the_model_is_not_swallowed_and_keeps_what_was_judged(records, tmp_path):
    class Crashing(LooksForRed):
        def complete(self, prompts, *, sampling, seeds):
            if len(self.batches) == 2:
                raise MemoryError("device")
            return super().complete(prompts, sampling=sampling, seeds=seeds)

    with pytest.raises(MemoryError):
        judge(records, Crashing(), protocol(), tmp_path / "j.jsonl")
    assert len(load_judgments(tmp_path / "j.jsonl")) == 12


def test_progress_is_shown_where_the_output_is_no_terminal(records, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unifiedreward_think.progress.LINE_EVERY", 0.0)
    judge(records, LooksForRed(wait=0.01), protocol(), tmp_path / "j.jsonl", label="looking")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("looking: 3/10 pairs, 00:0") and lines[0].endswith(" left")
    assert lines[-1].startswith("looking: 10/10 pairs, took 00:0")
    monkeypatch.setattr("unifiedreward_think.progress.LINE_EVERY", 60.0)
    judge(records, LooksForRed(), protocol(), tmp_path / "quick.jsonl")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_counts_what_was_done_before(records, tmp_path, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    judge(records[:3], LooksForRed(), protocol(), tmp_path / "j.jsonl")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    judge(records, LooksForRed(), protocol(), tmp_path / "j.jsonl", label="looking")
    assert "looking: " in shown.getvalue() and "| 10/10 [" in shown.getvalue()


def test_every_line_stands_alone_as_json(records, tmp_path):
    judge(records, LooksForRed(), protocol(), tmp_path / "j.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and all(row["preferred"] in (1, 2) and row["task"] == "image_generation" for row in rows)


@pytest.mark.slow
def test_the_evaluation_command_goes_on_and_notices_other_weights(models, toy_data, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file, save_file

    from unifiedreward_think.evaluation.__main__ import main

    model, output, data = tmp_path / "model", tmp_path / "eval", tmp_path / "pairs.jsonl"
    shutil.copytree(models["qwen2_5_vl"], model)
    rows = [record.to_json() for record in load_records([str(toy_data / "heldout.jsonl")]).rows]
    rows[3]["media"] = ["gone.mp4"]  # beyond the limit: nobody looks for it
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluation", "--model", model, "--input", data, "--output", output, "--limit", "3"]
    command += ["--frame-cache", toy_data / "frames", "--prompts", REPO / "configs/toy/prompts", "--frames", "8"]
    monkeypatch.setattr("sys.argv", [str(word) for word in [*command, "--max-new-tokens", "4", "--batch-size", "2"]])
    main()
    assert "6 judgments of 3 pairs -> " in capsys.readouterr().out
    files = {"config.yaml", "judgments.jsonl", "records.jsonl", "results.json"}
    assert {path.name for path in output.iterdir()} == files
    before = (output / "judgments.jsonl").read_bytes()
    assert json.loads((output / "results.json").read_text())["judgments"] == 6
    main()
    assert (output / "judgments.jsonl").read_bytes() == before
    weights = load_file(model / "model.safetensors")
    save_file({key: value * 1.01 for key, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecordError, match="judgments made with weights = "):
        main()
