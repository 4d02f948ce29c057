"""Scores of single candidates: read, shown, asked for, averaged, compared with labels, and cut from traces of pairs."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.judging import ScoresRed, make_records, told
from unifiedreward_think.backends import Completion
from unifiedreward_think.candidate_points import points_of
from unifiedreward_think.data.__main__ import main as data_command
from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_records, load_traces
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation import __main__ as evaluation
from unifiedreward_think.evaluation import report
from unifiedreward_think.evaluation.rescore import rescore
from unifiedreward_think.evaluation.tables import headline
from unifiedreward_think.forms import PAIRWISE, POINTWISE
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.command import main as inference
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.judging.store import write_evaluation
from unifiedreward_think.metrics import summarize
from unifiedreward_think.order import candidate_at
from unifiedreward_think.point_metrics import summarize_points
from unifiedreward_think.points import parse_points, render_points
from unifiedreward_think.prompting import Media
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.rewards import accuracy_reward, format_reward
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.traces.cutting import cut
from unifiedreward_think.training import rejection_sampling, sft
from unifiedreward_think.verdict import Verdict, read_notes, render

LAYOUTS = ("one_line", "three_line")
NAMES = st.text("abcdefg hij", min_size=1, max_size=20).map(str.strip).filter(lambda name: name and name != "total")
SCORES = st.one_of(st.integers(1, 10), st.integers(10, 100).map(lambda tenths: tenths / 10))


@given(st.lists(st.tuples(NAMES, SCORES), min_size=1, max_size=6), st.sampled_from(LAYOUTS), st.booleans())
def test_a_rendered_score_parses_back_equal(scores, layout, explained):
    text = render_points(scores, layout=layout, notes=["fine: 3/10 of it"] * len(scores) if explained else ())
    verdict = parse_points(text, "Image")
    assert [(name, score) for name, (score,) in verdict.dimensions] == [(name, float(score)) for name, score in scores]
    assert verdict.score[1:] == (len(scores), 10 * len(scores)) and verdict.totals == (verdict.score.value,)
    assert verdict.score.value == pytest.approx(sum(score for _, score in scores))
    assert verdict.strict and verdict.arithmetic_ok and verdict.problems == () and verdict.winner is None
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


THINK = "<think>1. **Light**: 8/10 - even\n2. Form: (7/10)\nTotal: {total}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "score", "strict", "sums", "problem"),
    [
        (THINK.format(total="8+7=15", answer="15/20"), (15, 2, 20), True, True, ""),
        (THINK.format(total="15/20", answer=" 15 / 20."), (15, 2, 20), False, True, "answer string is not exact"),
        (
            THINK.format(total="8+7=16", answer="16/20"),
            (16, 2, 20),
            True,
            False,
            "stated as 16, its scores add up",
        ),
        (
            THINK.format(total="8+7=15", answer="14/20"),
            (14, 2, 20),
            True,
            False,
            "the answer is 14/20, the total",
        ),
        (
            THINK.format(total="8+7=15", answer="15/30"),
            (15, 3, 30),
            True,
            False,
            "out of 30, but 2 dimensions",
        ),
        (THINK.format(total="8+", answer="15/20"), (15, 2, 20), True, False, "the total is not stated"),
        ("<think>good</think><answer>24/30</answer>", (24, 3, 30), True, False, "no dimension is scored"),
        ("<answer>24/30</answer>", (24, 3, 30), False, False, "no think block"),
        ("<think>x</think><answer>24.5/30</answer>", (24.5, 3, 30), True, False, "no dimension is scored"),
        ("<think>x</think><answer>35/30</answer>", None, False, False, "score 35 lies outside of 3 to 30"),
        ("<think>x</think><answer>2/30</answer>", None, False, False, "score 2 lies outside of 3 to 30"),
        ("<think>x</think><answer>-5/30</answer>", None, False, False, "score -5 lies outside"),
        ("<think>x</think><answer>20/25</answer>", None, False, False, "a score out of 25 is none out of 10"),
        ("<think>x</think><answer>0/0</answer>", None, False, False, "a score out of 0"),
        ("<think>x</think><answer>24</answer>", None, False, False, "answer is not a score like '24/30'"),
        ("<think>x</think><answer>24/30 or 25/30</answer>", None, False, False, "answer is not a score"),
        ("<think>x</think><answer>Image 1 is better</answer>", None, False, False, "answer is not a score"),
        ("<think>x<answer>24/30</answer>", None, False, False, "think block not closed"),
        ("<think>x</think>24/30", None, False, False, "no answer block"),
        ("", None, False, False, "no answer block"),
    ],
)
def test_a_score_is_read_or_its_reason_told(text, score, strict, sums, problem):
    verdict = parse_points(text, "Image")
    assert (verdict.score, verdict.strict, verdict.arithmetic_ok) == (score, strict, sums)
    assert any(problem in each for each in verdict.problems) if problem else verdict.problems == ()


@given(st.text(st.sampled_from("<>/thinkaswer 0123456789.:=+-()*\nabT"), max_size=200))
def test_no_text_breaks_the_reader_of_scores(text):
    for style in ("cot", "direct"):
        verdict = parse_points(text, "Image", style=style)
        assert verdict.score is None or 0 <= verdict.score.share <= 1
        assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("text", ["<think>{}", "<think>{}: 8/10</think>", "<think>Total score: {}8+</think>"])
@pytest.mark.parametrize("piece", ["a", " ", "8+", ":", "*", "8/10 "])
def test_time_to_read_grows_with_the_length_only(text, piece):
    took = []
    for length in (20_000, 80_000):
        whole = text.format(piece * (length // len(piece)))
        started = time.perf_counter()
        parse_points(whole, "Image")
        took.append(time.perf_counter() - started)
    assert took[1] < 10 * max(took[0], 0.02)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", ["cot", "direct"])
def test_a_prompt_shows_one_candidate_and_asks_in_the_form_that_is_read(task, layout, style):
    compares = TASKS[task].compares_media
    record = PreferenceRecord(
        id="k", task=task, prompt="a kite", media=(("a",), ("b",)) if compares else (("q",),),
        answers=() if compares else ("It is red.", "It is blue."), preferred=1,
    )  # fmt: skip
    prompts = ShownArguments(form="pointwise", style=style, layout=layout).templates()
    for order, shown, other in (("a", "It is red.", "It is blue."), ("b", "It is blue.", "It is red.")):
        parts = POINTWISE.render(record, order=order, prompts=prompts)
        media = [part.paths for part in parts if isinstance(part, Media)]
        text = "".join(part for part in parts if isinstance(part, str))
        assert media == ([(order,)] if compares else [("q",)])
        assert "a kite" in text and "{" not in text and (compares or (shown in text and other not in text))
        assert not any(word in text for word in ("better", "two ", " 1:", " 2:"))
        asked = text[text.rindex("<think>" if style == "cot" else "<answer>") :]
        written = (
            asked.replace("score+score+score=total", "8+8+8=24").replace("total/30", "24/30").replace("score/", "8/")
        )
        verdict = parse_points(written, TASKS[task].noun, style=style)
        assert verdict.strict and verdict.problems == ()
        if style == "cot":
            assert [name for name, _ in verdict.dimensions] == list(TASKS[task].dimensions)


@pytest.fixture
def pictures(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (56, 56), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def asked(tmp_path, **changes):
    return JudgingArguments(form="pointwise", frame_cache=str(tmp_path / "frames"), **changes).config()


def test_every_candidate_is_scored_alone_and_the_points_order_the_pairs(pictures, tmp_path):
    records, output = make_records(pictures, 4), tmp_path / "judgments.jsonl"
    rows = judge(records, ScoresRed(), asked(tmp_path, samples=3, temperature=1.0), output)
    assert [(row.record_id, row.order, row.sample) for row in rows[:4]] == [
        *(("r0", "a", 0), ("r0", "a", 1), ("r0", "a", 2), ("r0", "b", 0))
    ]
    assert [Judgment.from_json(json.loads(line)) for line in output.read_text().splitlines()] == rows
    assert told(judge(records, ScoresRed(), asked(tmp_path, samples=3, temperature=1.0), output)) == told(rows)
    assert rescore(rows) == (rows, [])
    summary = summarize(rows)
    assert summary["points"]["pair_accuracy"]["value"] == 1 and summary["points"]["candidates"] == 8
    assert summary["points"]["spread"] > 0 and summary["points"]["tau_b"] is None  # no score labels
    assert summary["overall"]["parse_rate"]["value"] == 1 and summary["overall"]["accuracy"]["value"] is None
    assert "both_orders" not in summary and "majority" not in summary
    assert headline(summary).startswith("pair accuracy 100.0% [")


def test_a_report_shows_scores_and_whether_they_order_the_pairs(pictures, tmp_path, monkeypatch):
    records, folder = make_records(pictures, 3), tmp_path / "run"
    folder.mkdir()
    rows = judge(records, ScoresRed(), asked(tmp_path), folder / "judgments.jsonl")
    write_evaluation(folder, records, summarize(rows))
    monkeypatch.setattr("sys.argv", ["report", "--run", f"scores={folder}", "--output", str(tmp_path / "report.html")])
    report.main()
    page = (tmp_path / "report.html").read_text()
    said = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "24/30, 0.78 of the scale" in said and "Pairs ordered by points" in said and "Image = B" in said
    assert page.count('<span class="tag right">') + said.count(" Right ") >= 3


class Says:
    """Scores pictures by a table of their first pixel's red."""

    batch_size, model, settings = 8, "said", {}

    def __init__(self, texts):
        self.texts = texts

    def complete(self, prompts, *, sampling, seeds):
        return [[Completion(self.texts[row["images"][0].getpixel((0, 0))[0]], "stop")] for row in prompts]


