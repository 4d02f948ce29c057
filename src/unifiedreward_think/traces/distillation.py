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

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.backends.teacher import BudgetSpent, Prices, Teacher
from unifiedreward_think.data.arguments import FRAMES, command
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import as_json, claim, described, read_stored
from unifiedreward_think.flags import Amount, Count, Parser, Positive, ranged, read
from unifiedreward_think.in_use import LOCK, release
from unifiedreward_think.intervals import Rate
from unifiedreward_think.judging.judge import judge, orders_of
from unifiedreward_think.judging.settings import JudgingArguments, JudgingConfig, set_up
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.metrics import by_record
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.trace_rules import counted_as, rejections
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


def distill(
    records: Iterable[PreferenceRecord], teacher: Teacher, config: JudgingConfig, output: Path
) -> dict[str, Any]:
    """Ask the teacher about every record and write the traces; return the counts.

    When the budget is spent, the answers so far are used, and the count `not asked` says how many pairs are left.
    """
    counts, spent = Counts(), ""
    rows = iter(records)
    with open_whole(output / "traces.jsonl") as traces, open_whole(output / "rejected.jsonl") as rejected:
        for number, chunk in enumerate(iter(lambda: list(islice(rows, PAIRS)), [])):
            file = output / "judgments" / f"{number:05d}.jsonl"
            judgments, spent = _answers(chunk, teacher, config, file, spent)
            for trace, others in _sorted_out(chunk, judgments, counts):
                traces.write(json.dumps(trace.to_json()) + "\n" if trace else "")
                rejected.writelines(json.dumps(other) + "\n" for other in others)
    return {**counts.as_json(), **({"stopped": spent} if spent else {}), "usd": round(teacher.spent, 6)}


def _answers(
    records: Sequence[PreferenceRecord], teacher: Teacher, config: JudgingConfig, file: Path, spent: str
) -> tuple[list[Judgment], str]:
    """Return the answers about records, and why there are no more of them: the budget is `spent`."""
    if not spent:
        try:
            return judge(records, teacher, config, file, label=f"distilling, part {int(file.stem) + 1}"), ""
        except BudgetSpent as error:
            spent = str(error)
    known = load_judgments(file) if file.is_file() else {}
    wanted = [(r.id, order, k) for r in records for order in orders_of(r, config) for k in range(config.samples)]
    return [known[key] for key in wanted if key in known], spent


def _sorted_out(
    records: Sequence[PreferenceRecord], judgments: Sequence[Judgment], counts: Counts
) -> Iterator[tuple[Trace | None, list[dict[str, Any]]]]:
    """Yield the trace of each record, if there is one, and its rejected answers with their reasons."""
    by_id = by_record(judgments)
    for record in records:
        rows = by_id[record.id]
        counts.pairs += 1
        counts.not_asked += all(row.error for row in rows)
        counts.asked[record.source] += any(not row.error for row in rows)
        reasons = [(row, rejections(row)) for row in rows]
        for _, why in reasons:
            counts.rejected.update(map(counted_as, why))
        others = [{"id": record.id, "order": r.order, "sample": r.sample, "reasons": why} for r, why in reasons if why]
        good = next((row for row, why in reasons if not why), None)
        counts.kept[record.source] += good is not None
        yield Trace(record=record, order=good.order, completion=good.completion or "") if good else None, others


def _parser() -> Parser:
    parser = command("distill", __doc__, output="folder for the traces; a rerun goes on from it")
    add = parser.add_argument
    add("--model", required=True, help="what the server calls the teacher")
    add("--limit", type=ranged(Count), help="pairs to ask about")
    add("--max-usd", type=ranged(Amount), help="budget, earlier runs into this folder included")
    prices = ("PROMPT", "COMPLETION")
    add("--usd-per-million", type=ranged(Amount), nargs=2, default=[0.0, 0.0], metavar=prices, help="prices")
    add("--rpm", type=ranged(Positive), help="requests a minute")
    parser.add(BackendArguments, "server", "concurrency", "timeout", "max_retries")
    parser.add(
        JudgingArguments,
        "form",
        "layout",
        "prompts",
        *FRAMES,
        "samples",
        "temperature",
        "top_p",
        "max_new_tokens",
        "seed",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Distill from the command line."""
    args = _parser().parse_args(arguments)
    about = {"command": "distill", "model": args.model, "inputs": [described(folder) for folder in args.input]}
    judging = read(args, JudgingArguments, order_seed=args.seed, frame_cache=str(args.output.absolute() / "frames"))
    claim(args.output, about)
    config, teacher = set_up(
        judging,
        read(args, BackendArguments, backend="server"),
        kind=Teacher,
        prices=Prices(*args.usd_per_million),
        ledger=args.output / "ledger.jsonl",
        max_usd=args.max_usd,
        rpm=args.rpm,
    )
    decided = (row.record for _, _, row in read_stored(args.input) if config.form.decides(row.record))
    (args.output / "manifest.json").unlink(missing_ok=True)  # where it is, the files beside it are whole
    counts = distill(islice(decided, args.limit), cast(Teacher, teacher), config, args.output)
    if not counts["pairs"]:
        raise DataError("no pair with a winner; nothing to distill")
    manifest = {**about, "sampling": asdict(config.sampling), "counts": counts, **provenance()}
    write_whole(args.output / "manifest.json", as_json(manifest))
    release(args.output / LOCK)
    print(as_json(counts), end="")
