# ruff: noqa: F811 - a fixture is imported
import dataclasses
import json
import re
import sys

import pytest
import yaml

from helpers.reports import elements, judged, records, run_of  # noqa: F401 - a fixture
from unifiedreward_think.backends import Completion
from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation import __main__ as evaluation
from unifiedreward_think.evaluation import compare, report, rescore
from unifiedreward_think.evaluation.examples import shown_verdict
from unifiedreward_think.evaluation.origin import of_judgments
from unifiedreward_think.evaluation.sureness import summarize_run
from unifiedreward_think.evaluation.tables import READABLE_AND_STRICT, headline, numbers, stage_table, task_counts
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.metrics import group_accuracy, paired_test, summarize
from unifiedreward_think.records import Judgment
from unifiedreward_think.verdict import parse


def page_of(tmp_path, records, judgments, **more):
    path = tmp_path / "out" / "report.html"
    results = more.pop("results", None) or {stage: summarize(rows) for stage, rows in judgments.items()}
    report.write_html(
        path,
        results=results,
        judgments=judgments,
        records=records,
        title="A <b>title</b>",
        sampling=FrameSampling(frames=3, cache=tmp_path / "frames", decoder="pyav"),
        **more,
    )
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(tmp_path, records):
    seen = elements(page_of(tmp_path, records, {"before": run_of(records, right=False), "after": run_of(records)}))
    for tag, attributes in seen:
        assert tag not in {"link", "iframe", "object", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
        assert "url(" not in attributes.get("style", "") or "url(#" in attributes["style"]
    assert sum(tag == "svg" for tag, _ in seen) == 4


def test_text_of_models_and_data_is_escaped(tmp_path, records):
    page = page_of(tmp_path, records, {"<i>stage</i>": run_of(records)})
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page and "<i>stage" not in page and "<b>title" not in page
    assert sum(tag == "script" for tag, _ in elements(page)) == 1


def test_pictures_and_frames_of_every_task_are_embedded(tmp_path, records):
    images = [a["src"] for tag, a in elements(page_of(tmp_path, records, {"s": run_of(records)})) if tag == "img"]
    assert len(images) == 2 + 2 * 3 + 1 + 3  # two images, two clips of three frames, one image, one clip
    assert all(source.startswith("data:image/png;base64,") for source in images)


def test_the_same_judgments_give_the_same_page(tmp_path, records):
    pages = [
        page_of(tmp_path, records, {"s": run_of(records)}, curves={"s": [{"step": 1, "reward": 0.5}]}) for _ in "ab"
    ]
    assert pages[0] == pages[1]


def test_a_swapped_verdict_is_shown_in_the_order_of_the_data(records):
    record = records["id-image_generation"]
    shown = [shown_verdict(judged(record, order)) for order in ("ab", "ba")]
    assert [v["winner"] for v in shown] == ["A", "A"]
    assert [v["scores"] for v in shown] == [[("Aesthetics", 9, 4)]] * 2
    assert [v["totals"] for v in shown] == [(9, 4)] * 2


def test_examples_cover_right_wrong_and_order_dependent_pairs_of_every_stage(tmp_path, records):
    first, *others = records.values()
    mixed = [judged(first, "ab"), judged(first, "ba", right=False)]
    judgments = {"one": mixed + [judged(r, right=False) for r in others], "two": run_of(records)}
    page = page_of(tmp_path, records, judgments)
    cards = [a for tag, a in elements(page) if tag == "article"]
    kinds = {(a["data-stage"], a["data-status"]) for a in cards}
    assert kinds == {("one", "mixed"), ("one", "wrong"), ("two", "right")}
    assert len(cards) == 8
    few = page_of(tmp_path, records, judgments, max_examples=3)
    assert sum(tag == "article" for tag, _ in elements(few)) == 3


def test_failed_cut_unlabelled_and_tied_rows_say_so(tmp_path, records):
    cut, failed, tied, unlabelled = records.values()
    tied, unlabelled = (
        dataclasses.replace(tied, preferred="tie"),
        dataclasses.replace(unlabelled, preferred=None),
    )
    base = {"order": "ab", "verdict": parse("", "Image")}
    rows = [
        judged(cut, text="<think>Image 1", finish_reason="length"),
        Judgment(
            record_id=failed.id,
            completion=None,
            error="server said 500",
            preferred=1,
            task=failed.task,
            **base,
        ),
        Judgment(record_id=tied.id, completion="?", preferred="tie", task=tied.task, **base),
        Judgment(record_id=unlabelled.id, completion="?", preferred=None, task=unlabelled.task, **base),
    ]
    page = page_of(tmp_path, {r.id: r for r in (cut, failed, tied, unlabelled)}, {"s": rows})
    for text in ("cut by the token limit", "server said 500", "Labelled as a tie", "No label", "1 failed"):
        assert text in page
    assert "think block not closed" in page
    elements(page)


def test_media_that_cannot_be_opened_say_why_instead_of_ending_the_report(tmp_path, records):
    record = dataclasses.replace(records["id-image_generation"], media=((str(tmp_path / "gone.png"),),) * 2)
    page = page_of(tmp_path, {record.id: record}, {"s": [judged(record)]})
    assert "gone.png: no such file" in page


def test_a_judgment_without_its_record_is_an_error_that_names_it(tmp_path, records):
    with pytest.raises(RecordError, match=r"'id-image_generation' is judged in 's' but not among the records"):
        page_of(tmp_path, {}, {"s": [judged(records["id-image_generation"])]})


def test_training_curves_are_drawn_for_the_keys_that_were_logged(tmp_path, records):
    history = [{"step": n, "reward": n / 10, "kl": 0.1, "loss": 0.0} for n in range(10)] + [{"train_runtime": 3.0}]
    curves = {"grpo": history, "cold start": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
    page = page_of(tmp_path, records, {"cold start": run_of(records)}, curves=curves)
    drawn = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert drawn[4:] == ["Reward", "KL to the reference model", "Loss"]


def test_a_run_without_any_readable_verdict_can_be_reported(tmp_path, records):
    rows = [judged(record, text="hm") for record in records.values()]
    elements(page_of(tmp_path, records, {"base": rows}))


def test_what_a_run_does_not_record_is_said_so(tmp_path, records):
    rows = run_of(records)
    for fact, value in of_judgments({}, rows).items():
        assert value.startswith("not recorded"), fact
    text = " ".join(re.sub(r"<[^>]+>", " ", page_of(tmp_path, records, {"s": rows})).split())
    assert "Model not recorded Data not recorded Sampling not recorded Seed not recorded" in text


def test_facts_that_runs_share_are_said_once(tmp_path, records):
    runs = {name: run_of(records, model="outputs/one", settings={"seed": n}) for n, name in enumerate("ab")}
    text = " ".join(re.sub(r"<[^>]+>", " ", page_of(tmp_path, records, runs)).split())
    assert "Recorded a b Model outputs/one Data" in text and "Seed 0 1 Orders" in text


def test_strict_and_readable_are_told_apart_in_words_and_figures(tmp_path, records):
    loose = [judged(record, text="Well. <answer>image 1 is better.</answer>") for record in records.values()]
    summary = summarize(loose[:1])
    assert headline(summary).startswith("accuracy 100.0% [20.7, 100.0], readable 100.0% [20.7, 100.0], strict 0.0% [")
    page = page_of(tmp_path, records, {"s": loose[:1]})
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Readable 100.0% 20.7" in text and "Strict 0.0% 0.0" in text and "arse rate" not in page
    assert READABLE_AND_STRICT.split(":")[1].strip()[:40] in text
    counted = {"Pairs": 1, "Judged": 1, "With a label": 1, "Right": 1, "Readable": 1, "Strict": 0, "Failed": 0}
    assert task_counts({"s": loose[:1]}) == [("s", "Image generation", counted)]


def test_the_table_has_a_line_for_every_stage_and_a_column_for_every_task(records):
    results = {
        "base": summarize([judged(r, right=False) for r in records.values()]),
        "GRPO": summarize(run_of(records)),
    }
    head, rule, base, grpo = stage_table(results).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    tasks = ["Image generation", "Video generation", "Image understanding", "Video understanding"]
    assert columns == [
        "stage",
        "Accuracy",
        *tasks,
        "Readable",
        "Strict",
        "Arithmetic consistent",
        "Both orders agree",
    ]
    assert len({len(line) for line in (head, rule, base, grpo)}) == 1
    cells = [cell.strip() for cell in base.strip("|").split("|")]
    assert cells[:2] == ["base", "0.0% [0.0, 49.0]"] and cells[-1] == "n/a"
    assert [cell.strip() for cell in grpo.strip("|").split("|")][-4:] == ["100.0%"] * 4


def test_a_single_task_is_no_column_and_groups_are(tmp_path, records):
    record = records["id-image_generation"]
    rows = [judged(record, order) for order in ("ab", "ba")]
    summary = {**summarize(rows), **group_accuracy(rows, {record.id: "hallu_cination"})}
    columns = [cell.strip() for cell in stage_table({"s": summary}).splitlines()[0].strip("|").split("|")]
    assert columns[1:5] == ["Accuracy", "Hallu cination", "Mean of groups", "Readable"]
    assert headline(summary).startswith("accuracy 100.0% [20.7, 100.0], readable 100.0% ")


def test_a_benchmark_shows_its_groups_and_the_numbers_of_other_protocols(tmp_path, records):
    rows = run_of(records)
    results = {"s": {**summarize(rows), **group_accuracy(rows, {name: f"group <{name[3:8]}>" for name in records})}}
    published = {
        "official": {"k1": {"overall": {"value": 0.5, "count": 1, "total": 2}, "dropped": {"unparsed": 7}}},
        "ties": {"with_ties_fitted_on_these_rows": {"value": 0.25, "count": 1, "total": 4, "threshold": -1}},
    }
    page = page_of(tmp_path, records, {"s": rows}, results=results, published=published, about="Quirk: <b>none</b>.")
    drawn = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert drawn[:2] == ["Accuracy by task", "Accuracy by group of the benchmark"]
    assert "Group &lt;video&gt;" in page and "Mean of groups" in page and "Quirk: &lt;b&gt;none" in page
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Official: as the authors of the benchmark compute it k1 overall 50.00% 1 of 2 k1 dropped unparsed 7" in text
    assert "with ties fitted on these rows 25.00% 1 of 4, no tie called" in text and "Paper: " not in text
    elements(page)
    assert "By other protocols" not in page_of(tmp_path, records, {"s": rows})


def test_a_number_without_data_is_said_so_and_a_threshold_is_named():
    block = {"macro": {"value": None}, "at_tie_margin": {"threshold": 1.5, "value": 1.0}}
    assert list(map(str, numbers(block))) == ["macro: n/a", "at tie margin: 100.00% (tie up to a margin of 1.5)"]


# --- the commands ---


def test_the_evaluation_command_prints_the_result_and_writes_its_settings(tmp_path, records, monkeypatch, capsys):
    class First:
        """Prefers whatever is shown first."""

        settings = {}  # noqa: RUF012

        def __init__(self, path, *, batch_size=8, **settings):
            self.model, self.batch_size = path, batch_size

        def complete(self, prompts, *, sampling, seeds):
            said = "<think>hm</think>\n<answer>Image 1 is better</answer>"
            return [[Completion(said, "stop") for _ in drawn] for drawn in seeds]

    monkeypatch.setattr("unifiedreward_think.backends.transformers.TransformersBackend", First)
    data, output = tmp_path / "pairs.jsonl", tmp_path / "eval"
    data.write_text(json.dumps(records["id-image_generation"].to_json()) + "\n")
    call(monkeypatch, evaluation, "--model", "m", "--input", data, "--output", output, "--decoder", "pyav")
    said = capsys.readouterr().out
    assert "accuracy 50.0% [5.5, 94.5], readable 100.0% [" in said and "2 judgments of 1 pairs -> " in said
    names = {"config.yaml", "judgments.jsonl", "records.jsonl", "results.json"}
    assert {path.name for path in output.iterdir()} == names
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["arguments"]["input"] == [str(data)] and config["versions"]["torch"] and config["commit"]
    assert config["data"] == [{"file": str(data), "rows": 1, "sha256": file_sha256(data)}]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", config["date"])
    page = tmp_path / "report.html"
    call(monkeypatch, report, "--run", f"first={output}", "--output", page, "--decoder", "pyav")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split())
    assert f"Model m Data {data} (rows 1, sha256 {file_sha256(data)[:12]}) Sampling greedy, at most 2048" in text
    assert f"Commit {config['commit']} Date {config['date']}" in text and "first, with 95% intervals" in text


def write_run(folder, judgments, records):
    folder.mkdir(parents=True)
    lines = {"judgments": judgments, "records": records.values()}
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return folder


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    run_main(module.main)


def test_the_report_command_prints_the_table_and_writes_the_page(tmp_path, records, monkeypatch, capsys):
    a = write_run(tmp_path / "a", run_of(records, right=False), records)
    b = write_run(tmp_path / "b", run_of(records), records)
    (b / "log_history.json").write_text('[{"step": 1, "reward": 1.5}]')
    output = tmp_path / "page" / "report.html"
    call(monkeypatch, report, "--run", f"+ a={a}", "--run", f"b={b}", "--output", output, "--decoder", "pyav")
    assert capsys.readouterr().out.startswith("| stage | Accuracy")
    page = output.read_text()
    assert "+ a" in page and 'aria-label="Reward"' in page


def test_curves_that_are_not_there_stop_the_report_before_it_writes(tmp_path, records, monkeypatch):
    a = write_run(tmp_path / "a", run_of(records), records)
    with pytest.raises(SystemExit, match=r"gone\.json: no such file; --curves names a log_history\.json"):
        call(monkeypatch, report, "--run", f"a={a}", "--curves", "gone.json", "--output", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: (b / "judgments.jsonl").unlink(), r"b/judgments.jsonl: no such file"),
        (lambda a, b: (b / "records.jsonl").unlink(), r"b/records.jsonl: no such file"),
        (lambda a, b: (b / "judgments.jsonl").write_text(""), r"holds no judgment"),
        (lambda a, b: (b / "judgments.jsonl").write_text('{"record'), r"holds no judgment"),  # just being written
        (lambda a, b: (b / "judgments.jsonl").write_text("{\n"), r"judgments.jsonl:1: not valid JSON"),
        (
            lambda a, b: (b / "records.jsonl").write_text((a / "records.jsonl").read_text().replace("red.", "blue.")),
            r"record 'id-image_understanding' differs from that of another run",
        ),
    ],
)
def test_a_spoilt_run_folder_stops_the_report_before_it_writes(tmp_path, records, monkeypatch, spoil, message):
    a = write_run(tmp_path / "a", run_of(records), records)
    b = write_run(tmp_path / "b", run_of(records), records)
    spoil(a, b)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, report, "--run", f"a={a}", "--run", f"b={b}", "--output", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_scoring_again_finds_verdicts_that_today_are_read_differently(records):
    good, old = [judged(record) for record in list(records.values())[:2]]
    stale = dataclasses.replace(old, verdict=parse("", "Video"))
    failed = dataclasses.replace(good, order="ba", completion=None, error="gone", verdict=parse("", "Image"))
    rows, changed = rescore.rescore([good, stale, failed])
    assert rows == [good, old, failed] and changed == [old]


