"""Forms of judgment: prompt, reward and metric ask one place, and a form is an addition."""

import json
import re
from dataclasses import asdict, replace

import pytest
from PIL import Image

from helpers.judging import make_records, told
from helpers.stages import common
from unifiedreward_think import forms
from unifiedreward_think.backends import Completion
from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.errors import InputError
from unifiedreward_think.evaluation.rescore import rescore
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.metrics import rate, summarize
from unifiedreward_think.order import ORDERS, in_order, letters
from unifiedreward_think.prompting import build_parts
from unifiedreward_think.records import Judgment
from unifiedreward_think.rewards import accuracy_reward, format_reward
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.trace_rules import rejections
from unifiedreward_think.verdict import Verdict, answer_text


def points(text, noun, style="direct"):
    """A form of its own: how many points has one candidate? `<answer>3 points</answer>`."""
    match = re.fullmatch(r"\s*<answer>(\d+) points</answer>\s*", text)
    return Verdict(winner=None, strict=bool(match), totals=(float(match[1]),) if match else None)


def points_form(folder):
    return forms.Form(
        name="points",
        candidates=1,
        prompts=folder,
        needs="scores",
        misfit=lambda record: "",
        orders=lambda record: tuple(letters(record.count)),
        render=build_parts,
        parse=points,
        readable=lambda verdict: verdict.totals is not None,
        gold=lambda labelled, order: in_order(labelled.scores, order)[0] if labelled.scores else None,
        solution=lambda gold, noun: f"{gold:g} points",
        read_solution=lambda text: float(text.split()[0]),
        agreement=lambda verdict, gold: (
            None if gold is None else 0.0 if not verdict.totals else max(0.0, 1 - abs(verdict.totals[0] - gold) / 10)
        ),
        contradicts=lambda judgment: judgment.correct is False,
        contradiction="other points",
    )


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """The form of points with its template; four pairs of a red and a blue picture, which have 9 and 3 points."""
    (tmp_path / "points").mkdir()
    template = "How red is it, asked for {prompt}? {media_1} Write <answer>N points</answer>, N from 0 to 10."
    (tmp_path / "points" / "image_generation.txt").write_text(template)
    monkeypatch.setitem(forms.FORMS, "points", points_form(tmp_path / "points"))
    for name in ("red", "blue"):
        Image.new("RGB", (56, 56), name).save(tmp_path / f"{name}.png")
    scores = {1: (9, 3), 2: (3, 9)}
    return [replace(record, scores=scores[record.preferred]) for record in make_records(tmp_path, 4)]


class CountsRed:
    """Gives 9 points to a red picture, 5 to a blue one, and says nothing readable of the pair `r3`."""

    batch_size, model, settings = 3, "red", {}

    def complete(self, prompts, *, sampling, seeds):
        answers = []
        for row in prompts:
            (picture,) = row["images"]
            text = f"<answer>{9 if picture.getpixel((0, 0))[0] > 100 else 5} points</answer>"
            answers.append([Completion("red" if row["id"] == "r3" else text, "stop")])
        return answers


def asked(tmp_path, **changes):
    return JudgingArguments(
        form="points", style="direct", orders="both", frame_cache=str(tmp_path / "frames"), **changes
    )


def test_a_form_is_an_addition_for_the_judge_its_files_rewards_and_metrics(scored, tmp_path):
    output = tmp_path / "judgments.jsonl"
    rows = judge(scored, CountsRed(), asked(tmp_path).config(), output)
    assert [(row.record_id, row.order, row.form) for row in rows[:3]] == [
        ("r0", "a", "points"),
        ("r0", "b", "points"),
        ("r1", "a", "points"),
    ]
    # of each pair one picture is red; the blue ones get 5 for 3 points, and nothing is read of the last pair
    assert [row.correct for row in rows] == [False, True, True, False, True, False, False, False]
    assert [row.readable for row in rows] == [True] * 6 + [False] * 2
    assert [Judgment.from_json(json.loads(line)) for line in output.read_text().splitlines()] == rows
    assert told(judge(scored, CountsRed(), asked(tmp_path).config(), output)) == told(rows)  # a rerun goes on
    assert rescore(rows) == (rows, [])
    form = forms.FORMS["points"]
    columns = {
        "task": ["image_generation"] * 8,
        "form": ["points"] * 8,
        "style": ["direct"] * 8,
        "solution": [form.solution_of(record, order) for record in scored for order in "ab"],
    }
    texts = [row.completion for row in rows]
    assert accuracy_reward(texts, **columns) == pytest.approx([0.8, 1, 1, 0.8, 1, 0.8, 0, 0])
    assert format_reward(texts, **columns) == [1] * 6 + [0] * 2
    results = summarize(rows)["overall"]
    assert [results[name]["value"] for name in ("accuracy", "readable_rate", "parse_rate")] == [3 / 8, 6 / 8, 6 / 8]
    assert results["arithmetic_rate"]["value"] is None and "both_orders" not in summarize(rows)
    assert "majority" not in summarize(rows)
    assert rejections(rows[0], require_arithmetic=False) == ["other points"] and not rejections(
        rows[1], require_arithmetic=False
    )


