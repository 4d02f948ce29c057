"""Every kind of page that others are shown, of realistic length: 64 pairs in both orders, with all that can happen."""

import yaml

from helpers.data import imported
from unifiedreward_think.data import report as data_report
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.evaluation import report, training_report
from unifiedreward_think.evaluation.training_log import TrainingRun
from unifiedreward_think.judging.store import write_evaluation
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.metrics import group_accuracy, summarize
from unifiedreward_think.records import Judgment, digest
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import parse, render

LOOKS = "Candidate one shows the circle that was asked for, and candidate two a square of another colour. " * 9
SETTINGS = {
    **{"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 192, "seed": 3, "style": "cot"},
    **{"prompts": "0123456789abcdef", "frames": 4, "weights": "9f86d081884c7d65", "dtype": "float32"},
}
CONFIG = {
    "arguments": {
        **{"input": ["outputs/toy/seed0/data/heldout.jsonl"], "orders": "both", "order_seed": 0},
        **{"prompts": "configs/toy/prompts", "layout": "one_line", "backend": "transformers"},
    },
    "data": [{"file": "outputs/toy/seed0/data/heldout.jsonl", "rows": 64, "sha256": "ab12" * 16}],
    "versions": {"unifiedreward-think": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0"},
    "commit": "0a1b2c3",
    "date": "2026-11-30 09:16 UTC",
}


def judged(record, order, run):
    """Right in `run` of ten cases; of the others wrong, loose, unreadable, cut or failed."""
    luck = digest(record.id, order) % 100
    shown = record.shown(order).winner
    winner = shown if luck % 10 < run else 3 - shown
    names = ("Semantic consistency", "Aesthetics", "Authenticity")
    scores = [(name, *((9, 4) if winner == 1 else (4, 9))) for name in names]
    noun = TASKS[record.task].noun
    text = render(winner, scores, noun=noun, preamble=LOOKS)
    text = {3: "Sure! " + text, 5: "I cannot say.", 7: text[: len(text) // 2]}.get(luck, text)
    made = {"completion": text, "verdict": parse(text, noun), "finish_reason": "length" if luck == 7 else "stop"}
    if luck == 11:
        made = {"completion": None, "verdict": parse("", noun), "error": "the server said 500 to all 4 tries"}
    about = {"order": order, "task": record.task, "preferred": record.preferred, "model": f"outputs/toy/seed{run}/grpo"}
    return Judgment(record_id=record.id, settings=SETTINGS, decoder="pyav", **about, **made)


def evaluated(folder, records, run):
    """Write the folder of an evaluation, and return its judgments."""
    rows = [judged(record, order, run) for record in records for order in ("ab", "ba")]
    folder.mkdir(parents=True)
    (folder / "judgments.jsonl").write_text(json_lines(rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    write_evaluation(folder, records, summarize(rows))
    return rows


def judging_pages(root, records, sampling):
    """Write a report of two runs, and one of a benchmark."""
    folders = {"cold start": root / "eval" / "cold_start", "+ GRPO": root / "eval" / "grpo"}
    runs = {name: evaluated(folder, records, 6 + 2 * n) for n, (name, folder) in enumerate(folders.items())}
    known = {record.id: record for record in records}
    results = {name: summarize(rows) for name, rows in runs.items()}
    common = {"records": known, "sampling": sampling}
    report.write_html(
        root / "report.html", results=results, judgments=runs, folders=folders, title="Judgments", **common
    )
    rows = runs["+ GRPO"]
    groups = {record.id: f"subset {digest(record.id) % 5}" for record in records}
    report.write_html(
        root / "benchmark.html",
        results={"mmrb2": summarize(rows) | group_accuracy(rows, groups)},
        judgments={"mmrb2": rows},
        folders={"mmrb2": folders["+ GRPO"]},
        title="mmrb2",
        published={"official": {"k1": {"overall": {"value": 0.5, "count": 80, "total": 160}}}},
        about="Official: both orders count.",
        max_examples=8,
        **common,
    )
    return folders, runs, known


def training_pages(root, folders, runs, known, sampling):
    """Write a report of GRPO with all its parts, and one of SFT."""
    history = [
        {
            **{"step": step, "reward": 1 + step / 60, "rewards/format_reward/mean": 1.0, "kl": 0.01 * step},
            **{"rewards/accuracy_reward/mean": step / 60, "parse_rate": 0.9, "readable_rate": 0.97, "loss": 1 / step},
            **{"completions/mean_length": 100.0 + step, "grad_norm": 0.5, "mean_token_accuracy": 0.9},
        }
        for step in range(1, 61)
    ]
    completions = [
        {"step": step, "task": task, "id": f"{task}{step}", "accuracy_reward": float(step % 3 > 0)}
        for step in range(1, 61)
        for task in TASKS
    ]
    arguments = {"model_name_or_path": "outputs/toy/seed0/rejection_sft", "train_files": ["hard.jsonl"], "beta": 0.1}
    about = {
        **{"stage": "grpo", "finished": True, "counts": {"pairs": 412, "rows": 824}, "started": CONFIG["date"]},
        **{
            "arguments": {**arguments, "seed": 0, **{f"argument_{n}": None for n in range(120)}},
            "ended": CONFIG["date"],
        },
        **{"defaults": {"beta": 0.0, "train_files": []}, "data": CONFIG["data"], "commit": "0a1b2c3"},
        "versions": CONFIG["versions"],
    }
    health = [
        {
            **{"metric": "kl", "first": 12, "until": None, "value": 0.613, "limit": 0.5, "band": "<= 0.5"},
            **{"cause": "the policy has left the reference model", "fix": "raise beta, lower learning_rate"},
        }
    ]
    pair = dict(zip(("before", "after"), folders.values(), strict=True))
    training_report.write_html(
        root / "training.html",
        TrainingRun("grpo", about, history, completions, health),
        judgments=dict(zip(pair, runs.values(), strict=True)),
        records=known,
        sampling=sampling,
        folders=pair,
    )
    supervised = [{key: row[key] for key in ("step", "loss", "mean_token_accuracy", "grad_norm")} for row in history]
    training_report.write_html(
        root / "sft.html",
        TrainingRun("cold_start", {**about, "stage": "sft"}, supervised, [], []),
        judgments={},
        records={},
        sampling=sampling,
    )


def data_page(root):
    """Write a report of three imported sources."""
    names = ("hpd", "llava_critic", "unifiedreward_v1_videos")
    for name in names:
        imported(name, root / name)
    folders = [str(root / name / "out") for name in names]
    data_report.main(["--input", *folders, "--output", str(root / "data.html"), "--frames", "2", "--decoder", "pyav"])


def write_all(root, world):
    """Write every kind of page into `root`, and return kind -> its file."""
    sampling = FrameSampling(frames=2, cache=root / "frames", decoder="pyav")
    records = load_records([str(world / "heldout.jsonl")]).rows[:64]
    training_pages(root, *judging_pages(root, records, sampling), sampling)
    data_page(root)
    return {path.stem: path for path in sorted(root.glob("*.html"))}
