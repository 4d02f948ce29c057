"""`--preset` and `--reply-format`: released judges are asked and read from the command line, YAML and Python alike."""

import argparse
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from helpers.judging import make_records, told
from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.backends.replay import ReplayBackend
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.evaluation import __main__ as evaluation
from unifiedreward_think.evaluation import report
from unifiedreward_think.evaluation.rescore import rescore
from unifiedreward_think.flags import Parser, read
from unifiedreward_think.judging import settings
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.command import main as inference
from unifiedreward_think.judging.presets import preset_settings, presets, with_preset
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.reply_formats.formats import OWN, REPLY_FORMATS
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASK_NAMES
from unifiedreward_think.training import parsing, plan, rejection_sampling

DOCUMENT = (Path(__file__).parents[1] / "docs" / "released.md").read_text(encoding="utf-8")
AXES = "Alignment Score (1-5): {0}\nCoherence Score (1-5): {0}\nStyle Score (1-5): {0}"


class Replies:
    """Says what it is told of a red picture, and of another; or of all pictures that are shown."""

    batch_size, model, settings = 2, "released", {}

    def __init__(self, red, other=""):
        self.red, self.other = red, other or red

    def complete(self, prompts, *, sampling, seeds):
        return [
            [Completion(self.red if row["images"][0].getpixel((0, 0))[0] > 100 else self.other, "stop")] * len(mine)
            for row, mine in zip(prompts, seeds, strict=True)
        ]


@pytest.fixture
def records(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (56, 56), colour).save(tmp_path / f"{name}.png")
    return make_records(tmp_path, 4)


@pytest.fixture
def prompts(tmp_path):
    """Templates of somebody's own wording."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for task in TASK_NAMES:
        answers = "" if task.endswith("generation") else " {answer_1} {answer_2}"
        (folder / f"{task}.txt").write_text(f"How good is it? {{prompt}}{answers}", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", presets())
def test_a_preset_holds_settings_that_fit_together(name, prompts):
    values = preset_settings(name)
    assert set(values) <= {each.name for each in fields(JudgingArguments)}
    chosen = JudgingArguments(**values, prompts=None if values["style"] == "cot" else prompts)
    known = REPLY_FORMATS[chosen.reply_format]
    assert (known.form, known.style) == (chosen.form, chosen.style)
    assert not chosen.config().thinking


def test_every_format_but_those_of_own_scales_has_a_preset():
    used = {preset["settings"]["reply_format"] for preset in presets().values()}
    assert set(REPLY_FORMATS) - used == {"v1_points_1_5", "v1_points_1_10", "v1_points_0_100"}


def rows(header):
    lines = DOCUMENT.partition(f"\n| {header}")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_tables_of_the_document_are_the_data():
    def plain(value):
        return str(value).lower() if isinstance(value, bool) else value

    assert rows("`--preset`") == [
        [f"`{name}`", preset["about"], ", ".join(f"`{k}: {plain(v)}`" for k, v in preset["settings"].items())]
        for name, preset in presets().items()
    ]
    for (name, form, tasks, scale, about), known in zip(rows("`--reply-format`"), REPLY_FORMATS.values(), strict=True):
        assert (name, form, about) == (f"`{known.name}`", known.form, known.about)
        assert known.tasks == (TASK_NAMES if tasks == "all" else tuple(tasks.split(", ")))
        ends = {task: f"{lowest:g} to {highest:g}" for task, (lowest, highest) in known.scales.items()}
        assert set(re.findall(r"\d+ to \d+", scale)) == set(ends.values())
        for task, text in ends.items():
            assert scale == text or re.search(rf"{text} \([^)]*\b{task}\b", scale), (name, task)


def parser():
    made = Parser("")
    made.add(JudgingArguments)
    return made


def test_explicit_flags_win_over_a_preset_wherever_they_stand(prompts):
    both = parser()
    for words in (["--frames", "8", "--preset", "v2-points"], ["--preset=v2-points", "--frames=8"]):
        args = read(both.parse_args([*words, "--prompts", prompts]), JudgingArguments)
        assert (args.frames, args.form, args.style, args.reply_format) == (8, "pointwise", "direct", "v2_points")
    args = read(both.parse_args(["--preset", "v2-points", "--prompts", prompts]), JudgingArguments)
    assert args.frames == 16
    plain = read(both.parse_args([]), JudgingArguments)
    assert plain == JudgingArguments() and plain.reply_format == OWN


def test_an_unknown_preset_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["--preset", "v9"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert f"preset 'v9' is unknown; known: {', '.join(presets())}" in said
    with pytest.raises(InputError, match="preset 'v9' is unknown; known: think, "):
        Judge("unused", preset="v9")


def stage(tmp_path, monkeypatch, *words, **keys):
    """The arguments of rejection sampling, from a YAML file and a command line."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model_name_or_path": "m", "output_dir": "o", **keys}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["stage", "--config", str(config), *words])
    return parsing.parse(*rejection_sampling.ARGUMENTS, without=rejection_sampling.NO_ARGUMENTS)[1]


