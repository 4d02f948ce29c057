"""Rewards: tables of completions and values, in TRL's signature, through the one parser."""

import subprocess
import sys

import pytest

from unifiedreward_think.rewards import (
    accuracy_reward,
    consistency_reward,
    format_reward,
    length_reward,
    read_verdicts,
    swap_agreement_reward,
    verdict_rates,
)
from unifiedreward_think.verdict import render

IMAGE, VIDEO, ANSWER = "image_generation", "video_generation", "video_understanding"
GOOD = render(1, [("Aesthetics", 9, 4), ("Authenticity", 8, 6)], noun="Image")
WRONG_SUM = GOOD.replace("=17", "=18")
DIRECT = "<answer>Image 1 is better</answer>"

# text, format, accuracy when candidate 1 is preferred, consistency
VALID = [
    (GOOD, 1, 1, 1),
    (render(2, [("Aesthetics", 4, 9)], noun="Image"), 1, 0, 1),
    (render(1, [("Aesthetics", 9, 4)], noun="Image", layout="three_line"), 1, 1, 1),
    (f"\n {GOOD} \n", 1, 1, 1),
    (WRONG_SUM, 1, 1, 0),
    ("<think>Image 1 is sharper</think><answer>Image 1 is better</answer>", 1, 1, 0),
]
INVALID = [
    ("", 0, 0, 0),
    ("Image 1 is better", 0, 0, 0),
    ("<think>Image 1 is better</think>", 0, 0, 0),
    (GOOD.removesuffix("</answer>"), 0, 0, 0),
    (GOOD.replace("</think>", ""), 0, 0, 0),
    (GOOD.replace("<answer>Image 1 is better", "<answer>Image 3 is better"), 0, 0, 0),
    (GOOD.replace("<answer>Image 1 is better", "<answer>Video 1 is better"), 0, 0, 0),
    ("<think></think><answer></answer>", 0, 0, 0),
]
MIXED = [
    (DIRECT, 0, 1, 0),
    (GOOD + " That is all.", 0, 1, 1),
    ("Well. " + GOOD, 0, 1, 1),
    ("<think></think>" + DIRECT, 0, 1, 0),
    (GOOD.replace("<answer>Image 1 is better", "<answer>image 1 is better."), 0, 1, 1),
    (GOOD + "<answer>Image 2 is better</answer>", 0, 0, 0),
]


