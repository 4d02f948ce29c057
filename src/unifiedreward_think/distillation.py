r"""Cold-start traces: a teacher writes chains of thought, and those that agree with the label are kept.

    python -m unifiedreward_think.data distill --input data/split/train --output data/cold_start \
        --model gpt-4o --server https://api.openai.com/v1 --max-usd 20 --usd-per-million 2.5 10 --rpm 500

Writes into the output folder:
    judgments.jsonl    every answer; a rerun goes on from it
    ledger.jsonl       what was spent
    traces.jsonl       the kept ones: training rows of the cold start
    rejected.jsonl     the others, with every reason
    manifest.json      counts, kept rate by source with its 95% interval, settings

A trace is kept if its form is strict, its winner is the preferred candidate, and its sums add up; of several samples,
the first such one. Ties have no winner and are not asked about.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Sampling
from unifiedreward_think.data.files import DataError
from unifiedreward_think.data.shards import as_json, described, read_stored
from unifiedreward_think.entry import run_main
from unifiedreward_think.intervals import Rate
from unifiedreward_think.judge import Protocol, judge, load_judgments, write_whole
from unifiedreward_think.media import DECODERS, FrameSampling
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace, order_shown
from unifiedreward_think.tasks import load_prompts
from unifiedreward_think.teacher import BudgetSpent, Prices, Teacher


def reasons(judgment: Judgment) -> list[str]:
    """Return why an answer is no training trace; empty for one that is.

    >>> from unifiedreward_think.verdict import parse, render
    >>> said = render(1, [("Aesthetics", 9, 4)], noun="Image")
    >>> row = Judgment(record_id="a", order="ab", completion=said, verdict=parse(said, "Image"), preferred=2,
    ...                task="image_generation")
    >>> reasons(row)
    ['disagrees with the label']
    """
    if judgment.error:
        return [f"no answer: {judgment.error}"]
    if judgment.finish_reason == "length":
        return ["cut at the token limit"]
    if judgment.verdict.winner is None:
        return ["no readable answer"]
    rules = {
        "disagrees with the label": not judgment.correct,
        "not strictly formed": not judgment.verdict.strict,
        "sums do not add up": not judgment.verdict.arithmetic_ok,
    }
    return [reason for reason, broken in rules.items() if broken]


def distill(records: Sequence[PreferenceRecord], teacher: Teacher, protocol: Protocol, output: Path) -> dict[str, Any]:
    """Ask the teacher about every record and write the traces; return the counts.

    When the budget is spent, the answers so far are used, and the count `not asked` says how many pairs are left.
    """
    file = output / "judgments.jsonl"
    spent = ""
    try:
        judgments = judge(records, teacher, protocol, file, label="distilling")
    except BudgetSpent as error:
        spent = str(error)
        known = load_judgments(file)
        wanted = [(r.id, order_shown(r, protocol.order_seed), k) for r in records for k in range(protocol.samples)]
        judgments = [known[key] for key in wanted if key in known]
    by_record: dict[str, list[Judgment]] = defaultdict(list)
    for row in judgments:
        by_record[row.record_id].append(row)
    kept, rejected, counts = _sorted_out(records, by_record)
    write_whole(output / "traces.jsonl", "".join(json.dumps(trace.to_json()) + "\n" for trace in kept))
    write_whole(output / "rejected.jsonl", "".join(json.dumps(row) + "\n" for row in rejected))
    return {**counts, **({"stopped": spent} if spent else {}), "usd": round(teacher.spent, 6)}


def _sorted_out(
    records: Sequence[PreferenceRecord], by_record: dict[str, list[Judgment]]
) -> tuple[list[Trace], list[dict[str, Any]], dict[str, Any]]:
    kept: list[Trace] = []
    rejected: list[dict[str, Any]] = []
    asked: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    why: Counter[str] = Counter()
    for record in records:
        rows = by_record.get(record.id, [])
        asked[record.source] += any(not row.error for row in rows)
        good = [row for row in rows if not reasons(row)]
        for row in rows:
            if found := reasons(row):
                why.update("no answer" if reason.startswith("no answer") else reason for reason in found)
                rejected.append({"id": record.id, "order": row.order, "sample": row.sample, "reasons": found})
        if good:
            kept.append(Trace(record=record, order=good[0].order, completion=good[0].completion or ""))
            taken[record.source] += 1
    rates = {source: Rate(taken[source], total) for source, total in sorted(asked.items()) if total}
    counts = {
        "pairs": len(records),
        "not asked": sum(all(row.error for row in by_record.get(record.id, [])) for record in records),
        "kept": len(kept),
        "kept by source": {name: {"rate": str(rate), "kept": rate[0], "of": rate[1]} for name, rate in rates.items()},
        "answers rejected because": dict(sorted(why.items())),
    }
    return kept, rejected, counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m unifiedreward_think.data distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, sampling = parser.add_argument, Sampling()
    add("--input", type=Path, nargs="+", required=True, help="folders of records")
    add("--output", type=Path, required=True, help="folder for the traces; a rerun goes on from it")
    add("--model", required=True, help="what the server calls the teacher")
    add("--server", default="http://127.0.0.1:8000/v1", help="address of an OpenAI-compatible API; key: OPENAI_API_KEY")
    add("--limit", type=int, help="pairs to ask about")
    add("--max-usd", type=float, help="budget, earlier runs into this folder included")
    add("--usd-per-million", type=float, nargs=2, default=[0.0, 0.0], metavar=("PROMPT", "COMPLETION"), help="prices")
    add("--rpm", type=float, help="requests a minute")
    add("--concurrency", type=int, default=16, help="requests in flight")
    add("--timeout", type=float, default=600.0, help="seconds for one request")
    add("--max-retries", type=int, default=4, help="of a request that the server failed")
    add("--samples", type=int, default=1, help="answers for each pair")
    add("--temperature", type=float, default=sampling.temperature, help="of the answers")
    add("--top-p", type=float, default=sampling.top_p, help="nucleus of the answers")
    add("--max-new-tokens", type=int, default=sampling.max_new_tokens, help="limit of an answer")
    add("--seed", type=int, default=0, help="decides samples and the order shown")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="form of a dimension")
    add("--prompt-dir", help="folder of prompt templates of your own")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--decoder", choices=DECODERS, default="decord", help="reads the videos")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Distill from the command line."""
    args = _parser().parse_args(arguments)
    records = [row.record for _, _, row in read_stored(args.input) if row.record.preferred in (1, 2)][: args.limit]
    if not records:
        raise DataError("no pair with a winner; nothing to distill")
    teacher = Teacher(
        args.model,
        prices=Prices(*args.usd_per_million),
        ledger=args.output / "ledger.jsonl",
        max_usd=args.max_usd,
        rpm=args.rpm,
        server=args.server,
        concurrency=args.concurrency,
        timeout=args.timeout,
        max_retries=args.max_retries,
    )
    protocol = Protocol(
        prompts=load_prompts("cot", layout=args.layout, folder=args.prompt_dir),
        style="cot",
        sampling=Sampling(
            temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed
        ),
        frames=FrameSampling(frames=args.frames, cache=args.output.absolute() / "frames", decoder=args.decoder),
        samples=args.samples,
        order_seed=args.seed,
    )
    counts = distill(records, teacher, protocol, args.output)
    about = {"command": "distill", "model": args.model, "inputs": [described(folder) for folder in args.input]}
    manifest = {**about, "sampling": asdict(protocol.sampling), "counts": counts, **provenance()}
    write_whole(args.output / "manifest.json", as_json(manifest))
    print(as_json(counts), end="")


if __name__ == "__main__":
    run_main(main)
