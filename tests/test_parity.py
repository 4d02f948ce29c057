"""The benchmarks' own metrics: hand-worked cases, the authors' examples, and published numbers."""

import gzip
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifiedreward_think.evaluation import parity
from unifiedreward_think.evaluation.ties import said, ties
from unifiedreward_think.intervals import Rate
from unifiedreward_think.records import Judgment
from unifiedreward_think.tie_threshold import tie_calibration
from unifiedreward_think.verdict import answer_text, parse, render
from unifiedreward_think.votes import call_tie


def judged(name, winner, *, preferred=1, order="ab", sample=0, text=None, scores=None, source=""):
    """A judgment on videos that names the shown candidate `winner`, or says `text`, or scores (first, second)."""
    if text is None:
        text = render(winner, [("Look", *scores)], noun="Video") if scores else f"<answer>{said_text(winner)}</answer>"
    return Judgment(
        record_id=name,
        order=order,
        sample=sample,
        completion=text,
        verdict=parse(text, "Video"),
        preferred=preferred,
        task="video_generation",
        source=source,
    )


def said_text(winner):
    return answer_text(winner, "Video")


# --- readings ---


@pytest.mark.parametrize(
    ("text", "gold", "first"),
    [
        ("<answer>Video 1 is better</answer>", True, 1),
        ("<answer>Video 2 is better</answer>", False, 2),
        ("<think>maybe Video 1 is better</think><answer>Video 2 is better</answer>", True, 1),
        ("Video 2 is better, not that Video 1 is better", True, 1),  # 1 is looked for first, wherever it stands
        ("<think>cut", False, "tie"),
        ("", False, "tie"),
    ],
)
def test_the_readings_of_the_papers_scripts_look_for_sentences_anywhere(text, gold, first):
    assert parity.gold_anywhere(judged("a", 0, text=text)) is gold
    assert parity.first_named(judged("a", 0, text=text)) == first
    swapped = judged("a", 0, text=text, order="ba", preferred=2)  # the preferred candidate is again shown first
    assert parity.gold_anywhere(swapped) is gold
    assert parity.first_named(swapped) == {1: 2, 2: 1, "tie": "tie"}[first]


def test_a_tied_label_has_no_gold_sentence():
    assert parity.gold_anywhere(judged("a", 1, preferred="tie")) is None


def test_a_sample_counts_in_one_order_and_the_drawn_one_is_that_of_one_order_judging():
    from unifiedreward_think.data.rows import shown_orders
    from unifiedreward_think.records import PreferenceRecord

    names = [f"pair-{i}" for i in range(40)]
    rows = [judged(name, 1, order=order, sample=k) for name in names for order in ("ab", "ba") for k in range(2)]
    stored, drawn = parity.samples(rows, order="stored"), parity.samples(rows, order="drawn")
    assert list(stored) == list(drawn) == names
    assert {row.order for part in stored.values() for row in part} == {"ab"}
    assert all([row.sample for row in part] == [0, 1] for part in drawn.values())
    for name in names:
        record = PreferenceRecord(id=name, task="video_generation", prompt="", media=(("a",), ("b",)))
        assert [(row.order,) for row in drawn[name]] == [shown_orders(record, "one", seed) for seed in (0, 1)]
    only = [judged("a", 1, order="ba")]
    assert parity.samples(only, order="stored") == {"a": only}


# --- VL-RewardBench ---


def test_vl_rewardbench_drops_unparsed_and_split_votes():
    votes = {
        "wildvision-1": [True, True, False],
        "mathverse_1": [True, False, False],
        "mmmu_1": [True, True, None],  # one sample that cannot be read drops the item, whatever the majority says
        "RLAIF-1": [True, False],  # split: fewer samples than asked for, as cal.py allows
        "RLHF-1": [False, True, True],
        "hallucination_pair-1": [False, False, True],
    }
    table = parity.vl_rewardbench(votes, k=3)
    assert table["general"] == {"value": 1.0, "count": 1, "total": 1}
    assert table["reasoning"] == {"value": 0.0, "count": 0, "total": 1}
    assert table["hallucination"] == {"value": 0.5, "count": 1, "total": 2}
    assert table["overall"] == {"value": 0.5, "count": 2, "total": 4}
    assert table["macro"]["value"] == 0.5
    assert table["dropped"] == {"unparsed": 1, "split": 1}
    assert parity.vl_rewardbench(votes, k=1)["overall"] == {"value": 4 / 6, "count": 4, "total": 6}


