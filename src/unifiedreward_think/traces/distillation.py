r"""Cold-start traces: a teacher writes chains of thought, and those that agree with the label are kept.

    python -m unifiedreward_think.data distill --input data/split/train --output data/cold_start \
        --model gpt-4o --server https://api.openai.com/v1 --max-usd 20 --usd-per-million 2.5 10 --rpm 500

Writes into the output folder:
    judgments/         every answer, a file for every thousand pairs; a rerun goes on from them
    ledger.jsonl       what was spent
    traces.jsonl       the kept ones: training rows of the cold start
    rejected.jsonl     the others, with every reason
    manifest.json      counts, kept rate by source with its 95% interval, settings; it comes last

A trace is kept if its form is strict, its winner is the preferred candidate, and its sums add up; of several samples,
the first such one. Ties have no winner and are not asked about. Memory holds a thousand pairs with their answers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.backends.teacher import BudgetSpent, Prices, Teacher
from unifiedreward_think.data.arguments import add_frames, add_prompts, command, frame_sampling
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import as_json, claim, described, read_stored
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.intervals import Rate
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.protocol import Protocol
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace, order_shown
from unifiedreward_think.traces.filters import counted_as, rejections
from unifiedreward_think.writing import open_whole, write_whole

PAIRS = 1000  # asked about in one go: what memory holds


@dataclass(slots=True)
class Counts:
    """What became of the pairs, by source, and of the answers, by reason."""

    pairs: int = 0
    not_asked: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form, with the kept rate of each source."""
        rates = {source: Rate(self.kept[source], total) for source, total in sorted(self.asked.items()) if total}
        return {
            "pairs": self.pairs,
            "not asked": self.not_asked,
            "kept": self.kept.total(),
            "kept by source": {
                name: {"rate": str(rate), "kept": rate[0], "of": rate[1]} for name, rate in rates.items()
            },
            "answers rejected because": dict(sorted(self.rejected.items())),
        }


def distill(records: Iterable[PreferenceRecord], teacher: Teacher, protocol: Protocol, output: Path) -> dict[str, Any]:
    """Ask the teacher about every record and write the traces; return the counts.

    When the budget is spent, the answers so far are used, and the count `not asked` says how many pairs are left.
    """
    counts, spent = Counts(), ""
    rows = iter(records)
    with open_whole(output / "traces.jsonl") as traces, open_whole(output / "rejected.jsonl") as rejected:
        for number, chunk in enumerate(iter(lambda: list(islice(rows, PAIRS)), [])):
            file = output / "judgments" / f"{number:05d}.jsonl"
            judgments, spent = _answers(chunk, teacher, protocol, file, spent)
            for trace, others in _sorted_out(chunk, judgments, counts):
                traces.write(json.dumps(trace.to_json()) + "\n" if trace else "")
                rejected.writelines(json.dumps(other) + "\n" for other in others)
    return {**counts.as_json(), **({"stopped": spent} if spent else {}), "usd": round(teacher.spent, 6)}


def _answers(
    records: Sequence[PreferenceRecord], teacher: Teacher, protocol: Protocol, file: Path, spent: str
) -> tuple[list[Judgment], str]:
    """Return the answers about records, and why there are no more of them: the budget is `spent`."""
    if not spent:
        try:
            return judge(records, teacher, protocol, file, label=f"distilling, part {int(file.stem) + 1}"), ""
        except BudgetSpent as error:
            spent = str(error)
    known = load_judgments(file) if file.is_file() else {}
    wanted = [(r.id, order_shown(r, protocol.order_seed), k) for r in records for k in range(protocol.samples)]
    return [known[key] for key in wanted if key in known], spent


def _sorted_out(
    records: Sequence[PreferenceRecord], judgments: Sequence[Judgment], counts: Counts
) -> Iterator[tuple[Trace | None, list[dict[str, Any]]]]:
    """Yield the trace of each record, if there is one, and its rejected answers with their reasons."""
    by_record: dict[str, list[Judgment]] = defaultdict(list)
    for row in judgments:
        by_record[row.record_id].append(row)
    for record in records:
        rows = by_record[record.id]
        counts.pairs += 1
        counts.not_asked += all(row.error for row in rows)
        counts.asked[record.source] += any(not row.error for row in rows)
        found = [(row, rejections(row)) for row in rows]
        for _, why in found:
            counts.rejected.update(map(counted_as, why))
        others = [{"id": record.id, "order": r.order, "sample": r.sample, "reasons": why} for r, why in found if why]
        good = next((row for row, why in found if not why), None)
        counts.kept[record.source] += good is not None
        yield Trace(record=record, order=good.order, completion=good.completion or "") if good else None, others


def _parser() -> argparse.ArgumentParser:
    parser = command("distill", __doc__, output="folder for the traces; a rerun goes on from it")
    add, sampling = parser.add_argument, Sampling()
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
    add_prompts(parser)
    add_frames(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Distill from the command line."""
    args = _parser().parse_args(arguments)
    about = {"command": "distill", "model": args.model, "inputs": [described(folder) for folder in args.input]}
    claim(args.output, about)
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
        frames=frame_sampling(args, args.output / "frames"),
        samples=args.samples,
        order_seed=args.seed,
    )
    decided = (row.record for _, _, row in read_stored(args.input) if row.record.preferred in (1, 2))
    (args.output / "manifest.json").unlink(missing_ok=True)  # where it is, the files beside it are whole
    counts = distill(islice(decided, args.limit), teacher, protocol, args.output)
    if not counts["pairs"]:
        raise DataError("no pair with a winner; nothing to distill")
    manifest = {**about, "sampling": asdict(protocol.sampling), "counts": counts, **provenance()}
    write_whole(args.output / "manifest.json", as_json(manifest))
    print(as_json(counts), end="")


if __name__ == "__main__":
    run_main(main)
