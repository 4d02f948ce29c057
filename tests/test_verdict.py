"""The parser: tables of completions, the published defects, and properties that hold for every text."""

import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unifiedreward_think.scores import Dimension
from unifiedreward_think.verdict import NOUNS, Verdict, answer_text, parse, read_answer, render

GOOD = """<think>
1. Semantic consistency: Image 1 (9/10) - follows the caption; Image 2 (6/10) - misses the kite
2. Aesthetics: Image 1 (8/10) - calm; Image 2 (7/10) - busy
Total score:
Image 1: 9+8=17
Image 2: 6+7=13
</think>
<answer>Image 1 is better</answer>"""
GOOD_SCORES = (Dimension("Semantic consistency", (9, 6)), Dimension("Aesthetics", (8, 7)))


def think(*lines, answer="Image 1 is better"):
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n<answer>{answer}</answer>"


def scores_of(*lines):
    return parse(think(*lines), "Image").dimensions


def totals_of(*lines):
    return parse(think("Total score:", *lines), "Image").totals


# Strict form


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n  {GOOD}\n\n",
        GOOD.replace("</think>\n<answer>", "</think><answer>"),
        GOOD.replace("<think>\n", "<think>"),
        GOOD.replace("<answer>Image 1 is better</answer>", "<answer>\nImage 1 is better\n</answer>"),
        "<think>It is sharper.</think><answer>Image 1 is better</answer>",
        "<think>If x < 3 and y > 2 then <b>bold</b>.</think><answer>Image 1 is better</answer>",
        "<think>\u732b\u306f\u8d64\u3044</think>\n<answer>Image 1 is better</answer>",
    ],
)
def test_a_whole_think_block_and_an_exact_answer_are_strict(text):
    verdict = parse(text, "Image")
    assert verdict.strict and verdict.winner == 1


@pytest.mark.parametrize(
    ("text", "winner", "problem"),
    [
        ("", None, "no think block"),
        ("Image 1 is better", None, "no answer block"),
        ("<answer>Image 1 is better</answer>", 1, "no think block"),
        ("<think>a</think>", None, "no answer block"),
        ("<think></think><answer>Image 1 is better</answer>", 1, "empty think block"),
        ("<think> \n\t </think><answer>Image 1 is better</answer>", 1, "empty think block"),
        ("<think>a</think><think>b</think><answer>Image 1 is better</answer>", 1, "2 think blocks"),
        ("<think>a<think>b</think><answer>Image 1 is better</answer>", 1, "2 think blocks"),
        ("<think>a</think><answer>Image 1 is better</answer><answer>Image 2 is better</answer>", 2, "2 answer blocks"),
        ("Sure! <think>a</think><answer>Image 1 is better</answer>", 1, "text outside the blocks"),
        ("<think>a</think> so <answer>Image 1 is better</answer>", 1, "text outside the blocks"),
        ("<think>a</think><answer>Image 1 is better</answer> Hope this helps.", 1, "text outside the blocks"),
        ("<think>a</think><answer>Image 1 is better</answer></answer>", 1, "not closed or out of order"),
        ("<think>a</think></think><answer>Image 1 is better</answer>", 1, "not closed or out of order"),
        ("<answer>Image 1 is better</answer><think>a</think>", None, "no answer block"),
        ("<think>a</think><answer>Image 1 is better</answer></think>", None, "no answer block"),
        ("<think>a</think><answer>Image 1 is better</answer><think>wait", None, "think block not closed"),
        ("<think>so <answer>Image 1 is better</answer> </think>", None, "no answer block"),
        ("<think>a <answer>Image 1 is better</answer>", None, "think block not closed"),
        ("<think>a</think><answer>Image 1 is better", None, "no answer block"),
        ("<think>a</think>Image 1 is better</answer>", None, "no answer block"),
        ("<think>a</think></answer><answer>", None, "no answer block"),
        ("<Think>a</Think><answer>Image 1 is better</answer>", 1, "no think block"),
        ("<think>a</think><answer>image 1 is better</answer>", 1, "answer string is not exact"),
        ("<think>a</think><answer>Image 1 is better.</answer>", 1, "answer string is not exact"),
        ("<think>a</think><answer>Image  1 is  better</answer>", 1, "answer string is not exact"),
        ("<think>a</think><answer>Image 2 is better than Image 1</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>The answer: Image 1 is better</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>**Image 1 is better**</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>Image 3 is better</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>Image 12 is better</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>1</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer></answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>Video 1 is better</answer>", None, "answer string is not exact"),
        ("<think>a</think><answer>Both are good</answer>", None, "answer is not 'Image 1 is better' or"),
    ],
)
def test_any_other_form_is_not_strict_and_says_why(text, winner, problem):
    verdict = parse(text, "Image")
    assert not verdict.strict
    assert verdict.winner == winner
    assert any(problem in said for said in verdict.problems), verdict.problems