def test_the_papers_table_keeps_every_item_and_counts_povid_as_general():
    right = {"wildvision-1": True, "hallucination_pair-1": False, "RLHF-1": True, "mmmu_1": False}
    table = parity.vl_rewardbench_paper(right)
    assert [table[group]["total"] for group in parity.VL_GROUPS] == [2, 1, 1]
    assert table["overall"]["value"] == 0.5 and table["macro"]["value"] == 0.5


def test_a_group_without_items_leaves_no_macro_average():
    assert parity.vl_rewardbench({"RLHF-1": [True]}, k=1)["macro"] == {"value": None}


@pytest.mark.parametrize(
    ("row", "groups", "paper", "official"),
    [
        ("Think", [78.1, 72.7, 66.0], 73.7, 71.8),
        ("Think without CoT", [77.9, 70.5, 65.4], 72.9, 70.3),
        ("LLaVA-Critic", [47.4, 38.5, 53.8], 46.9, 43.7),
        ("Gemini-1.5-Pro", [50.8, 72.5, 64.2], None, 67.2),
    ],
)
def test_published_overall_numbers_follow_from_one_of_the_groupings(row, groups, paper, official):
    """The paper prints 73.8, 73.1, 46.9 and 67.2: its own rows fit its grouping, the Gemini row the official one."""
    if paper is not None:
        assert round(parity.weighted(groups, [631, 301, 318]), 1) == paper
    assert round(parity.weighted(groups, [183, 749, 318]), 1) == official


def test_other_published_counts_fit_the_official_sizes():
    """VLMEvalKit PR 703 prints 0.4553, 0.6478 and 0.4372."""
    found = [round(part / size, 4) for part, size in [(341, 749), (206, 318), (80, 183)]]
    assert found == [0.4553, 0.6478, 0.4372]


def test_the_annotations_give_the_published_group_sizes(test_data):
    rows = json.loads((test_data / "benchmarks" / "vl_rewardbench_annotations.json").read_text())
    votes = {f"{row['id']}:{i}": [True] for i, row in enumerate(rows)}
    official = parity.vl_rewardbench(votes, k=1)
    paper = parity.vl_rewardbench_paper(dict.fromkeys(votes, True))
    assert [official[group]["total"] for group in parity.VL_GROUPS] == [183, 749, 318]
    assert [paper[group]["total"] for group in parity.VL_GROUPS] == [631, 301, 318]


# --- GenAI-Bench ---


@pytest.mark.parametrize(
    ("output", "human", "right"),
    [
        ("so [[A>B]]", "leftvote", True),
        ("so [[A>>B]]", "leftvote", True),
        ("so [[A>B]]", "rightvote", False),
        ("so [[A=B]]", "tievote", True),
        ("so [[A=B]]", "bothbad_vote", True),
        ("so [[A=B=Good]]", "bothbad_vote", False),
        ("not [[A>B]] but [[B>A]]", "rightvote", False),  # greedy: from the first [[ to the last ]] of the line
        ("first [[B>A]]\nthen [[A>B]]", "rightvote", True),  # the first line with a verdict counts
        ("no verdict", "tievote", False),
    ],
)
def test_genai_bench_reads_four_labels(output, human, right):
    table = parity.genai_bench([(parity.genai_vote(output), human)])
    assert table["accuracy"]["count"] == right
    assert table["by_human_vote"][human]["total"] == 1


