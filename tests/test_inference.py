"""Judging pairs: the Python API, votes and ties, and the four scripts as they are typed."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import unifiedreward_think
from helpers.judging import LooksForRed
from helpers.servers import FakeServer, caption, reply, serving
from unifiedreward_think import Judge
from unifiedreward_think.backends import Completion
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging import prepare
from unifiedreward_think.judging.command import describe, main
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.scores import Dimension
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import parse, render
from unifiedreward_think.votes import combine

REPO = Path(__file__).parents[1]
TOY_PROMPTS = REPO / "configs" / "toy" / "prompts"


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A red and a blue picture, by relative paths: the order shown depends on them."""
    monkeypatch.chdir(tmp_path)
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return [Path("red.png"), Path("blue.png")]


@pytest.fixture
def pairs(pair, tmp_path):
    """A file of 20 unlabelled pairs of the two, captions in the rows; in every third the blue one is first."""
    rows = []
    for i in range(20):
        media = ["red.png", "blue.png"] if i % 3 else ["blue.png", "red.png"]
        rows.append({"id": f"r{i}", "task": "image_generation", "prompt": f"picture {i}.", "media": media})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words, task="image_generation", backend=None):
    return main(task, about="", arguments=[str(word) for word in words], backend=backend or LooksForRed())


def results(output):
    return [json.loads(line) for line in output.with_suffix(".results.jsonl").read_text().splitlines()]


def told(path):
    return [replace(row, seconds=0.0) for row in load_judgments(path).values()]


# --- Python ---


def test_three_lines_of_python_give_the_verdict_of_the_script(pair, capsys):
    judge = unifiedreward_think.Judge(LooksForRed())
    result = judge("image_generation", "a red kite", pair)
    assert (result.winner, result.votes, result.error) == (1, {"1": 1, "2": 0, "abstained": 0}, "")
    ((name, (first, second)),) = result.dimensions
    assert name == "Aesthetics" and (first, first - second) == (9, result.margin)
    assert run("--prompt", "a red kite", "--media", *pair) == 0
    said = capsys.readouterr().out
    assert f"Winner: 1 ({pair[0]})" in said and result.reasoning in said


def test_the_winner_is_the_candidate_as_given_whatever_was_shown_first(pair):
    orders = set()
    for i in range(8):
        for k, media in enumerate((pair, pair[::-1]), start=1):
            result = Judge(LooksForRed(), order_seed=i)("image_generation", "a red kite", media)
            assert result.winner == k and result.dimensions[0].scores[k - 1] == 9
            orders.add(result.chosen.order)
    assert orders == {"ab", "ba"}


def test_both_orders_and_many_votes_are_combined(pair):
    judge = Judge(LooksForRed(), samples=5, temperature=1.0, orders="both")
    result = judge("image_generation", "a red kite", pair)
    assert sum(result.votes.values()) == 10 and result.votes["1"] > result.votes["2"] > 0 and result.winner == 1


def test_understanding_tasks_take_one_picture_and_two_answers(pair):
    class First(LooksForRed):
        def answer(self, row, seed, sampling):
            text = row["prompt"][0]["content"][-1]["text"]
            assert len(row["images"]) == 1 and "Red it is" in text and "What colour?" in text
            return Completion(
                render(1 if text.find("Red it is") < text.find("Blue.") else 2, [], noun="Answer"), "stop"
            )

    result = Judge(First())("image_understanding", "What colour?", pair[:1], ["Red it is", "Blue."])
    assert result.winner == 1 and result.margin is None and result.dimensions == ()