def test_judgments_of_two_forms_do_not_mix(scored, tmp_path):
    output = tmp_path / "judgments.jsonl"
    rows = judge(scored, CountsRed(), asked(tmp_path).config(), output)
    output.write_text(json_lines(replace(row, form="pairwise") for row in rows))
    with pytest.raises(InputError, match="made with form = 'pairwise', now it is 'points'"):
        judge(scored, CountsRed(), asked(tmp_path).config(), output)


@pytest.mark.slow
def test_a_form_is_an_addition_for_training(scored, tmp_path, models):
    from trl import GRPOConfig, ModelConfig, SFTConfig

    from unifiedreward_think.training import grpo, sft
    from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, TrainingExtras

    (tmp_path / "train.jsonl").write_text(json_lines(scored))
    shown = {key: value for key, value in asdict(asked(tmp_path)).items() if key in ShownArguments.__dataclass_fields__}
    data = DataArguments(**shown, train_files=[str(tmp_path / "train.jsonl")])
    rows, counts = grpo.load_rows(data)
    assert counts["pairs"] == 4 and [row["order"] for row in rows] == ["a", "b"] * 4
    assert [row["solution"] for row in rows[:4]] == ["3 points", "9 points", "9 points", "3 points"]
    assert {len(row["images"]) for row in rows} == {1}
    model = ModelConfig(model_name_or_path=str(models["qwen2_5_vl"]), dtype="float32")
    names = ["format_reward", "accuracy_reward", "swap_agreement_reward"]
    rewards = grpo.RewardArguments(reward_funcs=names)
    chosen = common(num_generations=2, max_completion_length=8, per_device_train_batch_size=2, max_steps=1)
    args = GRPOConfig(output_dir=str(tmp_path / "grpo"), **chosen)
    arguments = (model, data, TrainingExtras(), rewards, SharedPrefixArguments())
    grpo.train(rows, counts, grpo.reward_functions(rewards, 8), arguments, args, None)
    log = json.loads((tmp_path / "grpo" / "log_history.json").read_text())
    assert log[0]["readable_rate"] == 0 and log[0]["rewards/accuracy_reward/mean"] == 0  # a random model

    traces = [
        {"record": record.to_json(), "order": order, "completion": f"<answer>{form_points} points</answer>"}
        for record in scored
        for order, form_points in zip("ab", record.scores, strict=True)
    ]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traces))
    data = replace(data, train_files=[str(tmp_path / "traces.jsonl")])
    rows, counts = sft.load_rows(data)
    assert len(rows) == 8 and {len(row["images"]) for row in rows} == {1}
    args = SFTConfig(output_dir=str(tmp_path / "sft"), max_length=None, **common(max_steps=1))
    sft.train(rows, counts, data, TrainingExtras(), args, model, None)
    assert (tmp_path / "sft" / "model.safetensors").is_file()


def test_a_form_that_is_not_there_and_one_without_a_winner_are_refused(scored):
    with pytest.raises(InputError, match="form 'fives' is none of pairwise, pointwise, points"):
        JudgingArguments(form="fives").config()
    with pytest.raises(InputError, match="made with form 'points': make one with 'pairwise', or score"):
        Judge(CountsRed(), form="points")("image_generation", "a kite", ["a.png", "b.png"])
    with pytest.raises(InputError, match="made with form 'pairwise': make one with 'pointwise', or call the judge"):
        Judge(CountsRed()).score("image_generation", "a kite", ["a.png"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("preferred", [1, 2, "tie", None])
@pytest.mark.parametrize("place", [1, 2, None])
def test_reward_and_metric_agree_on_every_pair(order, preferred, place):
    text = f"<answer>{answer_text(place, 'Image')}</answer>" if place else "no idea"
    row = Judgment(
        record_id="kite",
        order=order,
        completion=text,
        verdict=forms.PAIRWISE.parse(text, "Image"),
        preferred=preferred,
        task="image_generation",
    )
    gold = forms.PAIRWISE.gold(row, order)
    solution = [None if gold is None else forms.PAIRWISE.solution(gold, "Image")]
    (reward,) = accuracy_reward([text], solution, task=["image_generation"])
    assert rate([row], "accuracy") == ((0, 0) if reward is None else (reward, 1))
