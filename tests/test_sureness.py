"""P(1), P(tie), P(2): near the truth where it is known, fitted on others than they score, stored, refused, reported."""

import json
import math
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.bench import BENCH, script
from helpers.judging import LooksForRed, make_records
from helpers.reports import drawn_records
from helpers.reports import judged as drawn_judged
from unifiedreward_think.calibration import calibrate, read_calibration, settings_of, write_calibration
from unifiedreward_think.davidson import cross_fit, fit
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation import __main__ as evaluation
from unifiedreward_think.evaluation import report, rescore
from unifiedreward_think.evaluation.calibrate import main as calibrate_command
from unifiedreward_think.evaluation.plots import plots
from unifiedreward_think.evaluation.sureness import forecasts, summarize_probabilities, summarize_run, vote_shares
from unifiedreward_think.evaluation.ties import ties
from unifiedreward_think.evidence import Evidence, evidence_of
from unifiedreward_think.folds import fold_of
from unifiedreward_think.probability_metrics import (
    Forecast,
    Probabilities,
    accuracy_at_coverage,
    brier,
    expected_calibration_error,
    reliability,
)
from unifiedreward_think.records import Judgment
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.verdict import answer_text, parse, render

TASK = "image_generation"
MADE = {"style": "cot", "temperature": 1.0, "seed": 0, "weights": "w1"}


def said(name, winner, *, order="ab", sample=0, scores=None, label=None, settings=MADE, **more):
    """A judgment that names `winner`, as stored (None: unreadable), with its `scores` on one dimension, as stored."""
    turned = order == "ba"
    shown = None if winner is None else 3 - winner if turned else winner
    if shown is None:
        text = "<think>hm"
    elif scores is None:
        text = f"<answer>{answer_text(shown, 'Image')}</answer>"
    else:
        text = render(shown, [("Light", *(scores[::-1] if turned else scores))], noun="Image")
    row = {"record_id": name, "order": order, "sample": sample, "completion": text, "verdict": parse(text, "Image")}
    return Judgment(**row, preferred=label, task=TASK, model="judge", settings=dict(settings), **more)


def davidson(strength, tie):
    odds = [math.exp(strength / 2), math.exp(tie), math.exp(-strength / 2)]
    return Probabilities(*(odd / sum(odds) for odd in odds))


def drawn_label(coin, truth):
    return coin.choices([1, "tie", 2], weights=truth)[0]


def scored_pairs(count, seed=0):
    """Judgments whose labels come with known probabilities: a judge that is too sure and likes what it sees first."""
    coin = random.Random(seed)
    rows, truth = [], {}
    for i in range(count):
        name, order = f"pair {seed} {i}", coin.choice(["ab", "ba"])
        gap = coin.choice([-6, -4, -3, -2, -1, 1, 2, 3, 4, 6])
        # What was seen first has two points too many, so that the judge's margin says that much less.
        merit = gap - (2 if order == "ab" else -2)
        truth[name] = davidson(0.35 * merit, -0.6 - 0.15 * abs(gap))
        scores = (2 + gap, 2) if gap > 0 else (2, 2 - gap)
        label = drawn_label(coin, truth[name])
        rows.append(said(name, 1 if gap > 0 else 2, order=order, scores=scores, label=label))
    return rows, truth


def voted_pairs(count, samples, seed=0):
    """Verdicts alone: what divides the candidates of a pair decides how its samples fall, and how its label does."""
    coin = random.Random(seed)
    rows, truth = [], {}
    for i in range(count):
        name, merit = f"pair {seed} {i}", coin.gauss(0, 1.2)
        truth[name] = davidson(1.1 * merit, -0.4)
        label = drawn_label(coin, truth[name])
        for order, place in (("ab", 0.5), ("ba", -0.5)):
            first = 1 / (1 + math.exp(-(1.6 * merit + place)))
            rows += [
                said(name, 1 if coin.random() < first else 2, order=order, sample=sample, label=label)
                for sample in range(samples)
            ]
    return rows, truth