def test_importing_the_package_loads_nothing_and_still_offers_the_judge():
    code = (
        "import sys, unifiedreward_think as u; a = len(sys.modules); u.Judge; print(a < len(sys.modules), *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert out[0] == "True" and not {"torch", "transformers", "PIL", "numpy"} & set(out)
    with pytest.raises(AttributeError, match="no attribute 'Jury'"):
        _ = unifiedreward_think.Jury


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ({"samples": 3}, "greedy completions are all the same"),
        ({"samples": 0}, "samples is 0"),
        ({"tie_margin": 1, "style": "direct"}, "needs the scores"),
        ({"tie_margin": -1}, "tie_margin is -1; expected a number, 0 or more"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_before_a_model_is_loaded(ways, message):
    with pytest.raises(InputError, match=message):
        Judge("no/such/model", **ways)


# --- votes and ties ---


def vote(winner, first=None, second=None, *, order="ab", sample=0, error=""):
    scores = [] if first is None else [("Aesthetics", first, second)]
    text = render(winner, scores, noun="Image") if winner else "no idea"
    return Judgment(
        record_id="kite",
        task="image_generation",
        order=order,
        sample=sample,
        completion=None if error else text,
        verdict=parse("" if error else text, "Image"),
        error=error,
    )


@pytest.mark.parametrize(
    ("votes", "tie_margin", "winner", "margin"),
    [
        ([vote(1, 9, 4)], None, 1, 5),
        ([vote(1, 9, 4, order="ba")], None, 2, -5),
        ([vote(1, 9, 4), vote(1, 9, 4, order="ba")], None, None, 0),  # split: the place decides, so nobody wins
        ([vote(1, 9, 4), vote(1, 9, 4, order="ba")], 0, "tie", 0),
        # The margin is the mean over votes, so more votes of the same do not leave the tie.
        ([vote(1, 9, 4), vote(2, 4, 9, order="ba")], 4, 1, 5),
        ([vote(1, 9, 4), vote(2, 4, 9, order="ba")], 5, "tie", 5),
        ([vote(1, 9, 8)] * 5, 2, "tie", 1),
        ([vote(1, 9, 4), vote(None), vote(None)], None, 1, 5),  # unreadable votes abstain
        ([vote(None), vote(1, error="gone")], None, None, None),
        ([vote(None), vote(1, error="gone")], 5, None, None),
        ([vote(1), vote(1), vote(2)], 5, 1, None),  # no scores, no tie
        ([vote(2, 5, 5.1), vote(2, 5, 5.2)], 0.15, "tie", -0.15),
        ([vote(1, 4, 9)], None, 1, -5),  # the answer is the vote, the scores only decide about ties
    ],
)
def test_votes_ties_and_abstentions(votes, tie_margin, winner, margin):
    result = combine(votes, tie_margin=tie_margin)
    assert (result.winner, result.margin) == (winner, margin if margin is None else pytest.approx(margin))
    assert sum(result.votes.values()) == len(votes)
    assert result.error == next((row.error for row in votes if row.error), "")


def test_a_result_without_a_winner_says_why():
    unread, split = combine([vote(None)]), combine([vote(1, 9, 4), vote(1, 9, 4, order="ba")])
    cut = combine([replace(vote(None), finish_reason="length")])
    assert unread.reason == "; ".join(vote(None).verdict.problems) != ""
    assert split.reason == "the votes are split" and cut.reason == "cut at the token limit; raise max_new_tokens"
    assert combine([vote(None, error="gone.png: no such file")]).reason == "gone.png: no such file"
    assert combine([vote(1)]).reason == "" and cut.to_json()["reason"] == cut.reason
    assert f"Winner: none: {unread.reason}" in describe(unread, ["a.png", "b.png"])


def test_the_reasoning_shown_is_one_for_the_winner_and_scores_are_means():
    rows = [vote(2, 3, 8), vote(1, 9, 4), vote(2, 8, 5, order="ba"), vote(1, 7, 2, sample=1)]
    result = combine(rows)
    assert result.winner == 1 and result.chosen is rows[1] and result.votes == {"1": 3, "2": 1, "abstained": 0}
    assert result.dimensions == (Dimension("Aesthetics", ((3 + 9 + 5 + 7) / 4, (8 + 4 + 8 + 2) / 4)),)


# --- prompt files ---


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_file_gives_the_prompt_of_its_folder_or_our_format(task, tmp_path):
    assert load_prompts(path=TOY_PROMPTS / f"{task}.txt") == {task: load_prompts(path=TOY_PROMPTS)[task]}
    own = tmp_path / "own.txt"
    own.write_text("{prompt} {answer_1} {answer_2}\n{format}")
    found = load_prompts("direct", path=own, task=task)
    assert list(found) == [task] and found[task].endswith(load_prompts("direct")[task].splitlines()[-1])


def test_a_prompt_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.txt: no such file"):
        load_prompts(path=tmp_path / "gone.txt", task="image_generation")
    (tmp_path / "empty.txt").write_text("Which?")
    with pytest.raises(InputError, match=r"^\S*empty\.txt: the template has no \{prompt\}"):
        load_prompts(path=tmp_path / "empty.txt", task="image_generation")
    with pytest.raises(InputError, match=r"empty\.txt: whose prompt is it\? Name it <task>\.txt"):
        load_prompts(path=tmp_path / "empty.txt")


# --- the scripts ---


@pytest.mark.parametrize("task", TASKS)
def test_help_is_quick_and_loads_no_model_library(task):
    run = "runpy.run_path(sys.argv[1], run_name='__main__')"
    code = f"import runpy, sys\ntry: {run}\nexcept SystemExit: print(*sys.modules)"
    command = [sys.executable, "-c", code, str(REPO / "inference" / f"{task}.py"), "--help"]
    before = os.times()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = os.times()
    assert f"python inference/{task}.py --model MODEL" in out and "--tie-margin" in out
    assert not {"torch", "transformers", "numpy", "openai", "datasets"} & set(out.splitlines()[-1].split())
    assert used.children_user - before.children_user < 1


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("image_generation", ["--prompt", "x"], "name a pair with --prompt --media, or many"),
        ("video_understanding", ["--question", "x", "--media", "a.mp4"], "--question --media --answers"),
        ("image_generation", ["--input", "pairs.jsonl"], "--input needs an --output"),
        ("image_generation", ["--input", "p.jsonl", "--output", "j", "--prompt", "x"], "choose"),
        (
            "image_generation",
            ["--prompt", "x", "--media", "a.png"],
            "--media takes two candidates, found 1; --form",
        ),
        ("image_generation", ["--input", "p.jsonl", "--output", "."], "--output . is a folder; name a file in it"),
    ],
)
def test_an_incomplete_command_says_what_is_missing(task, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*words, task=task)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_pair_that_cannot_be_judged_ends_with_its_reason(pair, capsys):
    assert run("--prompt", "a kite", "--media", pair[0], "gone.png") == 1
    assert "No verdict: gone.png: no such file" in capsys.readouterr().out