def test_a_completion_cut_anywhere_has_no_winner():
    for cut in range(len(GOOD)):
        verdict = parse(GOOD[:cut], "Image")
        assert verdict.winner is None and not verdict.strict and not verdict.arithmetic_ok and verdict.problems, cut


@pytest.mark.parametrize("noun", NOUNS)
def test_each_task_has_its_own_noun(noun):
    text = GOOD.replace("Image", noun)
    assert parse(text, noun) == Verdict(winner=1, strict=True, dimensions=GOOD_SCORES, totals=(17, 13))
    for other in set(NOUNS) - {noun}:
        verdict = parse(text, other)
        assert verdict.winner is None and not verdict.strict and verdict.dimensions == () and verdict.totals is None


@pytest.mark.parametrize(
    ("text", "winner", "strict"),
    [
        ("<answer>Video 2 is better</answer>", 2, True),
        (" <answer> Video 2 is better </answer>\n", 2, True),
        ("<answer>Video 2 is better.</answer>", 2, False),
        ("<think>a</think><answer>Video 2 is better</answer>", 2, False),
        ("Video 2 is better", None, False),
        ("<answer>Video 2 is better</answer> because", 2, False),
        ("", None, False),
    ],
)
def test_direct_style_is_the_answer_block_alone(text, winner, strict):
    verdict = parse(text, "Video", style="direct")
    assert (verdict.winner, verdict.strict) == (winner, strict)
    assert bool(verdict.problems) is not strict


@pytest.mark.parametrize(
    ("text", "noun", "winner"),
    [
        ("Answer 1 is better", "Answer", 1),
        ("Answer 1 is better", None, 1),
        ("  ANSWER 2\nis better . ", "Answer", 2),
        ("Image 1 is better", "Answer", None),
        ("Image 1 is better!", None, None),
        ("Image 1 is better..", None, None),
        ("<answer>Image 1 is better</answer>", None, None),
        ("Image 1 is better\x00", None, None),
    ],
)
def test_answer_strings_forgive_case_space_and_a_final_period_only(text, noun, winner):
    assert read_answer(text, noun) == winner


# Scores and totals


@pytest.mark.parametrize(
    "lines",
    [
        ["1. Light: Image 1 (9/10) - good; Image 2 (6/10) - bad"],
        ["1. Light: Image 2 (6/10) - bad; Image 1 (9/10) - good"],
        ["Light: Image 1 (9/10); Image 2 (6/10)"],
        ["1) Light: Image 1: 9/10, Image 2: 6/10"],
        ["- Light: Image 1 (9 / 10), Image 2 (6 / 10)"],
        ["### 1. Light: Image 1 (9/10), Image 2 (6/10)"],
        ["1. **Light**: Image 1 (9/10), Image 2 (6/10)"],
        ["**1. Light:** Image 1 (9/10), Image 2 (6/10)"],
        ["1. **Light:** **Image 1** (9/10) - a; **Image 2** (6/10) - b"],
        ["1. **Light:** **Image 1 (9/10)** - a; **Image 2 (6/10)** - b"],
        ["**Light:**", "- **Image 1:** 9/10 - a", "- **Image 2:** 6/10 - b"],
        ["1. Light:", "   Image 1 (9/10) - a", "   Image 2 (6/10) - b"],
        ["1. Light: ", "    Image 1 (9/10) - a; ", "    Image 2 (6/10) - b"],
        ["1. Light:", "", "* Image 1: 9/10 - a", "", "* Image 2: 6/10 - b"],
        ["1. Light:\r", "   Image 1 (9/10)\r", "   Image 2 (6/10)\r"],
        ["What I see:", "Two kites.", "1. Light: Image 1 (9/10) - a; Image 2 (6/10) - b"],
        ["Image 1 (3/10) at first sight.", "1. Light: Image 1 (9/10) - a; Image 2 (6/10) - b"],
        ["1. Light: Image 1 (9/10) - beats the 5/10 of most; Image 2 (6/10) - b"],
        ["1. Light: Image 1 (9/10) - a; Image 2 (6/10) - worse than Image 1 (8/10)"],
        ["1. Light: Image 1 (9/10) - it shows these: a, b; Image 2 (6/10) - this one:"],
    ],
)
def test_scores_are_read_from_the_layouts_seen_in_the_wild(lines):
    assert scores_of(*lines) == (Dimension("Light", (9, 6)),)