def distance(probabilities, truth):
    return sum(abs(a - b) for name, each in truth.items() for a, b in zip(probabilities[name], each, strict=True)) / (
        3 * len(truth)
    )


def test_probabilities_of_scored_pairs_come_near_the_known_ones_and_votes_do_not():
    rows, truth = scored_pairs(2500)
    pairs = evidence_of(rows)
    crossed = cross_fit(list(pairs.values()))
    shares = {name: vote_shares(pair) for name, pair in pairs.items()}
    assert distance(crossed, truth) < 0.03 < 0.2 < distance(shares, truth)
    summary = summarize_probabilities(rows)
    known = brier(forecasts(pairs.values(), truth))
    assert summary["fitted"] == "cross-fitted" and abs(summary["calibrated"]["brier"]["value"] - known) < 0.01
    assert summary["calibrated"]["calibration_error"] < 0.04 < 0.3 < summary["vote_shares"]["calibration_error"]
    assert summary["calibrated"]["accuracy_at_80"] > summary["calibrated"]["accuracy"]["value"]


def test_probabilities_of_verdicts_alone_come_near_the_known_ones():
    rows, truth = voted_pairs(1500, samples=8)
    pairs = evidence_of(rows)
    crossed = cross_fit(list(pairs.values()))
    shares = {name: vote_shares(pair) for name, pair in pairs.items()}
    assert distance(crossed, truth) < 0.07 and distance(shares, truth) > 2 * distance(crossed, truth)
    known = brier(forecasts(pairs.values(), truth))
    assert brier(forecasts(pairs.values(), crossed)) < known + 0.02 < brier(forecasts(pairs.values(), shares))


def test_the_curve_over_samples_rises_and_stands_beside_the_vote():
    rows, _ = voted_pairs(500, samples=4, seed=3)
    summary = summarize_probabilities(rows)
    curve = summary["curve"]
    assert [point["samples"] for point in curve] == [1, 2, 3, 4]
    assert curve[-1]["brier"] < curve[0]["brier"] - 0.02
    assert curve[-1]["calibrated"]["value"] >= curve[-1]["majority"]["value"]
    assert curve[-1]["majority"] == summary["majority"]


COUNTS = st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 8))
GAPS = st.floats(-18, 18)
SHARE = st.floats(0, 1)


@given(
    votes=COUNTS,
    unreadable=st.integers(0, 4),
    margin=st.none() | GAPS,
    light=GAPS,
    spread=st.none() | st.floats(0, 9),
    agreement=st.none() | SHARE,
    position=st.floats(-1, 1),
)
def test_probabilities_sum_to_one_and_change_places_with_the_candidates(fitted, **known):
    light = known.pop("light")
    pair = Evidence(record_id="r", cluster="r", margins={"light": light, "unknown": 1.0}, **known)
    margin = None if pair.margin is None else -pair.margin
    turned = replace(pair, votes=pair.votes[::-1], margin=margin, margins={"light": -light}, position=-pair.position)
    here, there = fitted.probabilities(pair), fitted.probabilities(turned)
    assert sum(here) == pytest.approx(1) and min(here) >= 0
    assert here == pytest.approx(there[::-1], abs=1e-12)


@pytest.fixture(scope="module")
def fitted():
    return calibrate(scored_pairs(300)[0] + scored_pairs(50, seed=1)[0]).model


def test_judgments_of_swapped_candidates_have_swapped_probabilities(fitted):
    rows = [said("kite", 1, order="ab", scores=(9, 4)), said("kite", 2, order="ba", sample=1, scores=(5, 6))]
    swapped = [
        said("kite", 2, order="ba", scores=(4, 9)),
        said("kite", 1, order="ab", sample=1, scores=(6, 5)),
    ]
    assert [row.completion for row in rows] == [row.completion for row in swapped]
    here, there = (fitted.probabilities(evidence_of(part)["kite"]) for part in (rows, swapped))
    assert here == pytest.approx(there[::-1]) and here.first > here.second