def test_a_margin_can_call_a_tie_that_either_vote_accepts():
    row = judged("a", 1, scores=(8, 7), preferred="tie")
    assert parity.genai_verdict(said(row)) == "[[A>B]]"
    assert parity.genai_verdict(said(row, 1)) == "[[A=B]]"
    assert parity.genai_verdict(said(judged("a", 0, text="cut"), 1)) is None


def test_the_stored_gpt4o_judgments_give_the_published_accuracy(test_data):
    with gzip.open(test_data / "genai_bench_judgments" / "image_generation_gpt4o.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert [parity.genai_vote(row["response"]) for row in rows] == [row["model_vote"] for row in rows]
    table = parity.genai_bench((parity.genai_vote(row["response"]), row["human_vote"]) for row in rows)
    assert table["accuracy"] == {"value": pytest.approx(0.4559, abs=5e-5), "count": 791, "total": 1735}
    assert [part["total"] for part in table["by_human_vote"].values()] == [643, 663, 156, 273]


# --- with and without ties ---


@pytest.mark.parametrize(
    ("human", "margins", "videoalign", "exact"),
    [
        ([0, 1], [1, 1], 1.0, 0.5),  # half of a group of equal margins is moved: better than any threshold
        ([1, 0], [1, 1], 0.5, 0.5),
        ([1, 1], [1, 2], 0.5, 1.0),  # calling no tie is never tried
        ([1, -1], [3, -3], 0.5, 1.0),
        ([0, 0, 0], [0, 2, 5], 1.0, 1.0),  # all labels are ties
        ([1, 1, -1], [0, 0, 0], 0.0, 0.0),  # all scores are ties
        ([0, 0], [0, 0], 1.0, 1.0),
        ([0, 1, -1, 0], [0, 4, -2, 1], 1.0, 1.0),
        ([1, 0], [None, 0], 0.5, 0.5),  # without scores: wrong at every threshold
        ([1], [None], 0.0, 0.0),
    ],
)
def test_accuracy_with_ties_as_videoalign_has_it_and_exactly(human, margins, videoalign, exact):
    assert parity.videoalign_with_ties(human, margins) == videoalign
    best = tie_calibration(margins, [{1: 1, -1: 2, 0: "tie"}[h] for h in human])
    assert best.correct / best.total == exact


def definition(human, margins):
    """calc_accuracy.py by its definition: counts C, D, Th, Tm, Thm after each pair that moved."""
    pairs = sorted(zip(human, margins, strict=True), key=lambda pair: abs(pair[1]))
    taus = []
    for moved in range(1, len(pairs) + 1):
        concordant = sum(h * m > 0 for h, m in pairs[moved:])
        tied_in_both = sum(h == 0 for h, _ in pairs[:moved])
        taus.append((concordant + tied_in_both) / len(pairs))
    return max(taus)


@given(st.lists(st.tuples(st.sampled_from([1, -1, 0]), st.integers(-4, 4)), min_size=1, max_size=12))
def test_videoalign_follows_its_definition(rows):
    human, margins = zip(*rows, strict=True)
    assert parity.videoalign_with_ties(human, margins) == pytest.approx(definition(human, margins))


@given(st.lists(st.sampled_from([1, -1, 0]), min_size=1, max_size=12), st.integers(0, 99))
def test_distinct_scores_differ_from_the_optimum_by_the_missing_threshold_only(human, seed):
    sizes = random.Random(seed).sample(range(1, 100), len(human))
    margins = [size * random.Random(seed + i).choice([1, -1]) for i, size in enumerate(sizes)]
    best = tie_calibration(margins, [{1: 1, -1: 2, 0: "tie"}[h] for h in human])
    found = parity.videoalign_with_ties(human, margins)
    exact = best.correct / best.total
    assert found == exact if best.threshold >= 0 else found <= exact  # -1: calling no tie is best


def test_without_ties_a_margin_of_zero_is_wrong():
    assert parity.videoalign_without_ties([1, -1, 1, -1, 0], [2, -1, 0, None, 3]) == Rate(2, 4)
    assert parity.videoalign_without_ties([0], [1]) == Rate(0, 0)


def test_ties_of_a_judge_that_states_scores():
    rows = [
        judged("a", 1, scores=(9, 4)),
        judged("a", 2, scores=(5, 8), order="ba"),  # margin of candidate 1: 3
        judged("b", 1, scores=(7, 6), preferred="tie"),
        judged("b", 1, scores=(7, 6), preferred="tie", order="ba"),
        judged("c", 1, scores=(8, 6), preferred=2),
        judged("c", 1, scores=(10, 2), preferred=2, order="ba"),
        judged("d", 1, preferred=None),  # unlabelled: left out
    ]
    found = ties(rows, tie_margin=1)
    # single: margins 5, 1, 2 for labels 1, tie, 2: a tie up to 1 gets a and b right
    assert found["single"]["with_ties_fitted_on_these_rows"] == {"threshold": 1, "value": 2 / 3, "count": 2, "total": 3}
    assert found["single"]["with_ties_videoalign"] == {"value": 2 / 3}
    assert found["single"]["without_ties"] == {"value": 0.5, "count": 1, "total": 2}
    assert found["single"]["at_tie_margin"]["accuracy"]["count"] == 2
    # combined: means 4, 0 and -3; b's vote is split, its margin calls the tie
    assert found["combined"]["with_ties_fitted_on_these_rows"] == {"threshold": 0, "value": 1.0, "count": 3, "total": 3}
    assert found["combined"]["without_ties"]["value"] == 1.0
    # at the margin answers count: c's votes are split, so it is wrong although its margin is right
    assert found["combined"]["at_tie_margin"]["accuracy"]["count"] == 2
    assert "at_tie_margin" not in ties(rows)["single"]


def test_a_tie_is_called_by_margin_only():
    assert [call_tie(2, m, 0.5) for m in (0.5, -0.5, 0.6, None)] == ["tie", "tie", 2, 2]


def test_the_papers_accuracies_count_ties_and_leave_them_out():
    table = parity.exact_match([1, 2, "tie", None, "tie"], [1, 1, "tie", 2, 2])
    assert table["accuracy"] == {"value": 0.4, "count": 2, "total": 5}
    assert table["accuracy_without_ties"] == {"value": 0.25, "count": 1, "total": 4}


# --- the other two ---


def test_multimodal_rewardbench_flips_a_coin_for_what_cannot_be_read():
    coin = random.Random(123)
    flips = [1 if coin.random() < 0.5 else 2 for _ in range(3)]
    assert flips == [1, 1, 1]  # 0.052, 0.087, 0.408
    rows = [
        ("pairs_1", "safety", None, 1),
        ("toxic_1", "safety", 2, 2),
        ("MathVista_1", "reasoning", None, 2),
        ("emma_1", "reasoning", 1, 2),
        ("nocaps_1", "open_generation/correctness_task", None, 1),
    ]
    table = parity.multimodal_rewardbench(rows)
    counts = {name: (block["count"], block["total"]) for name, block in table.items() if name != "coin_flips"}
    assert counts == {
        "all": (3, 5),
        "safety/bias": (1, 1),
        "safety/toxicity": (1, 1),
        "reasoning/math": (0, 1),
        "reasoning/coding": (0, 1),
        "open_generation/correctness_task": (1, 1),
    }
    assert table["coin_flips"] == 3


def test_mmrb2_counts_each_order_once_and_not_what_is_missing():
    rows = [
        judged("a", 1),
        judged("a", 1, order="ba"),  # names candidate 2: wrong
        judged("b", 2, preferred=2),
        judged("b", 0, order="ba", preferred=2, text="cut"),  # leaves the denominator
        judged("b", 1, sample=1),  # only the first sample counts
        judged("c", 0, text=""),
    ]
    assert parity.mmrb2(rows) == Rate(2, 3)