def test_points_of_many_candidates_are_held_against_labelled_scores(tmp_path):
    for red in (10, 20, 30, 40):
        Image.new("RGB", (56, 56), (red, 0, 0)).save(tmp_path / f"{red}.png")
    record = {"id": "four", "task": "image_generation", "prompt": "red"}
    record |= {"candidates": [{"media": f"{red}.png"} for red in (10, 20, 30, 40)], "scores": [1, 3, 4, None]}
    alone = {"id": "one", "task": "image_generation", "prompt": "red", "candidates": [{"media": "40.png"}]}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "scale": [1, 5]}) + "\n" for row in (record, alone))
    )
    records = load_records([str(tmp_path / "rows.jsonl")], form=POINTWISE, need_label=False).rows
    said = {10: "<answer>3/30</answer>", 20: "<answer>30/30</answer>", 30: "<answer>12/30</answer>", 40: "no idea"}
    rows = judge(records, Says(said), asked(tmp_path, style="direct"), tmp_path / "j.jsonl")
    assert [(row.record_id, row.order) for row in rows] == [*(("four", order) for order in "abcd"), ("one", "a")]
    summary = summarize_points(rows)
    assert (summary["candidates"], summary["unscored"]) == (5, 2)
    assert (summary["pair_accuracy"]["count"], summary["pair_accuracy"]["total"]) == (2, 3)  # 1 < 3, 1 < 4, not 3 < 4
    assert summary["distance"]["value"] == pytest.approx((0 + 0.5 + (0.75 - 9 / 27)) / 3)
    assert summary["tau_b"] == pytest.approx(1 / 3)
    assert [row.correct for row in rows] == [True, False, False, None, None]