@pytest.mark.parametrize(
    "lines",
    [
        ["1. Light: Image 1 (90/100); Image 2 (60/100)"],
        ["1. Light: Image 1 (12345/10); Image 2 (6/10)"],
        ["1. Light: Image 1 (-9/10); Image 2 (-6/10)"],
        ["1. Light: Image 1 (score/10); Image 2 (score/10)"],
        ["1. Light: Video 1 (9/10); Video 2 (6/10)"],
        ["1. Light: Image 1 (9/10); Video 2 (6/10)"],
        ["1. Light: Image 3 (9/10); Image 12 (6/10)"],
        ["Image 1 (9/10); Image 2 (6/10)"],
        ["Image 1: 9; Image 2: 6"],
    ],
)
def test_what_is_no_score_out_of_ten_for_both_is_not_read(lines):
    assert scores_of(*lines) == ()


def test_scores_may_have_decimals():
    assert scores_of("1. Light: Image 1 (8.5/10); Image 2 (0.25/10)") == (Dimension("Light", (8.5, 0.25)),)


def test_the_first_score_of_a_candidate_on_a_dimension_counts():
    assert scores_of("1. Light: Image 1 (9/10)", "Image 2 (6/10)", "Image 1 (2/10)") == (Dimension("Light", (9, 6)),)


def test_a_dimension_named_twice_counts_twice():
    line = "Light: Image 1 (9/10); Image 2 (6/10)"
    assert scores_of(line, line) == (Dimension("Light", (9, 6)),) * 2


def test_a_dimension_whose_name_begins_with_total_is_no_total():
    text = render(1, [("Total harmony", 9, 3), ("Totality", 5, 4)], noun="Image", layout="three_line")
    verdict = parse(text, "Image")
    assert verdict.arithmetic_ok and [s.name for s in verdict.dimensions] == ["Total harmony", "Totality"]


def test_a_score_for_one_candidate_only_is_reported():
    verdict = parse(think("1. Light: Image 1 (9/10)", "2. Form: Image 1 (5/10); Image 2 (4/10)"), "Image")
    assert verdict.dimensions == (Dimension("Form", (5, 4)),)
    assert "'Light' scores one candidate only" in verdict.problems


def test_a_score_over_ten_is_reported():
    verdict = parse(think("1. Light: Image 1 (11/10); Image 2 (4/10)"), "Image")
    assert "score over 10 in 'Light'" in verdict.problems


def test_scores_outside_the_think_block_do_not_count():
    text = "1. Light: Image 1 (9/10); Image 2 (6/10)\n" + think("nothing") + "\n2. Form: Image 1 (9/10); Image 2 (6/10)"
    assert parse(text, "Image").dimensions == ()


def test_scores_of_an_unfinished_think_block_are_kept():
    verdict = parse("<think>\n1. Light: Image 1 (9/10); Image 2 (6/10)\n2. For", "Image")
    assert verdict.dimensions == (Dimension("Light", (9, 6)),) and verdict.margin == 3 and verdict.winner is None


def test_there_is_no_margin_without_scores():
    assert parse(think("nothing"), "Image").margin is None


@pytest.mark.parametrize(
    ("lines", "totals"),
    [
        (["Image 1: 9+8=17", "Image 2: 6+7=13"], (17, 13)),
        (["Image 2: 6+7=13", "Image 1: 9+8=17"], (17, 13)),
        (["Image 1: 17", "Image 2: 13"], (17, 13)),
        (["Image 1: 17.", "Image 2: 13."], (17, 13)),
        (["  Image 1:  17", "  Image 2: 13 points"], (17, 13)),
        (["- **Image 1**: 9 + 8 = 17", "- **Image 2**: 6 + 7 = **13**"], (17, 13)),
        (["- **Image 1**: 9 + 8 = 17", "- **Image 2:** 6 + 7 = 13"], (17, 13)),
        (["**Image 1: 9+8=17**", "**Image 2: 6+7=13**"], (17, 13)),
        (["Image 1: 8.5+8.25=16.75", "Image 2: 6+7=13"], (16.75, 13)),
        (["Image 1: 17/20", "Image 2: 13/20"], (17, 13)),
        (["Image 1: 9/10 + 8/10 = 17/20", "Image 2: 6/10 + 7/10 = 13/20"], (17, 13)),
        (["Image 1: 9+8=17"], None),
        (["Image 1: 9+8", "Image 2: 6+7"], None),
        (["Image 1: 9 + 8 + ", "Image 2: 6 + 7 + "], None),
        (["Image 1: 9/10 + 8/10", "Image 2: 6/10 + 7/10"], None),
        (["Image 1: total", "Image 2: total"], None),
        (["Video 1: 17", "Video 2: 13"], None),
        (["Image 1: 17", "Conclusion:", "Image 2: 13"], None),
        ([], None),
    ],
)
def test_totals_are_read_only_when_both_are_stated(lines, totals):
    assert totals_of(*lines) == totals