def test_votes_and_ties_are_printed(pair, capsys):
    words = ["--prompt", "a kite", "--media", *pair, "--samples", 3, "--temperature", 1, "--orders", "both"]
    assert run(*words, "--tie-margin", 100) == 0
    said = capsys.readouterr().out
    assert "Winner: tie" in said and "for 1, " in said and "abstained" in said and "Total" in said


def test_a_file_of_pairs_is_judged_in_order_and_gone_on_with(pairs, tmp_path, capsys):
    output = tmp_path / "out" / "judgments.jsonl"
    assert run("--input", pairs, "--output", output, "--limit", 5) == 0
    assert run("--input", pairs, "--output", output) == 0
    whole = told(output)
    assert [row.record_id for row in whole] == [f"r{i}" for i in range(20)]
    assert [row["winner"] for row in results(output)] == [1 if i % 3 else 2 for i in range(20)]
    assert "20 pairs: 13 for 1, 7 for 2, 0 ties, 0 without a winner" in capsys.readouterr().out
    text = output.read_bytes()
    assert run("--input", pairs, "--output", output, backend=LooksForRed(batch_size=1)) == 0
    assert output.read_bytes() == text


def test_bad_rows_never_end_a_run(pairs, tmp_path, capsys):
    rows = pairs.read_text().splitlines()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = json.loads(rows[0])
    bad = [
        rows[3],  # a second r3
        "{",
        json.dumps({**good, "id": "column", "caption": "x"}),
        json.dumps({**good, "id": "broken", "media": ["broken.png", "red.png"]}),
        json.dumps({**good, "id": "gone", "media": ["gone.png", "red.png"]}),
        json.dumps({**good, "id": "other", "task": "video_generation"}),
    ]
    pairs.write_text("\n".join([*rows[:10], *bad, *rows[10:]]) + "\n")
    output = tmp_path / "judgments.jsonl"
    assert run("--input", pairs, "--output", output) == 1
    said = capsys.readouterr()
    for reason in ("duplicate id 'r3'", "not valid JSON", "unknown key 'caption'", "2 pairs failed"):
        assert reason in said.err
    assert "1 pairs of other tasks left out" in said.out
    found = {row["id"]: row for row in results(output)}
    assert len(found) == 22 and sum(row["winner"] is not None for row in found.values()) == 20
    assert "not a readable image" in found["broken"]["error"] and "no such file" in found["gone"]["error"]


@pytest.mark.parametrize(("text", "reason"), [("", "holds no row"), ('{"id": "a"}\n', "no usable row is left")])
def test_a_file_without_a_usable_row_is_found_before_a_model_is_loaded(text, reason, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=rf"error: .*pairs\.jsonl.*{reason}|error: {reason}"):
        main(
            "image_generation",
            about="",
            arguments=[
                "--input",
                str(tmp_path / "pairs.jsonl"),
                "--output",
                str(tmp_path / "j.jsonl"),
                "--model",
                "no",
            ],
        )
    assert not (tmp_path / "j.jsonl").exists()