def test_a_preset_stands_beneath_yaml_which_stands_beneath_flags(tmp_path, monkeypatch):
    args = stage(tmp_path, monkeypatch, preset="think-three-line")
    assert (args.layout, args.reply_format, args.enable_thinking) == ("three_line", "think_three_line", False)
    args = stage(tmp_path, monkeypatch, preset="think-three-line", layout="one_line", enable_thinking=True)
    assert (args.layout, args.reply_format, args.enable_thinking) == ("one_line", "think_three_line", True)
    args = stage(tmp_path, monkeypatch, "--layout", "three_line", preset="think", layout="one_line")
    assert args.layout == "three_line"
    args = stage(tmp_path, monkeypatch, "--preset", "think-three-line", preset="think")
    assert args.reply_format == "think_three_line"


def test_rejection_sampling_refuses_replies_that_it_cannot_train_on(tmp_path, monkeypatch, prompts):
    with pytest.raises(InputError, match="'v2_pairs': its replies are no traces of ours"):
        stage(tmp_path, monkeypatch, preset="v2-pairs", prompts=prompts, require_arithmetic=False)
    with pytest.raises(InputError, match="preset 'v9' is unknown"):
        with_preset({"preset": "v9"})


def test_a_plan_sees_the_frames_of_a_preset(tmp_path, monkeypatch):
    seen = {}

    def make_job(keys, *_):
        seen.update(keys)
        raise InputError("enough")

    monkeypatch.setattr(plan, "load_architecture", lambda path: None)
    monkeypatch.setattr(plan, "make_job", make_job)
    config = tmp_path / "config.yaml"
    config.write_text("{preset: v2-points, model_name_or_path: m}", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["plan", str(config), "--gpus", "1"])
    with pytest.raises(InputError, match="enough"):
        plan.main()
    assert seen["frames"] == 16 and "preset" not in seen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reply_format": "v3"}, "reply format 'v3' is unknown; known: own, v1_points, "),
        (
            {"reply_format": "v2_points", "style": "direct"},
            "of form 'pointwise', not 'pairwise': ask for form pointwise",
        ),
        ({"reply_format": "v2_pairs"}, "of style 'direct', not 'cot': ask for style direct"),
        ({"reply_format": "v2_pairs", "style": "direct", "prompts": None}, "'v2_pairs' needs prompts"),
        ({"reply_format": "v1_pairs", "style": "direct", "tie_margin": 1.0}, "it needs the scores of style 'cot'"),
    ],
)
def test_settings_that_contradict_a_format_are_refused_with_the_fix(values, message, prompts):
    with pytest.raises(InputError, match=message):
        JudgingArguments(**{"prompts": prompts, **values})


def test_a_margin_calls_ties_where_a_format_scores_both(tmp_path, records, prompts):
    shares = "Alignment:\n Image 1: 0.51\n Image 2: 0.49\nCoherence:\n Image 1: 0.5\n Image 2: 0.5\nStyle:\n"
    shares += " Image 1: 0.5\n Image 2: 0.5\n"
    for margin, winners in ((0.05, {"tie"}), (0.01, {1, 2})):
        judge = Judge(Replies(shares), preset="v2-pairs", prompts=prompts, tie_margin=margin)
        results = judge.file(records, tmp_path / f"{margin}.jsonl")
        assert {result.winner for result in results} == winners


def test_points_of_a_released_judge_compare_and_are_read_again_as_they_were_asked(tmp_path, records, prompts):
    output = tmp_path / "judgments.jsonl"
    judge = Judge(Replies(AXES.format(4.7), AXES.format(2)), preset="v2-points", prompts=prompts)
    scored = judge.score_file(records, output)
    assert {str(points.score) for points in scored} == {"4.7/5", "2/5"}
    assert sorted({round(points.share, 3) for points in scored}) == [0.25, 0.925]
    stored = list(load_judgments(output).values())
    assert {row.settings["reply_format"] for row in stored} == {"v2_points"}
    again, changed = rescore(stored)
    assert changed == [] and told(again) == told(stored)
    ways = {"form": "pointwise", "style": "direct"}
    replayed = Judge(str(output), backend="replay", **ways).score_file(records, tmp_path / "replayed.jsonl")
    assert [points.score for points in replayed] == [points.score for points in scored]
    assert told(load_judgments(tmp_path / "replayed.jsonl").values()) == told(stored)


