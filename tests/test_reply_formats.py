"""Replies of the released judges, written from the table of their formats: read right, or unparsed with the reason."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifiedreward_think.forms import FORMS
from unifiedreward_think.metrics import summarize
from unifiedreward_think.records import Judgment
from unifiedreward_think.reply_formats.formats import OWN, REPLY_FORMATS, read_reply
from unifiedreward_think.scores import Dimension, winner_problems
from unifiedreward_think.verdict import Verdict, render
from unifiedreward_think.votes import combine

IMAGE, VIDEO = "image_generation", "video_generation"
ABOUT_IMAGE, ABOUT_VIDEO = "image_understanding", "video_understanding"


def read(name, text, task=IMAGE):
    verdict = REPLY_FORMATS[name].read(text, task)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    return verdict


VIDEO_POINTS = """visual quality: 3
temporal consistency: 2
dynamic degree: 3
text-to-video alignment: 4
factual consistency: {last}
Final Score: {final}"""


@pytest.mark.parametrize(
    ("name", "task", "text", "score"),
    [
        ("v1_points", IMAGE, "kite (object): 1\nred (colour): 0\nFinal Score: 4", (4, 1, 5)),
        ("v1_points", IMAGE, "kite (object): 1\nFinal Score: 4.7", (4.7, 1, 5)),
        ("v1_points", IMAGE, "It is fine.\n**Final Score:** 3.3\nThat is all 5 of it.", (3.3, 1, 5)),
        ("v1_points", IMAGE, "final score: 4.7/5.", (4.7, 1, 5)),
        ("v1_points", IMAGE, "Final Score: 4 out of 5", (4, 1, 5)),
        ("v1_points", IMAGE, "Final Score: 2, no, wait.\nFinal Score: 3", (3, 1, 5)),
        ("v1_points", IMAGE, "Final Score: +3.50", (3.5, 1, 5)),
        ("v1_points", VIDEO, VIDEO_POINTS.format(last=3, final=10), (10, 1, 10)),
        ("v1_points", VIDEO, VIDEO_POINTS.format(last=3, final="3.0"), (3, 1, 10)),
        ("v1_points", ABOUT_IMAGE, "The answer names 3 of 4 objects.\nFinal Score:\n85", (85, 0, 100)),
        ("v1_points", ABOUT_IMAGE, "Final Score: 0", (0, 0, 100)),
        ("v1_points", ABOUT_IMAGE, "Final Score: 100", (100, 0, 100)),
        ("v1_points", ABOUT_VIDEO, "Good.\nFinal Score: 4", (4, 1, 5)),
        ("v1_points_1_10", IMAGE, "Final Score: 10", (10, 1, 10)),
        ("v1_points_1_5", VIDEO, "Final Score: 4.5", (4.5, 1, 5)),
        ("v1_points_0_100", VIDEO, "Final Score: 62.5", (62.5, 0, 100)),
        ("v1_points", IMAGE, "<think>Final Score: 1</think>Final Score: 5", (5, 1, 5)),
    ],
)
def test_a_final_score_is_read_with_its_decimals(name, task, text, score):
    assert read(name, text, task).score == score


@pytest.mark.parametrize(
    ("name", "task", "text", "reason"),
    [
        ("v1_points", IMAGE, "", "no 'Final Score:'"),
        ("v1_points", IMAGE, "A fine picture, 4 of 5.", "no 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score:", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: N/A (1 of 5 elements)", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: nan", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: -3", "score -3 lies outside of 1 to 5"),
        ("v1_points", IMAGE, "Final Score: \u22123", "score -3 lies outside of 1 to 5"),
        ("v1_points", IMAGE, "Final Score: 47", "score 47 lies outside of 1 to 5"),
        ("v1_points", IMAGE, "Final Score: 0.5", "score 0.5 lies outside of 1 to 5"),
        ("v1_points", IMAGE, "Final Score: 4-5", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: 4,7", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: 1.2.3", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: 4e0", "no number after 'Final Score:'"),
        ("v1_points", IMAGE, "Final Score: 4/10", "4 is stated out of 10, the scale ends at 5"),
        ("v1_points", IMAGE, "Final Score: 4\nFinal Score: ", "no number after 'Final Score:'"),
        ("v1_points", ABOUT_IMAGE, "Final Score: 101", "score 101 lies outside of 0 to 100"),
        ("v1_points", VIDEO, VIDEO_POINTS.format(last=3, final=11), "score 11 lies outside of 1 to 10"),
        ("v1_points", IMAGE, "<think>Final Score: 4", "think block not closed"),
    ],
)
def test_a_final_score_that_cannot_be_read_has_a_reason(name, task, text, reason):
    verdict = read(name, text, task)
    assert verdict.score is None and not verdict.strict and reason in verdict.problems[0]


def test_the_lines_before_a_final_score_are_its_dimensions():
    verdict = read("v1_points", VIDEO_POINTS.format(last=3, final=7), VIDEO)
    assert [(name, score) for name, (score,) in verdict.dimensions] == [
        ("visual quality", 3),
        ("temporal consistency", 2),
        ("dynamic degree", 3),
        ("text-to-video alignment", 4),
        ("factual consistency", 3),
    ]
    assert verdict.strict and verdict.problems == ()
    wrong = read("v1_points", VIDEO_POINTS.format(last=7, final=7), VIDEO)
    assert wrong.score == (7, 1, 10) and wrong.problems == ("'factual consistency' is 7, outside of 1 to 4",)
    missing = read("v1_points", "visual quality: 3\nFinal Score: 7", VIDEO)
    assert missing.score == (7, 1, 10) and not missing.strict and "no 'temporal consistency'" in missing.problems
    elements = read("v1_points", "1. red kite (object, count): 1\n* sky (place): 0\nFinal Score: 3")
    assert elements.dimensions == (("red kite (object, count)", (1,)), ("sky (place)", (0,))) and elements.strict


WORDS = 'Word-wise Scores: [["kite", 4.5], ["red", 0.2], ["[No_mistakes]", 1]]\n'
AXES = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


def test_words_and_axes_are_read_and_the_score_is_the_mean_of_the_axes():
    verdict = read("v1_acs", WORDS + AXES.format(2.69, 4, "3.31"))
    assert verdict.score[1:] == (1, 5) and verdict.score.value == pytest.approx(10 / 3)
    assert verdict.dimensions == (("Alignment", (2.69,)), ("Coherence", (4,)), ("Style", (3.31,)))
    assert verdict.words == (("kite", (4.5,)), ("red", (0.2,)), ("[No_mistakes]", (1,)))
    assert verdict.strict and verdict.problems == ()
    assert read("v2_points", AXES.format(2.69, 4, 3.31)).score == verdict.score
    physics = read("v2_points", "Alignment Score (1-5): 2\nPhysics Score (1-5): 3\nStyle Score (1-5): 4", VIDEO)
    assert [name for name, _ in physics.dimensions] == ["Alignment", "Physics", "Style"] and physics.score == (3, 1, 5)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("v1_acs", WORDS, "no number for 'Alignment'"),
        ("v1_acs", WORDS + AXES.format(3, "?", 2), "no number for 'Coherence'"),
        ("v2_points", "", "no number for 'Alignment'"),
        ("v2_points", AXES.format(3, 4, "nan"), "no number for 'Style'"),
        ("v2_points", AXES.format(3, 4, "-2"), "'Style' is -2, outside of 1 to 5"),
        ("v2_points", AXES.format(3, 5.01, 2), "'Coherence' is 5.01, outside of 1 to 5"),
        ("v2_points", AXES.format(3, 4, 2) + "\nStyle Score (1-5): 3", "'Style' is stated as 2 and 3"),
        ("v2_points", AXES.format(3, 4, 2).replace("1-5", "1-10"), "'Alignment' is stated on 1 to 10"),
        ("v2_points", "Alignment Score (1-5): 3\nPhysics Score (1-5): 3\nStyle Score (1-5): 3", "'Coherence'"),
    ],
)
def test_axes_that_are_missing_or_out_of_range_make_no_score(name, text, reason):
    verdict = read(name, text)
    assert verdict.score is None and not verdict.strict and reason in verdict.problems[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("", "no 'Word-wise Scores:'"),
        ('Word-wise Scores: [["kite", 4.5], ["red"\n', "word-wise scores are no JSON"),
        ('Word-wise Scores: [["kite", "high"]]\n', "word-wise scores are no list of words and numbers"),
        ('Word-wise Scores: [["kite", NaN]]\n', "word-wise scores are no JSON"),
    ],
)
def test_broken_scores_of_words_leave_the_axes_readable(words, problem):
    verdict = read("v1_acs", words + AXES.format(3, 4, 2))
    assert verdict.score == (3, 1, 5) and not verdict.strict and problem in verdict.problems[0]


@pytest.mark.parametrize(
    ("task", "text", "winner", "strict"),
    [
        (IMAGE, "Image 1 is better than Image 2.", 1, True),
        (IMAGE, "Image 2 is better.", 2, True),
        (IMAGE, "Both images are equally good.", "tie", True),
        (VIDEO, "Video 2 is better than Video 1.", 2, True),
        (VIDEO, "Video 1 is better", 1, True),
        (VIDEO, "Both videos are equally good", "tie", True),
        (ABOUT_IMAGE, "Answer 1 is better", 1, True),
        (ABOUT_VIDEO, "The first one is vague.\nOverall Judgment: Answer 2 is better than Answer 1.", 2, False),
        (ABOUT_VIDEO, "Overall Judgment: Answer 2 is better.", 2, True),
        (ABOUT_IMAGE, "Objects: Answer 2 is better.\nOverall Judgment: Answer 1 is better.", 1, False),
        (IMAGE, "Image 1 is better in style, but overall image 2 is better.", 2, False),
        (IMAGE, "**Image 2 is better than Image 1.**", 2, False),
        (IMAGE, "Image 2 is better than Image 1 because it shows the kite.", 2, False),
        (IMAGE, "Image 2 is better, since Image 1 shows no kite.", 2, False),
        (ABOUT_IMAGE, "Response 2 is better than Response 1.", 2, False),
        (IMAGE, "Image 2 is better. As I said: Image 2 is better than Image 1.", 2, False),
        (IMAGE, "<think>Image 1 is better.</think>\nImage 2 is better.", 2, True),
    ],
)
def test_a_sentence_names_the_better_one_or_a_tie(task, text, winner, strict):
    verdict = read("v1_pairs", text, task)
    assert (verdict.winner, verdict.strict) == (winner, strict)
    assert verdict.problems == () if strict else verdict.problems


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no sentence"),
        ("I cannot say.", "no sentence"),
        ("Image 3 is better.", "no sentence"),
        ("Video 1 is better.", "no sentence"),
        ("Image 1 is better in style.", "no sentence"),
        ("Image 1 is better, but only in style.", "no sentence"),
        ("Image 1 is better than Image 1.", "no sentence"),
        ("Image 1 is not better than Image 2.", "no sentence"),
        ("I do not think Image 1 is better.", "no sentence"),
        ("Is it true that Image 1 is better?", "no sentence"),
        ("Image 1 is better. Image 2 is better.", "sentences name Image 1 and Image 2"),
        ("Image 1 is better. Both images are equally good.", "sentences name Image 1 and a tie"),
        ("Image 1 is better.\nOverall Judgment: unclear", "no sentence"),
        ("Image 1 is bett", "no sentence"),
    ],
)
def test_a_sentence_that_decides_nothing_has_a_reason(text, reason):
    verdict = read("v1_pairs", text)
    assert verdict.winner is None and not verdict.strict and reason in verdict.problems[0]


SHARES = """Alignment:
 Image 1: {a}
 Image 2: {b}