def test_equal_points_are_half_right_and_an_unscored_candidate_makes_its_pair_wrong(pictures, tmp_path):
    records = make_records(pictures, 4)
    same = judge(records, Says({200: "<answer>9/30</answer>", 30: "<answer>9/30</answer>"}),
                 asked(tmp_path, style="direct"), tmp_path / "same.jsonl")  # fmt: skip
    assert summarize_points(same)["pair_accuracy"]["value"] == 0.5 and summarize_points(same)["equal_points"] == 4
    half = judge(records, Says({200: "<answer>9/30</answer>", 30: "?"}), asked(tmp_path, style="direct"),
                 tmp_path / "half.jsonl")  # fmt: skip
    assert summarize_points(half)["pair_accuracy"]["value"] == 0 and summarize_points(half)["unscored"] == 4
    points = points_of(half)["r0"]
    assert [points[k].reason for k in (1, 2)] == ["no answer block", ""]  # the blue one is first


def test_what_cannot_be_asked_for_a_score_is_named(pictures, tmp_path):
    record = replace(make_records(pictures, 1)[0], instruction="Which one is better?")
    with pytest.raises(RecordError, match="record 'r0': has an instruction that asks about a pair"):
        POINTWISE.render(record, order="a", prompts={})
    (tmp_path / "rows.jsonl").write_text(json_lines([record]))
    with pytest.raises(DataError, match="asks about a pair; a score cannot be asked for"):
        load_records([str(tmp_path / "rows.jsonl")], form=POINTWISE)
    three = {"id": "t", "task": "image_generation", "prompt": "x", "candidates": [{"media": f"{n}.png"} for n in "abc"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(three))
    with pytest.raises(DataError, match="has 3 candidates; form 'pairwise' compares 2"):
        load_records([str(tmp_path / "rows.jsonl")], need_label=False)


def test_one_picture_is_scored_in_three_lines_of_python_and_by_the_script(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (points,) = Judge(ScoresRed(), form="pointwise").score("image_generation", "red", ["red.png"])
    assert (str(points.score), points.share, points.candidate) == ("24/30", 21 / 27, 1)
    words = ["--form", "pointwise", "--prompt", "red", "--media", "red.png", "blue.png"]
    assert inference("image_generation", about="", arguments=words, backend=ScoresRed()) == 0
    said = capsys.readouterr().out
    assert "red.png: 24/30, 0.778 of the scale" in said and "blue.png: 14/30" in said and "Aesthetics" in said
    assert inference("image_generation", about="", arguments=[*words[:5], "gone.png"], backend=ScoresRed()) == 1
    assert "gone.png: no score: gone.png: no such file" in capsys.readouterr().out


def test_a_file_of_records_is_scored_a_row_for_each_candidate(pictures, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json_lines(make_records(pictures, 3)))
    words = ["--form", "pointwise", "--input", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "j.jsonl")]
    words += ["--samples", "2", "--temperature", "1"]
    assert inference("image_generation", about="", arguments=words, backend=ScoresRed()) == 0
    assert "6 candidates: mean 0." in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "j.results.jsonl").read_text().splitlines()]
    assert [(line["id"], line["candidate"], line["samples"]) for line in lines[:3]] == [
        *(("r0", 1, 2), ("r0", 2, 2), ("r1", 1, 2))
    ]
    assert all(0 < line["points"] < 1 and line["score"][1:] == [3, 30] and line["reason"] == "" for line in lines)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_traces_of_pairs_are_cut_with_their_sums(toy_data, tmp_path, layout):
    source, output = toy_data / "cold_start.jsonl", tmp_path / "points.jsonl"
    data_command(["cut", "--input", str(source), "--output", str(output), "--layout", layout])
    pairs = load_traces([str(source)]).rows
    traces = load_traces([str(output)], form=POINTWISE).rows
    assert len(traces) == 2 * len(pairs)
    for pair, cuts in zip(pairs, zip(traces[::2], traces[1::2], strict=True), strict=True):
        noun = TASKS[pair.record.task].noun
        verdict = PAIRWISE.parse(pair.completion, noun)
        assert "".join(part.order for part in cuts) == pair.order and all(part.record == pair.record for part in cuts)
        read = [parse_points(part.completion, noun) for part in cuts]
        assert all(one.strict and one.arithmetic_ok and one.problems == () for one in read)
        assert tuple(one.score.value for one in read) == verdict.totals
        best = max(zip(read, cuts, strict=True), key=lambda both: both[0].score.share)[1]
        assert candidate_at(1, best.order) == pair.record.preferred
        notes = read_notes(pair.completion, noun)
        assert [part.completion.count(" - ") for part in cuts] == [sum(bool(note[k]) for note in notes) for k in (0, 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reason_that_compares_is_left_out_of_a_cut_trace(pictures, layout):
    record = make_records(pictures, 1)[0]
    notes = [("even", "darker than Image 1"), ("as in both", "sharp")]
    text = render(1, [("Light", 9, 4), ("Form", 8, 7)], noun="Image", layout=layout, notes=notes)
    assert read_notes(text, "Image") == notes
    first, second = cut(Trace(record=record, order="ab", completion=text))
    assert "Light: 9/10 - even\n2. Form: 8/10\n" in first.completion
    assert "Light: 4/10\n2. Form: 7/10 - sharp\n" in second.completion
    with pytest.raises(RecordError, match="the winner has the smaller total; only a trace whose sums hold"):
        cut(Trace(record=record, order="ab", completion=text.replace("Image 1 is better", "Image 2 is better")))


def test_a_trace_far_from_its_labelled_score_is_refused(pictures, tmp_path):
    record = replace(make_records(pictures, 1)[0], preferred=None, scores=(4.0, 1.5), scale=(1, 5))
    near, far = ([("Light", score)] for score in (8, 3))  # the label of a is three quarters of its scale
    for scores, fits in ((near, True), (far, False)):
        trace = Trace(record=record, order="a", completion=render_points(scores))
        (tmp_path / "traces.jsonl").write_text(json_lines([trace]))
        if fits:
            assert load_traces([str(tmp_path / "traces.jsonl")], form=POINTWISE).rows[0].order == "a"
        else:
            with pytest.raises(DataError, match="far from the labelled score"):
                load_traces([str(tmp_path / "traces.jsonl")], form=POINTWISE)


def test_rewards_of_scores_are_their_nearness_to_labels_on_any_scale(pictures):
    record = replace(make_records(pictures, 1)[0], preferred=None, scores=(100, 40), scale=(0, 100))
    solutions = [POINTWISE.solution_of(record, order) for order in "ab"]
    texts = [render_points([("Light", 10)]), render_points([("Light", 10)]).replace("10/10</answer>", "ten</answer>")]
    columns = {"task": ["image_generation"] * 2, "form": ["pointwise"] * 2, "style": ["cot"] * 2}
    assert solutions == ["1", "0.4"]
    assert accuracy_reward(texts, solutions, **columns) == [1.0, 0.0]
    assert accuracy_reward(texts[:1] * 2, solutions, **columns) == [1.0, 0.4]
    assert accuracy_reward(texts, [None, None], **columns) == [None, None]
    assert format_reward(texts, solution=solutions, **columns) == [1.0, 0.0]
    with pytest.raises(ValueError, match="solution '7' cannot be read as pointwise"):
        accuracy_reward(texts, ["7", "7"], **columns)


@pytest.mark.slow
def test_the_commands_that_train_and_measure_scores_go_through(toy_data, tmp_path, monkeypatch, capsys):
    """Those of docs/scores.md, two steps long: cut, train, evaluate."""
    monkeypatch.chdir(Path(__file__).parents[1])
    data_command(["cut", "--input", str(toy_data / "cold_start.jsonl"), "--output", str(tmp_path / "points.jsonl")])
    words = [
        "--config",
        "configs/toy/cold_start_points.yaml",
        "--train_files",
        str(tmp_path / "points.jsonl"),
        "--max_steps",
        "2",
    ]
    words += ["--output_dir", str(tmp_path / "points"), "--frame_cache", str(tmp_path / "frames")]
    monkeypatch.setattr("sys.argv", ["sft", *words, "--save_strategy", "no"])
    sft.main()
    words = ["--form", "pointwise", "--prompts", "configs/toy/prompts/pointwise", "--model", str(tmp_path / "points")]
    words += ["--input", str(toy_data / "heldout.jsonl"), "--output", str(tmp_path / "eval"), "--max-new-tokens", "24"]
    words += ["--frames", "4", "--frame-cache", str(tmp_path / "frames"), "--decoder", "pyav", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["evaluation", *words])
    evaluation.main()
    points = json.loads((tmp_path / "eval" / "results.json").read_text())["points"]
    assert points["candidates"] == 8 and points["pair_accuracy"]["total"] == 4
    assert "pair accuracy" in capsys.readouterr().out


def sampled(tmp_path, records, texts, **changes):
    """Rejection sampling by a table of texts: record -> letter -> completions."""
    rows = [
        Judgment(
            record_id=record.id, order=order, form="pointwise", sample=i, completion=text, task=record.task,
            verdict=parse_points(text, "Image"), settings={"style": "cot"},
        ).labelled(record)
        for record in records
        for order in "ab"
        for i, text in enumerate(texts[record.id][order])
    ]  # fmt: skip
    options = {"model_name_or_path": "m", "output_dir": str(tmp_path), "form": "pointwise", "samples": 2, **changes}
    return rejection_sampling.split_pairs(records, rows, rejection_sampling.SamplingArguments(**options))


def test_sampled_scores_are_kept_where_they_order_the_pair_as_its_label_does(pictures, tmp_path):
    records = [replace(record, preferred=1) for record in make_records(pictures, 3)]
    high, middle, low = (render_points([("Light", value)]) for value in (9, 6, 2))
    longer = render_points([("Light", 9)], notes=["even light"])
    texts = {
        "r0": {"a": [longer, high], "b": [middle, low]},  # all four right: the shortest
        "r1": {"a": [middle, "no idea"], "b": [high, low]},  # one of four right
        "r2": {"a": [low, middle], "b": [middle, high]},  # equal scores do not qualify
    }
    kept, hard, counts = sampled(tmp_path, records, texts, hard_below=0.5)
    assert [(trace.record.id, trace.order, trace.completion) for trace in kept] == [
        *(("r0", "a", high), ("r0", "b", middle), ("r1", "a", middle), ("r1", "b", low))
    ]
    assert [record.id for record in hard] == ["r1", "r2"]
    assert counts["pairs by correct samples"] == {"0/4": 1, "1/4": 1, "4/4": 1}
    (tmp_path / "kept.jsonl").write_text(json_lines(kept))
    assert load_traces([str(tmp_path / "kept.jsonl")], form=POINTWISE).rows == kept
    far = sampled(tmp_path, records, texts, point_margin=0.5)[0]
    assert [(trace.record.id, trace.completion) for trace in far] == [("r0", high), ("r0", low)]
    everyone = sampled(tmp_path, records, texts, keep="all")[0]
    assert [trace.completion for trace in everyone] == [longer, high, middle, low, middle, low]
    first = sampled(tmp_path, records, texts, keep="first")[0]
    assert [trace.completion for trace in first] == [longer, middle, middle, low]