def test_stored_replies_are_not_read_in_a_format_that_they_were_not_asked_in(tmp_path, records, prompts):
    output = tmp_path / "judgments.jsonl"
    Judge(Replies(AXES.format(3)), preset="v2-points", prompts=prompts).score_file(records, output)
    with pytest.raises(InputError, match="stored replies are of format 'v2_points', not 'v1_points'"):
        Judge(str(output), backend="replay", preset="v1-points", prompts=prompts)
    with pytest.raises(InputError, match="'v2_points' is of form 'pointwise', not 'pairwise'"):
        Judge(str(output), backend="replay")
    with pytest.raises(RecordError, match="made with reply_format = 'v2_points', now it is 'v1_points'"):
        Judge(Replies("Final Score: 3"), preset="v1-points", prompts=prompts, frames=16).score_file(records, output)


def test_judgments_of_our_own_form_name_no_format(tmp_path, records, prompts):
    output = tmp_path / "judgments.jsonl"
    Judge(Replies("<answer>Image 1 is better</answer>"), style="direct").file(records, output)
    assert all("reply_format" not in row.settings for row in load_judgments(output).values())
    anew = Judge(str(output), backend="replay", preset="v1-pairs", prompts=prompts)
    assert anew.config.reply_format == "v1_pairs"  # stored replies that name no format may be read by any


def test_a_task_that_a_format_is_not_of_is_refused_before_anything_is_asked(tmp_path, records, prompts):
    about = replace(records[0], task="image_understanding", media=records[0].media[:1], answers=("a", "b"))
    judge = Judge(Replies("unused"), preset="flex", prompts=prompts)
    with pytest.raises(
        RecordError, match="'flex' is of image_generation, video_generation, not of image_understanding"
    ):
        judge.file([about], tmp_path / "judgments.jsonl")


@pytest.mark.parametrize(
    ("values", "thinking"),
    [
        ({}, True),
        ({"style": "direct"}, False),
        ({"enable_thinking": False}, False),
        ({"style": "direct", "enable_thinking": True}, True),
    ],
)
def test_the_switch_of_a_chat_template_follows_the_style_unless_it_is_set(values, thinking, monkeypatch):
    made = {}
    monkeypatch.setattr(settings, "make_backend", lambda args, **more: made.update(more) or Replies("x"))
    set_up(JudgingArguments(**values), BackendArguments(model="m"))
    assert made["thinking"] == thinking


def test_the_command_prints_a_tie_and_a_score(tmp_path, records, prompts, capsys):
    pair = ["--prompt", "red", "--media", *(str(tmp_path / f"{name}.png") for name in ("red", "blue"))]
    tie = Replies("Both images are equally good.")
    words = ["--preset", "v1-pairs", "--prompts", f"{prompts}/image_generation.txt", *pair]
    assert inference("image_generation", about="", arguments=words, backend=tie) == 0
    assert "Winner: tie" in capsys.readouterr().out
    words[1] = "v1-points"
    assert inference("image_generation", about="", arguments=words, backend=Replies("Final Score: 4.7", "nan")) == 0
    said = capsys.readouterr().out
    assert "4.7/5, 0.925 of the scale" in said and "no score: no 'Final Score:'" in said


def test_an_evaluation_counts_and_shows_released_replies(tmp_path, records, prompts, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text(json_lines(records), encoding="utf-8")
    reply = {
        "categories": [{"name": "A", "dims": [{"name": "kite", "score_1": 7, "score_2": 3}]}],
        "reason": "x",
        "winner": "Image 1",
    }
    monkeypatch.setattr(evaluation, "set_up", lambda judging, _: set_up(judging, Replies(json.dumps(reply))))
    output = tmp_path / "eval"
    words = ["--preset", "flex", "--prompts", prompts, "--model", "m", "--input", str(tmp_path / "pairs.jsonl")]
    monkeypatch.setattr("sys.argv", ["evaluation", *words, "--output", str(output)])
    evaluation.main()
    results = json.loads((output / "results.json").read_text())
    overall = results["overall"]
    assert overall["accuracy"]["value"] == 0.5 and overall["parse_rate"]["value"] == 1
    assert overall["first_position_rate"]["value"] == 1 and overall["arithmetic_rate"]["total"] == 0
    page = tmp_path / "report.html"
    monkeypatch.setattr("sys.argv", ["report", "--run", f"flex={output}", "--output", str(page)])
    report.main()
    assert "replies flex" in page.read_text() and "kite" in page.read_text()


def test_a_replayed_backend_says_how_its_replies_were_asked(tmp_path, records, prompts):
    output = tmp_path / "judgments.jsonl"
    Judge(Replies("Image 1 is better."), preset="v1-pairs", prompts=prompts).file(records, output)
    assert ReplayBackend(output).settings["reply_format"] == "v1_pairs"
    assert argparse.Namespace(**vars(JudgingArguments())).reply_format == OWN