def test_a_pair_without_a_readable_judgment_leans_to_neither(fitted):
    nothing = fitted.probabilities(evidence_of([said("kite", None)])["kite"])
    assert nothing.first == nothing.second and nothing.tie > 0


def test_without_ties_among_the_labels_a_tie_never_comes():
    rows = [said(f"r{i}", 1 + i % 2, label=1 + (i % 2 if i % 7 else 0)) for i in range(60)]
    model = calibrate(rows).model
    assert model.tie is None and model.probabilities(evidence_of(rows)["r0"]).tie == 0


def test_a_pair_is_scored_by_a_model_that_saw_no_label_of_its_fold():
    rows, _ = scored_pairs(400)
    pairs = list(evidence_of(rows).values())
    before = cross_fit(pairs)
    fold = fold_of(pairs[0].cluster)
    turned = [replace(p, label=2 if p.label == 1 else 1) if fold_of(p.cluster) == fold else p for p in pairs]
    after = cross_fit(turned)
    same = {pair.record_id for pair in pairs if fold_of(pair.cluster) == fold}
    assert 40 < len(same) < 120
    assert {name for name in before if before[name] == after[name]} == same


def test_pairs_of_one_group_are_scored_together():
    rows = [replace(row, group="one prompt") for row in scored_pairs(100)[0]]
    summary = summarize_probabilities(rows)
    assert summary["fitted"] == "not" and "0 labelled pairs" in summary["reason"]
    assert summary["vote_shares"]["accuracy"]["total"] == 100


def test_the_numbers_of_probabilities_worked_out_by_hand():
    sure, half = Probabilities(0.9, 0.1, 0.0), Probabilities(0.2, 0.5, 0.3)
    rows = [Forecast("a", sure, 1), Forecast("b", sure, 1), Forecast("c", half, "tie"), Forecast("d", half, 2)]
    assert brier(rows) == pytest.approx((0.02 + 0.02 + 0.38 + 0.78) / 4)
    assert expected_calibration_error(rows) == pytest.approx((0.2 + 0.0) / 4)  # sure: .1 too low, twice; half: .5
    assert [(each["from"], each["accuracy"]["count"]) for each in reliability(rows)] == [(0.5, 1.0), (0.9, 2.0)]
    assert accuracy_at_coverage(rows, 0.5) == 1.0
    assert accuracy_at_coverage(rows, 0.75) == pytest.approx(2.5 / 3)  # one of two that are alike
    assert accuracy_at_coverage(rows, 1.0) == 0.75
    assert Probabilities(0.4, 0.2, 0.4).answer is None and not Forecast("e", Probabilities(0.4, 0.2, 0.4), 1).right
    assert brier([]) is expected_calibration_error([]) is accuracy_at_coverage([]) is None


def test_a_calibration_is_the_same_after_its_file(tmp_path):
    rows, _ = scored_pairs(200)
    calibration = calibrate(rows)
    write_calibration(tmp_path / "c.json", calibration)
    read = read_calibration(tmp_path / "c.json")
    assert replace(read, origin="") == calibration and read.origin == str(tmp_path / "c.json")
    assert read.labels.keys() == {"1", "2", "tie"} and sum(read.labels.values()) == read.pairs == 200
    others, _ = scored_pairs(50, seed=9)
    assert read.probabilities(others) == calibration.probabilities(others)