def test_a_row_that_names_its_style_is_parsed_in_that_style(records):
    record = records["id-image_generation"]
    text = "<answer>Image 1 is better</answer>"
    row = judged(record, text=text, settings={"style": "direct"})
    assert rescore.rescore([row])[0][0].verdict.strict
    assert not rescore.rescore([dataclasses.replace(row, settings={})])[0][0].verdict.strict
    assert rescore.rescore([dataclasses.replace(row, settings={})], style="direct")[0][0].verdict.strict


def test_the_rescore_command_replaces_results_only_when_asked(tmp_path, records, monkeypatch, capsys):
    folder = write_run(tmp_path / "a", run_of(records), records)
    call(monkeypatch, rescore, folder)
    assert "0 of 8 verdicts differ" in capsys.readouterr().out and not (folder / "results.json").exists()
    call(monkeypatch, rescore, folder, "--write")
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(summarize_run(run_of(records))))


def test_a_line_that_is_just_being_written_is_left_out(tmp_path, records, monkeypatch, capsys):
    rows = run_of(records)
    folder = write_run(tmp_path / "a", rows, records)
    with (folder / "judgments.jsonl").open("a") as file:
        file.write('{"record_id": "id-v')
    assert rescore.read_judgments(folder) == rows
    call(monkeypatch, rescore, folder)
    assert "0 of 8 verdicts differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            '{"benchmark": "mmrb2"}',
            r"official numbers of mmrb2, .* use python benchmark_evaluation/mmrb2\.py --replay .*",
        ),
        ("{", r"results\.json: not valid JSON"),
    ],
)
def test_results_that_cannot_be_computed_here_are_not_replaced(tmp_path, records, monkeypatch, stored, message):
    plain = write_run(tmp_path / "plain", run_of(records), records)
    folder = write_run(tmp_path / "benchmark", run_of(records), records)
    (folder / "results.json").write_text(stored)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, rescore, plain, folder, "--write")
    assert (folder / "results.json").read_text() == stored and not (plain / "results.json").exists()
    call(monkeypatch, rescore, plain, folder)  # to look at them is fine


def test_the_compare_command_prints_the_paired_test(tmp_path, records, monkeypatch, capsys):
    runs = run_of(records, right=False), run_of(records)
    a, b = (write_run(tmp_path / name, rows, records) for name, rows in zip("ab", runs, strict=True))
    call(monkeypatch, rescore, "--compare", a, b)
    out = capsys.readouterr().out
    assert paired_test(*runs).p_value == pytest.approx(2 / 2**4)
    assert f"right in {b} only: 8" in out and "exact two-sided p = 0.125 over clusters" in out
    call(monkeypatch, compare, a, b)
    assert capsys.readouterr().out == out


def test_rescore_wants_folders_or_a_comparison(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, rescore)
    assert "name folders to score again, or --compare A B" in capsys.readouterr().err