@pytest.mark.parametrize(
    "heading", ["Total score:", "Total:", "TOTAL SCORES:", "**Total Score**:", "**Total score:**", "4. Total points:"]
)
def test_totals_follow_their_heading(heading):
    assert parse(think(heading, "Image 1: 17", "Image 2: 13"), "Image").totals == (17, 13)


def test_totals_without_their_heading_are_not_read():
    assert parse(think("Image 1: 17", "Image 2: 13"), "Image").totals is None


@pytest.mark.parametrize(
    ("first", "second", "answer", "problem"),
    [
        ("9+8=17", "6+7=13", "Image 1 is better", None),
        ("17", "13", "Image 1 is better", None),
        ("9+8=18", "6+7=13", "Image 1 is better", "total of candidate 1 is stated as 18, its scores add up to 17"),
        ("9+8=17", "6+7=12", "Image 1 is better", "total of candidate 2 is stated as 12, its scores add up to 13"),
        ("9+8=17", "6+7=13", "Image 2 is better", "the winner has the smaller total"),
        ("17", "17", "Image 1 is better", "totals are equal, so the answer does not follow from them"),
        ("9+8=17", "?", "Image 1 is better", "totals are not stated"),
    ],
)
def test_arithmetic_asks_for_true_sums_and_the_larger_total_to_win(first, second, answer, problem):
    lines = [*GOOD.split("\n")[1:3], "Total score:", f"Image 1: {first}", f"Image 2: {second}"]
    verdict = parse(think(*lines, answer=answer), "Image")
    assert verdict.strict and verdict.arithmetic_ok is (problem is None)
    assert verdict.problems == () if problem is None else problem in verdict.problems


def test_arithmetic_needs_scores_and_a_winner():
    assert parse(think("Total score:", "Image 1: 0", "Image 2: 0"), "Image").problems == (
        "no dimension scores both candidates",
    )
    assert not parse(GOOD.replace("<answer>Image 1 is better</answer>", ""), "Image").arithmetic_ok


def test_sums_of_decimals_are_compared_without_rounding_noise():
    verdict = parse(render(1, [("A", 0.1, 0), ("B", 0.2, 0), ("C", 8.07, 0.3)], noun="Image"), "Image")
    assert verdict.arithmetic_ok


# Defects of the published code (names as in its review: E5 and so on)


def test_defect_e5_the_demanded_answer_counts_without_than():
    assert parse(GOOD, "Image").winner == 1


def test_defect_e7_a_long_chain_of_thought_is_not_a_tie_and_an_empty_output_not_a_win():
    assert parse(GOOD.replace("Image", "Video"), "Video").winner == 1
    assert parse("", "Video").winner is None


def test_defect_e8_what_the_thinking_says_is_not_the_answer():
    text = "<think>At first Video 1 is better.</think><answer>Video 2 is better</answer>"
    assert parse(text, "Video").winner == 2


def test_defect_g3_a_bare_sentence_and_an_answer_inside_think_do_not_count():
    assert parse("Image 1 is better", "Image").winner is None
    text = "<think><answer>Image 1 is better</answer> no</think><answer>Image 2 is better</answer>"
    assert parse(text, "Image").winner == 2 and not parse(text, "Image").strict


@pytest.mark.parametrize(
    "text",
    [GOOD + " bye", GOOD + GOOD, GOOD + "<answer></answer>", "<think></think><answer>Image 1 is better</answer>"],
)
def test_defect_g4_trailing_text_repeated_tags_and_empty_thinking_are_not_strict(text):
    assert not parse(text, "Image").strict


def test_defect_g5_case_and_a_final_period_still_count_as_the_answer():
    verdict = parse(GOOD.replace("<answer>Image 1 is better<", "<answer>image 1 is better.<"), "Image")
    assert verdict.winner == 1 and not verdict.strict