def test_the_digest_of_a_calibration_is_that_of_its_data():
    rows, _ = scored_pairs(60)
    first, *rest = rows
    assert calibrate([*rest, first]).data == calibrate(rows).data
    changed = replace(first, preferred=1 if first.preferred == 2 else 2)
    assert calibrate([changed, *rest]).data != calibrate(rows).data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('"pairs": 60', '"pairs": 61'), "it has changed since it was written"),
        (lambda text: "{}", "not a calibration"),
        (lambda text: text[:50], "not a calibration"),
        (lambda text: "[1]", "not a calibration"),
    ],
)
def test_a_spoilt_calibration_file_is_refused(tmp_path, damage, message):
    path = tmp_path / "c.json"
    write_calibration(path, calibrate(scored_pairs(60)[0]))
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=rf"c\.json: .*{message}"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {**MADE, "weights": "w2"}}, "weights = 'w1', these have 'w2'"),
        ({"settings": {**MADE, "style": "direct"}}, "style = 'cot', these have 'direct'"),
        ({"form": "pointwise"}, "form = 'pairwise', these have 'pointwise'"),
        ({"settings": {**MADE, "weights": "w2"}, "model": "another"}, "model = 'judge', these have 'another'"),
    ],
)
def test_a_calibration_is_refused_for_judgments_that_were_made_in_another_way(change, message):
    calibration = calibrate(scored_pairs(60)[0])
    others = [replace(row, **change) for row in scored_pairs(5, seed=1)[0]]
    with pytest.raises(RecordError, match=message):
        calibration.probabilities(others)


def test_a_calibration_is_refused_for_another_number_of_samples_and_for_pairs_that_it_saw():
    rows, _ = scored_pairs(60)
    calibration = calibrate(rows)
    more = [replace(row, sample=sample) for row in scored_pairs(5, seed=1)[0] for sample in (0, 1)]
    with pytest.raises(RecordError, match="samples = 1, these have 2"):
        calibration.probabilities(more)
    with pytest.raises(RecordError, match=r"fitted on record 'pair 0 7' or one of its group"):
        calibration.probabilities([*scored_pairs(5, seed=1)[0], rows[7]])
    fresh = replace(rows[7], record_id="other", group="prompt", settings={**MADE, "seed": 4})
    assert calibration.probabilities([fresh]).keys() == {"other"}


def test_judgments_of_two_models_or_of_single_candidates_cannot_be_calibrated():
    rows, _ = scored_pairs(30)
    with pytest.raises(RecordError, match=r"record 'pair 0 3': judged with model = 'new', others with 'judge'"):
        settings_of([*rows[:3], replace(rows[3], settings={"style": "cot"}, model="new")])
    assert settings_of([*rows[:3], replace(rows[3], model="the same weights elsewhere")])["model"] == "judge"
    with pytest.raises(RecordError, match=r"form 'pointwise' says nothing of who is better"):
        calibrate([replace(row, form="pointwise") for row in rows])
    with pytest.raises(RecordError, match="19 labelled pairs; a calibration is fitted on 20 at least"):
        fit(list(evidence_of(rows[:19]).values()))


def test_a_run_of_scores_alone_has_no_probabilities():
    assert "probabilities" not in summarize_run([replace(said("a", 1), form="pointwise", order="a")])


def stored(folder, rows):
    folder.mkdir()
    (folder / "judgments.jsonl").write_text(json_lines(rows))
    return folder


def test_the_commands_fit_a_calibration_and_score_another_run_with_it(tmp_path, capsys):
    one = stored(tmp_path / "one", voted_pairs(80, samples=2)[0] + [said("new", 1, settings=MADE)])
    two = stored(tmp_path / "two", voted_pairs(40, samples=2, seed=1)[0])
    kept, lines = tmp_path / "c.json", tmp_path / "p.jsonl"
    calibrate_command([str(one), "--output", str(kept), "--probabilities", str(lines)])
    out = capsys.readouterr().out
    assert "cross-fitted" in out and "majority vote" in out and "samples" in out and "80 pairs, " in out
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == 81 and rows[-1]["id"] == "new" and rows[-1]["preferred"] is None
    assert all(row["first"] + row["tie"] + row["second"] == pytest.approx(1) for row in rows)
    rescore.main([str(two), "--calibration", str(kept), "--write"])
    assert "calibration file" in capsys.readouterr().out
    results = json.loads((two / "results.json").read_text())["probabilities"]
    assert results["fitted"] == "file" and results["calibration"]["pairs"] == 80 and "curve" not in results
    with pytest.raises(RecordError, match="leave the calibration out"):
        rescore.main([str(one), "--calibration", str(kept)])
    rescore.main([str(two), "--write"])
    again = json.loads((two / "results.json").read_text())["probabilities"]
    assert again["fitted"] == "cross-fitted" and len(again["curve"]) == 2