def chat(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(("text", "form", "accuracy", "consistent"), VALID + INVALID + MIXED)
def test_each_completion_has_the_rewards_of_the_table(text, form, accuracy, consistent):
    columns = {"task": [IMAGE], "solution": ["Image 1 is better"]}
    assert format_reward([text], **columns) == [form]
    assert accuracy_reward([text], **columns) == [accuracy]
    assert consistency_reward([text], **columns) == [consistent]


def test_plain_texts_and_conversations_are_rewarded_alike():
    texts = [text for text, *_ in VALID + INVALID + MIXED]
    columns = {"task": [IMAGE] * len(texts), "solution": ["Image 1 is better"] * len(texts)}
    for reward in (format_reward, accuracy_reward, consistency_reward):
        assert reward(texts, **columns) == reward([chat(text) for text in texts], **columns)


def test_content_that_is_no_text_is_an_error():
    with pytest.raises(TypeError):
        format_reward([chat([{"type": "text", "text": GOOD}])], task=[IMAGE])


def test_rows_of_different_tasks_are_read_with_their_own_nouns():
    texts = [render(2, [("Clarity", 1, 9)], noun=noun) for noun in ("Image", "Video", "Answer")]
    solutions = [f"{noun} 2 is better" for noun in ("Image", "Video", "Answer")]
    assert format_reward(texts, task=[IMAGE, VIDEO, ANSWER]) == [1, 1, 1]
    assert format_reward(texts, task=[VIDEO, ANSWER, IMAGE]) == [0, 0, 0]
    assert format_reward(texts, solution=solutions) == [1, 1, 1]  # the released rows have no `task`
    assert accuracy_reward(texts, solution=solutions) == [1, 1, 1]


@pytest.mark.parametrize("missing", [None, ""])
def test_a_row_without_a_gold_answer_has_no_accuracy_reward(missing):
    assert accuracy_reward([GOOD, GOOD], ["Image 1 is better", missing], task=[IMAGE, IMAGE]) == [1, None]
    assert accuracy_reward([GOOD, GOOD], [missing, "Image 2 is better"]) == [None, 0]


def test_a_gold_answer_that_cannot_be_read_is_an_error_that_shows_it():
    with pytest.raises(ValueError, match="'the first one' cannot be read; write it like 'Image 1 is better'"):
        accuracy_reward([GOOD], ["the first one"], task=[IMAGE])


def test_a_row_without_task_and_solution_is_an_error():
    for columns in ({}, {"solution": [None]}):
        with pytest.raises(ValueError, match="add `task`"):
            format_reward([GOOD], **columns)


def test_the_direct_style_asks_for_the_answer_alone():
    columns = {"task": [IMAGE, IMAGE], "style": ["direct", "cot"]}
    assert format_reward([DIRECT, DIRECT], **columns) == [1, 0]
    assert format_reward([GOOD, GOOD], **columns) == [0, 1]
    assert consistency_reward([DIRECT, GOOD], **columns) == [None, 1]


def test_weights_of_one_and_one_give_the_sum_of_the_paper():
    def total(text):
        columns = {"task": [IMAGE], "solution": ["Image 1 is better"]}
        return format_reward([text], **columns)[0] + accuracy_reward([text], **columns)[0]

    assert [total(text) for text in (GOOD, DIRECT, "Image 1 is better")] == [2, 1, 0]


def rates(texts, *styles):
    styles = styles or ["cot"] * len(texts)
    return verdict_rates(read_verdicts(texts, [IMAGE] * len(texts), None, styles), styles, [None] * len(texts))


def test_the_rates_of_completions_are_shares_of_those_that_count():
    expected = {"parse_rate": 0.5, "readable_rate": 0.75, "arithmetic_rate": 0.25, "first_position_rate": 1.0}
    assert rates([GOOD, WRONG_SUM, DIRECT, ""]) == expected
    assert rates(["", "<think>"]) == {"parse_rate": 0.0, "readable_rate": 0.0, "arithmetic_rate": 0.0}


def test_rows_that_ask_for_no_scores_do_not_lower_the_arithmetic_rate():
    assert rates([DIRECT, GOOD], "direct", "cot")["arithmetic_rate"] == 1.0
    alone = rates([DIRECT], "direct")
    assert "arithmetic_rate" not in alone and alone["parse_rate"] == 1.0


def test_unknown_columns_of_the_training_set_are_ignored():
    extra = {"prompts": ["?"], "completion_ids": [[1]], "images": [[]], "trainer_state": None, "id": ["kite"]}
    assert format_reward([GOOD], task=[IMAGE], **extra) == [1]
    assert accuracy_reward([GOOD], ["Image 1 is better"], **extra) == [1]


def test_swap_agreement_is_the_share_of_the_other_order_that_names_the_same_candidate():
    one, two = GOOD, render(2, [("Aesthetics", 4, 9)], noun="Image")
    texts = [one, two, "", one, two, two, one]
    pair = ["a", "a", "a", "a", "a", "a", "b"]
    order = ["ab", "ab", "ab", "ba", "ba", "ba", "ab"]
    # Shown swapped, "Image 2" is the candidate stored first.
    found = swap_agreement_reward(texts, task=[IMAGE] * 7, id=pair, order=order)
    assert found == pytest.approx([2 / 3, 1 / 3, 0, 1 / 3, 1 / 3, 1 / 3, None])


def test_swap_agreement_without_ids_and_orders_says_what_it_needs():
    with pytest.raises(ValueError, match="orders: both"):
        swap_agreement_reward([GOOD], task=[IMAGE])


@pytest.mark.parametrize(("tokens", "reward"), [(0, 0), (768, 0), (896, -0.5), (1024, -1), (5000, -1)])
def test_the_length_reward_falls_linearly_over_the_margin(tokens, reward):
    assert length_reward([range(tokens)]) == [reward]
    assert length_reward([range(tokens // 4)], limit=256, margin=64) == [reward]


def test_rewards_are_imported_without_torch():
    code = "import sys, unifiedreward_think.rewards; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
