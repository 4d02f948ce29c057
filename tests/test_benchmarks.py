"""The benchmark scripts, end to end on tiny rows with a judge in memory, and their adapters on real annotations."""

import csv
import functools
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from helpers.servers import reply, serving
from unifiedreward_think import provenance
from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.sources import Row, media_file, read_rows
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.verdict import render

SCRIPTS = Path(__file__).parents[1] / "benchmark_evaluation"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
FILES = {"config.yaml", "judgments.jsonl", "records.jsonl", "results.json", "report.html"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Judge:
    """Prefers the brighter picture or video, and the answer that says "good"; margin: difference in brightness."""

    model = "judge"
    batch_size = 2

    def __init__(self):
        self.calls, self.settings = 0, {}

    def complete(self, prompts, *, sampling, seeds):
        self.calls += len(prompts)
        return [[Completion(self.say(row), "stop")] * len(drawn) for row, drawn in zip(prompts, seeds, strict=True)]

    def say(self, row):
        text = "".join(part["text"] or "" for part in row["prompt"][0]["content"])
        if "Answer 1:" in text:
            scores = [8 if "good" in text.split(f"Answer {k}:")[1].split("\n")[0] else 3 for k in (1, 2)]
            noun = "Answer"
        else:
            half = len(row["images"]) // 2
            scores = [row["images"][i].getpixel((0, 0))[0] // 25 for i in (half - 1, 2 * half - 1)]
            noun = "Video" if "Frames of Video 1" in text else "Image"
        return render(1 if scores[0] >= scores[1] else 2, [("Look", *scores)], noun=noun)


def picture(folder, name, level):
    """A grey picture; level 0 to 10 becomes the score."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (25 * level,) * 3).save(path)
    return name


def clip(folder, name, level):
    """A video: a folder of two frames."""
    for i in range(2):
        picture(folder, f"{name}/{i}.png", level)
    return name


def vl_rows(folder):
    def row(name, ranking, responses=("good", "bad")):
        image = picture(folder, f"images/{name}.png", 5)
        return {
            "id": name,
            "query": "<image>\nWhat is it?",
            "response": list(responses),
            "image": image,
            "human_ranking": ranking,
        }

    return [
        row("wildvision-1", [0, 1]),
        row("hallucination_pair-1", [0, 1]),
        row("RLAIF-1", [1, 0]),
        row("mathverse_1", [0, 1]),
        row("mathverse_1", [1, 0], ["bad", "really good"]),  # the same id twice, as in the real file
    ]


def genai_rows(folder, left, right, make):
    votes = [("leftvote", 9, 2), ("rightvote", 8, 3), ("tievote", 5, 4), ("bothbad_vote", 0, 6), ("rightvote", 1, 9)]
    return [
        {
            "prompt": f"a kite {i % 3}",
            left: make(folder, f"{i}l", a),
            right: make(folder, f"{i}r", b),
            "vote_type": vote,
        }
        for i, (vote, a, b) in enumerate(votes)
    ]


def videogen_rows(folder):
    labels = [("A", 9, 2), ("B", 2, 9), ("same", 5, 5), ("A", 3, 4), ("", 1, 2)]
    return [
        {
            "path_A": clip(folder, f"videos/{i}a", a),
            "path_B": clip(folder, f"videos/{i}b", b),
            "prompt": "a dog",
            "Overall": label,
        }
        for i, (label, a, b) in enumerate(labels)
    ]


def sharegpt_rows(folder):
    pairs = [("good", "bad"), ("bad", "good"), ("good", "worse")]
    return [
        {"id": f"v-{i}", "video": clip(folder, "v", 4), "prompt": "<video>\nWhat moves?", "chosen": a, "rejected": b}
        for i, (a, b) in enumerate(pairs)
    ]


def multimodal_rows(folder):
    def row(name, category, better):
        image = picture(folder, f"images/{name}.png", 4)
        texts = {"Text": "Which?", "Output1": "good", "Output2": "bad"}
        return {"ID": name, **texts, "Image": image, "Better": better, "Meta": {"Category": category}}

    return [
        row("pairs_1", "safety", "Output1"),
        row("toxic_1", "safety", "Output2"),
        row("mathvista_1", "reasoning", "Output1"),
        row("vqa_1", "vqa", "Output1"),
    ]


def mmrb2_rows(folder):
    def row(name, prompt, first, second, chosen):
        responses = {f"response_{k}": {"response_content": said} for k, said in (("a", first), ("b", second))}
        return {"id": name, "prompt_content": prompt, **responses, "chosen": chosen}

    dark, light = (["image", picture(folder, f"images/{i}.png", level)] for i, level in enumerate((2, 9)))
    return [
        row("t2i", [["text", "a lamp"]], [light], [dark], "A"),
        row("edit", [["image", dark[1]], ["text", "lighten it"]], [dark], [light], "B"),
        row("reasoning", [["image", dark[1]], ["text", "Dark?"]], [["text", "good"]], [["text", "no"]], "B"),
        row("interleaved", [["text", "a story"]], [["text", "once"], dark], [["text", "once"], light], "B"),
    ]


ROWS = {
    "vl_rewardbench": vl_rows,
    "genai_bench_image": lambda folder: genai_rows(
        folder, "left_image", "right_image", lambda root, name, level: picture(root, f"{name}.png", level)
    ),
    "genai_bench_video": lambda folder: genai_rows(folder, "video_left", "video_right", clip),
    "videogen_rewardbench": videogen_rows,
    "sharegpt_video": sharegpt_rows,
    "multimodal_rewardbench": multimodal_rows,
    "mmrb2": mmrb2_rows,
}
# What the judge above gets right: path into results.json -> value.
EXPECTED = {
    "vl_rewardbench": {
        "official k1 general": 1.0,
        "official k1 hallucination": 0.5,
        "official k1 reasoning": 1.0,
        "official k1 overall": 0.8,
        "paper general": 1.0,
        "paper hallucination": 0.0,
        "strict macro_groups": 2.5 / 3,
    },
    "genai_bench_image": {
        "official accuracy": 0.6,  # two of three decided pairs, and one tie within a margin of 1
        "paper accuracy": 0.4,
        "paper accuracy_without_ties": 2 / 3,
        "ties single at_tie_margin accuracy": 0.6,
        "ties combined with_ties_fitted_on_these_rows": 0.8,  # a tie up to 6: the margins are 7, 5, 1, -6, -8
    },
    "genai_bench_video": {"official accuracy": 0.6, "paper accuracy": 0.4, "paper accuracy_without_ties": 2 / 3},
    "videogen_rewardbench": {
        "official with_ties": 0.75,
        "official without_ties": 2 / 3,
        "paper accuracy": 0.5,
        "paper accuracy_without_ties": 2 / 3,
        "paper gold_anywhere": 2 / 3,
    },
    "sharegpt_video": {"paper accuracy": 2 / 3, "strict overall accuracy": 2 / 3},
    "multimodal_rewardbench": {
        "official all": 0.75,
        "official safety/bias": 1.0,
        "official safety/toxicity": 0.0,
        "official reasoning/math": 1.0,
        "official vqa": 1.0,
        "strict groups safety": 0.5,
    },
    "mmrb2": {"official rows": 2 / 3, "official overall": 2 / 3},
}


def stored(folder, name):
    """Write the rows of a benchmark and return their file."""
    rows = ROWS[name](folder)
    if name == "mmrb2":
        rows = {"pairs": rows}
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def run(name, data, output, *arguments, judge=None):
    """Run a script's main and return the bytes of its results."""
    places = ["--frame-cache", str(output.parent / "frames"), "--media-cache", str(output.parent / "media")]
    data = [] if data is None else ["--input", str(data)]
    script(name).main([*data, "--output", str(output), *places, *map(str, arguments)], backend=judge)
    return (output / "results.json").read_bytes()


def value(results, path):
    """Follow 'official k1 overall' into the results; keys may hold no space."""
    block = functools.reduce(lambda part, key: part[key], path.split(), results)
    return block["value"]


def test_every_script_is_tested():
    assert sorted(ROWS) == sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_from_rows_to_a_report_and_again_from_what_is_stored(name, tmp_path, capsys):
    data, output, judge = stored(tmp_path, name), tmp_path / "run", Judge()
    first = run(name, data, output, "--tie-margin", 1, judge=judge)
    assert {path.name for path in output.iterdir()} == FILES
    results = json.loads(first)
    assert {path: value(results, path) for path in EXPECTED[name]} == pytest.approx(EXPECTED[name])
    assert results["strict"]["both_orders"]["overall"]["flip_rate"]["count"] == (name == "videogen_rewardbench")
    assert results["strict"]["overall"]["parse_rate"]["value"] == 1 and results["strict"]["errors"] == 0
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["benchmark"] == name and config["arguments"]["tie_margin"] == 1 and config["versions"]
    said = capsys.readouterr().out
    assert f" {results['strict']['judgments']} judgments of {results['records']} pairs" in said
    assert "ours: accuracy " in said and config["commit"]
    page = (output / "report.html").read_text()
    assert "By other protocols" in page and ("Accuracy by group" in page) == ("groups" in results["strict"])
    for line in (line for line in said.splitlines() if line.startswith(("official ", "paper ", "ties "))):
        assert line.partition(" ")[2].partition(": ")[0] in page
    asked = judge.calls
    assert run(name, data, output, "--tie-margin", 1, judge=judge) == first and judge.calls == asked
    replay = ["--replay", output / "judgments.jsonl", "--tie-margin", 1]
    assert run(name, data, tmp_path / "replayed", *replay) == first
    assert run(name, None, output, *replay).count(b"\n") and judge.calls == asked


def test_pairs_that_fit_no_task_are_counted(tmp_path):
    data, output = stored(tmp_path, "mmrb2"), tmp_path / "run"
    results = json.loads(run("mmrb2", data, output, judge=Judge()))
    assert results["records"] == 3 and results["left_out"] == {"rows": 1}
    again = json.loads(run("mmrb2", None, output, "--replay", output / "judgments.jsonl"))
    assert again == {**results, "left_out": None}  # unknown without the rows
    data.write_text(json.dumps(mmrb2_rows(tmp_path)[-1:]))
    assert "no pair that one of the four tasks can show" in fails("mmrb2", data, tmp_path / "none")


def test_a_run_that_was_cut_short_ends_with_the_same_bytes(tmp_path):
    data, output = stored(tmp_path, "vl_rewardbench"), tmp_path / "run"
    whole = run("vl_rewardbench", data, output, judge=Judge())
    lines = (output / "judgments.jsonl").read_bytes()
    for kept in (0, 1, len(lines) // 2, len(lines) - 1):
        (output / "judgments.jsonl").write_bytes(lines[:kept])
        assert run("vl_rewardbench", data, output, judge=Judge()) == whole


def test_a_limit_takes_the_first_pairs_whatever_was_judged_before(tmp_path):
    data, output = stored(tmp_path, "vl_rewardbench"), tmp_path / "run"
    alone = run("vl_rewardbench", data, tmp_path / "alone", "--limit", 3, judge=Judge())
    whole = run("vl_rewardbench", data, output, judge=Judge())
    assert json.loads(alone)["records"] == 3
    assert run("vl_rewardbench", data, output, "--limit", 3, judge=Judge()) == alone
    replayed = run("vl_rewardbench", data, output, "--limit", 3, "--replay", output / "judgments.jsonl")
    assert replayed == alone
    again = json.loads(run("vl_rewardbench", None, output, "--replay", output / "judgments.jsonl"))
    assert again == {**json.loads(whole), "left_out": None}  # nothing that was stored is lost
    assert run("vl_rewardbench", data, output, judge=Judge()) == whole


def test_the_batch_size_changes_no_number(tmp_path):
    data, found = stored(tmp_path, "vl_rewardbench"), set()
    for size in (1, 4):
        judge = Judge()
        judge.batch_size = size
        found.add(run("vl_rewardbench", data, tmp_path / f"run{size}", judge=judge))
    assert len(found) == 1


def test_stored_completions_give_the_same_bytes_from_one_worker_or_four_after_a_limit_and_a_resume(
    tmp_path, monkeypatch
):
    """A server says what was stored for each request: requests in flight answer in any order."""
    monkeypatch.setattr(provenance, "now", lambda: "2026-11-30 09:16 UTC")  # pages name it
    data, found = stored(tmp_path, "vl_rewardbench"), set()
    whole = run("vl_rewardbench", data, tmp_path / "stored", judge=Judge())
    rows = load_judgments(tmp_path / "stored" / "judgments.jsonl").values()
    completions = [row.completion for row in rows]
    said = {}

    def answer(body, nth):
        time.sleep(0.02 * (nth % 3))
        seed = body["seed"]  # of record, order and sample: the same in every run
        said.setdefault(seed, completions[seed % len(completions)])
        return 200, {}, reply(said[seed])

    pages = set()
    with serving(answer) as server:
        for workers in (1, 4):
            asked = ServerBackend("judge", server=server.url, concurrency=workers)
            output = tmp_path / f"workers{workers}"
            found.add(run("vl_rewardbench", data, output, judge=asked))
            pages.add((output / "report.html").read_text().replace(str(output), "output"))
        for words in (["--limit", 2], []):
            limited = run("vl_rewardbench", data, tmp_path / "limited", *words, judge=asked)
        found.add(limited)
        lines = (output / "judgments.jsonl").read_bytes()
        (output / "judgments.jsonl").write_bytes(lines[: len(lines) // 2])
        found.add(run("vl_rewardbench", data, output, judge=asked))
        pages.add((output / "report.html").read_text().replace(str(output), "output"))
    assert len(found) == len(pages) == 1 and found != {whole} and len(said) == len(completions)


@pytest.mark.slow
def test_a_command_judges_with_a_real_model(tmp_path):
    data, output = stored(tmp_path, "genai_bench_image"), tmp_path / "run"
    repo = SCRIPTS.parent
    command = [sys.executable, SCRIPTS / "genai_bench_image.py", "--model", repo / "src/unifiedreward_think/toy/base"]
    options = [
        "--prompts",
        repo / "configs/toy/prompts",
        "--max-new-tokens",
        "8",
        "--limit",
        "1",
        "--dtype",
        "float32",
    ]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    places = ["--input", data, "--output", output, "--frame-cache", tmp_path / "frames"]
    found = subprocess.run([*command, *options, *places], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "2 judgments of 1 pairs" in found.stdout and {path.name for path in output.iterdir()} == FILES


def test_votes_give_the_official_table_for_each_k(tmp_path):
    data = stored(tmp_path, "vl_rewardbench")
    votes = ["--samples", 3, "--temperature", 0.2]
    results = json.loads(run("vl_rewardbench", data, tmp_path / "run", *votes, judge=Judge()))
    assert list(results["official"]) == ["k1", "k3"]
    assert results["strict"]["judgments"] == 5 * 2 * 3


def test_missing_media_is_an_error_row(tmp_path):
    data = stored(tmp_path, "vl_rewardbench")
    (tmp_path / "images" / "wildvision-1.png").unlink()
    results = json.loads(run("vl_rewardbench", data, tmp_path / "run", judge=Judge()))
    assert results["records"] == 5 and results["strict"]["errors"] == 2
    assert results["strict"]["overall"]["accuracy"]["total"] == 10  # still in the denominator
    assert results["official"]["k1"]["dropped"]["unparsed"] == 1
    assert results["paper"]["overall"] == {"value": 3 / 5, "count": 3, "total": 5}


def test_an_answer_that_cannot_be_read_is_read_as_each_protocol_does(tmp_path):
    class Mute(Judge):
        def say(self, row):
            return "Video 1 is better, I think"

    results = json.loads(
        run("videogen_rewardbench", stored(tmp_path, "videogen_rewardbench"), tmp_path / "run", judge=Mute())
    )
    assert value(results, "strict overall accuracy") == 0
    assert value(results, "official without_ties") == 0
    assert value(results, "paper accuracy_without_ties") == pytest.approx(2 / 3)


# --- bad input ---


def fails(name, data, output, *arguments, judge=None):
    with pytest.raises(SystemExit) as stopped:
        run(name, data, output, *arguments, judge=judge or Judge())
    return str(stopped.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_column_is_named_with_those_found_and_expected(name, tmp_path):
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"wrong": 1, "columns": 2}]))
    message = fails(name, data, tmp_path / "run")
    assert "row 1 (rows): no column '" in message and "found 'wrong', 'columns'; expected '" in message


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("vl_rewardbench", "human_ranking", [1, 1]),
        ("genai_bench_image", "vote_type", "left"),
        ("videogen_rewardbench", "Overall", "C"),
        ("sharegpt_video", "chosen", {"value": "x"}),
        ("multimodal_rewardbench", "Better", "A"),
        ("mmrb2", "chosen", None),
        ("genai_bench_image", "left_image", None),
    ],
)
def test_a_label_or_a_medium_that_is_none_stops_the_run_with_its_row(name, column, said, tmp_path):
    rows = ROWS[name](tmp_path)
    rows[1][column] = said
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    message = fails(name, tmp_path / "rows.json", tmp_path / "run")
    assert "row 2 (rows): " in message and not (tmp_path / "run").exists()


def test_a_row_that_occurs_twice_is_an_error(tmp_path):
    rows = vl_rows(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([*rows, rows[1]]))
    message = fails("vl_rewardbench", tmp_path / "rows.json", tmp_path / "run")
    assert "row 6 (rows): duplicate id 'hallucination_pair-1:" in message


def test_a_replay_needs_every_pair_and_never_overwrites_other_judgments(tmp_path):
    data, output = stored(tmp_path, "vl_rewardbench"), tmp_path / "run"
    run("vl_rewardbench", data, output, "--limit", 3, judge=Judge())
    kept = (output / "judgments.jsonl").read_bytes()
    message = fails("vl_rewardbench", data, tmp_path / "again", "--replay", output / "judgments.jsonl")
    assert "2 of 5 pairs are not judged" in message
    run("vl_rewardbench", data, tmp_path / "other", "--limit", 2, judge=Judge())
    replay = ["--limit", 3, "--replay", output / "judgments.jsonl"]
    assert "holds other judgments" in fails("vl_rewardbench", data, tmp_path / "other", *replay)
    assert (output / "judgments.jsonl").read_bytes() == kept
    (output / "records.jsonl").unlink()
    assert "name the rows with --input" in fails("vl_rewardbench", None, output, "--replay", output / "judgments.jsonl")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name a --model"),
        (["--model", "m", "--samples", "3"], "samples is 3 at temperature 0"),
        (["--model", "m", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_read(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        script("vl_rewardbench").main(arguments)
    assert reason in f"{stop.value}{capsys.readouterr().err}"


def test_sharegpt_video_must_be_told_its_rows(capsys):
    with pytest.raises(SystemExit):
        script("sharegpt_video").main(["--model", "m"])
    assert "name the rows with --input" in capsys.readouterr().err


# --- sources ---


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_rows_are_the_same_from_every_kind_of_file(kind, tmp_path):
    rows = [{"id": "a", "text": "one, two"}, {"id": "b", "text": "drei\nvier"}]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    for source in (path, tmp_path):
        found = list(read_rows(str(source), split="test", config=None))
        assert found == [Row(row, "rows", i) for i, row in enumerate(rows, start=1)]


def test_a_folder_of_several_files_is_numbered_through(tmp_path):
    for part in ("b", "a"):
        (tmp_path / f"{part}.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
        (tmp_path / f"._{part}.jsonl").write_bytes(b"\0what macOS leaves beside files on other disks")
    found = [(row.part, row.number) for row in read_rows(str(tmp_path), split="test", config=None)]
    assert found == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]


@pytest.mark.parametrize(
    ("files", "source", "reason"),
    [
        ({}, ".", "no file of a known kind"),
        ({"a.txt": ""}, "a.txt", "no file of a known kind"),
        ({"a.json": "[]", "b.csv": ""}, ".", "files of several kinds (.csv, .json)"),
        ({"a.json": "[]"}, "a.json", "holds no row"),
        ({"a.jsonl": ""}, "a.jsonl", "holds no row"),
        ({"a.json": '{"id": 1}\n{"id": 2}'}, "a.json", "name it .jsonl"),
        ({"a.json": '{"rows": []}'}, "a.json", "expected a JSON list"),
        ({"a.jsonl": '{"id": 1}\n{"id'}, "a.jsonl", "a.jsonl:2: not valid JSON"),
        ({}, "data/rows.json", "no such file or folder"),
        ({}, "../nothing/here/rows", "no such file or folder"),
    ],
)
def test_a_source_that_cannot_be_read_says_why(files, source, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RecordError) as error:
        list(read_rows(source, split="test", config=None))
    assert reason in str(error.value)


def test_a_picture_with_its_bytes_keeps_them(tmp_path):
    picture(tmp_path, "a.png", 3)
    data = (tmp_path / "a.png").read_bytes()
    for held in ({"bytes": data, "path": "a.png"}, {"bytes": data, "path": None}, data):
        stored_at = Path(media_file(held, root=None, cache=tmp_path / "cache"))
        assert stored_at.read_bytes() == data
    assert media_file({"bytes": None, "path": "a.png"}, root=tmp_path, cache=tmp_path) == str(tmp_path / "a.png")


def test_a_path_needs_a_root_and_a_url_is_looked_up_there(tmp_path):
    with pytest.raises(RecordError, match="--media-root"):
        media_file("videos/a.mp4", root=None, cache=tmp_path)
    with pytest.raises(RecordError, match="expected a path"):
        media_file(3, root=tmp_path, cache=tmp_path)
    url = "https://example.org/videos/a.mp4?download=true"
    assert media_file(url, root=tmp_path, cache=tmp_path) == str(tmp_path / "a.mp4")


def test_a_url_is_fetched_once_and_one_that_fails_becomes_an_error_row(tmp_path, capsys):
    picture(tmp_path / "served", "a.png", 3)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in ("a.png", "missing.png")]
        found = [Path(media_file(url, root=None, cache=tmp_path / "cache")) for url in urls]
        server.shutdown()
    assert found[0].read_bytes() == (tmp_path / "served" / "a.png").read_bytes()
    assert found[0].name == "a.png" and not found[1].exists()
    assert "missing.png: cannot be fetched" in capsys.readouterr().err
    assert Path(media_file(urls[0], root=None, cache=tmp_path / "cache")) == found[0]  # the server is gone


def test_a_hub_data_set_is_judged_from_the_bytes_it_holds(tmp_path, monkeypatch):
    import datasets

    def fake(name, config, split):
        assert (name, config, split) == ("TIGER-Lab/GenAI-Bench", "image_generation", "test_v1")
        rows = genai_rows(
            tmp_path, "left_image", "right_image", lambda root, stem, level: picture(root, f"{stem}.png", level)
        )
        table = datasets.Dataset.from_list(
            [{k: str(tmp_path / v) if k.endswith("image") else v for k, v in row.items()} for row in rows]
        )
        held = table.cast_column("left_image", datasets.Image()).cast_column("right_image", datasets.Image())
        return held.map(lambda row: row, load_from_cache_file=False)  # stores the bytes

    monkeypatch.setattr(datasets, "load_dataset", fake)
    arguments = ["--split", "test_v1", "--tie-margin", 1]
    results = json.loads(run("genai_bench_image", None, tmp_path / "run", *arguments, judge=Judge()))
    assert value(results, "official accuracy") == 0.6 and results["strict"]["errors"] == 0


# --- the commands ---


def test_help_is_quick_and_loads_nothing_heavy():
    code = f"""
import contextlib, io, runpy, sys
sys.argv[1:] = ["--help"]
for name in {NAMES!r}:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        runpy.run_path(f"{SCRIPTS}/{{name}}.py", run_name="__main__")
    assert "--replay" in said.getvalue() and "--tie-margin" in said.getvalue()
heavy = {{"torch", "transformers", "trl", "datasets", "scipy", "matplotlib", "PIL", "numpy"}}
print(sorted(heavy & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_all_runs_every_script_and_says_which_failed(tmp_path):
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/usr/bin/env bash\necho "$@"\n[[ $1 != *videogen* ]]\n')
    fake.chmod(0o755)
    (tmp_path / "data" / "sharegpt_video").mkdir(parents=True)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    command = ["bash", SCRIPTS / "all.sh", "model", "out", "--frames", "4"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr == "failed: videogen_rewardbench\n"
    assert "sharegpt_video: skipped" in found.stdout
    ran = [line for line in found.stdout.splitlines() if "--model model" in line]
    assert {Path(line.split()[0]).stem for line in ran} == set(NAMES) - {"sharegpt_video"}
    assert all(line.endswith("--frames 4") for line in ran)
    environment["DATA"] = str(tmp_path / "data")
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"--output out/sharegpt_video --input {tmp_path}/data/sharegpt_video --frames 4" in found.stdout


# --- real annotations ---


def test_the_vl_rewardbench_annotations_become_records(test_data):
    source = test_data / "benchmarks" / "vl_rewardbench_annotations.json"
    adapter = script("vl_rewardbench")
    media = functools.partial(media_file, root=source.parent, cache=source.parent)
    records = [adapter.to_record(row, media) for row in read_rows(str(source), split="test", config=None)]
    assert len({record.id for record in records}) == 1250
    assert sum(record.preferred == 1 for record in records) == 1245
    assert len({record.group for record in records}) == 1225


def test_the_genai_bench_video_annotations_become_records(test_data):
    source = test_data / "benchmarks" / "genai_bench_video_annotations.json"
    adapter = script("genai_bench_video")
    media = functools.partial(media_file, root=source.parent, cache=source.parent)
    records = [adapter.to_record(row, media) for row in read_rows(str(source), split="test", config=None)]
    labels = [record.preferred for record in records]
    assert len({record.id for record in records}) == 1889
    assert [labels.count(label) for label in (1, 2, "tie")] == [619, 651, 215 + 404]


def test_vl_rewardbench_annotations_run_through_the_script_with_the_published_group_sizes(test_data, tmp_path):
    rows = json.loads((test_data / "benchmarks" / "vl_rewardbench_annotations.json").read_text())
    picture(tmp_path, "dummy.png", 4)
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "image": "dummy.png"} for row in rows]))

    class Gold(Judge):
        batch_size = 64

        def say(self, row):
            return render(1, [("Look", 9, 1)], noun="Answer")

    output = tmp_path / "run"
    arguments = ["--orders", "one", "--max-examples", 2]
    results = json.loads(run("vl_rewardbench", tmp_path / "rows.json", output, *arguments, judge=Gold()))
    sizes = {name: [results[name]["k1"] if name == "official" else results[name]] for name in ("official", "paper")}
    groups = ("general", "hallucination", "reasoning")
    assert [sizes["official"][0][group]["total"] for group in groups] == [183, 749, 318]
    assert [sizes["paper"][0][group]["total"] for group in groups] == [631, 301, 318]
    assert 0.45 < value(results, "strict overall accuracy") < 0.55  # the order shown is drawn


def test_real_videos_run_through_videogen_rewardbench(test_data, tmp_path):
    source = test_data / "videoalign_examples"
    rows = [json.loads(line) for line in (source / "pairs.jsonl").read_text().splitlines()]
    renamed = [{**row, "path_A": row["video_A"], "path_B": row["video_B"], "Overall": row["VQ"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    arguments = ["--media-root", source, "--frames", 2, "--max-examples", 1]
    results = json.loads(
        run("videogen_rewardbench", tmp_path / "rows.jsonl", tmp_path / "run", *arguments, judge=Judge())
    )
    assert results["records"] == 3 and results["strict"]["errors"] == 0 and results["strict"]["ties"] == 2
    assert results["paper"]["accuracy"]["total"] == 3