Coherence:
 Image 1: 0.52
 Image 2: 0.48
Style:
 Image 1: 0.1
 Image 2: 0.9
"""


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [("0.4357", "0.5643", 2), ("0.9", "0.1", 1), ("1", "0", 1), (".88", ".12", "tie"), ("0.44", "0.56", 2)],
)
def test_shares_of_a_pair_decide_by_their_sum(a, b, winner):
    verdict = read("v2_pairs", SHARES.format(a=a, b=b))
    assert verdict.winner == winner and verdict.strict and verdict.problems == ()
    assert verdict.dimensions[0] == ("Alignment", (float(a), float(b)))
    assert verdict.margin == pytest.approx(float(a) - float(b) + 0.04 - 0.8)
    assert read("v2_pairs", SHARES.format(a=a, b=b).replace(":\n", "\n")) == verdict
    around = read("v2_pairs", "Here it is.\n" + SHARES.format(a=a, b=b).replace(":\n", " Score: ") + "\nDone.")
    assert (around.winner, around.dimensions) == (verdict.winner, verdict.dimensions)
    assert read("v2_pairs", SHARES.format(a=a, b=b).replace("Image", "Video"), VIDEO).winner == winner


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no score of Image 1 in 'Alignment'"),
        (SHARES.format(a="nan", b="nan"), "no score of Image 1 in 'Alignment'"),
        (SHARES.format(a="0.5", b=""), "no score of Image 2 in 'Alignment'"),
        (SHARES.format(a="0.7", b="0.7"), "scores of 'Alignment' add up to 1.4, not to 1"),
        (SHARES.format(a="-0.2", b="1.2"), "'Alignment' is -0.2, outside of 0 to 1"),
        (SHARES.format(a="43.57", b="56.43"), "'Alignment' is 43.57, outside of 0 to 1"),
        (SHARES.format(a="0.5", b="0.5").partition("Style")[0], "no score of Image 1 in 'Style'"),
        (SHARES.format(a="0.5", b="0.5").replace("Image", "Video"), "no score of Image 1 in 'Alignment'"),
        (SHARES.format(a="0.5", b="0.5\n Image 2: 0.4"), "'Alignment' of Image 2 is stated as 0.5 and 0.4"),
    ],
)
def test_shares_that_are_missing_or_do_not_add_up_decide_nothing(text, reason):
    verdict = read("v2_pairs", text)
    assert verdict.winner is None and not verdict.strict and reason in verdict.problems[0]


@pytest.mark.parametrize(
    ("text", "scores", "winner"),
    [
        ("1.25 -0.5", (1.25, -0.5), 1),
        ("[-1.5, -0.25]", (-1.5, -0.25), 2),
        ("3, 2", (3, 2), 1),
        ("Image 1: -2\nImage 2: 1", (-2, 1), 2),
        ("Image 1 score: 0.5, Image 2 score: 0.5", (0.5, 0.5), "tie"),
        ("\u22121.5 and 2", (-1.5, 2), 2),
    ],
)
def test_two_signed_numbers_keep_their_signs(text, scores, winner):
    verdict = read("edit_pair_scores", text)
    assert (verdict.winner, verdict.dimensions) == (winner, (("Score", scores),))


@pytest.mark.parametrize("text", ["", "1.5", "1.5 0.3 0.2", "Image 1: 1.5", "nan 0.5", "Image 2 is better", "1,5 0,3"])
def test_other_than_two_numbers_decide_nothing(text):
    verdict = read("edit_pair_scores", text)
    assert verdict.winner is None and "two numbers" in verdict.problems[0]


@pytest.mark.parametrize("name", ["edit_following", "edit_quality"])
def test_edit_json_is_read_with_or_without_words_around(name):
    reply = '{"reasoning": "the hat\nis {red}", "score": [20, 17.5]}'
    verdict = read(name, reply)
    assert verdict.score == (37.5, 0, 50) and verdict.strict and verdict.problems == ()
    assert [scores for _, scores in verdict.dimensions] == [(20,), (17.5,)]
    fenced = read(name, f"Here {{it}} is:\n```json\n{reply}\n```\nDone.")
    assert fenced.score == verdict.score and not fenced.strict and fenced.problems == ("text around the JSON",)
    assert read(name, f"{reply}\n{reply}").score == verdict.score


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("The score is [20, 17].", "no JSON object"),
        ('{"reasoning": "good", "score": [20, 17]', "broken JSON"),
        ('{"reasoning": "good", "score": [20, 17,]}', "broken JSON"),
        ('{"edits": {"score": [20, 17]}', "broken JSON"),
        ('{"reasoning": "good", "score": [20, NaN]}', "broken JSON"),
        ('{"score": [20, 17], "score": [1, 2]}', "broken JSON"),
        ('{"reasoning": "good"}', "no 'score'"),
        ('{"score": [20]}', "score is [20]; expected two numbers"),
        ('{"score": 20}', "score is 20; expected two numbers"),
        ('{"score": ["20", "17"]}', "expected two numbers"),
        ('{"score": [true, 17]}', "expected two numbers"),
        ('{"score": [20, -1]}', "is -1, outside of 0 to 25"),
        ('{"score": [26, 1]}', "is 26, outside of 0 to 25"),
        ('{"score": [1, 2]} {"score": [3, 4]}', "2 JSON objects that differ"),
        ("[" * 5000 + '{"score": ' + "[" * 5000, "broken JSON"),
    ],
)
def test_edit_json_that_cannot_be_read_has_a_reason_and_no_zeros(text, reason):
    verdict = read("edit_following", text)
    assert verdict.score is None and not verdict.strict and reason in verdict.problems[0]


def flex(winner="Image 2", **changes):
    dims = [
        {"name": "kite", "reason_1": "no tail", "reason_2": "whole", "score_1": 3, "score_2": 7, **changes},
        {"name": "light", "reason_1": "soft", "reason_2": "hard", "score_1": 5.5, "score_2": 4.5},
    ]
    category = {"name": "A. Content", "dims": dims, "cat_reason": "the tail", "cat_winner": "Image 2"}
    return {"categories": [category], "reason": "the tail decides", "winner": winner}


def test_flex_json_has_a_winner_and_dimensions():
    verdict = read("flex", json.dumps(flex()))
    assert verdict.winner == 2 and verdict.strict and verdict.problems == () and verdict.margin == -3
    assert verdict.dimensions == (("kite", (3, 7)), ("light", (5.5, 4.5)))
    assert read("flex", "So:\n```json\n" + json.dumps(flex("image 1"), indent=1) + "\n```").winner == 1
    assert read("flex", json.dumps(flex("Video 1")), VIDEO).winner == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps(flex())[:-20], "broken JSON"),
        (json.dumps({**flex(), "winner": "Image 3"}), "winner is 'Image 3'"),
        (json.dumps({**flex(), "winner": "Video 1"}), "winner is 'Video 1'"),
        (json.dumps({**flex(), "winner": None}), "winner is None"),
        (json.dumps({key: value for key, value in flex().items() if key != "winner"}), "no 'winner'"),
        ("Image 2 wins", "no JSON object"),
    ],
)
def test_flex_json_without_a_winner_decides_nothing(text, reason):
    verdict = read("flex", text)
    assert verdict.winner is None and not verdict.strict and reason in verdict.problems[0]


@pytest.mark.parametrize(
    ("reply", "problem", "read_dimensions"),
    [
        (flex(score_1=4), "scores of 'kite' add up to 11, not to 10", 2),
        (flex(score_1=-1, score_2=11), "'kite' is -1, outside of 0 to 10", 1),
        (flex(score_1="3"), "no two scores in dimension 1 of category 1", 1),
        (flex(name=None), "no two scores in dimension 1 of category 1", 1),
        ({**flex(), "categories": []}, "no categories", 0),
        ({**flex(), "categories": "none"}, "no categories", 0),
        ({**flex(), "categories": [{"name": "A"}]}, "no dims in category 1", 0),
        (flex("Image 1"), "the winner has the smaller total", 2),
    ],
)
def test_flex_scores_that_are_broken_are_told_beside_the_winner(reply, problem, read_dimensions):
    verdict = read("flex", json.dumps(reply))
    assert verdict.winner in (1, 2) and problem in verdict.problems and len(verdict.dimensions) == read_dimensions


@pytest.mark.parametrize("layout", ["one_line", "three_line"])
def test_both_layouts_of_think_are_our_own_reader(layout):
    text = render(2, [("Aesthetics", 4, 9)], noun="Image", layout=layout)
    verdict = read(f"think_{layout}", text)
    assert verdict == read_reply(text, IMAGE, form=FORMS["pairwise"], style="cot", reply_format=OWN)
    assert (verdict.winner, verdict.strict, verdict.arithmetic_ok) == (2, True, True)


WRAPPED = [
    "...",
    "Final Score: ...",
    '{"score": ...}',
    '{"winner": "Image 1", "categories": [...]}',
    AXES.format("...", 2, 3),
]
WRAPPED += [WORDS.replace("4.5", "...") + AXES.format(1, 2, 3), SHARES.format(a="...", b="0.5")]


@given(
    st.text(st.sampled_from('{}[]"<>/think :,.-+0123456789enaIvVmgAS12()*\nscorewinFl'), max_size=300),
    st.sampled_from(WRAPPED),
)
def test_no_text_breaks_a_reader(text, wrapped):
    for name, each in REPLY_FORMATS.items():
        for task in each.tasks:
            verdict = each.read(wrapped.replace("...", text), task)
            readable = FORMS[each.form].readable(verdict)
            assert readable or verdict.problems, name
            assert not verdict.strict or readable, name
            assert verdict.score is None or 0 <= verdict.score.share <= 1
            assert all(math.isfinite(score) for _, scores in verdict.dimensions for score in scores)


@given(st.integers(100, 500).map(lambda n: n / 100), st.sampled_from(["{:g}", "{:.2f}", "**{:.2f}**", "{:.2f}/5"]))
def test_every_score_of_two_decimals_reads_back(value, shown):
    assert read("v1_points", f"Final Score: {shown.format(value)}").score == (value, 1, 5)


def test_a_task_that_a_format_does_not_know_is_no_verdict():
    verdict = REPLY_FORMATS["flex"].read(json.dumps(flex()), ABOUT_IMAGE)
    assert verdict.winner is None and "image_understanding" in verdict.problems[0]


@pytest.mark.parametrize(
    "piece", ["Image 1 is better. ", "Image 1: 0.5\n", "Style: 3\n", "Final Score: 4 ", '{"a": 1} ', "1 -", '{"']
)
@pytest.mark.parametrize("name", REPLY_FORMATS)
def test_a_long_reply_is_read_in_no_time(name, piece):
    started = time.perf_counter()
    read(name, piece * 20_000)
    assert time.perf_counter() - started < 2


def judged(replies, preferred=1):
    """Judgments of v1 replies to one pair, one in each order in turn."""
    return [
        Judgment(
            record_id="kite",
            order=("ab", "ba")[i % 2],
            sample=i // 2,
            completion=reply,
            verdict=read("v1_pairs", reply),
            preferred=preferred,
            task=IMAGE,
            settings={"style": "direct", "reply_format": "v1_pairs"},
        )
        for i, reply in enumerate(replies)
    ]


TIE, FIRST, SECOND = "Both images are equally good.", "Image 1 is better.", "Image 2 is better."


@pytest.mark.parametrize(
    ("replies", "winner", "votes"),
    [
        ([TIE, TIE], "tie", {"1": 0, "2": 0, "tie": 2, "abstained": 0}),
        ([TIE, SECOND, FIRST], 1, {"1": 2, "2": 0, "tie": 1, "abstained": 0}),
        ([TIE, FIRST], None, {"1": 0, "2": 1, "tie": 1, "abstained": 0}),
        ([FIRST, FIRST], None, {"1": 1, "2": 1, "abstained": 0}),
        (["?", TIE], "tie", {"1": 0, "2": 0, "tie": 1, "abstained": 1}),
    ],
)
def test_a_tie_is_a_vote(replies, winner, votes):
    result = combine(judged(replies))
    assert (result.winner, result.votes) == (winner, votes)
    assert (result.reason == "the votes are split") == (winner is None)


def test_a_called_tie_is_readable_agrees_in_both_orders_and_is_no_winner():
    rows = judged([TIE, TIE])
    results = summarize(rows)
    assert results["overall"]["readable_rate"]["value"] == results["overall"]["parse_rate"]["value"] == 1
    assert results["both_orders"]["overall"]["agreement"]["value"] == 1
    assert results["overall"]["accuracy"]["value"] == results["majority"]["value"] == 0
    assert results["overall"]["first_position_rate"]["total"] == results["overall"]["arithmetic_rate"]["total"] == 0
    assert [row.choice for row in rows] == ["tie", "tie"] and [row.correct for row in rows] == [False, False]
    labelled = summarize(judged([TIE, TIE], preferred="tie"))
    assert labelled["overall"]["accuracy"]["total"] == 0 and labelled["ties"] == 2


def test_a_tie_in_a_chain_of_thought_follows_from_equal_totals():
    dimensions = (Dimension("Light", (4, 4)),)
    assert winner_problems("tie", dimensions, (4, 4)) == []
    assert winner_problems("tie", (Dimension("Light", (4, 5)),), (4, 5)) == ["a tie is called, the totals differ"]
