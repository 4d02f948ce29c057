"""Rejection sampling: what is kept, what is hard, and outputs that survive a kill."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from PIL import Image

from helpers.judging import Threads
from unifiedreward_think.backends import Completion
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_checked_records, load_checked_traces
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.trace_rules import rejections
from unifiedreward_think.training import rejection_sampling as stage
from unifiedreward_think.training.arguments import RowArguments
from unifiedreward_think.verdict import parse, render

TASK = "image_generation"
RIGHT = render(1, [("Aesthetics", 9, 4)], noun="Image")
LONG = render(1, [("Aesthetics", 9, 4)], noun="Image", preamble="Both show a kite.")
WRONG = render(2, [("Aesthetics", 4, 9)], noun="Image")
BAD_SUM = RIGHT.replace("=9", "=10")
LOOSE = RIGHT + " That is all."
SILENT = "Image 1"
FRAMES = FrameSampling(frames=4, cache=Path(tempfile.mkdtemp()))


def options(**changes):
    return stage.SamplingArguments(**{"model_name_or_path": "model", "output_dir": "out", **changes})


def record(name="r0", **changes):
    row = {"id": name, "task": TASK, "prompt": "a kite", "media": (("a.png",), ("b.png",)), "preferred": 1}
    return PreferenceRecord(**{**row, **changes})


def judged(texts, name="r0", *, finish="stop", error=""):
    """One judgment for each text, in order ab."""
    return [
        Judgment(
            record_id=name,
            order="ab",
            sample=i,
            completion=None if error else text,
            finish_reason=finish,
            verdict=parse(text, "Image"),
            preferred=1,
            task=TASK,
            error=error,
        )
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (RIGHT, []),
        (LONG, []),
        (WRONG, ["wrong winner"]),
        (BAD_SUM, ["sums do not add up"]),
        (LOOSE, ["not strictly formed"]),
        (WRONG.replace("=9", "=8") + "!", ["wrong winner", "not strictly formed", "sums do not add up"]),
        (SILENT, ["no readable answer"]),
    ],
)
def test_a_trace_is_kept_if_right_strict_and_adding_up(text, reasons):
    assert rejections(*judged([text]), **stage.trace_rules(options())) == reasons


@pytest.mark.parametrize(
    ("rule", "text"), [("require_correct", WRONG), ("require_strict", LOOSE), ("require_arithmetic", BAD_SUM)]
)
def test_each_rule_can_be_switched_off(rule, text):
    (row,) = judged([text])
    assert rejections(row, **stage.trace_rules(options())) != []
    assert rejections(row, **stage.trace_rules(options(**{rule: False}))) == []
    off = dict.fromkeys(["require_correct", "require_strict", "require_arithmetic"], False)
    assert rejections(row, **stage.trace_rules(options(**{**off, rule: True}))) != []


def test_a_completion_cut_at_the_limit_is_counted_as_such():
    (row,) = judged(["<think>Image 1"], finish="length")
    assert rejections(row, **stage.trace_rules(options())) == ["cut at the token limit"]


def test_the_shortest_good_trace_is_kept_and_the_earliest_of_equals():
    rows = judged([LONG, RIGHT.replace("Aesthetics", "Aesthetic1"), RIGHT, LONG])
    assert [row.sample for row in stage.choose(rows, "shortest")] == [1]
    assert [row.sample for row in stage.choose(rows, "first")] == [0]
    assert stage.choose([], "shortest") == stage.choose([], "first") == stage.choose([], "all") == []


def test_all_good_traces_are_kept_but_a_text_drawn_twice_only_once():
    kept, hard, counts = stage.split_pairs([record()], judged([LONG, RIGHT, WRONG, LONG]), options(keep="all"))
    assert [trace.completion for trace in kept] == [LONG, RIGHT]
    assert (hard, counts["kept"], counts["neither kept nor hard"]) == ([], 2, 0)


@pytest.mark.parametrize(
    ("texts", "hard_below", "hard"),
    [
        ([WRONG, WRONG], 0.0, True),
        ([WRONG, SILENT], 0.0, True),
        ([RIGHT, WRONG], 0.0, False),
        ([RIGHT, WRONG], 0.5, False),
        ([RIGHT, WRONG], 0.6, True),
        ([RIGHT, RIGHT], 1.0, False),
        ([LOOSE, BAD_SUM], 0.0, False),  # right, but nothing to keep
    ],
)
def test_a_pair_is_hard_if_never_solved_or_below_the_threshold(texts, hard_below, hard):
    _, found, _ = stage.split_pairs([record()], judged(texts), options(hard_below=hard_below))
    assert bool(found) == hard


def test_a_pair_that_could_not_be_judged_is_neither_kept_nor_hard():
    rows = judged([RIGHT, RIGHT], error="gone.png: no such file")
    kept, hard, counts = stage.split_pairs([record()], rows, options())
    assert (kept, hard, counts["neither kept nor hard"]) == ([], [], 1)
    assert counts["pairs by correct samples"] == {"not judged": 1}
    assert counts["samples rejected because"] == {"no answer": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0, "samples": 4}, "samples is 4 at temperature 0"),
        ({"samples": 0}, "1 or more"),
        ({"style": "direct"}, "require_arithmetic: false"),
        ({"hard_below": 1.5}, "from 0 to 1"),
    ],
)
def test_settings_that_cannot_mean_what_they_say_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_one_greedy_sample_is_allowed():
    assert options(temperature=0.0, samples=1).samples == 1


# A whole run, with a model in memory that finds some of the red pictures.


class SeesSomeRed:
    """Right, wrong, loose or silent, as the seed says."""

    model, settings = "red", {}

    def __init__(self, *, batch_size=4, calls=None):
        self.batch_size, self.calls = batch_size, calls

    def complete(self, prompts, *, sampling, seeds):
        if self.calls is not None:
            self.calls -= 1
            if self.calls < 0:
                raise KeyboardInterrupt
        return [[self.answer(row, seed) for seed in mine] for row, mine in zip(prompts, seeds, strict=True)]

    def answer(self, row, seed):
        red = 1 + (row["images"][1].getpixel((0, 0))[0] > 100)
        winner = red if seed % 5 < 2 else 3 - red
        text = render(winner, [("Aesthetics", *((9, 4) if winner == 1 else (4, 9)))], noun="Image")
        return Completion((text, text, text, text + " So.", "?")[seed % 5 if seed % 5 > 1 else seed % 4], "stop")


@pytest.fixture
def data(tmp_path):
    """Thirty pairs, three of them ties, in a file with relative media paths."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    rows = []
    for i in range(30):
        names = ("red.png", "blue.png") if i % 2 else ("blue.png", "red.png")
        preferred = "tie" if i % 10 == 7 else 1 if i % 2 else 2
        rows.append(record(f"r{i}", media=((names[0],), (names[1],)), preferred=preferred).to_json())
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowArguments(train_files=[str(folder / "pairs.jsonl")])