def test_a_full_disk_stops_the_run_and_nothing_is_lost(pairs, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "judgments.jsonl"
    run("--input", pairs, "--output", whole)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size * 2 // 3, limits[1]))  # as the disk would, mid-line
    try:
        with pytest.raises(SystemExit, match=r"error: .*File too large"):
            run("--input", pairs, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 8 <= len(told(output)) < 20 and not output.with_suffix(".results.jsonl").exists()
    assert run("--input", pairs, "--output", output) == 0
    assert told(output) == told(whole) and results(output) == results(whole)


def test_media_are_opened_once_a_pair_and_ahead_of_the_model(pairs, tmp_path, monkeypatch):
    opened, threads = [], set()
    real = prepare.open_image

    def noting(path):
        opened.append(Path(path).name)
        threads.add(threading.current_thread())
        return real(path)

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for i, row in enumerate(rows):  # pictures of their own
        for k, name in enumerate(("red", "blue")):
            (tmp_path / f"{i}-{k}.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
        row["media"] = [f"{i}-0.png", f"{i}-1.png"]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(prepare, "open_image", noting)
    words = ["--input", pairs, "--output", tmp_path / "j.jsonl", "--orders", "both", "--samples", 3, "--temperature", 1]
    assert run(*words, backend=LooksForRed(batch_size=3)) == 0
    assert len(opened) == len(set(opened)) == 40
    assert threading.main_thread() not in threads


def answer_slowly(body, nth):
    time.sleep(0.03)
    number = int(caption(body).split("picture ")[1].split(".")[0])
    return 200, {}, reply(render(1 + number % 2, [("Aesthetics", 9 - 8 * (number % 2), 5)], noun="Image"))


def test_a_killed_run_goes_on_with_nothing_lost_or_judged_twice(pairs, tmp_path):
    output = tmp_path / "judgments.jsonl"
    with serving(answer_slowly) as server:
        words = [
            "--input",
            pairs,
            "--backend",
            "server",
            "--server",
            server.url,
            "--model",
            "judge",
            "--concurrency",
            2,
        ]
        command = [sys.executable, REPO / "inference" / "image_generation.py", *words, "--batch-size", 2, "--output"]
        command = [str(word) for word in command]
        for _ in range(2):
            before = len(told(output)) if output.exists() else 0
            child = subprocess.Popen([*command, str(output)], stdout=subprocess.DEVNULL)
            while child.poll() is None and (not output.exists() or len(told(output)) <= before + 2):
                time.sleep(0.005)
            child.kill()
            assert child.wait() == -signal.SIGKILL
        asked = len(server.bodies)
        subprocess.run([*command, str(output)], check=True, stdout=subprocess.DEVNULL)
        assert asked < 20 <= len(server.bodies) <= 20 + 2 * 4  # at most the batch in flight is asked for again
        run(*words, "--output", tmp_path / "whole.jsonl", backend=make(server))
    assert told(output) == told(tmp_path / "whole.jsonl") and len(results(output)) == 20


def make(server):
    from unifiedreward_think.backends.server import ServerBackend

    return ServerBackend("judge", server=server.url)


def test_a_server_that_is_down_ends_the_script_with_one_line(pairs, tmp_path):
    server = FakeServer()
    server.stop()
    words = ["--backend", "server", "--server", server.url, "--model", "m", "--max-retries", 0]
    command = [sys.executable, REPO / "inference/image_generation.py", *words, "--input", pairs, "--output", "no.jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: http://127.0.0.1")
    assert "start it first" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "no.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_all_four_scripts_run_a_real_model(decoder, models, toy_data, tmp_path, capsys):
    output = {}
    for task in TASKS:
        words = ["--model", models["qwen2_5_vl"], "--input", toy_data / "heldout.jsonl", "--max-new-tokens", 4]
        words += ["--output", tmp_path / f"{task}.jsonl", "--frames", 4, "--decoder", decoder, "--device", "cpu"]
        words += ["--prompts", TOY_PROMPTS / f"{task}.txt", "--frame-cache", tmp_path / "frames"]
        assert main(task, about="", arguments=list(map(str, words))) == 0
        (output[task],) = told(tmp_path / f"{task}.jsonl")
        assert "3 pairs of other tasks left out\n1 pairs: " in capsys.readouterr().out
    assert {task: row.decoder for task, row in output.items() if row.decoder} == {
        "video_generation": decoder,
        "video_understanding": decoder,
    }
    record = next(
        PreferenceRecord.from_json(row)
        for row in map(json.loads, (toy_data / "heldout.jsonl").read_text().splitlines())
        if row["task"] == "video_understanding"
    )
    words = ["--model", models["qwen2_5_vl"], "--question", record.prompt, "--answers", *record.answers]
    words += ["--media", toy_data / record.media[0][0], "--max-new-tokens", 4, "--device", "cpu", "--frames", 4]
    words += ["--prompts", TOY_PROMPTS / "video_understanding.txt", "--frame-cache", tmp_path / "frames"]
    assert main("video_understanding", about="", arguments=list(map(str, words))) == 0
    assert "Winner: none" in capsys.readouterr().out