def test_the_evaluation_takes_a_calibration(tmp_path, monkeypatch, capsys):
    from PIL import Image

    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    records = make_records(tmp_path, 60)
    monkeypatch.setattr(evaluation, "set_up", lambda judging, backend: (judging.config(), LooksForRed()))

    def evaluate(part, name, *more):
        (tmp_path / f"{name}.jsonl").write_text(json_lines(part))
        words = ["--input", tmp_path / f"{name}.jsonl", "--output", tmp_path / name, "--model", "red", *more]
        monkeypatch.setattr("sys.argv", ["evaluation", "--temperature", "1", *map(str, words)])
        evaluation.main()
        return json.loads((tmp_path / name / "results.json").read_text())["probabilities"]

    assert evaluate(records[:40], "one")["fitted"] == "cross-fitted"
    calibrate_command([str(tmp_path / "one"), "--output", str(tmp_path / "c.json")])
    found = evaluate(records[40:], "two", "--calibration", tmp_path / "c.json")
    assert found["fitted"] == "file" and found["calibrated"]["accuracy"]["total"] == 20
    capsys.readouterr()


def test_the_page_shows_how_sure_the_verdicts_are(tmp_path, monkeypatch, capsys):
    records = drawn_records(tmp_path)
    rows = [drawn_judged(record) for record in records.values()]
    folder = stored(tmp_path / "run", rows)
    (folder / "records.jsonl").write_text(json_lines(records.values()))
    page = tmp_path / "r.html"
    monkeypatch.setattr("sys.argv", ["report", "--run", f"s={folder}", "--output", str(page)])
    report.main()
    text = page.read_text()
    assert "How sure the verdicts are" in text and re.search(r"none: \d labelled pairs; a calibration is fitted", text)
    assert "Reliability of the probabilities" not in text
    many = voted_pairs(60, samples=2)[0]
    drawn = plots({"s": summarize_run(many)}, {"s": many})
    assert [plot["name"] for plot in drawn[-2:]] == ["Reliability of the probabilities", "Over the number of samples"]
    capsys.readouterr()


def test_ties_names_the_threshold_that_was_fitted_here_and_the_one_that_was_not():
    rows = [said(f"r{i}", 1, scores=(5 + i % 4, 4), label="tie" if i % 4 < 2 else 1) for i in range(80)]
    single = ties(rows)["single"]
    assert single["with_ties_fitted_on_these_rows"]["threshold"] == 2
    assert single["with_ties_cross_fitted"] == {"value": 1.0, "count": 80, "total": 80}


def test_the_real_judgments_of_genai_bench_give_the_stored_figures(test_data, tmp_path, monkeypatch, capsys):
    stored_figures = json.loads((BENCH.parents[1] / "results" / "genai_calibration.json").read_text())
    file = test_data / "genai_bench_judgments" / "image_generation_gpt4o.jsonl.gz"
    monkeypatch.setattr("sys.argv", ["genai", "--input", str(file), "--output", str(tmp_path / "found.json")])
    script("genai_calibration").main()
    found = json.loads((tmp_path / "found.json").read_text())
    ways, before = found.pop("ways"), stored_figures.pop("ways")
    assert found == stored_figures and ways.keys() == before.keys()
    for way, block in ways.items():
        assert block["brier"] == pytest.approx(before[way]["brier"], abs=1e-6)
        assert block["calibration_error"] == pytest.approx(before[way]["calibration_error"], abs=1e-6)
    assert "the calibration: Brier 0.605" in capsys.readouterr().out