def run(data, folder, backend, **changes):
    args = options(**{"output_dir": str(folder), "hard_below": 0.3, **changes})
    records, counts = stage.load_pairs(data, args)
    judgments = judge(records, backend, args.config(), folder / "judgments.jsonl")
    return {**counts, **stage.write_outputs(folder, records, judgments, counts, args, data)}


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in ("kept.jsonl", "hard.jsonl", "manifest.json")}


def emptied(data, folder):
    """Return a folder in which a whole run has taken place and left nothing, and the outputs of that run."""
    run(data, folder, SeesSomeRed())
    whole = outputs(folder)
    for path in folder.iterdir():
        path.unlink()
    return folder, whole


def test_the_counts_of_the_manifest_add_up(data, tmp_path):
    folder = tmp_path / "out"
    found = run(data, folder, SeesSomeRed())
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts == found
    assert counts["rows"] == 30 and counts["ties left out"] == 3 and counts["pairs"] == 27
    left_out = ("ties left out", "unlabelled pairs left out", "bad rows left out", "pairs beyond the limit")
    assert counts["rows"] == counts["pairs"] + sum(counts[name] for name in left_out)
    assert counts["pairs"] == sum(counts["pairs by correct samples"].values())
    kept, hard, both, neither = (counts[k] for k in ("kept", "hard", "kept and hard", "neither kept nor hard"))
    assert min(kept, hard, both, neither) > 0 and counts["pairs"] == kept + hard - both + neither
    assert kept == sum(counts["kept by task"].values()) == len((folder / "kept.jsonl").read_text().splitlines())
    assert hard == sum(counts["hard by task"].values()) == len((folder / "hard.jsonl").read_text().splitlines())
    rows = [Judgment.from_json(json.loads(line)) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    assert counts["samples"] == len(rows) == 27 * 4
    rejected = [row for row in rows if rejections(row, **stage.trace_rules(options()))]
    assert counts["samples accepted"] == len(rows) - len(rejected)
    assert max(counts["samples rejected because"].values()) <= len(rejected)
    assert manifest["arguments"]["hard_below"] == 0.3 and manifest["commit"] and manifest["versions"]["torch"]


def test_kept_and_hard_load_from_anywhere_and_their_media_resolve(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(replace(data, train_files=["data/pairs.jsonl"]), tmp_path / "out", SeesSomeRed())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept = load_checked_traces(["../out/kept.jsonl"], sampling=FRAMES).rows
    hard = load_checked_records(["../out/hard.jsonl"], sampling=FRAMES).rows
    assert kept and hard and all(row.preferred in (1, 2) for row in hard)
    assert all(Path(path).is_absolute() for row in hard for entry in row.media for path in entry)
    for trace in kept:
        verdict = parse(trace.completion, "Image")
        assert verdict.strict and verdict.arithmetic_ok
        assert verdict.winner == trace.record.shown(trace.order).winner
    assert {trace.order for trace in kept} == {"ab", "ba"}


def test_both_orders_count_towards_the_pass_rate_and_one_trace_a_pair_is_kept(data, tmp_path):
    counts = run(data, tmp_path / "out", SeesSomeRed(), orders="both")
    assert counts["samples"] == 27 * 8
    assert all(name.endswith("/8") for name in counts["pairs by correct samples"])
    assert load_checked_traces([str(tmp_path / "out" / "kept.jsonl")], sampling=FRAMES)


@pytest.mark.parametrize("calls", [0, 1, 3, 6])
def test_a_run_stopped_in_between_gives_the_same_files_when_run_again(calls, data, tmp_path):
    folder, whole = emptied(data, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(data, folder, SeesSomeRed(calls=calls))
    assert [path.name for path in folder.iterdir()] == ["judgments.jsonl"]
    with (folder / "judgments.jsonl").open("a") as file:
        file.write('{"record_id": "r2", "ord')  # cut while it was written
    run(data, folder, SeesSomeRed())
    assert outputs(folder) == whole


@pytest.mark.parametrize("count", [2, 5])
def test_several_ranks_write_the_files_of_one_process(count, data, tmp_path):
    folder, whole = emptied(data, tmp_path / "out")
    barrier, brought = Barrier(count), [None] * count

    def rank(number):
        args = options(output_dir=str(folder), hard_below=0.3)
        records, counts = stage.load_pairs(data, args)
        threads = Threads(rank=number, count=count, barrier=barrier, brought=brought)
        found = judge(records, SeesSomeRed(), args.config(), folder / "judgments.jsonl", ranks=threads)
        if number == 0:
            stage.write_outputs(folder, records, found, counts, args, data)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(rank, range(count)))
    assert outputs(folder) == whole
    assert sorted(path.name for path in folder.iterdir()) == sorted([*whole, "judgments.jsonl"])


def test_the_files_depend_neither_on_the_batch_size_nor_on_an_earlier_limit(data, tmp_path):
    folder, whole = emptied(data, tmp_path / "out")
    part = run(replace(data, limit=5), folder, SeesSomeRed(batch_size=3))
    assert part["pairs"] == 5 and part["pairs beyond the limit"] == 22
    run(data, folder, SeesSomeRed(batch_size=7))
    found = outputs(folder)
    assert all(found[name] == whole[name] for name in ("kept.jsonl", "hard.jsonl"))


@pytest.mark.parametrize("dies_at", ["kept.jsonl", "hard.jsonl", "manifest.json"])
def test_an_output_is_written_whole_or_not_at_all(dies_at, data, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    run(data, folder, SeesSomeRed())
    before = outputs(folder)
    real = Path.write_bytes

    def dies(path, content):
        if path.name.startswith(dies_at):
            real(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        run(data, folder, SeesSomeRed(), hard_below=0.9)
    monkeypatch.undo()
    assert not (folder / "manifest.json").exists()  # nothing claims that the files beside it belong together
    assert (folder / "kept.jsonl").read_bytes() == before["kept.jsonl"]  # the threshold does not touch it
    run(data, folder, SeesSomeRed(), hard_below=0.9)
    assert outputs(folder)["hard.jsonl"].count(b"\n") > before["hard.jsonl"].count(b"\n")


def test_other_filter_rules_need_no_new_samples_and_other_draws_are_refused(data, tmp_path):
    folder = tmp_path / "out"
    few = run(data, folder, SeesSomeRed())
    more = run(data, folder, SeesSomeRed(calls=0), require_correct=False, require_strict=False)
    assert more["kept"] > few["kept"] and more["hard"] == few["hard"]
    with pytest.raises(ValueError, match=r"judgments made with temperature = 1\.0, now it is 0\.5"):
        run(data, folder, SeesSomeRed(), temperature=0.5)


def test_bad_rows_stop_the_stage_unless_they_are_skipped_and_counted(data, tmp_path, capsys):
    (tmp_path / "data" / "blue.png").rename(tmp_path / "data" / "green.png")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: record 'r0'"):
        stage.load_pairs(data, options())
    (tmp_path / "data" / "green.png").rename(tmp_path / "data" / "blue.png")
    with (tmp_path / "data" / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({**record("bad").to_json(), "preferred": 3}) + "\n")
    records, counts = stage.load_pairs(replace(data, skip_bad=True), options())
    assert (len(records), counts["bad rows left out"], counts["rows"]) == (27, 1, 31)
    assert "record 'bad'" in capsys.readouterr().err


def test_unlabelled_pairs_are_left_out_and_counted(data, tmp_path):
    with (tmp_path / "data" / "pairs.jsonl").open("a") as file:
        file.write(
            json.dumps(record("unlabelled", media=(("red.png",), ("blue.png",)), preferred=None).to_json()) + "\n"
        )
    records, counts = stage.load_pairs(data, options())
    assert (len(records), counts["unlabelled pairs left out"], counts["rows"]) == (27, 1, 31)


def test_a_file_of_ties_has_nothing_to_sample(data, tmp_path):
    file = tmp_path / "data" / "ties.jsonl"
    file.write_text(json.dumps(record(media=(("red.png",), ("blue.png",)), preferred="tie").to_json()) + "\n")
    with pytest.raises(DataError, match="no record has a winner"):
        stage.load_pairs(replace(data, train_files=[str(file)]), options())


def main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["rejection_sampling", *map(str, arguments)])
    stage.main()


@pytest.mark.parametrize("count", [1, 2])
def test_stored_completions_give_the_same_files_by_the_command(count, data, tmp_path, monkeypatch, capsys):
    """A replay stands for any backend: what is kept and hard depends on the completions alone."""
    run(data, tmp_path / "run", SeesSomeRed(), orders="both")
    folder = tmp_path / "again"
    arguments = ["--train_files", *data.train_files, "--output_dir", folder, "--orders", "both", "--hard-below", "0.3"]
    arguments += ["--backend", "replay", "--model_name_or_path", tmp_path / "run" / "judgments.jsonl"]
    for _ in range(count):  # a second run goes on from the first
        main(monkeypatch, *arguments)
    names = ("kept.jsonl", "hard.jsonl", "judgments.jsonl")
    assert [(folder / name).read_bytes() for name in names] == [
        (tmp_path / "run" / name).read_bytes() for name in names
    ]
    assert json.loads((folder / "manifest.json").read_text())["arguments"]["backend"] == "replay"


@pytest.mark.slow
def test_the_command_samples_from_a_real_model_and_goes_on(models, toy_data, tmp_path, monkeypatch, capsys):
    toy = Path(__file__).parents[1] / "configs" / "toy"
    arguments = ["--config", toy / "rejection_sampling.yaml", "--model_name_or_path", models["qwen2_5_vl"]]
    arguments += ["--train_files", toy_data / "train.jsonl", "--frame_cache", toy_data / "frames", "--limit", 4]
    arguments += ["--output_dir", tmp_path, "--samples", 2, "--max_new_tokens", 4, "--prompts", toy / "prompts"]
    main(monkeypatch, *arguments, "--check_data", "true")
    assert "'pairs': 4" in capsys.readouterr().out and not list(tmp_path.iterdir())
    main(monkeypatch, *arguments)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    counts = json.loads(first["manifest.json"])["counts"]
    assert (counts["samples"], counts["hard"], counts["kept"]) == (8, 4, 0)  # a random model solves nothing
    assert set(counts["samples rejected because"]) <= {"cut at the token limit", "no readable answer"}
    assert "0 kept, 4 hard of 4 pairs" in capsys.readouterr().out
    main(monkeypatch, *arguments)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    with pytest.raises(ValueError, match="require_arithmetic: false"):
        main(monkeypatch, *arguments, "--style", "direct")