# Properties


def safe(text):
    """Nothing that reads as a score, a heading of totals or a candidate."""
    return not re.search(r"(Image|Video|Answer) {1,3}[12]", text) and len(text.splitlines()) <= 1


ANY_CHARACTER = st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="<\u2028\u2029")
NOTE = st.text(ANY_CHARACTER, max_size=40).map(str.strip).filter(safe)
NAME = (
    st.text(ANY_CHARACTER, min_size=1, max_size=40)
    .map(lambda text: text.strip("* \xa0").strip())
    .filter(
        lambda text: text and text == text.strip("*").strip() and safe(text) and not text.lower().startswith("total")
    )
)
POINTS = st.integers(0, 10) | st.integers(0, 1000).map(lambda hundredths: hundredths / 100)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(NAME, POINTS, POINTS, NOTE, NOTE), min_size=1, max_size=9),
    noun=st.sampled_from(NOUNS),
    layout=st.sampled_from(["one_line", "three_line"]),
    preamble=NOTE,
)
def test_a_rendered_verdict_parses_back_equal(rows, noun, layout, preamble):
    scores = [row[:3] for row in rows]
    sums = [sum(row[k] for row in scores) for k in (1, 2)]
    assume(abs(sums[0] - sums[1]) > 1e-6)
    winner = 1 if sums[0] > sums[1] else 2
    text = render(winner, scores, noun=noun, layout=layout, notes=[row[3:] for row in rows], preamble=preamble)
    verdict = parse(text, noun)
    assert verdict.dimensions == tuple(Dimension(name, tuple(values)) for name, *values in scores)
    assert verdict.totals == pytest.approx(sums)
    assert (verdict.winner, verdict.strict, verdict.arithmetic_ok, verdict.problems) == (winner, True, True, ())


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
FRAGMENTS = st.sampled_from(
    [*TAGS, "<think", "\n", " ", ":", "*", "**", "1. ", "Light", "Total score:", "9.5", "\u0663", "\u00b2", "/10", "("]
    + [f"{noun} {k}" for noun in (*NOUNS, "image") for k in (1, 2)]
    + ["Image 1 (9/10)", "Image 2: 3/10", "Image 1: 9+8=17", "Image 2: 20", "=", "+", " is better"]
    + ["Image 1 is better", "Image 2 is better", "<answer>Image 1 is better</answer>", GOOD]
)
TEXTS = st.text(max_size=80) | st.lists(FRAGMENTS, max_size=30).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(NOUNS), st.sampled_from(["cot", "direct"]))
def test_no_text_raises_and_strict_implies_a_winner(text, noun, style):
    verdict = parse(text, noun, style=style)
    assert verdict.winner in (1, 2, None)
    if verdict.strict:
        assert verdict.winner is not None
    if style == "cot":
        assert bool(verdict.problems) or (verdict.strict and verdict.arithmetic_ok)


@settings(deadline=None)
@given(st.sampled_from(NOUNS), st.sampled_from([1, 2]))
def test_an_answer_string_reads_back(noun, winner):
    assert read_answer(answer_text(winner, noun), noun) == read_answer(answer_text(winner, noun)) == winner


PIECES = [*TAGS, "<think></think>", "<answer></answer>", "</think> ", "</answer>\n", "Image 1 (9/10", "Image 1 (9/10)"]
PIECES += [
    "Image ",
    "*",
    "- ",
    " ",
    "\n",
    "\t\n",
    ":",
    "1. A:\n",
    "9",
    "9.9+",
    "Image 1: 9+",
    "Total score:\nImage 1: 1+",
]
PIECES += ["Total score:\n", "Image 1 is better"]
FRAMES = [
    "{}",
    "<think>{}",
    "<think>{}</think>",
    "<think>x{}y: z</think>",
    "<think>Total score:\nImage 1: {}x</think>",
    "<answer>{}</answer>",
    "<think>a</think>{}<answer>Image 1 is better</answer>",
    "<think>a</think><answer>Image 1 is better{}",
    "<think>a</think><answer>Image 1 is better{}x</answer>",
    "<think>a</think><answer>Image{}x</answer>",
]


@pytest.mark.parametrize("frame", FRAMES)
def test_parsing_time_grows_with_the_length_only(frame):
    for piece in PIECES:
        start = time.process_time()
        parse(frame.format(piece * (200_000 // len(piece))), "Image")
        # A tenth of a second at most; a pattern that backtracks takes 15 s and more.
        assert time.process_time() - start < 5, piece
